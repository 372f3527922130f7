"""Engines, by the TensorRT that built them: `tensorrt` and TensorRT-RTX. Each only runs its own, of its own version and GPU."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from ...errors import EnvironmentProblem
from ..engine_session import EngineSession
from ..engine_sidecar import preflight
from ..package import Artifact
from ..runtime import RUNTIMES, Runtime, Session


class Engines(Runtime):
    """What both have in common; `package` is the Python package."""

    package: ClassVar[str]

    def refuses(self, artifact: Artifact) -> str:
        if artifact.format in self.own_formats:
            return ""
        return f"{self.name} runs engines that it built, not {artifact.format}"

    def check(self, folder: Path, artifact: Artifact) -> None:
        preflight(folder / artifact.details["sidecar"], folder / artifact.path)

    def open(self, folder: Path, artifact: Artifact, threads: int | None = None, *, in_turns: bool = False) -> Session:
        from ..cuda import Cuda

        try:
            trt: Any = import_module(self.package)
        except ImportError as error:
            hint = f"pip install --force-reinstall {self.package.replace('_', '-')}"
            raise EnvironmentProblem(f"{self.package} is installed but cannot be imported: {error}", hint=hint) from error
        return EngineSession(folder / artifact.path, self.name, trt, Cuda())


@RUNTIMES.register("tensorrt")
class TensorRT(Engines):
    name = "tensorrt"
    own_formats = ("trt",)
    package = "tensorrt"


@RUNTIMES.register("trt-rtx")
class TensorRTRTX(Engines):
    name = "trt-rtx"
    own_formats = ("trt-rtx",)
    package = "tensorrt_rtx"
