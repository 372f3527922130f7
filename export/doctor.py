"""What this machine can train, export and run, and what to do where it cannot. Torch-free: it reads what is installed."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, KdzooError
from ..zoo.datasets import find_data
from ..zoo.manifest import host_description, library_versions
from .format import FORMATS, ExportOptions
from .machine import Machine, this_machine, with_providers
from .obstacles import DRIVERS, cuda_lacking, no_gpu
from .obstacles_onnx import of_onnxruntime

CORE = ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "huggingface_hub", "numpy", "pillow", "PyYAML")
OPTIONAL = {
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt": "tensorrt",
    **{name: name for name in ("openvino", "matplotlib", "scikit-learn", "tensorboard")},
}
# What processors of either kind can do that matters here, in Linux' words, and what it is good for.
CPU_USES = {
    "x86_64": {
        "fma": ("avx2",),
        "int8": ("avx512_vnni", "avx_vnni", "amx_int8"),
        "bf16": ("amx_bf16", "avx512_bf16"),
    },
    "aarch64": {"fp16": ("asimdhp", "sve"), "int8": ("asimddp", "i8mm", "svei8mm"), "bf16": ("bf16", "svebf16")},
}
MEANING = {
    "fma": ("float32 is computed eight numbers at a time", "without AVX2 every runtime is several times slower"),
    "fp16": ("float16 is computed as such", "float16 files run slower than float32"),
    "int8": ("int8 files run fast", "int8 files run slower than they could"),
    "bf16": ("training uses bf16 autocast", "training is float32"),
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state` is `ok`, `absent` (nothing is broken, something is not possible) or `problem`."""

    subject: str
    state: str
    detail: str
    hint: str = ""


def look() -> Machine:
    """This machine, onnxruntime's own words included."""
    return with_providers(this_machine())


def examine() -> list[Finding]:
    """Everything, the machine first."""
    machine = look()
    return [*host(), *processor(machine), *nvidia(machine), *packages(), *onnxruntime(machine), *formats(), data()]


def host() -> list[Finding]:
    """Python, system, free disk."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return [
        Finding("python", "ok", python),
        Finding("disk", "ok", f"{free:.1f} GB free here")
        if free > 1
        else Finding("disk", "problem", f"{free:.1f} GB free here", "free some space before training or exporting"),
    ]


def processor(machine: Machine) -> list[Finding]:
    """Which processor, which C library, and the instructions that matter."""
    libc = f", {machine.libc}" if machine.libc else ""
    result = [Finding("processor", "ok", f"{host_description()}{libc}")]
    if machine.cpu is None or machine.arch not in CPU_USES:
        return [*result, Finding("instructions", "absent", f"{machine.system} on {machine.arch} does not tell what it can do")]
    for name, wanted in CPU_USES[machine.arch].items():
        there, (yes, no) = [flag for flag in wanted if flag in machine.cpu], MEANING[name]
        result.append(
            Finding(f"cpu {name}", "ok", f"{', '.join(there)}: {yes}")
            if there
            else Finding(f"cpu {name}", "absent", f"none of {', '.join(wanted)}: {no}")
        )
    return result


def nvidia(machine: Machine) -> list[Finding]:
    """Every GPU that CUDA shows, the driver, and whether what is installed gets along with it."""
    result = []
    if machine.cuda or machine.driver:
        cuda = f"CUDA up to {machine.cuda[0]}.{machine.cuda[1]}" if machine.cuda else "libcuda is not found"
        result.append(Finding("nvidia driver", "ok", f"{machine.driver or 'version unknown'}, {cuda}"))
    for index, gpu in enumerate(machine.gpus):
        result.append(Finding(f"gpu {index}", "ok", f"{gpu.name}, compute capability {gpu.capability}"))
    if not machine.gpus:
        none = no_gpu("", machine)
        words = none.what.partition("none was found: ")[2] or "no NVIDIA GPU or driver"
        broken = machine.num_gpus > 0 and none.case == "no-gpu"
        result.append(Finding("gpu", "problem" if broken else "absent", words, none.hint if machine.num_gpus else ""))
    for package in ("tensorrt_rtx", "tensorrt"):
        needs = cuda_lacking(package, machine)
        if needs and machine.gpus and machine.cuda:
            what = f"it is made for CUDA {needs}; the driver runs CUDA up to {machine.cuda[0]}.{machine.cuda[1]}"
            result.append(Finding(package, "problem", what, f"install NVIDIA driver {DRIVERS[needs]} or newer"))
    return result


def packages() -> list[Finding]:
    """Core packages and extras."""
    found = library_versions(*CORE, *OPTIONAL)
    result = [
        Finding(name, "ok", found[name]) if name in found else Finding(name, "problem", "not installed", f"pip install {name}")
        for name in CORE
    ]
    for name, extra in OPTIONAL.items():
        missing = Finding(name, "absent", "not installed", f"pip install {extra}")
        result.append(Finding(name, "ok", found[name]) if name in found else missing)
    return result


def onnxruntime(machine: Machine) -> list[Finding]:
    """Which of the distributions that bring onnxruntime are installed, whether they get along, and the providers they have."""
    variants = machine.onnxruntimes
    if not variants:
        return [Finding("onnxruntime", "problem", "not installed", "pip install onnxruntime")]
    wrong = [Finding("onnxruntime", "problem", found.what, found.hint) for found in of_onnxruntime(machine)]
    told = ", ".join(f"{name} {machine.versions[name]}" for name in variants)
    if machine.providers is not None:
        told += f": {', '.join(name.removesuffix('ExecutionProvider') for name in machine.providers)}"
    return wrong or [Finding("onnxruntime", "ok", told)]


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
