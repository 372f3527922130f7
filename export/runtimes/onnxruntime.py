"""onnxruntime with its CPU, CUDA and TensorRT providers; what it gives to the processor instead of the GPU is told."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import EnvironmentProblem, GateFailed
from ..engine_sidecar import gpu_compute_capability, missing_package
from ..onnx_file import OnnxRunner, load_errors
from ..package import Artifact
from ..runtime import RUNTIMES, RanOn, Runtime, Session
from ..threads import physical_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..runtime import Inputs

CPU = "CPUExecutionProvider"


class OnnxSession(Session):
    """A file in onnxruntime; inputs and outputs lie in the memory of the processor, so a GPU's time holds both copies."""

    shareable = True

    def __init__(self, runner: OnnxRunner, ran_on: RanOn) -> None:
        self.runner, self.ran_on = runner, ran_on
        self.inputs = tuple(value.name for value in runner.session.get_inputs())

    def everything(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        return self.runner.everything(self.by_name(inputs))

    def __call__(self, inputs: Inputs) -> NDArray[Any]:
        return self.runner(self.by_name(inputs))


class OnnxRuntime(Runtime):
    """What the providers have in common."""

    provider: ClassVar[str]

    def refuses(self, artifact: Artifact) -> str:
        return "" if artifact.format == "onnx" else f"onnxruntime runs ONNX files, not {artifact.format}"

    def check(self, folder: Path, artifact: Artifact) -> None:
        if find_spec("onnxruntime") is None:
            raise missing_package("onnxruntime")
        import onnxruntime

        if self.provider not in (known := onnxruntime.get_available_providers()):
            raise EnvironmentProblem(
                f"this onnxruntime has no {self.provider}",
                known=known,
                hint="pip uninstall onnxruntime, then pip install 'kdzoo[gpu]': it has CPU, CUDA and TensorRT",
            )
        if self.provider != CPU and gpu_compute_capability() is None:
            raise EnvironmentProblem(
                f"{self.provider} needs an NVIDIA GPU and none was found", hint="--runtime onnxruntime-cpu, or look at `nvidia-smi`"
            )

    def open(self, folder: Path, artifact: Artifact, threads: int | None = None, *, in_turns: bool = False) -> Session:
        import onnxruntime

        count = threads or physical_cores()
        on_gpu = self.provider != CPU
        try:
            runner = OnnxRunner(folder / artifact.path, count, [self.provider], in_turns=in_turns, count_nodes=on_gpu)
        except load_errors() as error:
            raise GateFailed(f"{artifact.path} does not load in onnxruntime: {error}") from error
        device = self.provider
        if runner.nodes:
            if not runner.nodes[self.provider]:
                raise EnvironmentProblem(
                    f"{self.provider} took no node of {artifact.path}; all of it ran on {', '.join(runner.nodes)}",
                    hint="--runtime onnxruntime-cpu says so",
                )
            device += f", {runner.nodes[self.provider]} of {runner.nodes.total()} nodes"
        return OnnxSession(runner, RanOn(self.name, onnxruntime.__version__, device, None if on_gpu else count))


@RUNTIMES.register("onnxruntime-cpu")
class OnnxRuntimeCPU(OnnxRuntime):
    name = "onnxruntime-cpu"
    own_formats = ("onnx",)
    provider = CPU

    def refuses(self, artifact: Artifact) -> str:
        if artifact.format == "onnx" and artifact.precision == "bf16":
            return "onnxruntime does not compute in bfloat16 on a processor"
        return super().refuses(artifact)


@RUNTIMES.register("onnxruntime-cuda")
class OnnxRuntimeCUDA(OnnxRuntime):
    name = "onnxruntime-cuda"
    provider = "CUDAExecutionProvider"


@RUNTIMES.register("onnxruntime-tensorrt")
class OnnxRuntimeTensorRT(OnnxRuntime):
    name = "onnxruntime-tensorrt"
    provider = "TensorrtExecutionProvider"

    def refuses(self, artifact: Artifact) -> str:
        if artifact.format == "onnx" and artifact.details.get("grid") == "unsigned":
            return "TensorRT takes signed eight-bit activations only"
        return super().refuses(artifact)
