from __future__ import annotations

from dataclasses import asdict

from .console import Console, table, verb


@verb()
def ls(console: Console) -> None:
    """List the entries of the zoo."""
    from ..zoo.catalog import entries

    found = entries()
    rows = []
    for entry in found:
        measured = entry.measured.get("target", {})
        own = f"{measured['top1']:.2f}" if measured else "-"
        paper = entry.published.get("target")
        params = f"{measured['params'] / 1e6:.2f}" if measured else "-"
        rows.append((entry.name, entry.method, own, "-" if paper is None else f"{paper:.2f}", params, len(entry.measured) or "-"))
    header = ("entry", "method", "measured top-1 %", "published top-1 %", "M params", "targets")
    document = [{**asdict(entry), "bundled": entry.folder is not None} for entry in found]
    console.result(document, lambda: table(header, rows))
    console.hint("kdzoo info ENTRY, kdzoo export ENTRY --branch 1, or kdzoo train ENTRY")


command = ls
