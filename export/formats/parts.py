"""A cascade as one ONNX file per exit, with a driver: for batches, because an image that is sure leaves alone, and for runtimes
that cannot compile a condition."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...zoo.files import sha256, write_bytes, write_json
from ...zoo.paths import DRIVER
from ..format import FORMATS, ExportOptions, Format, Job
from ..package import Artifact
from .onnx import flat_graph, onnx_artifact, onnx_name

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = 1


@FORMATS.register("parts")
class Parts(Format):
    name = "parts"

    def check(self, options: ExportOptions) -> None:
        if options.batch.min > 1:
            raise UsageError(
                "the parts of a cascade get what the parts before them were not sure of, down to one image",
                hint="--batch 1:8:64, or --batch 1",
            )

    def check_target(self, word: str | None, options: ExportOptions) -> None:
        if word != "cascade":
            raise UsageError("only a cascade has parts", hint="--branch cascade, or --format onnx")

    def emit(self, job: Job, precision: str) -> list[Artifact]:
        from ..cascade_parts import split
        from ..onnx_file import describe_onnx, load_onnx, seal_onnx, write_graph

        assert job.thresholds is not None
        stem = Path(onnx_name(precision, for_engine=job.engines)).stem
        parts = []
        for number, model in enumerate(split(load_onnx(flat_graph(job, precision)), len(job.thresholds) + 1), start=1):
            path = job.folder / f"{stem}.part{number}.onnx"
            write_graph(path, seal_onnx(model))
            parts.append(onnx_artifact(describe_onnx(path), precision, job, "onnxruntime", {}))
        return [gather(job, f"{stem}.parts.json", parts)]


def gather(job: Job, name: str, parts: Sequence[Artifact]) -> Artifact:
    """The parts as one artifact: the file that lists them with their thresholds, and the driver that runs them."""
    write_bytes(job.folder / DRIVER, (Path(__file__).parent.parent / DRIVER).read_bytes())
    path, first = job.folder / name, parts[0]
    assert job.thresholds is not None
    listed = [{"path": part.path, "sha256": part.sha256, "bytes": part.bytes} for part in parts]
    write_json(path, {"schema": SCHEMA, "driver": DRIVER, "thresholds": list(job.thresholds), "parts": listed})
    return Artifact(
        path=name,
        format="parts",
        precision=first.precision,
        sha256=sha256(path),
        bytes=sum(part.bytes for part in parts),
        input=first.input,
        output=parts[-1].output,
        batch=first.batch,
        runtime=first.runtime,
        runtime_version=first.runtime_version,
        compute_capability=first.compute_capability,
        details={"parts": [asdict(part) for part in parts], "thresholds": list(job.thresholds), "outputs": ["logits", "exit"]},
    )
