"""The lines of the zoo: what the papers published, what is bundled and measured here. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UnknownName
from .files import read_json
from .manifest import MANIFEST

ROOT = Path(__file__).resolve().parent.parent
CARDS = ROOT / "model_cards"
PUBLISHED = Path(__file__).parent / "published.json"
DEFAULT_ENTRY = "ahbf-resnet32-cifar100"


@dataclass(frozen=True)
class Entry:
    """One line of the zoo.

    Attributes:
        published: top-1 in percent by target, as the paper states it; `paper` and `source` say where.
        measured: by target: top1, top5, n, split, params, macs of the bundled weights; empty where none are bundled.
    """

    name: str
    method: str
    backbone: str
    dataset: str
    paper: str = ""
    source: str = ""
    published: dict[str, float] = field(default_factory=dict)
    published_baseline: float | None = None
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """Where the bundled weights and their card are; None where there are none."""
        return CARDS / self.name if (CARDS / self.name / MANIFEST).is_file() else None


def published_entries() -> dict[str, dict[str, Any]]:
    """The published figures by entry."""
    document: dict[str, dict[str, Any]] = read_json(PUBLISHED)
    return document


def entries() -> list[Entry]:
    """Every entry with published or measured numbers, by name."""
    published = published_entries()
    bundled = {p.parent.name for p in CARDS.glob(f"*/{MANIFEST}")}
    found = []
    for name in sorted(published.keys() | bundled):
        measured: dict[str, Any] = {}
        if name in bundled:
            measured = read_json(CARDS / name / "metrics.json")["targets"]
        facts = published.get(name) or read_json(CARDS / name / MANIFEST)
        keys = ("method", "backbone", "dataset", "paper", "source", "published", "published_baseline")
        found.append(Entry(name, **{k: facts[k] for k in keys if k in facts}, measured=measured))
    return found


def get_entry(name: str) -> Entry:
    """Raises `UnknownName` with the nearest entry."""
    found = {entry.name: entry for entry in entries()}
    if name not in found:
        raise UnknownName("entry", name, list(found), hint="kdzoo ls lists the entries")
    return found[name]
