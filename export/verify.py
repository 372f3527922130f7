"""Prove a package again: checksums, the golden images, and, where they are at hand, the images of the test split. Torch-free."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DataError, GateFailed
from ..zoo.datasets import find_data, open_split
from .measure import check_classes, why_not_run
from .onnx_file import check_onnx
from .outputs import run_file
from .package import Artifact, Package
from .parity import compare, measure_accuracy, tolerance


def verify_package(package: Package, data: Path | None = None) -> dict[str, Any]:
    """Check every file of `package`; gives what was found, by artifact.

    Raises:
        IntegrityError: a file is missing or is not the one that the manifest describes.
        DataError: `data` was named and is unusable, or has other classes.
        GateFailed: an ONNX file does not give the golden logits, or not the accuracy that the package states.
    """
    num_files, here = package.verify_files(), package.artifacts
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
        if reason := why_not_run(package.folder, artifact):
            found[artifact.path] = {"checksum": "ok", "not_run": reason}
            continue
        file = package.folder / artifact.path
        check_onnx(file)
        images, expected = package.golden(artifact)
        parity = compare(run_file(package.folder, artifact, images, package.preprocess), expected)
        if parity.max_abs_diff is None or parity.max_abs_diff > tolerance(artifact.precision, parity.largest_logit):
            raise GateFailed(
                f"{file} does not give the golden logits: the largest difference is {parity.max_abs_diff}",
                hint="the runtime of this machine computes something else; compare `kdzoo doctor` with the card",
            )
        result: dict[str, Any] = {"checksum": "ok", "golden": asdict(parity)}
        if split is not None:
            logits = run_file(package.folder, artifact, split, package.preprocess)
            result["accuracy"] = {**asdict(measure_accuracy(logits, split.labels)), "split": "test"}
            check_stated(package, artifact, result["accuracy"])
        found[artifact.path] = result
    return {"package": str(package.folder), "files": num_files, "files_of": len(package.document["files"]), "artifacts": found}


def check_stated(package: Package, artifact: Artifact, accuracy: dict[str, Any]) -> None:
    """Raises `GateFailed` where a file is less accurate here than its package states, by more than the gate of its export."""
    stated = package.metrics["artifacts"][artifact.path].get("accuracy") or package.metrics["checkpoint"]
    if stated is None or stated["n"] != accuracy["n"]:
        return
    drop, allowed = stated["top1"] - accuracy["top1"], package.document["gates"]["max_drop"][artifact.precision]
    if drop > allowed + 1e-9:
        raise GateFailed(
            f"{artifact.path} has top-1 {accuracy['top1']:.2f} % here and {stated['top1']:.2f} % on its card; "
            f"the gate is {allowed} points"
        )
