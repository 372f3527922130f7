"""The lines of the zoo: what the papers published, what is counted, and what is bundled and measured here. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UnknownName
from .files import read_json
from .manifest import MANIFEST
from .published import CATALOG, Figures, Paper, Row, papers

CARDS = CATALOG.parent
COUNTS = CATALOG / "counts.json"  # written by tools/count_entries.py
DEFAULT_ENTRY = "ahbf-resnet32-cifar100"


@dataclass(frozen=True)
class Entry:
    """One line of the zoo.

    Attributes:
        published: top-1 in percent by target, as the paper of this entry states it; `paper` and `source` say where.
        published_baseline: top-1 of the plain network in the same paper. published_epochs: length of the paper's runs.
        counted: by target: params, macs, macs_dbfskd of the network that the recipe builds.
        same: targets that are one network under two names, as in {"target": "1"}.
        measured: by target: top1, top5, n, split, params, macs of the bundled weights; empty where none are bundled.
        recipe: what the recipe of the entry has beside its `base`; empty where the entry cannot be trained by name.
        rows: every published row about it, of all papers, ablations included.
    """

    name: str
    method: str
    backbone: str
    dataset: str
    paper: str = ""
    url: str = ""
    source: str = ""
    published: Figures = field(default_factory=dict)
    published_baseline: float | None = None
    published_epochs: int | None = None
    counted: dict[str, dict[str, int]] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()

    @property
    def folder(self) -> Path | None:
        """Where the bundled weights and their card are; None where there are none."""
        return CARDS / self.name if (CARDS / self.name / MANIFEST).is_file() else None

    @property
    def not_reproducible(self) -> dict[str, str]:
        """By figure, why the published one cannot be met; of the entry as it is, not of its ablations."""
        own = [row for row in self.rows if row.plain]
        return {figure: why for row in own for figure, why in row.not_reproducible.items()}

    def figure(self, name: str) -> float | None:
        """Of the target: `top1`, measured or else published; `params` or `macs`, measured or else counted."""
        known: Iterable[float | None] = (
            self.measured.get("target", {}).get(name),
            self.counted.get("target", {}).get(name),
            self.published.get("target") if name == "top1" else None,
        )
        return next((value for value in known if value is not None), None)


def entry_recipes() -> dict[str, dict[str, Any]]:
    """What the catalog says about the recipe of every entry: `base`, and what differs from it."""
    return {name: recipe for paper in papers() for name, recipe in paper.entries.items()}


def published_entries() -> dict[str, dict[str, Any]]:
    """The published figures by entry, as the card of a bundled entry takes them."""
    keys = ("method", "backbone", "dataset", "paper", "source", "published", "published_baseline", "published_epochs")
    return {entry.name: {key: getattr(entry, key) for key in keys} for entry in entries() if entry.published}


def entries() -> list[Entry]:
    """Every entry of the catalog or with bundled weights, by name."""
    rows: dict[str, list[Row]] = {}
    for row in (row for paper in papers() for row in paper.rows if row.entry):
        rows.setdefault(row.entry, []).append(row)
    counts = read_json(COUNTS)["entries"]
    owners = {name: paper for paper in papers() for name in paper.entries}
    bundled = {p.parent.name for p in CARDS.glob(f"*/{MANIFEST}")}
    found = []
    for name in sorted(owners.keys() | bundled):
        facts: dict[str, Any] = {}
        if name in bundled:
            facts["measured"] = read_json(CARDS / name / "metrics.json")["targets"]
        if name in owners:
            facts |= _published(name, owners[name], rows.get(name, []), counts.get(name, {}))
        else:
            manifest = read_json(CARDS / name / MANIFEST)
            facts |= {key: manifest[key] for key in ("method", "backbone", "dataset")}
        found.append(Entry(name, **facts))
    return found


def _published(name: str, paper: Paper, rows: list[Row], counts: dict[str, Any]) -> dict[str, Any]:
    recipe = paper.entries[name]
    network = {key: recipe[key] for key in ("method", "backbone", "dataset")}
    own = [row for row in rows if row.plain and row.paper == paper.key and row.top1]
    own.sort(key=lambda row: -len(row.top1))  # the fullest first
    same: dict[str, str] = counts.get("same", {})
    published: Figures = {}
    for row in own:
        published = {**row.top1, **published}
    for one, other in [*same.items(), *((b, a) for a, b in same.items())]:
        if one in published:
            published.setdefault(other, published[one])
    plain = {**network, "method": "baseline"}
    baselines = [r for r in paper.rows if r.plain and plain == {k: getattr(r, k) for k in network} and "target" in r.top1]
    source = ""
    if own:
        words = (f"table {own[0].table}: {own[0].printed}" if own[0].table else own[0].printed, paper.runs, own[0].note)
        source = ", ".join(filter(None, words))
    return {
        **network, "paper": paper.citation, "url": paper.url, "source": source, "published": published,
        "published_baseline": baselines[0].top1["target"] if baselines else None,
        "published_epochs": paper.epochs.get(recipe["dataset"]), "counted": counts.get("targets", {}), "same": same,
        "recipe": {key: value for key, value in recipe.items() if key not in network}, "rows": tuple(rows),
    }  # fmt: skip


def comparisons(entry: Entry) -> list[Row]:
    """What the papers publish for other methods on the same backbone and data set, the entry's own rows and ablations left out."""
    about = (entry.backbone, entry.dataset)
    rows = [row for paper in papers() for row in paper.rows if (row.backbone, row.dataset) == about and row.top1]
    return [row for row in rows if row.entry != entry.name and (row.plain or not row.entry)]


def get_entry(name: str) -> Entry:
    """Raises `UnknownName` with the nearest entry."""
    found = {entry.name: entry for entry in entries()}
    if name not in found:
        raise UnknownName("entry", name, list(found), hint="kdzoo ls lists the entries")
    return found[name]
