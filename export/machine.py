"""What this machine is: processor, NVIDIA GPUs and driver, and what is installed. Torch-free, and nothing heavy is imported.

`this_machine` asks the system. A `Machine` is plain data, so whatever judges one can be shown any other.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# Distributions that all bring the one module `onnxruntime`.
ONNXRUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-cann",
    "onnxruntime-training",
    "ort-nightly",
    "ort-nightly-gpu",
)
TENSORRTS = ("tensorrt", "tensorrt_cu12", "tensorrt_cu13", "tensorrt_rtx", "tensorrt_rtx_cu12", "tensorrt_rtx_cu13")
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}  # what Windows and macOS call them
PROVIDERS = "import json, onnxruntime as o; print(json.dumps([o.__version__, o.get_available_providers()]))"
CPU_INFO, DRIVER, GPUS = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/version"), Path("/proc/driver/nvidia/gpus")
PATIENCE = 60  # seconds that an import may take


@dataclass(frozen=True)
class Gpu:
    """`capability` is the compute capability, "8.6"."""

    name: str
    capability: str


@dataclass(frozen=True)
class Machine:
    """What can be known of a machine without loading anything.

    Attributes:
        system, arch: "Linux", "x86_64". libc: of Linux, "glibc 2.39".
        cpu: what the processor can do, in Linux' words ("avx512_vnni", "asimddp"); None where the system does not tell.
        gpus: those that CUDA shows, in its order. num_gpus: those that the driver has, shown or not.
        visible: CUDA_VISIBLE_DEVICES, None where it is not set.
        driver: version of the NVIDIA driver. cuda: the newest CUDA that it runs. cuda_error: why CUDA shows nothing.
        versions: by distribution, of `ONNXRUNTIMES`, `TENSORRTS` and openvino.
        imported, providers: version and providers of the onnxruntime that is imported, once it was asked; import_error: why it
            cannot be imported.
    """

    system: str
    arch: str
    libc: str = ""
    cpu: frozenset[str] | None = None
    gpus: tuple[Gpu, ...] = ()
    num_gpus: int = 0
    visible: str | None = None
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    cuda_error: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    imported: str | None = None
    providers: tuple[str, ...] | None = None
    import_error: str = ""

    @property
    def onnxruntimes(self) -> list[str]:
        """The installed distributions that bring `onnxruntime`."""
        return [name for name in ONNXRUNTIMES if name in self.versions]

    def version_of(self, runtime: str) -> str | None:
        """Of `tensorrt` or `tensorrt_rtx`, whichever CUDA it was made for."""
        return next(
            (self.versions[name] for name in (runtime, f"{runtime}_cu13", f"{runtime}_cu12") if name in self.versions), None
        )

    @property
    def fast_int8(self) -> bool | None:
        """Whether the processor has instructions for eight-bit products; None where the system does not tell."""
        return self.has("asimddp", "i8mm", "svei8mm") if self.arch == "aarch64" else self.has("avx512_vnni", "avx_vnni", "amx_int8")

    @property
    def bfloat16(self) -> bool | None:
        """Whether the processor computes in bfloat16; None where the system does not tell."""
        return self.has("bf16", "svebf16") if self.arch == "aarch64" else self.has("amx_bf16", "avx512_bf16")

    def has(self, *flags: str) -> bool | None:
        return None if self.cpu is None else any(flag in self.cpu for flag in flags)

    def to_dict(self) -> dict[str, Any]:
        """What is told of it beside verdicts on files."""
        return {
            "system": f"{self.system} {self.arch}",
            "gpus": [f"{gpu.name}, compute capability {gpu.capability}" for gpu in self.gpus],
            "driver": self.driver,
            "cuda": ".".join(map(str, self.cuda)) if self.cuda else None,
            "runtimes": self.versions,
            "providers": list(self.providers) if self.providers is not None else None,
        }


def this_machine() -> Machine:
    """All but what only an import of onnxruntime tells; a fraction of a second."""
    gpus, cuda, error = ask_cuda()
    return Machine(
        system=platform.system(),
        arch=architecture(),
        libc=" ".join(platform.libc_ver()).strip(),
        cpu=cpu_flags(),
        gpus=gpus,
        num_gpus=max(len(gpus), len(list(GPUS.glob("*")))),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        driver=driver_version(),
        cuda=cuda,
        cuda_error=error,
        versions=installed(*ONNXRUNTIMES, *TENSORRTS, "openvino"),
    )


def with_providers(machine: Machine) -> Machine:
    """The same with what onnxruntime says of itself. It is imported in a process of its own: a broken one may crash."""
    if not machine.onnxruntimes:
        return machine
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROVIDERS], capture_output=True, text=True, check=False, timeout=PATIENCE,
            env=child_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return replace(machine, import_error=f"it did not come to an end in {PATIENCE} seconds")
    except OSError as error:
        return replace(machine, import_error=f"no process could be started for it: {error.strerror or error}")
    try:
        version, providers = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        words = done.stderr.strip().splitlines()
        return replace(machine, import_error=words[-1] if words else f"it ended with status {done.returncode}")
    return replace(machine, imported=version, providers=tuple(providers))


def child_environment() -> dict[str, str]:
    """For a Python process of ours, started with `-P`: it imports from where this one does, but for the folder in which one stands,
    which may be a package of somebody else."""
    places = [place for place in sys.path if place and Path(place).resolve() != Path.cwd()]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def installed(*names: str) -> dict[str, str]:
    """Versions of the installed distributions among `names`."""
    from importlib import metadata  # slow, and the process that builds engines does not need it

    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def architecture() -> str:
    name = platform.machine().lower()
    return ARCHITECTURES.get(name, name)


def cpu_flags() -> frozenset[str] | None:
    """What Linux says of the first processor."""
    if not CPU_INFO.is_file():
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    return frozenset(found[1].split()) if found else None


def driver_version() -> str | None:
    """Of the NVIDIA kernel driver, as Linux tells it."""
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", DRIVER.read_text()) if DRIVER.is_file() else None
    return found[1] if found else None


def ask_cuda() -> tuple[tuple[Gpu, ...], tuple[int, int] | None, str]:
    """The GPUs, the newest CUDA, and what went wrong, asked of the driver itself; none of them where there is no driver."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return (), None, ""
    number, newest = ctypes.c_int(), None
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0:
        newest = (number.value // 1000, number.value % 1000 // 10)
    if status := cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(number)):
        return (), newest, f"CUDA error {status}"
    return tuple(_gpu(cuda, index) for index in range(number.value)), newest, ""


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    parts = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(parts))
