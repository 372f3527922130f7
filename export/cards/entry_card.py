"""The card of a bundled entry or a checkpoint, out of its manifest, its measured targets and the published figures. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...zoo.checkpoint import WEIGHTS
from ...zoo.manifest import Manifest
from .evidence import commands, origins, where_images_lay
from .figures import DBFSKD_RULE, UNIT_RULE
from .markdown import code, counted, in_order, percent, table
from .metadata import front_matter, license_of, metadata, results_of

CURVE = "curve.png"
EXPORTS = "exports.json"  # recorded exports, which `kdzoo reproduce` makes again


def entry_card(
    manifest: Manifest,
    targets: Mapping[str, Mapping[str, Any]],
    published: Mapping[str, Any],
    beside: Collection[str] = (),
) -> str:
    """README of an entry.

    Args:
        targets: by target what was measured: top1, top5, n, split, params, macs.
        published: `published_figures` of these targets. beside: names of what lies in its folder (`curve.png`, `exports.json`).
    """
    recipe, some = manifest.recipe, next(iter(targets.values()))
    schedule, length = recipe["schedule"], counted(manifest.epochs, "epoch")
    if manifest.epochs < recipe["epochs"]:
        length = f"**The run is not finished**: {manifest.epochs} of {counted(recipe['epochs'], 'epoch')}"
    results = [result for target in in_order(targets) for result in results_of(targets[target], target)]
    license = license_of({"weights_sha256": manifest.files.get(WEIGHTS, {}).get("sha256")})
    tags = (manifest.method, manifest.backbone)
    return "\n\n".join(filter(None, [
        front_matter(metadata(manifest.entry, manifest.dataset, tags, results, license=license)),
        f"# {manifest.entry}",
        f"{manifest.method} on {manifest.backbone}, {manifest.dataset}: one training run, {len(targets)} deployable targets. "
        f"Top-1 and top-5 are measured on the {some['n']:,} images of the {some['split']} split, with these very weights "
        f"(stored as {manifest.weights_dtype}), after epoch {some.get('epoch', manifest.epochs)} of {recipe['epochs']}; "
        "no epoch was chosen by its test accuracy.",
        "## Published vs measured",
        target_table(targets, published),
        unit_rule(published),
        f"![learning curve]({CURVE})" if CURVE in beside else "",
        "## How far from the paper, and why",
        _distance(manifest, targets, published),
        "## Training",
        f"{length}, batch {recipe['batch_size']}, SGD with learning rate {recipe['optimizer']['lr']}, "
        f"{schedule['kind']} schedule, {counted(schedule['warmup_epochs'], 'epoch')} of warm-up, weight decay "
        f"{recipe['optimizer']['weight_decay']}, seed {recipe['seed']}. "
        + (f"{recipe['holdout']:,} training images were held out. " if recipe.get("holdout") else "")
        + "`manifest.json` holds the whole recipe, `log.jsonl` every epoch.",
        "## Use it",
        code("sh", "\n".join(_commands(manifest))),
        "The packages have cards of their own, with measured files, golden images, and programs in Python and C++.",
        "## Reproduce",
        code("sh", "\n".join(_recorded(manifest, beside))),
        where_images_lay(manifest.provenance),
        origins(manifest.provenance),
        "## Limits",
        f"A closed set of {len(manifest.classes)} classes at {manifest.preprocess.width} x {manifest.preprocess.height} pixels, "
        f"tested on pictures of {manifest.dataset} only. One seed: figures of other seeds differ.",
    ])) + "\n"  # fmt: skip


def target_table(targets: Mapping[str, Mapping[str, Any]], published: Mapping[str, Any]) -> str:
    """A row for every target. Published counts get their columns where there are any."""
    figures = published.get("targets", {})
    with_counts = any({"params_m", "macs_m"} & set(found) for found in figures.values())
    by_paper = counts_by_paper(published)
    rows = []
    for target in in_order(targets):
        ours, paper = targets[target], figures.get(target, {})
        counts = [f"{ours['params']:,}", f"{ours['macs_dbfskd' if by_paper else 'macs']:,}"]
        if with_counts:
            printed = [f"{paper[k]['value']:g} M" if k in paper else "-" for k in ("params_m", "macs_m")]
            counts = [counts[0], printed[0], counts[1], printed[1]]
        top1 = paper.get("top1", {}).get("value")
        gap = "-" if top1 is None else f"{ours['top1'] - top1:+.2f}"
        rows.append((f"`{target}`", *counts, percent(ours["top1"]), percent(ours.get("top5")), percent(top1), gap))
    header = ["parameters", "published", "multiply-adds", "published"] if with_counts else ["parameters", "multiply-adds"]
    return table(("target", *header, "top-1", "top-5", "published top-1", "points from the paper"), rows)


def counts_by_paper(published: Mapping[str, Any]) -> bool:
    """Whether the multiply-adds are counted by the rule of the paper, to stand beside those that it publishes."""
    printed = any("macs_m" in found for found in published.get("targets", {}).values())
    return printed and published["counting"] == "dbfskd"


def unit_rule(published: Mapping[str, Any]) -> str:
    """How everything is counted, and why a published count cannot be met."""
    reasons: dict[str, None] = {}
    for found in published.get("targets", {}).values():
        reasons |= dict.fromkeys(figure["not_reproducible"] for figure in found.values() if "not_reproducible" in figure)
    parts = [UNIT_RULE, DBFSKD_RULE if counts_by_paper(published) else "", *(f"Not reproducible: {why}." for why in reasons)]
    return " ".join(filter(None, parts))


def _commands(manifest: Manifest) -> list[str]:
    """One branch, all of them, and the cascade where images were held out for its thresholds."""
    export = f"kdzoo export {manifest.entry} --branch"
    several = [f"{export} all-targets -o packages"]
    return [f"{export} target --format onnx", *several, *([f"{export} cascade"] if manifest.recipe.get("holdout") else [])]


def _recorded(manifest: Manifest, beside: Collection[str]) -> list[str]:
    """The commands of the run, and those that measure it again."""
    again = [f"kdzoo reproduce {manifest.entry}"] if EXPORTS in beside else []
    return [*commands(manifest.provenance), f"kdzoo eval {manifest.entry}", *again]


def _distance(manifest: Manifest, targets: Mapping[str, Mapping[str, Any]], published: Mapping[str, Any]) -> str:
    figures, epochs = published.get("targets", {}), published.get("epochs")
    compared = [target for target in in_order(targets) if "top1" in figures.get(target, {})]
    if not compared:
        longer = (
            f" Its runs are {counted(epochs, 'epoch')} long, this one {manifest.epochs}."
            if epochs and epochs != manifest.epochs
            else ""
        )
        return f"The paper publishes no figures for this entry.{longer}"
    target = compared[0]
    printed = figures[target]["top1"]
    gap = targets[target]["top1"] - printed["value"]
    text = (
        f"Target `{target}` has {percent(targets[target]['top1'])}, the paper {percent(printed['value'])}: "
        f"**{abs(gap):.2f} points {'below' if gap < 0 else 'above'}** ({printed['source']}; {published['paper']})."
    )
    if epochs and manifest.epochs != epochs:
        text += (
            f" This run is **{counted(manifest.epochs, 'epoch')} long, the paper's {epochs}**: it shows the method at work, "
            "and does not reproduce the paper. `kdzoo train` with the recipe of this entry, unchanged, runs the paper's schedule."
        )
    return text
