"""The card of a collection: the packages of one checkpoint, beside one another. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..package import Package
from .figures import UNIT_RULE
from .markdown import code, percent, table
from .metadata import front_matter, license_of, metadata, results_of


def collection_card(packages: Mapping[str, Package]) -> str:
    """README of a collection. Its packages have their own cards, in their folders; its results are named `TARGET/FILE`."""
    rows, results = [], []
    for target, package in packages.items():
        measured: dict[str, Any] = package.metrics
        student, stated = measured["student"], measured["reference"] or measured["checkpoint"]
        top1 = percent(stated["top1"] if stated else None)
        rows.append((f"[{target}]({target}/README.md)", f"{student['params']:,}", f"{student['macs']:,}", top1))
        for path, found in measured["artifacts"].items():
            if "accuracy" in found:
                results += results_of(found["accuracy"], f"{target}/{path}")
    document = next(iter(packages.values())).document
    head = metadata(
        document["entry"], document["dataset"], (document["method"], document["backbone"]), results,
        license=license_of(document["source"]),
    )  # fmt: skip
    return "\n\n".join([
        front_matter(head),
        f"# {document['entry']}",
        f"A {document['backbone']} trained with {document['method']} on {document['dataset']}, cut into {len(packages)} networks.",
        table(("target", "parameters", "multiply-adds", "top-1 in torch"), rows),
        UNIT_RULE,
        "Each has its own card, with the accuracy of every file. This fetches one of them, checked:",
        code("sh", f"kdzoo pull REPOSITORY --branch {next(iter(packages))}"),
    ]) + "\n"  # fmt: skip
