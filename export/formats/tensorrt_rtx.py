"""TensorRT-RTX engines, built ahead of time: one per GPU compute capability, on a machine that needs no GPU itself."""

from __future__ import annotations

from ..engine import emit_engine
from ..engine_sidecar import installed_version, missing_package
from ..format import DEFAULT_CAPABILITIES, FORMATS, ExportOptions, Format, Job
from ..package import Artifact
from ..tensorrt_build import parse_capability


@FORMATS.register("trt-rtx")
class TensorRTRTX(Format):
    name = "trt-rtx"
    engines = True

    def check(self, options: ExportOptions) -> None:
        for capability in options.capabilities or DEFAULT_CAPABILITIES:
            parse_capability(capability)
        if installed_version("tensorrt_rtx") is None:
            raise missing_package("tensorrt_rtx")

    def emit(self, job: Job, precision: str) -> list[Artifact]:
        capabilities = dict.fromkeys(map(parse_capability, job.options.capabilities or DEFAULT_CAPABILITIES))
        return [emit_engine(job, precision, "tensorrt_rtx", capability) for capability in capabilities]
