"""Standard TensorRT engines, built for the GPU of this machine; and `trt`, which takes whichever TensorRT can build here."""

from __future__ import annotations

from ..engine import emit_engine
from ..engine_sidecar import gpu_compute_capability, installed_version
from ..format import FORMATS, ExportOptions, Format, Job
from ..package import Artifact
from ..tensorrt_build import capability_name, own_gpu
from .tensorrt_rtx import TensorRTRTX


@FORMATS.register("tensorrt")
class TensorRT(Format):
    name = "tensorrt"
    engines = True

    def check(self, options: ExportOptions) -> None:
        for capability in options.capabilities or (None,):
            own_gpu(capability)

    def emit(self, job: Job, precision: str) -> list[Artifact]:
        return [emit_engine(job, precision, "tensorrt", own_gpu(None))]


@FORMATS.register("trt")
class AnyTensorRT(TensorRT):
    """Stands for `tensorrt` where that package and a GPU are at hand, else for `trt-rtx`."""

    name = "trt"

    @classmethod
    def resolve(cls, options: ExportOptions) -> tuple[type[Format], str]:
        gpu = gpu_compute_capability()
        if gpu is None:
            return TensorRTRTX, "trt-rtx: there is no NVIDIA GPU here, and TensorRT-RTX builds ahead of time without one"
        if installed_version("tensorrt") is None:
            return TensorRTRTX, "trt-rtx: the package tensorrt is not installed"
        if any(capability_name(capability) != gpu for capability in options.capabilities):
            return TensorRTRTX, f"trt-rtx: tensorrt builds for its own GPU only, which is {gpu}"
        return TensorRT, f"tensorrt: the package and a GPU of compute capability {gpu} are here"
