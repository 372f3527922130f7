"""The card of a package, written from `manifest.json`, `metrics.json`, `preprocess.json`, `labels.txt` alone. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..package import Artifact
from .evidence import how_measured, limits, reproduce
from .figures import artifact_section, exit_section, latency_section, output_section, published_section
from .markdown import counted
from .metadata import front_matter, package_metadata
from .usage import usage


def package_card(
    document: Mapping[str, Any],
    metrics: Mapping[str, Any],
    artifacts: Sequence[Artifact],
    labels: Sequence[str],
    preprocess: Mapping[str, Any],
) -> str:
    """README of a package, out of its manifest, its metrics, its class names and its preprocessing."""
    name, student, cut = f"{document['entry']}-{document['target']}", metrics["student"], document["tensors"]
    top1, what = _our_top1(metrics)
    sections = {
        "Artifacts": artifact_section(artifacts, metrics),
        "Outputs": output_section(artifacts, metrics),
        "Exits": exit_section(document, artifacts, metrics),
        "Published vs measured": published_section(
            document.get("published") or {}, document["target"], {**student, "top1": top1}, what
        ),
        "Latency": latency_section(artifacts, metrics),
        "How measured": how_measured(document, metrics, artifacts),
        "Use it": usage(artifacts, metrics, preprocess),
        "Reproduce": reproduce(document),
        "Limits": limits(document, metrics, artifacts, len(labels), preprocess),
    }
    head = [
        front_matter(package_metadata(document, metrics, artifacts)),
        f"# {name}",
        f"Target `{document['target']}` of a {document['backbone']} trained with {document['method']} on {document['dataset']}: "
        f"{counted(len(labels), 'class')}, {student['params']:,} parameters, {_macs(document, student)}. "
        f"Cut from a checkpoint of {counted(document['source']['epochs'], 'epoch')}; "
        f"{len(cut['kept'])} tensors kept, {len(cut['dropped'])} dropped.",
    ]
    return "\n\n".join([*head, *(f"## {title}\n\n{text}" for title, text in sections.items() if text)]) + "\n"


def _macs(document: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    """What an image costs; of a cascade in the mean, and at most."""
    most, cascade = f"{student['macs']:,}", document.get("cascade")
    if cascade:
        return f"{cascade['macs']:,.0f} multiply-adds for an image in the mean (of the held-out images), {most} at most"
    return f"{most} multiply-adds per image"


def _our_top1(metrics: Mapping[str, Any]) -> tuple[float | None, str]:
    """The accuracy that is set beside the paper's: that of the student in torch, else what its checkpoint states."""
    for found, who in ((metrics["reference"], "torch"), (metrics["checkpoint"], "stated by the checkpoint")):
        if found is not None:
            return found["top1"], f"{who}, {counted(found['n'], 'image')} of the {found['split']} split"
    return None, ""
