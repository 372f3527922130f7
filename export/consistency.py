"""Whether the files of a package tell one story: what one says of another has to hold. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import IntegrityError
from ..zoo.files import read_json
from ..zoo.paths import DRIVER
from .cards.metadata import package_metadata
from .cascade import EXIT
from .package import (
    CARD,
    CONFIG,
    GOLDEN_EXPECTED,
    GOLDEN_INPUTS,
    LABELS,
    MANIFEST,
    METRICS,
    PREPROCESS,
    SCHEMA_VERSION,
    WEIGHTS,
    Artifact,
    Package,
    read_text,
)
from .schema import check_document

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEEDED = (METRICS, PREPROCESS, LABELS, GOLDEN_INPUTS, GOLDEN_EXPECTED)  # every use of a package needs them
OUR_DRIVER = Path(__file__).with_name(DRIVER)
Contradiction = tuple[str, str]  # the field with its file, and what is wrong with it
COMPANIONS = {"sidecar": "sidecar_sha256", "weights": "weights_sha256"}  # in `details`: a further file, and its checksum


def check_story(package: Package) -> None:
    """Schema of every JSON file, then one file against the other; what was not pulled is left out.

    Raises:
        IntegrityError: it names the file and the field.
    """
    check_document(package, MANIFEST, package.document)
    here = {name for name in package.here if name in package.document["files"]}
    versions = {METRICS: SCHEMA_VERSION, CONFIG: None, PREPROCESS: None}
    documents = {name: read_json(package.folder / name, version) for name, version in versions.items() if name in here}
    for name, document in documents.items():
        check_document(package, name, document)
    for field, wrong in contradictions(package, documents, here):
        raise IntegrityError(f"{package.folder}: {field} {wrong}", hint="the package is not what kdzoo wrote: export it again")


def contradictions(package: Package, documents: dict[str, Any], here: set[str]) -> Iterator[Contradiction]:
    """Everything in which two files of a package do not agree."""
    manifest, files = package.document, package.document["files"]
    for name in NEEDED:
        if name not in files:
            yield f"{MANIFEST}: files", f"lack {name}"
    for artifact in package.described:
        yield from _artifact(artifact, files, manifest)
    paths = [artifact.path for artifact in package.described]
    if len(set(paths)) < len(paths):
        yield f"{MANIFEST}: artifacts", "lists a file twice"
    if (metrics := documents.get(METRICS)) is not None:
        yield from _metrics(metrics, manifest, package.described)
    labels = package.labels if LABELS in here else None
    if (config := documents.get(CONFIG)) is not None:
        yield from _same(CONFIG, config, {name: manifest[name] for name in ("method", "backbone", "target")})
        yield from _same(CONFIG, config, {"weights_sha256": files[WEIGHTS]["sha256"]} if WEIGHTS in files else {})
        yield from _same(CONFIG, config, {"num_classes": len(labels)} if labels is not None else {})
    if (preprocess := documents.get(PREPROCESS)) is not None:
        for artifact in package.described:
            yield from _tensors(artifact, preprocess, labels)
    if CARD in here:
        yield from _card(package.folder / CARD, package, documents.get(METRICS))
    if DRIVER in here and (package.folder / DRIVER).read_bytes() != OUR_DRIVER.read_bytes():
        yield DRIVER, "is a program, and not the one that this kdzoo writes"
    for artifact in package.described:
        if artifact.format == "parts" and DRIVER not in files:
            yield f"{MANIFEST}: files", f"lack {DRIVER}, which runs {artifact.path}"
        if artifact.format == "parts" and artifact.path in here:
            yield from _parts(package.folder / artifact.path, artifact)
    if {GOLDEN_INPUTS, GOLDEN_EXPECTED} <= here and preprocess is not None:
        yield from _golden(package, preprocess)


def _same(name: str, document: dict[str, Any], wanted: dict[str, Any]) -> Iterator[Contradiction]:
    for field, value in wanted.items():
        if document[field] != value:
            yield f"{name}: {field}", f"is {document[field]!r}; the other files say {value!r}"


def _artifact(artifact: Artifact, files: dict[str, Any], manifest: dict[str, Any]) -> Iterator[Contradiction]:
    at = f"{MANIFEST}: artifacts, {artifact.path}:"
    if artifact.path not in files:
        yield at, "is not among its files"
        return
    weights = artifact.details.get("weights")
    size = files[artifact.path]["bytes"] + (files[weights]["bytes"] if weights in files else 0)
    if artifact.parts:
        size = sum(part.bytes for part in artifact.parts)
    for part in artifact.parts:
        yield from _artifact(part, files, manifest)
    for field, told in (("sha256", files[artifact.path]["sha256"]), ("bytes", size)):
        if told != getattr(artifact, field):
            yield f"{at} {field}", f"is {getattr(artifact, field)!r}; files say {told!r}"
    for key, checksum in COMPANIONS.items():
        name = artifact.details.get(key)
        if name is not None and name not in files:
            yield f"{at} details.{key}", f"is {name!r}, which is not among its files"
        elif name is not None and artifact.details.get(checksum, files[name]["sha256"]) != files[name]["sha256"]:
            yield f"{at} details.{checksum}", "is not that of its file"
    for gate in ("max_drop", "min_agreement"):
        if artifact.precision not in manifest["gates"][gate]:
            yield f"{MANIFEST}: gates.{gate}", f"has none for {artifact.precision}"
    if (
        artifact.input.name == "image"
        and artifact.input.dtype != {"uint8": "uint8", "float": "float32"}[manifest["options"]["input"]]
    ):
        yield f"{at} input.dtype", f"is {artifact.input.dtype}; options.input is {manifest['options']['input']}"


def _metrics(metrics: dict[str, Any], manifest: dict[str, Any], artifacts: list[Artifact]) -> Iterator[Contradiction]:
    yield from _same(METRICS, metrics, {name: manifest[name] for name in ("entry", "target")})
    paths = {artifact.path: artifact for artifact in artifacts}
    for path, row in metrics["artifacts"].items():
        if path not in paths:
            yield f"{METRICS}: artifacts[{path!r}]", f"is of no file in {MANIFEST}"
            continue
        if row.get("bytes", paths[path].bytes) != paths[path].bytes:
            yield f"{METRICS}: artifacts[{path!r}].bytes", f"is {row['bytes']}; {MANIFEST} says {paths[path].bytes}"
        if row.get("dominated_by", path) not in paths:
            yield f"{METRICS}: artifacts[{path!r}].dominated_by", f"is {row['dominated_by']!r}, which is no file in {MANIFEST}"
        if "not_run" not in row and "parity" not in row:
            yield f"{METRICS}: artifacts[{path!r}]", "has neither figures nor the reason why it was not run"
    for path in paths:
        if path not in metrics["artifacts"]:
            yield f"{METRICS}: artifacts[{path!r}]", "is missing"


def _tensors(artifact: Artifact, preprocess: dict[str, Any], labels: list[str] | None) -> Iterator[Contradiction]:
    """Shapes of input and output against image size, batch and number of classes."""
    at, size = f"{MANIFEST}: artifacts, {artifact.path}:", (preprocess["height"], preprocess["width"])
    smallest, _, largest = artifact.batch
    batch: int | str = largest if smallest == largest else "N"
    wanted: tuple[int | str, ...] = (batch, *size, 3) if artifact.input.dtype == "uint8" else (batch, 3, *size)
    if artifact.input.shape != wanted:
        yield f"{at} input.shape", f"is {list(artifact.input.shape)}; batch and {PREPROCESS} make it {list(wanted)}"
    if labels is not None and artifact.output.shape != (batch, len(labels)):
        yield f"{at} output.shape", f"is {list(artifact.output.shape)}; batch and {LABELS} make it {[batch, len(labels)]}"


def _parts(path: Path, artifact: Artifact) -> Iterator[Contradiction]:
    """The file that readers without kdzoo go by lists what the manifest does."""
    listed = [{"path": part.path, "sha256": part.sha256, "bytes": part.bytes} for part in artifact.parts]
    wanted = {"driver": DRIVER, "thresholds": artifact.details.get("thresholds"), "parts": listed}
    document = read_json(path)
    for field, value in wanted.items():
        if not isinstance(document, dict) or document.get(field) != value:
            yield f"{path.name}: {field}", f"is not what {MANIFEST} says"


def _card(path: Path, package: Package, metrics: dict[str, Any] | None) -> Iterator[Contradiction]:
    """The head that the Hub reads is YAML, and ours; its figures are those of the metrics."""
    import yaml

    parts = read_text(path).split("---\n", 2)
    try:
        head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except yaml.YAMLError as error:
        yield CARD, f"has a head that is no YAML: {error}"
        return
    if not isinstance(head, dict) or head.get("library_name") != "kdzoo":
        yield CARD, "has no head that names kdzoo as its library"
    elif metrics is not None:
        wanted = package_metadata(package.document, metrics, package.described).get("model-index")
        if _figures(head.get("model-index")) != _figures(wanted):
            yield f"{CARD}: model-index", f"has other figures than {METRICS}"


def _figures(index: Any) -> list[tuple[Any, ...]] | None:
    """Every value of a `model-index`, with what it is of; None where it cannot be read."""
    try:
        metrics = [metric for model in index or () for result in model["results"] for metric in result["metrics"]]
        return [(metric["type"], metric["config"], metric["args"], metric["value"]) for metric in metrics]
    except (TypeError, KeyError):
        return None


def _golden(package: Package, preprocess: dict[str, Any]) -> Iterator[Contradiction]:
    images = read_arrays(package.folder / GOLDEN_INPUTS).get("image")
    wanted = (preprocess["height"], preprocess["width"], 3)
    if images is None or images.dtype != "uint8" or images.ndim != 4 or images.shape[1:] != wanted or not len(images):
        found = "has no array 'image'" if images is None else f"has 'image' {images.dtype} {list(images.shape)}"
        yield GOLDEN_INPUTS, f"{found}; it takes uint8 N {' '.join(map(str, wanted))}"
        return
    expected = read_arrays(package.folder / GOLDEN_EXPECTED)
    if "logits" not in expected:
        yield GOLDEN_EXPECTED, "has no array 'logits'"
    classes = {artifact.output.shape[-1] for artifact in package.described}
    for name, values in expected.items():
        if name == EXIT:
            fits, takes = values.dtype.kind == "i" and values.shape == (len(images),), f"whole numbers {[len(images)]}"
        else:
            count = next(iter(classes), values.shape[-1] if values.ndim else 0)
            fits, takes = values.dtype == "float32" and values.shape == (len(images), count), f"float32 {[len(images), count]}"
        if not fits:
            yield f"{GOLDEN_EXPECTED}: {name}", f"is {values.dtype} {list(values.shape)}; it takes {takes}"


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an `.npz`; raises `IntegrityError` where it is none."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint="copy it again, or export again") from None
