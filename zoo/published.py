"""What the papers published, row by row of their tables: `model_cards/catalog/<paper>.yaml`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import IntegrityError

CATALOG = Path(__file__).resolve().parent.parent / "model_cards" / "catalog"
Figures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One row of a table. Figures are by target of kdzoo (`target` where the table is about one network), as printed.

    Attributes:
        entry: name of the entry that the row is about; empty for a method that kdzoo does not have.
        paper: key of the paper that prints it, which is not always the method's own.
        table: number of the table; empty where it is not recorded.
        top1: accuracy in percent, also where the paper prints the error (`as_error`). std: its spread.
        params_m, macs_m: millions of parameters and multiply-adds, by the counting of the paper.
        settings: fields of the method's `Config` in which the row differs from its entry. variant: a difference that none makes.
        not_reproducible: by figure (`top1`, `params_m`, `macs_m`, or of one target `params_m.3`) why it cannot be met.
    """

    paper: str
    method: str
    backbone: str
    dataset: str
    entry: str = ""
    teacher: str = ""
    table: str = ""
    top1: Figures = field(default_factory=dict)
    std: Figures = field(default_factory=dict)
    params_m: Figures = field(default_factory=dict)
    macs_m: Figures = field(default_factory=dict)
    as_error: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    note: str = ""
    not_reproducible: dict[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether it is about the entry as it is, and not about one of its ablations."""
        return bool(self.entry) and not self.settings and not self.variant

    @property
    def printed(self) -> str:
        """Its accuracy as the paper states it: two decimals, or none where it gives none."""
        figures = {t: round(100 - v, 2) for t, v in self.top1.items()} if self.as_error else self.top1
        many = set(figures) != {"target"}
        words = [
            (f"{target}: " if many else "")
            + (f"{value}" if isinstance(value, int) else f"{value:.2f}")
            + (f" ± {self.std[target]:.2f}" if target in self.std else "")
            for target, value in figures.items()
        ]
        return f"{'error' if self.as_error else 'top-1'} {', '.join(words)} %" if words else "no accuracy"


@dataclass(frozen=True)
class Paper:
    """One file of the catalog.

    Attributes:
        key: name of its file and of its bases, `train/recipes/<key>-<dataset>.yaml`.
        citation: authors, title, venue, year. runs: of how many runs its figures are, and of which epoch.
        epochs: of its runs, by data set. counting: rule of `zoo.profile` by which its multiply-adds are counted, if any is known.
        entries: recipe of each entry, upon the base that it names.
    """

    key: str
    citation: str
    url: str
    runs: str
    epochs: dict[str, int]
    counting: str
    entries: dict[str, dict[str, Any]]
    rows: tuple[Row, ...]


@cache
def papers() -> tuple[Paper, ...]:
    """Every paper of the catalog.

    Raises:
        IntegrityError: a file of it is missing or broken.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        documents = {path.stem: yaml.load(path.read_bytes(), loader) for path in sorted(CATALOG.glob("*.yaml"))}
        known = {name: recipe for document in documents.values() for name, recipe in document["entries"].items()}
        return tuple(_paper(key, document, known) for key, document in documents.items())
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise IntegrityError(f"the catalog in {CATALOG} is broken: {error}", hint="install kdzoo again") from None


def _paper(key: str, document: dict[str, Any], known: Mapping[str, dict[str, Any]]) -> Paper:
    recipes = {name: {"base": f"{key}-{recipe['dataset']}", **recipe} for name, recipe in document["entries"].items()}
    rows = tuple(_row(key, row, known) for row in document["rows"])
    return Paper(
        key, document["paper"], document["url"], document["runs"], document["epochs"], document.get("counting", ""), recipes, rows
    )


def _row(key: str, row: dict[str, Any], known: Mapping[str, dict[str, Any]]) -> Row:
    facts = dict(row)
    if "entry" in facts:
        recipe = known[facts["entry"]]
        facts.update({k: recipe[k] for k in ("method", "backbone", "dataset")})
        facts["teacher"] = recipe.get("method_config", {}).get("teacher", "")
    for figure in ("error", "top1", "std", "params_m", "macs_m"):
        if figure in facts:
            value = facts[figure]
            facts[figure] = {str(t): v for t, v in value.items()} if isinstance(value, dict) else {"target": value}
    if "error" in facts:
        facts["top1"], facts["as_error"] = {t: round(100 - v, 2) for t, v in facts.pop("error").items()}, True
    return Row(paper=key, **{**facts, "table": str(facts.get("table", ""))})
