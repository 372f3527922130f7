"""What stands between a file and a machine, and what removes it. Pure functions of plain data; torch-free.

`of_engine` is the one judge of TensorRT engines: `engine_sidecar.preflight` raises what it finds, `kdzoo doctor` shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .machine import Gpu, Machine

if TYPE_CHECKING:
    from .engine_sidecar import EngineInfo
    from .origin import Origin

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
PORTABLE_FROM = (8, 0)  # a portable RTX engine, and a hardware-compatible one of TensorRT, cover every capability from here on
DRIVERS = {12: "525", 13: "580"}  # the first NVIDIA driver of each CUDA
FORMAT_OF = {"tensorrt_rtx": "trt-rtx", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class Obstacle:
    """`case` is a stable word for it. With `stops` false the file runs, but not as it should. `damaged`: it is not what it says."""

    case: str
    what: str
    hint: str = ""
    stops: bool = True
    damaged: bool = False


def numbers(version: str) -> tuple[int, ...]:
    """`1.7.1.116` and `2026.4.1-2260-abc` as numbers, to compare."""
    parts = []
    for part in version.split("-")[0].split("+")[0].split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def of_engine(info: EngineInfo, machine: Machine, origin: Origin) -> Iterator[Obstacle]:
    """What keeps an engine from running, the first thing to mend first: package, system, version, GPU, driver, capability."""
    pip, installed = info.runtime.replace("_", "-"), machine.version_of(info.runtime)
    again = origin.export(FORMAT_OF[info.runtime])
    if machine.system == "Darwin":
        yield Obstacle("no-nvidia-system", f"{info.name} needs an NVIDIA GPU, and there is no driver for macOS")
        return
    if installed is None:
        yield _missing(info, machine)
    if info.system and info.system != f"{machine.system} {machine.arch}":
        yield Obstacle(
            "other-system",
            f"{info.name} was built on {info.system} and runs nowhere else; this is {machine.system} {machine.arch}",
            f"{again} on this machine; TensorRT-RTX engines run on Linux and on Windows",
        )
    if installed is not None and not _reads(info, installed):
        yield Obstacle(
            "runtime-version",
            f"{info.name} was built by {info.runtime} {info.runtime_version}; installed is {installed}",
            f"pip install '{pip}=={info.runtime_version}', or export the engine again here: {again}",
        )
    if not machine.gpus:
        yield no_gpu(info.name, machine)
        return
    yield from _driver(info, machine, pip)
    yield from _capability(info, machine, origin)


def _missing(info: EngineInfo, machine: Machine) -> Obstacle:
    other = "tensorrt" if info.runtime == "tensorrt_rtx" else "tensorrt_rtx"
    line = f"pip install '{info.runtime.replace('_', '-')}=={info.runtime_version}'"
    if version := machine.version_of(other):
        return Obstacle(
            "other-tensorrt",
            f"{info.name} is an engine of {info.runtime}; installed is {other} {version}, which cannot read it",
            line,
        )
    return Obstacle("runtime-missing", f"the package {info.runtime} is not installed", line)


def _reads(info: EngineInfo, installed: str) -> bool:
    """Engines are for exactly the version that built them, unless TensorRT was told otherwise: then for newer ones, too, of the
    same major version."""
    built, found = numbers(info.runtime_version), numbers(installed)
    return installed == info.runtime_version or ("version" in info.compatible and built[:1] == found[:1] and found >= built)


def no_gpu(name: str, machine: Machine) -> Obstacle:
    """Why CUDA shows no GPU."""
    if machine.cuda is None and machine.driver is None:
        return Obstacle(
            "no-driver",
            f"{name} needs an NVIDIA GPU and none was found",
            "there is no NVIDIA driver: install it; in a container, start that with --gpus all",
        )
    if machine.num_gpus and machine.visible is not None:
        return Obstacle(
            "gpu-hidden",
            f"{name} needs an NVIDIA GPU and none was found: CUDA_VISIBLE_DEVICES={machine.visible!r} hides the {machine.num_gpus} "
            "of this machine",
            "unset CUDA_VISIBLE_DEVICES",
        )
    error = f" ({machine.cuda_error})" if machine.cuda_error else ""
    return Obstacle(
        "no-gpu",
        f"{name} needs an NVIDIA GPU and none was found: the driver {machine.driver or ''} shows none{error}".replace("  ", " "),
        "nvidia-smi says more; after an update of the driver, restart the machine",
    )


def cuda_lacking(runtime: str, machine: Machine) -> int | None:
    """The CUDA that an installed TensorRT was made for, where the driver is too old for it; one major version is all alike."""
    needs = next((cuda for cuda in sorted(DRIVERS, reverse=True) if f"{runtime}_cu{cuda}" in machine.versions), None)
    return needs if needs is not None and machine.cuda is not None and machine.cuda[0] < needs else None


def _driver(info: EngineInfo, machine: Machine, pip: str) -> Iterator[Obstacle]:
    needs = cuda_lacking(info.runtime, machine)
    if needs is not None and machine.cuda is not None:
        older = f", or pip install '{pip}-cu12=={info.runtime_version}'" if needs == 13 and machine.cuda[0] == 12 else ""
        yield Obstacle(
            "driver-too-old",
            f"{info.runtime} is made for CUDA {needs}; the driver {machine.driver or ''} runs CUDA up to "
            f"{machine.cuda[0]}.{machine.cuda[1]}".replace("  ", " "),
            f"install NVIDIA driver {DRIVERS[needs]} or newer{older if info.runtime == 'tensorrt' else ''}",
        )


def _capability(info: EngineInfo, machine: Machine, origin: Origin) -> Iterator[Obstacle]:
    first, wanted = machine.gpus[0], info.compute_capability or "8.0 or newer"
    fitting = [index for index, gpu in enumerate(machine.gpus) if fits(info, gpu)]
    if 0 in fitting:
        return
    if fitting:
        index = fitting[0]
        shown = (machine.visible or "").split(",")
        name = shown[index].strip() if index < len(shown) and machine.visible else str(index)
        yield Obstacle(
            "other-gpu",
            f"{info.name} is for compute capability {wanted}; this GPU is {first.capability}, and GPU {index} "
            f"({machine.gpus[index].name}) is {machine.gpus[index].capability}",
            f"CUDA_VISIBLE_DEVICES={name} before the command",
        )
        return
    if info.runtime == "tensorrt":
        hint = f"{origin.export('tensorrt')} on this machine"
    elif first.capability in RTX_CAPABILITIES:
        hint = origin.export("trt-rtx", "-c", first.capability)
    else:
        hint = f"TensorRT-RTX builds for {', '.join(RTX_CAPABILITIES)} only: pip install tensorrt && {origin.export('tensorrt')}"
    yield Obstacle(
        "gpu-capability", f"{info.name} is for compute capability {wanted}; this GPU is {first.capability} ({first.name})", hint
    )


def fits(info: EngineInfo, gpu: Gpu) -> bool:
    """Whether an engine was built for such a GPU."""
    if info.compute_capability is None or "hardware" in info.compatible:
        return numbers(gpu.capability) >= PORTABLE_FROM
    return gpu.capability == info.compute_capability
