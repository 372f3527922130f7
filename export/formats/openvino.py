"""OpenVINO: `model.<precision>.openvino.xml`, and the weights in a `.bin` beside it, of the ONNX file of that precision.

The graph is that of the ONNX file: the float32 one keeps its float32 weights, the sixteen-bit ones have the narrow weights and
the nodes that stay wide, the eight-bit one has the quantisers that onnxruntime runs.
"""

from __future__ import annotations

import re
from hashlib import sha256
from importlib.util import find_spec
from itertools import count

from ...errors import UsageError
from ...zoo.files import write_bytes
from ..engine_sidecar import missing_package
from ..format import FORMATS, ExportOptions, Format, Job
from ..onnx_file import describe_onnx
from ..package import Artifact
from ..runtimes.openvino import NO_INT8_CASCADE
from ..tensor_spec import TensorSpec
from .onnx import onnx_name


@FORMATS.register("openvino")
class OpenVINO(Format):
    name = "openvino"

    def check(self, options: ExportOptions) -> None:
        if find_spec("openvino") is None:
            raise missing_package("openvino")

    def check_target(self, word: str | None, options: ExportOptions) -> None:
        if word == "cascade" and "int8" in options.precisions:
            raise UsageError(f"{NO_INT8_CASCADE}, and this is a cascade", hint="--format onnx: it is right in onnxruntime")

    def emit(self, job: Job, precision: str) -> list[Artifact]:
        import openvino

        source = onnx_name(precision)
        assert job.thresholds is None or precision != "int8", "refused in check_target"
        made, path = job.scratch / f"{precision}.xml", job.folder / f"model.{precision}.openvino.xml"
        # Not `openvino.convert_model`: it reports home.
        openvino.save_model(openvino.Core().read_model(job.folder / source), made, compress_to_fp16=False)
        graph, weights = renumber(made.read_bytes()), made.with_suffix(".bin").read_bytes()
        write_bytes(path, graph)
        write_bytes(path.with_suffix(".bin"), weights)
        info = describe_onnx(job.folder / source)
        outputs = [name for name, _, _ in info.outputs]
        return [
            Artifact(
                path=path.name,
                format=self.name,
                precision=precision,
                sha256=sha256(graph).hexdigest(),
                bytes=len(graph) + len(weights),
                input=TensorSpec(*info.inputs[0]),
                output=TensorSpec(*next(out for out in info.outputs if out[0] == "logits")),
                batch=job.options.batch.sizes,
                runtime="openvino",
                runtime_version=openvino.__version__.partition("-")[0],
                details={
                    "weights": path.with_suffix(".bin").name,
                    "weights_sha256": sha256(weights).hexdigest(),
                    "from": source,
                    **({"outputs": outputs} if len(outputs) > 1 else {}),
                },
            )
        ]


def renumber(graph: bytes) -> bytes:
    """The same graph, its nameless layers numbered from 0: OpenVINO counts them through the whole life of a process."""
    numbers = count()
    nameless = rb'name="((\w+?)\w*)_\d+" type="\2"'  # Constant_7 is a Const
    return re.sub(nameless, lambda found: b'name="%s.%d" type="%s"' % (found[1], next(numbers), found[2]), graph)
