"""An entry of the zoo in words: published beside counted beside measured, by target; the rest of what was published; the recipe."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .console import table

if TYPE_CHECKING:
    from ..zoo.catalog import Entry
    from ..zoo.published import Row


def entry_document(entry: Entry) -> dict[str, Any]:
    """For `--json`. `recipe` is what `kdzoo train` does, composed; `bundled` describes the weights that are here."""
    from ..zoo.catalog import comparisons
    from ..zoo.checkpoint import Checkpoint

    document = {
        **asdict(entry),
        "not_reproducible": entry.not_reproducible,
        "recipe": composed(entry),
        "base": entry.recipe.get("base"),
    }
    document["comparisons"] = [asdict(row) for row in comparisons(entry)]
    document["bundled"] = None
    if entry.folder is not None:
        manifest = Checkpoint.open(entry.folder).manifest
        facts = {key: getattr(manifest, key) for key in ("epochs", "recipe", "provenance", "weights_dtype")}
        document["bundled"] = {"folder": str(entry.folder), "num_classes": len(manifest.classes), **facts}
    return document


def composed(entry: Entry) -> dict[str, Any] | None:
    """The whole recipe of an entry that can be trained by name."""
    from ..train.recipe_file import load_recipe

    return load_recipe(entry.name)[1].to_dict() if entry.recipe else None


def describe_entry(document: dict[str, Any], entry: Entry) -> str:
    """For people."""
    from ..zoo.catalog import comparisons

    taught = f" from {teacher}" if (teacher := entry.recipe.get("method_config", {}).get("teacher")) else ""
    head = [f"{entry.name}: {entry.method} on {entry.backbone}{taught}, {entry.dataset}", *filter(None, [entry.paper, entry.url])]
    bundled = document["bundled"]
    head.append(f"weights of {bundled['epochs']} epochs in {bundled['folder']}" if bundled else "no weights bundled")
    parts = ["\n".join(head), figures(entry)]
    if entry.not_reproducible:
        parts.append(
            "\n".join(["not reproducible", *(f"  {named(figure)}: {why}" for figure, why in entry.not_reproducible.items())])
        )
    further = [row for row in entry.rows if not row.plain or row.paper != entry.rows[0].paper or row.note]
    others = comparisons(entry)
    if further:
        parts.append("published rows\n" + table(("source", "what", "top-1 or error", "note"), list(map(row_line, further))))
    if others:
        lines = [(source(row), who(row), row.printed, row.note) for row in others]
        parts.append(
            f"others on {entry.backbone}, {entry.dataset}\n" + table(("source", "method", "top-1 or error", "note"), lines)
        )
    if document["recipe"] is not None:
        import yaml

        text = yaml.safe_dump(document["recipe"], sort_keys=False, default_flow_style=None, width=120).rstrip()
        parts.append(f"recipe, upon {document['base']}\n{text}")
    return "\n\n".join(parts)


def figures(entry: Entry) -> str:
    """Published beside counted beside measured, a row for each target."""
    from ..export.cards.entry_card import counts_by_paper
    from ..export.cards.markdown import in_order
    from ..export.cards.published_figures import published_figures

    twins = {number: word for word, number in entry.same.items()}
    targets = in_order({*entry.published, *entry.counted, *entry.measured} - set(twins.values()))
    found = published_figures(entry.name, targets)
    macs = "macs_dbfskd" if counts_by_paper(found) else "macs"

    def published(figure: str, target: str) -> str:
        printed = found.get("targets", {}).get(target, {}).get(figure)
        if printed is None:
            return "-"
        return f"{printed['value']:.2f}" + (f" ± {printed['std']:.2f}" if "std" in printed else "")

    lines = []
    for target in targets:
        counted, measured = entry.counted.get(target, {}), entry.measured.get(target, {})
        lines.append((
            f"{target} = {twins[target]}" if target in twins else target,
            published("top1", target),
            f"{measured['top1']:.2f}" if measured else "-",
            published("params_m", target),
            f"{counted['params'] / 1e6:.4f}" if counted else "-",
            published("macs_m", target),
            f"{counted[macs] / 1e6:.2f}" if counted else "-",
        ))  # fmt: skip
    header = ("target", "published top-1 %", "measured top-1 %", "published M params", "counted", "published M MACs", "counted")
    words = {"plain": "multiply-adds of convolutions and linear layers", "dbfskd": "multiply-adds as the paper counts them"}
    return f"{table(header, lines)}\ncounted: {words['dbfskd' if macs == 'macs_dbfskd' else 'plain']}"


def row_line(row: Row) -> tuple[str, ...]:
    settings = " ".join(f"{key}={value}" for key, value in row.settings.items())
    lost = [] if row.plain else [f"{named(figure)}: {why}" for figure, why in row.not_reproducible.items()]
    return (source(row), row.variant or settings or "the entry itself", row.printed, "; ".join(filter(None, (row.note, *lost))))


def source(row: Row) -> str:
    return f"{row.paper}, table {row.table}" if row.table else row.paper


def who(row: Row) -> str:
    return row.entry or (f"{row.method} from {row.teacher}" if row.teacher else row.method)


def named(figure: str) -> str:
    """`params_m.3` in words."""
    name, _, target = figure.partition(".")
    words = {"top1": "top-1", "params_m": "parameters", "macs_m": "multiply-adds"}[name]
    return f"{words} of target {target}" if target else words
