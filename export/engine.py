"""One TensorRT engine and its sidecar in a package; `tensorrt` and `tensorrt-rtx` share it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..zoo.files import sha256
from .engine_sidecar import write_sidecar
from .format import Job
from .formats.onnx import onnx_name
from .formats.parts import gather
from .package import Artifact
from .tensorrt_build import EngineRequest, Runtime, build_engine

SUFFIX: dict[str, str] = {"tensorrt_rtx": "trt-rtx", "tensorrt": "trt"}


def emit_engine(job: Job, precision: str, runtime: Runtime, capability: str) -> Artifact:
    """Build the engine of one precision and GPU from the ONNX file beside it; of a cascade, that of every part."""
    place = f"sm{capability.replace('.', '')}.{SUFFIX[runtime]}"
    source = onnx_name(precision, for_engine=True)
    if job.thresholds is None:
        return build(job, source, f"model.{precision}.{place}.engine", precision, runtime, capability)
    stem, engines = Path(source).stem, []
    for number in range(1, len(job.thresholds) + 2):
        name = f"model.{precision}.part{number}.{place}.engine"
        engines.append(build(job, f"{stem}.part{number}.onnx", name, precision, runtime, capability))
    made = gather(job, f"model.{precision}.{place}.parts.json", engines)
    return replace(made, details={**made.details, "from": f"{stem}.parts.json"})


def build(job: Job, source: str, name: str, precision: str, runtime: Runtime, capability: str) -> Artifact:
    """One engine with its sidecar."""
    batch = job.options.batch.sizes
    info = build_engine(EngineRequest(job.folder / source, job.folder / name, runtime, capability, batch))
    sidecar = job.folder / f"{name}.json"
    write_sidecar(info, sidecar)
    return Artifact(
        path=name,
        format=SUFFIX[runtime],
        precision=precision,
        sha256=info.sha256,
        bytes=info.bytes,
        input=info.input,
        output=info.output,
        batch=batch,
        runtime=runtime,
        runtime_version=info.runtime_version,
        compute_capability=capability,
        details={
            "sidecar": sidecar.name,
            "sidecar_sha256": sha256(sidecar),
            "from": source,
            "reproducible": info.reproducible,
            "build_seconds": round(info.build_seconds or 0.0, 3),
        },
    )
