"""What this machine can train, export and run, and what to do where it cannot. Torch-free: it reads what is installed."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, KdzooError
from ..zoo.datasets import find_data
from ..zoo.manifest import host_description, library_versions
from .engine_sidecar import gpu_compute_capability
from .format import FORMATS, ExportOptions

CORE = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pillow",
    "PyYAML",
)
OPTIONAL = {
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt": "tensorrt",
    **{name: name for name in ("matplotlib", "scikit-learn", "tensorboard")},
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state` is `ok`, `absent` (nothing is broken, something is not possible) or `problem`."""

    subject: str
    state: str
    detail: str
    hint: str = ""


def examine() -> list[Finding]:
    """Everything, the machine first."""
    return [*machine(), *packages(), *formats(), data()]


def machine() -> list[Finding]:
    """Python, processor, bf16, GPU, free disk."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    bf16 = next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), None)
    gpu, free = gpu_compute_capability(), shutil.disk_usage(Path.cwd()).free / 1e9
    return [
        Finding("python", "ok", python),
        Finding("processor", "ok", host_description()),
        Finding("bf16", "ok", f"{bf16}: training uses bf16 autocast")
        if bf16
        else Finding("bf16", "absent", "the processor does not say that it computes in bf16; training is float32"),
        Finding("gpu", "ok", f"compute capability {gpu}") if gpu else Finding("gpu", "absent", "no NVIDIA GPU or driver"),
        Finding("disk", "ok", f"{free:.1f} GB free here")
        if free > 1
        else Finding("disk", "problem", f"{free:.1f} GB free here", "free some space before training or exporting"),
    ]


def packages() -> list[Finding]:
    """Core packages, extras, and the two onnxruntimes that must not be installed together."""
    found = library_versions(*CORE, *OPTIONAL, "onnxruntime-gpu")
    has_runtime = "onnxruntime-gpu" in found
    result = []
    for name in CORE:
        if name in found or (name == "onnxruntime" and has_runtime):
            result.append(Finding(name, "ok", found.get(name) or f"{found['onnxruntime-gpu']} (gpu)"))
        else:
            result.append(Finding(name, "problem", "not installed", f"pip install {name}"))
    for name, extra in OPTIONAL.items():
        missing = Finding(name, "absent", "not installed", f"pip install {extra}")
        result.append(Finding(name, "ok", found[name]) if name in found else missing)
    if has_runtime and "onnxruntime" in found:
        result.append(Finding(
            "onnxruntime", "problem", "onnxruntime and onnxruntime-gpu are both installed: one overwrites files of the other",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        ))  # fmt: skip
    return result


def formats() -> list[Finding]:
    """Whether each export format can be made here."""
    result = []
    for name in FORMATS.names():
        maker, why = FORMATS.get(name).resolve(ExportOptions())
        try:
            maker().check(ExportOptions())
        except KdzooError as error:
            result.append(Finding(f"--format {name}", "absent", error.what, error.hint))
        else:
            result.append(Finding(f"--format {name}", "ok", why or "can be made here"))
    return result


def data() -> Finding:
    """Whether the images of the default entry are found without `--data`."""
    try:
        return Finding("cifar100", "ok", f"found in {find_data('cifar100', None)}")
    except DataError as error:
        return Finding("cifar100", "absent", error.what, error.hint)
