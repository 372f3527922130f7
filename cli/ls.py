from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .console import Console, table, verb

if TYPE_CHECKING:
    from ..zoo.catalog import Entry


def amount(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """A number with an optional unit, as in 472756, 0.5M, 1.2G."""
    from ..export.units import COUNT

    return None if text is None else COUNT.parse(text)


@verb(
    click.option("--method", "methods", multiple=True, help="Only this method. Repeats."),
    click.option("--backbone", "backbones", multiple=True, help="Only this backbone. Repeats."),
    click.option("--dataset", "datasets", multiple=True, help="Only this data set. Repeats."),
    click.option("--max-params", callback=amount, metavar="N", help="At most so many parameters in the target, as in 0.5M."),
    click.option("--max-macs", callback=amount, metavar="N", help="At most so many multiply-adds for one image, as in 100M."),
    click.option("--min-accuracy", type=float, metavar="PERCENT", help="At least this top-1: measured, else published."),
    click.option("--bundled", is_flag=True, help="Only entries whose weights are here."),
    click.option("--sort", type=click.Choice(["name", "params", "macs", "accuracy"]), default="name", show_default=True),
)
def ls(
    console: Console,
    methods: tuple[str, ...],
    backbones: tuple[str, ...],
    datasets: tuple[str, ...],
    max_params: float | None,
    max_macs: float | None,
    min_accuracy: float | None,
    bundled: bool,
    sort: str,
) -> None:
    """List the entries of the zoo."""
    from ..zoo.catalog import entries

    found = entries()
    for field, wanted in (("method", methods), ("backbone", backbones), ("dataset", datasets)):
        found = having(found, field, wanted)
    limits: list[tuple[str, float | None, Callable[[float, float], bool]]] = [
        ("params", max_params, float.__le__), ("macs", max_macs, float.__le__), ("top1", min_accuracy, float.__ge__)
    ]  # fmt: skip
    for figure, limit, fits in limits:
        if limit is not None:
            found = [e for e in found if (value := e.figure(figure)) is not None and fits(float(value), limit)]
    found = [e for e in found if e.folder is not None] if bundled else found
    figure = {"accuracy": "top1"}.get(sort, sort)
    if sort != "name":
        found.sort(key=lambda entry: (entry.figure(figure) is None, (entry.figure(figure) or 0) * (-1 if figure == "top1" else 1)))
    header = ("entry", "measured top-1 %", "published top-1 %", "M params", "M MACs", "note")
    console.result([summary(entry) for entry in found], lambda: table(header, [line(entry) for entry in found]))
    if not found:
        console.say("no entry is like that")
    console.hint("kdzoo info ENTRY, kdzoo export ENTRY --branch 1, or kdzoo train ENTRY")


def having(found: list[Entry], field: str, wanted: tuple[str, ...]) -> list[Entry]:
    """Those whose `field` is one of `wanted`, or all where nothing is wanted; raises `UnknownName` for what no entry has."""
    from ..errors import UnknownName
    from ..zoo.catalog import entries

    known = sorted({getattr(entry, field) for entry in entries()}) if wanted else []
    for name in wanted:
        if name not in known:
            raise UnknownName({"dataset": "data set"}.get(field, field), name, known, hint="kdzoo ls lists what there is")
    return [entry for entry in found if not wanted or getattr(entry, field) in wanted]


def line(entry: Entry) -> tuple[str, ...]:
    """A row of the table: its target."""
    params, macs = (entry.figure(figure) for figure in ("params", "macs"))
    notes = ["bundled"] if entry.folder is not None else []
    measured, published = entry.measured.get("target", {}).get("top1"), entry.published.get("target")
    if "top1" in entry.not_reproducible:
        notes.append("published top-1 is lost" if published is None else "published top-1 is not reproducible")
    return (
        entry.name,
        *("-" if value is None else f"{value:.2f}" for value in (measured, published)),
        *("-" if value is None else f"{value / 1e6:.2f}" for value in (params, macs)),
        ", ".join(notes),
    )


def summary(entry: Entry) -> dict[str, Any]:
    """For `--json`: everything but the published rows and the recipe, which `info` gives."""
    fields = ("name", "method", "backbone", "dataset", "paper", "source", "published", "published_baseline", "counted", "measured")
    document = {field: getattr(entry, field) for field in fields}
    return {**document, "not_reproducible": entry.not_reproducible, "bundled": entry.folder is not None}


command = ls
