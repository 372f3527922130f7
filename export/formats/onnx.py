"""ONNX: one file that onnxruntime, TensorRT and TensorRT-RTX all take."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..format import FORMATS, ExportOptions, Format, Job
from ..onnx_file import OnnxInfo, describe_onnx
from ..onnx_graph import OPSETS, write_onnx
from ..package import Artifact
from ..tensor_spec import TensorSpec


def onnx_name(precision: str, *, for_engine: bool = False) -> str:
    """The file of one precision in a package. TensorRT takes signed eight-bit activations only, in a file of their own."""
    return f"model.{precision}{'.trt' if for_engine and precision == 'int8' else ''}.onnx"


@FORMATS.register("onnx")
class Onnx(Format):
    name = "onnx"
    from_onnx = False

    def check(self, options: ExportOptions) -> None:
        if options.opset is not None and options.opset not in OPSETS:
            raise UsageError(f"cannot write ONNX opset {options.opset}", known=[str(version) for version in OPSETS])

    def emit(self, job: Job, precision: str) -> list[Artifact]:
        path = job.folder / onnx_name(precision)
        if precision == "int8":
            return self._emit_int8(job, path)
        keep: tuple[str, ...] = ()
        if precision != "fp32":
            keep = overflowing(job, precision)
        info = write_onnx(job.graph, path, precision, metadata=job.metadata, keep_float=keep)  # type: ignore[arg-type]
        return [onnx_artifact(finish(job, info), precision, job, "onnxruntime", {"kept_float32": list(keep)} if keep else {})]

    def _emit_int8(self, job: Job, path: Path) -> list[Artifact]:
        """For onnxruntime and, where engines are built, for TensorRT: two files of one calibration."""
        if job.options.int8_grid == "auto":
            grid, found = job.int8.fastest()
            details = {**job.int8.write(path, grid), "grid_ms": found}
        else:
            details = job.int8.write(path, job.options.int8_grid)  # type: ignore[arg-type]
        artifacts = [onnx_artifact(finish(job, describe_onnx(path)), "int8", job, "onnxruntime", details)]
        if job.engines and job.thresholds is None:
            path = job.folder / onnx_name("int8", for_engine=True)
            details = job.int8.write(path, "signed")
            artifacts.append(onnx_artifact(describe_onnx(path), "int8", job, "tensorrt", details))
        return artifacts


def finish(job: Job, info: OnnxInfo) -> OnnxInfo:
    """The graph of a cascade is nested when everything else is done; the flat one is kept for its parts."""
    from ..cascade import nest_file

    if job.thresholds is None:
        return info
    shutil.copyfile(info.path, job.scratch / info.path.name)
    nest_file(info.path, job.thresholds)
    return describe_onnx(info.path)


def flat_graph(job: Job, precision: str) -> Path:
    """The graph of a cascade before it was nested, for engines where they are built: with the logits of every branch."""
    path = job.scratch / onnx_name(precision, for_engine=job.engines)
    if not path.exists():
        job.int8.write(path, "signed")
    return path


def overflowing(job: Job, precision: str) -> tuple[str, ...]:
    """Nodes whose results on real images come too near to the largest number of `precision`."""
    from ..half import too_large
    from ..outputs import as_input
    from ..quantize import calibrate

    inputs = as_input(job.images, job.preprocess, job.options.input)
    ranges = calibrate(job.float32, inputs, everything=True)
    return too_large(ranges, job.graph.graph, precision)  # type: ignore[arg-type]


def onnx_artifact(info: OnnxInfo, precision: str, job: Job, runtime: str, further: dict[str, Any]) -> Artifact:
    known: dict[str, Any] = {k: v for k, v in asdict(info).items() if k in ("opset", "ir_version", "nodes", "producer")}
    return Artifact(
        path=info.path.name,
        format="onnx",
        precision=precision,
        sha256=info.sha256,
        bytes=info.bytes,
        input=TensorSpec(*info.inputs[0]),
        output=TensorSpec(*next(out for out in info.outputs if out[0] == "logits")),
        batch=job.options.batch.sizes,
        runtime=runtime,
        runtime_version=version("onnxruntime") if runtime == "onnxruntime" else "",
        details={**known, **further, **({"outputs": [out[0] for out in info.outputs]} if len(info.outputs) > 1 else {})},
    )
