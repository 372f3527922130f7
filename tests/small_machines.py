"""Machines written by hand, and packages whose files need no training, no export and no GPU. Import it as
`kdzoo.tests.small_machines`."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdzoo.export.engine_sidecar import EngineInfo, read_header, write_sidecar
from kdzoo.export.machine import Gpu, Machine
from kdzoo.export.package import Artifact, Package, write_manifest
from kdzoo.export.tensor_spec import TensorSpec
from kdzoo.zoo.checkpoint import describe_files
from kdzoo.zoo.files import sha256

AMPERE, ADA, HOPPER = Gpu("RTX 3090", "8.6"), Gpu("RTX 4090", "8.9"), Gpu("H200", "9.0")
IMAGE, LOGITS = TensorSpec("image", "uint8", ("N", 8, 8, 3)), TensorSpec("logits", "float32", ("N", 10))
BATCH = (1, 8, 64)
VERSIONS = {
    "onnxruntime": "1.31.1", "openvino": "2026.4.1", "tensorrt": "11.0.0", "tensorrt_cu13": "11.0.0",
    "tensorrt_rtx": "1.7.1.116", "tensorrt_rtx_cu13": "1.7.1.116",
}  # fmt: skip
WHOLE = Machine(
    system="Linux", arch="x86_64", libc="glibc 2.36", cpu=frozenset({"avx2", "avx512_vnni", "avx512_bf16"}), gpus=(AMPERE,),
    num_gpus=1, driver="580.65.06", cuda=(13, 0), versions=VERSIONS, imported="1.31.1", providers=("CPUExecutionProvider",),
)  # fmt: skip
Made = Callable[[Path], Artifact]


def without(*names: str, **others: str) -> dict[str, str]:
    """What is installed on the machine that has everything, but for these; `others` are there in another version."""
    left = {name: version for name, version in VERSIONS.items() if name not in names}
    return left | {name.replace("__", "-"): version for name, version in others.items()}


def onnx_file(precision: str = "fp32", *, for_engine: bool = False, batch: tuple[int, int, int] = BATCH, **details: Any) -> Made:
    """Some bytes that the manifest calls an ONNX file."""

    def make(folder: Path) -> Artifact:
        path = folder / f"model.{precision}{'.trt' if for_engine else ''}.onnx"
        path.write_bytes(b"onnx " + precision.encode() * 20)
        return Artifact(
            path.name, "onnx", precision, sha256(path), path.stat().st_size, IMAGE, LOGITS, batch,
            "tensorrt" if for_engine else "onnxruntime", "1.31.1", None, {"opset": 20, "ir_version": 10, **details},
        )  # fmt: skip

    return make


def engine(runtime: str = "tensorrt_rtx", capability: str | None = "8.6", *, magic: bytes = b"vtrt", **changes: Any) -> Made:
    """A file with the header of an engine, and its sidecar; `changes` are of the sidecar."""
    format, version = {"tensorrt_rtx": ("trt-rtx", "1.7.1.116"), "tensorrt": ("trt", "11.0.0")}[runtime]
    begin = magic if runtime == "tensorrt_rtx" else b"ptrt"

    def make(folder: Path) -> Artifact:
        path = folder / f"model.fp16.{format}.engine"
        size = 256
        content = begin + struct.pack("<4xI4xQ4B4xI", 1, size, 1, 7, 1, 116, 4)
        path.write_bytes(content.ljust(size, b"\0"))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        system = "Linux x86_64" if runtime == "tensorrt" else None
        info = EngineInfo(
            path.name,
            digest,
            size,
            runtime,
            version,
            capability,
            BATCH,
            IMAGE,
            LOGITS,
            read_header(path.read_bytes()),
            True,
            system,
        )
        sidecar = folder / f"{path.name}.json"
        write_sidecar(replace(info, **changes), sidecar)
        details = {"sidecar": sidecar.name, "sidecar_sha256": sha256(sidecar)}
        return Artifact(path.name, format, "fp16", digest, size, IMAGE, LOGITS, BATCH, runtime, version, capability, details)

    return make


def openvino_file(precision: str = "fp32", version: str = "2026.4.1") -> Made:
    """A graph and its weights."""

    def make(folder: Path) -> Artifact:
        path = folder / f"model.{precision}.openvino.xml"
        weights = path.with_suffix(".bin")
        path.write_bytes(b"<net/>")
        weights.write_bytes(b"weights")
        details = {"weights": weights.name, "weights_sha256": sha256(weights)}
        return Artifact(
            path.name, "openvino", precision, sha256(path), 13, IMAGE, LOGITS, BATCH, "openvino", version, None, details
        )

    return make


def package_with(folder: Path, *made: Made) -> Package:
    """A package of these files and nothing else."""
    folder.mkdir(parents=True)
    artifacts = [make(folder) for make in made]
    document = {
        **dict.fromkeys(("method", "backbone", "dataset"), "toy"), "entry": "toy-entry", "target": "3",
        "source": {"weights_sha256": "0" * 64, "epochs": 1, "given": "toy-entry"}, "tensors": {"kept": [], "dropped": []},
        "options": {"batch": list(BATCH), "input": "uint8", "opset": None}, "gates": {"max_drop": {}, "min_agreement": {}},
        "provenance": {"command": "kdzoo", "git_commit": None, "versions": {}, "training": {}},
        "verified": False, "files": describe_files(folder),
    }  # fmt: skip
    write_manifest(folder, document, artifacts)
    return Package.open(folder)


def reseal(package: Package) -> Package:
    """The same with the checksums of its manifest made right again: only what the files say is wrong then."""
    document = package.document
    files = describe_files(package.folder)
    files.pop("manifest.json", None)
    artifacts = []
    for artifact in package.described:
        facts = files.get(artifact.path, {"sha256": artifact.sha256, "bytes": artifact.bytes})
        size = facts["bytes"] + sum(files[name]["bytes"] for name in artifact.companions if name.endswith(".bin"))
        own = {key: artifact.details.get(key) for key in ("sidecar", "weights")}
        sums = {f"{key}_sha256": files[name]["sha256"] for key, name in own.items() if name in files}
        details = {**artifact.details, **sums}
        artifacts.append(replace(artifact, sha256=facts["sha256"], bytes=size, details=details))
    write_manifest(package.folder, {**document, "files": files}, artifacts)
    return Package.open(package.folder)
