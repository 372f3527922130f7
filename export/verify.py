"""Prove a package again: checksums, schema, graphs, the golden images, and the test split where it is at hand. Torch-free."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, GateFailed
from ..zoo.datasets import find_data, open_split
from .cascade import EXIT
from .consistency import check_story, read_arrays
from .measure import check_classes, why_not_run
from .onnx_claims import check_claims
from .onnx_file import check_onnx
from .outputs import run_file_outputs, same_exit
from .package import GOLDEN_EXPECTED, GOLDEN_INPUTS, MANIFEST, Artifact, Package
from .parity import Parity, compare, measure_accuracy, tolerance
from .schema import check_document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Outputs = dict[str, NDArray[Any]]

ELSEWHERE = 0.01  # the share of golden images, but at least one, that may leave a cascade elsewhere than where they were exported


def verify_package(package: Package, data: Path | None = None) -> dict[str, Any]:
    """Check every file of `package`; gives what was found, by artifact.

    Raises:
        IntegrityError: a file is missing, or is not the one that the manifest describes, or says something else than another one.
        DataError: `data` was named and is unusable, or has other classes.
        GateFailed: a file does not give the golden logits, or not the accuracy that the package states.
    """
    check_document(package, MANIFEST, package.document)
    num_files, here = package.verify_files(), package.artifacts
    check_story(package)
    try:
        path = find_data(package.document["dataset"], data)
    except DataError:
        if data is not None:
            raise
        split = None
    else:
        split = open_split(path, "test", package.preprocess)
        check_classes(split, package.labels, path)
    found: dict[str, Any] = {}
    for artifact in package.described:
        if artifact not in here:
            found[artifact.path] = {"checksum": "-", "not_run": "not here: it was not pulled"}
            continue
        graphs = [each for each in artifact.parts or (artifact,) if each.format == "onnx"]
        for each in graphs:
            check_claims(package, each)
        if reason := why_not_run(package.folder, artifact):
            found[artifact.path] = {"checksum": "ok", "not_run": reason}
            continue
        for each in graphs:
            check_onnx(package.folder / each.path)
        result: dict[str, Any] = {"checksum": "ok", **check_golden(package, artifact)}
        if split is not None:
            outputs = run_file_outputs(package.folder, artifact, split, package.preprocess)
            result |= accuracies(outputs, split.labels)
            result |= check_stated(package, artifact, result)
        found[artifact.path] = result
    return {
        "package": str(package.folder), "files": num_files, "files_of": len(package.document["files"]), "artifacts": found,
        "unnamed": package.unnamed,
    }  # fmt: skip


def check_golden(package: Package, artifact: Artifact) -> dict[str, Any]:
    """Parity of every output of a file with what was stored when it was exported; raises `GateFailed` where it is too far off."""
    images = read_arrays(package.folder / GOLDEN_INPUTS)["image"]
    stored = read_arrays(package.folder / GOLDEN_EXPECTED)
    outputs = run_file_outputs(package.folder, artifact, images, package.preprocess)
    own = artifact.path in stored
    expected = {**stored, "logits": stored[artifact.path]} if own else stored
    result: dict[str, Any] = {"golden": asdict(_golden_logits(package, artifact, outputs, expected, own))}
    others = [name for name in outputs if name not in ("logits", EXIT)]
    if not own:  # those of the file itself were stored for its logits only
        for name in others:
            if name not in expected:
                raise GateFailed(f"{package.folder / artifact.path} has an output {name} that is not among the golden logits")
            parity = compare(outputs[name], expected[name])
            _require(package, artifact, parity, f" of {name}", own)
            result.setdefault("outputs", {})[name] = asdict(parity)
    return result


def _golden_logits(package: Package, artifact: Artifact, outputs: Outputs, expected: Outputs, own: bool) -> Parity:
    """In a cascade, an image whose confidence lies at a threshold may leave elsewhere, and has the logits of another exit then."""
    import numpy as np

    logits, reference = outputs["logits"], expected["logits"]
    parity = compare(logits, reference)
    if EXIT in outputs and (own or artifact.precision != "int8"):
        allowed = tolerance(artifact.precision, parity.largest_logit)
        far = ~(np.abs(logits - reference).max(axis=1) <= allowed)
        # Exits are stored for torch; those of an eight-bit file are known by its own logits only.
        elsewhere = far if own else far & ~same_exit(outputs, expected)
        if elsewhere.any() and np.isfinite(logits).all() and int(elsewhere.sum()) <= max(1, int(ELSEWHERE * len(logits))):
            parity = compare(logits[~elsewhere], reference[~elsewhere])
    _require(package, artifact, parity, "", own)
    return parity


def _require(package: Package, artifact: Artifact, parity: Parity, of: str, own: bool) -> None:
    """Eight bits may be far from torch: where the file's `own` logits are not stored, its classes are compared."""
    if artifact.precision == "int8" and not own:
        _require_classes(package, artifact, parity, of)
        return
    allowed = tolerance(artifact.precision, parity.largest_logit)
    if parity.max_abs_diff is None or parity.max_abs_diff > allowed:
        far = f"the largest difference is {parity.max_abs_diff:.3g}" if parity.max_abs_diff else f"{parity.nan_count} are NaN"
        raise GateFailed(
            f"{package.folder / artifact.path} does not give the golden logits{of}: {far}; {allowed:.3g} are allowed",
            hint="the runtime of this machine computes something else; compare `kdzoo doctor` with the card",
        )


def _require_classes(package: Package, artifact: Artifact, parity: Parity, of: str) -> None:
    least, others = package.document["gates"]["min_agreement"][artifact.precision], round(parity.n * (1 - parity.agreement))
    if parity.nan_count or others > max(1, int(parity.n * (1 - least))):
        far = f"{parity.nan_count} logits are not finite" if parity.nan_count else f"{others} of {parity.n} have another class"
        raise GateFailed(
            f"{package.folder / artifact.path} does not give the golden classes{of}: {far}",
            hint="the runtime of this machine computes something else; compare `kdzoo doctor` with the card",
        )


def accuracies(outputs: Outputs, labels_N: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy of the logits and, of a file with several outputs, of each."""
    found = {
        name: {**asdict(measure_accuracy(values, labels_N)), "split": "test"} for name, values in outputs.items() if name != EXIT
    }
    accuracy = found.pop("logits")
    return {"accuracy": accuracy, **({"output_accuracy": found} if found else {})}


def check_stated(package: Package, artifact: Artifact, result: dict[str, Any]) -> dict[str, str]:
    """Raises `GateFailed` where a file is less accurate here than its package states, by more than the gate of its export; gives
    what could not be compared."""
    metrics = package.metrics
    row = metrics["artifacts"][artifact.path]
    pairs = {"": (row.get("accuracy") or metrics["checkpoint"], result["accuracy"])}
    for name, each in row.get("outputs", {}).items():
        pairs[f", output {name},"] = (each.get("accuracy"), result.get("output_accuracy", {}).get(name))
    allowed, other = package.document["gates"]["max_drop"][artifact.precision], list[int]()
    for of, (stated, accuracy) in pairs.items():
        if stated is None or accuracy is None:
            continue
        if stated["n"] != accuracy["n"]:
            other.append(stated["n"])
            continue
        if stated["top1"] - accuracy["top1"] > allowed + 1e-9:
            raise GateFailed(
                f"{artifact.path}{of} has top-1 {accuracy['top1']:.2f} % here and {stated['top1']:.2f} % on its card; "
                f"the gate is {allowed} points"
            )
    return {"not_compared": f"stated over {max(other):,} images"} if other else {}
