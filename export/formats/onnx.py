"""ONNX: one file that onnxruntime, TensorRT and TensorRT-RTX all take."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ...errors import UsageError
from ..format import FORMATS, ExportOptions, Format, Job
from ..onnx_graph import OPSETS, export_onnx
from ..package import Artifact
from ..tensor_spec import TensorSpec


def onnx_name(precision: str) -> str:
    """The file of one precision in a package."""
    return f"model.{precision}.onnx"


@FORMATS.register("onnx")
class Onnx(Format):
    name = "onnx"
    from_onnx = False

    def check(self, options: ExportOptions) -> None:
        if options.opset is not None and options.opset not in OPSETS:
            raise UsageError(f"cannot write ONNX opset {options.opset}", known=[str(version) for version in OPSETS])

    def emit(self, job: Job, precision: str) -> list[Artifact]:
        from importlib.metadata import version

        options, preprocess = job.options, job.preprocess
        path = job.folder / onnx_name(precision)
        info = export_onnx(
            job.student,
            path,
            mean=preprocess.mean,
            std=preprocess.std,
            height=preprocess.height,
            width=preprocess.width,
            batch=options.batch.sizes,
            input=options.input,  # type: ignore[arg-type]  # checked by ExportOptions
            precision=precision,  # type: ignore[arg-type]
            opset=options.opset,
            metadata=job.metadata,
        )
        details: dict[str, Any] = {k: v for k, v in asdict(info).items() if k in ("opset", "ir_version", "nodes", "producer")}
        return [
            Artifact(
                path=path.name,
                format=self.name,
                precision=precision,
                sha256=info.sha256,
                bytes=info.bytes,
                input=TensorSpec(*info.inputs[0]),
                output=TensorSpec(*info.outputs[0]),
                batch=options.batch.sizes,
                runtime="onnxruntime",
                runtime_version=version("onnxruntime"),
                details=details,
            )
        ]
