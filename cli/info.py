from __future__ import annotations

from pathlib import Path
from typing import Any

from . import options
from .console import Console, table, verb


@verb(options.source)
def info(console: Console, source: str | None) -> None:
    """Describe an entry, a run, a checkpoint or a package."""
    from ..export.package import Package
    from ..export.source import resolve
    from ..zoo.catalog import entries

    entry = None if source is None or Path(source).is_dir() else next((e for e in entries() if e.name == source), None)
    if entry is not None:
        from .entry import describe_entry, entry_document

        document = entry_document(entry)
        console.result(document, lambda: describe_entry(document, entry))
        console.hint(f"kdzoo train {entry.name}" if entry.folder is None else f"kdzoo export {entry.name} --branch target")
        return
    found = resolve(source, console.say)
    if isinstance(found, Package):
        console.result({**found.document, "metrics": found.metrics}, lambda: describe_package(found))
        console.hint(f"kdzoo verify {found.folder}")
        return
    manifest = found.manifest
    document = {"folder": str(found.folder), "entry": manifest.entry, "method": manifest.method, "backbone": manifest.backbone,
                "dataset": manifest.dataset, "num_classes": len(manifest.classes), "epochs": manifest.epochs,
                "metrics": manifest.metrics, "recipe": manifest.recipe, "provenance": manifest.provenance}  # fmt: skip
    console.result(document, lambda: f"{heading(document)}\n\n{target_table(manifest.metrics)}")
    console.hint(f"kdzoo export {source or ''} --branch target --format onnx".replace("  ", " "))


def heading(document: dict[str, Any]) -> str:
    return (
        f"{document['entry']}: {document['method']} on {document['backbone']}, {document['dataset']} "
        f"({document['num_classes']} classes), {document['epochs']} epochs\nin {document['folder']}"
    )


def target_table(metrics: dict[str, dict[str, Any]]) -> str:
    """Targets with their counts and accuracy."""
    from ..export.cards.markdown import in_order

    rows = [
        (
            target,
            f"{m['params']:,}",
            f"{m['macs'] / 1e6:.2f}",
            f"{m['top1']:.2f}",
            f"{m['top5']:.2f}" if "top5" in m else "-",
            f"{m['n']:,}",
        )
        for target, m in ((name, metrics[name]) for name in in_order(metrics))
    ]
    return table(("target", "parameters", "M MACs", "top-1 %", "top-5 %", "n"), rows)


def describe_package(package: Any) -> str:
    from .export import artifact_table

    document = package.document
    head = f"{package.name}: {len(document['tensors']['kept'])} tensors kept, {len(document['tensors']['dropped'])} dropped"
    return f"{head}\n\n{artifact_table(package)}"


command = info
