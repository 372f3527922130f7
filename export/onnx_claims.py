"""Whether an ONNX file says of itself what its package says of it: tensors, versions, metadata. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import IntegrityError
from .onnx_file import describe_onnx, load_onnx
from .package import Artifact, Package

if TYPE_CHECKING:
    from .onnx_file import OnnxInfo


def check_claims(package: Package, artifact: Artifact) -> None:
    """Raises `IntegrityError` for the first thing in which the graph and the manifest do not agree."""
    path = package.folder / artifact.path
    said, info = {entry.key: entry.value for entry in load_onnx(path).metadata_props}, describe_onnx(path)
    takes_image = artifact.input.name == "image"  # else it is a later part of a cascade, which takes what those before it found
    count = [("the number of inputs", len(info.inputs), 1)] if takes_image else []
    for field, found, told in (*count, *_tensors(info, artifact), *_metadata(said, package)):
        if found != told:
            raise IntegrityError(
                f"{path}: {field} is {_short(found)} in the graph and {_short(told)} in the package",
                hint="it is not the graph that was exported: export again",
            )


def _tensors(info: OnnxInfo, artifact: Artifact) -> Iterator[tuple[str, Any, Any]]:
    given = artifact.input, artifact.output
    outputs = {name: (name, dtype, shape) for name, dtype, shape in info.outputs}
    yield "input", next(iter(info.inputs), None), (given[0].name, given[0].dtype, given[0].shape)
    yield "output", outputs.get(given[1].name), (given[1].name, given[1].dtype, given[1].shape)
    yield "the list of outputs", sorted(outputs), sorted(artifact.details.get("outputs", [given[1].name]))
    for field in ("opset", "ir_version"):
        if field in artifact.details:
            yield field, getattr(info, field), artifact.details[field]


def _metadata(said: dict[str, str], package: Package) -> Iterator[tuple[str, Any, Any]]:
    """What `kdzoo.*` of `metadata_props` says, so that the file can be used without its package."""
    document = package.document
    for key in ("entry", "target"):
        yield f"metadata kdzoo.{key}", said.get(f"kdzoo.{key}"), document[key]
    yield "metadata kdzoo.input", said.get("kdzoo.input"), document["options"]["input"]
    yield "metadata kdzoo.source_sha256", said.get("kdzoo.source_sha256"), document["source"]["weights_sha256"]
    yield "metadata kdzoo.labels", _json(said.get("kdzoo.labels")), package.labels
    yield "metadata kdzoo.preprocess", _json(said.get("kdzoo.preprocess")), package.preprocess.to_dict()


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
