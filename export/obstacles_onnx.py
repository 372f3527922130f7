"""What stands between an ONNX or OpenVINO file and a machine, and what removes it. Pure functions of plain data; torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .machine import Machine
from .obstacles import DRIVERS, Obstacle, numbers
from .origin import Origin
from .package import Artifact

# First version of onnxruntime, and the newest opset and IR version that it and those after it load: tried out with the wheels.
# Those before 1.19 cannot be imported beside NumPy 2.
LOADS = {(1, 19): (21, 10), (1, 21): (22, 10), (1, 23): (23, 11), (1, 24): (25, 13)}
OPENVINO = "2025.2"  # the oldest that the extra `openvino` takes
FAST_FLOAT16 = ((5, 3), (6, 0), (6, 2))  # compute capabilities before 7.0 that have it
SLOW = ("no-int8-instructions", "for-tensorrt", "float16-on-old-gpu")  # cases in which another file does better


def loads(version: str) -> tuple[int, int] | None:
    """The newest opset and IR version that a version of onnxruntime loads; None for one that is too old for all else here."""
    known = [first for first in LOADS if first <= numbers(version)[:2]]
    return LOADS[max(known)] if known else None


def of_onnx(artifact: Artifact, machine: Machine, origin: Origin) -> Iterator[Obstacle]:
    """What keeps onnxruntime from running a file, or from running it well."""
    name, variants = artifact.path, machine.onnxruntimes
    if not variants:
        yield Obstacle("onnxruntime-missing", f"{name} is run by onnxruntime, which is not installed", "pip install onnxruntime")
        return
    yield from of_onnxruntime(machine)
    yield from _version(artifact, machine, origin)
    if artifact.precision == "bf16":
        yield Obstacle(
            "bfloat16",
            f"{name} computes in bfloat16, which onnxruntime does not: it is made for TensorRT",
            f"{origin.export('trt')} builds an engine of it",
        )
    elif artifact.runtime != "onnxruntime":
        yield Obstacle(
            "for-tensorrt",
            f"{name} is made to build TensorRT engines of; onnxruntime runs it slowly",
            f"{origin.export('trt')} builds them",
            stops=False,
        )
    elif artifact.precision == "int8":
        yield from _int8(artifact, machine)
    yield from _on_gpu(artifact, machine)


def _version(artifact: Artifact, machine: Machine, origin: Origin) -> Iterator[Obstacle]:
    """Every onnxruntime loads graphs up to some opset and IR version."""
    variant = machine.onnxruntimes[0]
    version = machine.imported or machine.versions[variant]
    newest = loads(version)
    if newest is None:
        oldest = ".".join(map(str, min(LOADS)))
        yield Obstacle(
            "onnxruntime-too-old",
            f"onnxruntime {version} is older than {oldest}, the first that runs beside NumPy 2",
            f"pip install --upgrade {variant}",
        )
        return
    upgrade = f"pip install --upgrade {variant}"
    again = f"{upgrade}, or {origin.export('onnx', '--opset', str(newest[0]))}"
    for case, word, found, most, hint in (
        ("opset-too-new", "opset", artifact.details.get("opset"), newest[0], again),
        ("ir-too-new", "IR version", artifact.details.get("ir_version"), newest[1], upgrade),
    ):
        if isinstance(found, int) and found > most:
            yield Obstacle(case, f"{artifact.path} has {word} {found}; onnxruntime {version} loads up to {most}", hint)


def of_onnxruntime(machine: Machine) -> Iterator[Obstacle]:
    """Whether what is installed of onnxruntime is whole and one."""
    variants = machine.onnxruntimes
    if len(variants) > 1:
        kept = next((name for name in variants if name != "onnxruntime"), variants[0])
        yield Obstacle(
            "onnxruntime-double",
            f"{' and '.join(variants)} are installed together: each overwrites files of the other",
            f"pip uninstall -y {' '.join(variants)} && pip install {kept}",
            stops=False,
        )
    if machine.import_error:
        yield Obstacle(
            "onnxruntime-broken",
            f"{variants[0]} {machine.versions[variants[0]]} is installed and cannot be imported: {machine.import_error}",
            f"pip install --force-reinstall {variants[0]}",
        )
    gpu = next((name for name in variants if name.endswith("-gpu")), None)
    if gpu and machine.providers is not None and "CUDAExecutionProvider" not in machine.providers:
        yield Obstacle(
            "no-cuda-provider",
            f"{gpu} is installed, and what is imported as onnxruntime has no CUDA provider",
            f"pip uninstall -y {' '.join(variants)} && pip install {gpu}",
            stops=False,
        )


def _int8(artifact: Artifact, machine: Machine) -> Iterator[Obstacle]:
    """Without these instructions x86 adds eight-bit products in sixteen bits, and those saturate."""
    if machine.fast_int8 is not False:
        return
    lacks, effect = (
        ("dotprod", "") if machine.arch == "aarch64" else ("VNNI", ", and its sums may saturate: kdzoo verify proves it")
    )
    yield Obstacle(
        "no-int8-instructions",
        f"this processor has no instructions for eight-bit products ({lacks}): {artifact.path} runs slower than it could{effect}",
        stops=False,
    )


def _on_gpu(artifact: Artifact, machine: Machine) -> Iterator[Obstacle]:
    """Of the CUDA provider, where onnxruntime has it."""
    if "CUDAExecutionProvider" not in (machine.providers or ()):
        return
    if not machine.gpus:
        yield Obstacle(
            "gpu-runtime-without-gpu",
            "onnxruntime has a CUDA provider, and there is no NVIDIA GPU for it: it computes on the processor",
            "nothing to mend where that is meant; else nvidia-smi says more",
            stops=False,
        )
        return
    gpu = machine.gpus[0]
    capability = numbers(gpu.capability)
    if artifact.precision == "fp16" and capability < (7, 0) and capability not in FAST_FLOAT16:
        yield Obstacle(
            "float16-on-old-gpu",
            f"this GPU ({gpu.name}, compute capability {gpu.capability}) computes float16 slower than float32",
            stops=False,
        )
    oldest = min(DRIVERS)
    if machine.cuda is not None and machine.cuda[0] < oldest:
        yield Obstacle(
            "driver-too-old",
            f"the NVIDIA driver runs CUDA up to {machine.cuda[0]}.{machine.cuda[1]}; onnxruntime needs {oldest} for the GPU, "
            "and computes on the processor",
            f"install NVIDIA driver {DRIVERS[oldest]} or newer",
            stops=False,
        )


def fixed_batch(artifact: Artifact, origin: Origin) -> Iterator[Obstacle]:
    """A file that takes one number of images only."""
    smallest, _, largest = artifact.batch
    if smallest == largest:
        yield Obstacle(
            "fixed-batch",
            f"{artifact.path} takes exactly {largest} image{'s' if largest > 1 else ''} in a call",
            f"{origin.export(artifact.format, '--batch', '1:8:64')} takes 1 to 64",
            stops=False,
        )


def of_openvino(artifact: Artifact, machine: Machine, origin: Origin) -> Iterator[Obstacle]:
    """What keeps OpenVINO from running a file, or from running it well."""
    installed, name = machine.versions.get("openvino"), artifact.path
    if installed is None:
        yield Obstacle(
            "openvino-missing", f"{name} is run by OpenVINO, which is not installed", f"pip install 'openvino>={OPENVINO}'"
        )
        return
    if numbers(installed) < numbers(OPENVINO):
        yield Obstacle(
            "openvino-too-old",
            f"{name} needs OpenVINO {OPENVINO} or newer; installed is {installed}",
            f"pip install --upgrade 'openvino>={OPENVINO}'",
        )
    elif numbers(installed)[:2] < numbers(artifact.runtime_version)[:2]:
        yield Obstacle(
            "openvino-older",
            f"{name} was written by OpenVINO {artifact.runtime_version} and measured with it; installed is {installed}",
            "pip install --upgrade openvino",
            stops=False,
        )
    if artifact.precision == "int8":
        yield from _int8(artifact, machine)
    if artifact.precision == "bf16" and machine.bfloat16 is False:
        yield Obstacle(
            "no-bfloat16",
            f"{name} needs a processor that computes in bfloat16, and this one does not say that it does",
            f"{replace(origin, precision='fp32').export('openvino')} is as fast here",
        )
