"""What the papers publish about targets of an entry, as cards and manifests take it: plain data out of the catalog. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...zoo.catalog import Entry, entries
from ...zoo.published import Paper, Row, papers

FIGURES = ("top1", "params_m", "macs_m")


def published_figures(entry: str, targets: Iterable[str]) -> dict[str, Any]:
    """The published figures of `targets`; empty where the catalog has none for the entry.

    Keys: `paper`, `url`, `epochs` (of the paper's runs), `counting` (rule of `zoo.profile`), `targets`: by target and figure
    (`top1` in percent, `params_m`, `macs_m` in millions) `value`, `std`, `source`, `not_reproducible` with the reason.
    """
    paper = next((paper for paper in papers() if entry in paper.entries), None)
    line = next((line for line in entries() if line.name == entry), None)
    if paper is None or line is None or not paper.citation:
        return {}
    rows = sorted((row for row in line.rows if row.plain), key=lambda row: (row.paper != paper.key, -len(row.top1)))
    found = {target: _of_target(line, rows, target) for target in targets}
    return {
        "paper": paper.citation,
        "url": paper.url,
        "epochs": line.published_epochs,
        "counting": paper.counting or "plain",
        "targets": {target: figures for target, figures in found.items() if figures},
    }


def _of_target(line: Entry, rows: list[Row], target: str) -> dict[str, Any]:
    """The first row that prints a figure counts; a target may stand in it under its other name."""
    names = {target, line.same.get(target, target), *(word for word, number in line.same.items() if number == target)}
    figures: dict[str, Any] = {}
    for figure in FIGURES:
        for row in rows:
            printed = {name: value for name, value in getattr(row, figure).items() if name in names}
            if not printed:
                continue
            name, value = next(iter(printed.items()))
            why = row.not_reproducible.get(f"{figure}.{name}", row.not_reproducible.get(figure))
            figures[figure] = {
                "value": value,
                **({"std": row.std[name]} if figure == "top1" and name in row.std else {}),
                "source": _source(row, figure),
                **({"not_reproducible": why} if why else {}),
            }
            break
    return figures


def _source(row: Row, figure: str) -> str:
    paper: Paper = next(paper for paper in papers() if paper.key == row.paper)
    table = f"table {row.table}" if row.table else "the text"
    if figure != "top1":
        return ", ".join(filter(None, (table, row.note)))
    return ", ".join(filter(None, (f"{table}: {row.printed}", paper.runs, row.note)))
