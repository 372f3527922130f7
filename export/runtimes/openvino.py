"""OpenVINO on the processor: its own files, and ONNX files as they are.

Left alone, OpenVINO computes a float32 file in bfloat16 where the processor can (logits 0.1 off, seen with 2026.4 on an AMD EPYC):
here a file is computed in the precision that its name says. The weights of a 16-bit float file are widened to float32.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import EnvironmentProblem, GateFailed, IntegrityError
from ..cascade import EXIT
from ..engine_sidecar import missing_package
from ..package import Artifact
from ..runtime import RUNTIMES, RanOn, Runtime, Session
from ..threads import physical_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..runtime import Inputs

DEVICE = "CPU"
# Seen with 2026.4: of 300 images, 73 % left an eight-bit cascade at another exit than in onnxruntime, with other logits.
NO_INT8_CASCADE = "OpenVINO computes eight bits behind a condition wrongly"


class OpenVINOSession(Session):
    def __init__(self, compiled: Any, ran_on: RanOn) -> None:
        self.request, self.ran_on = compiled.create_infer_request(), ran_on
        self.inputs = tuple(value.get_any_name() for value in compiled.inputs)
        self.names = [output.get_any_name() for output in compiled.outputs]

    def everything(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        found = self.request.infer(self.by_name(inputs), share_inputs=True)
        return {name: found[number] for number, name in enumerate(self.names)}


@RUNTIMES.register("openvino")
class OpenVINO(Runtime):
    name = "openvino"
    own_formats = ("openvino",)

    def refuses(self, artifact: Artifact) -> str:
        if artifact.format not in ("onnx", "openvino"):
            return f"OpenVINO runs its own and ONNX files, not {artifact.format}"
        if artifact.precision == "int8" and EXIT in artifact.details.get("outputs", ()):
            return NO_INT8_CASCADE
        return ""

    def check(self, folder: Path, artifact: Artifact) -> None:
        if find_spec("openvino") is None:
            raise missing_package("openvino")
        weights = artifact.details.get("weights")
        if artifact.format == "openvino" and not (folder / str(weights)).is_file():
            raise IntegrityError(f"{folder / str(weights)}, the weights of {artifact.path}, is missing", hint="export again")
        if artifact.precision == "bf16":
            import openvino

            if "BF16" not in openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
                raise EnvironmentProblem(
                    f"{artifact.path} needs a processor that computes in bfloat16",
                    hint="the fp32 file is as fast where there is none",
                )

    def open(self, folder: Path, artifact: Artifact, threads: int | None = None, *, in_turns: bool = False) -> Session:
        import openvino

        count, wanted = threads or physical_cores(), "bf16" if artifact.precision == "bf16" else "f32"
        settings = {
            "INFERENCE_NUM_THREADS": count, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": wanted,
        }  # fmt: skip
        core = openvino.Core()
        try:
            weights = artifact.details.get("weights")
            model = core.read_model(folder / artifact.path, *([folder / weights] if weights else []))
            compiled = core.compile_model(model, DEVICE, settings)
        except RuntimeError as error:
            raise GateFailed(f"{artifact.path} does not load in OpenVINO: {str(error).strip().splitlines()[-1]}") from error
        devices, given = compiled.get_property("EXECUTION_DEVICES"), compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        threads_given = compiled.get_property("INFERENCE_NUM_THREADS")
        if devices != [DEVICE] or given != wanted or (threads is not None and threads_given != threads):
            raise EnvironmentProblem(
                f"{artifact.path} was to run on {DEVICE} in {wanted} with {count} threads; OpenVINO took "
                f"{', '.join(devices)}, {given} and {threads_given}",
                hint=f"this machine has {physical_cores()} cores: leave --threads out, or use another runtime",
            )
        version = openvino.__version__.partition("-")[0]
        return OpenVINOSession(compiled, RanOn(self.name, version, f"{DEVICE}, computing in {given}", threads_given))
