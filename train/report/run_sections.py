"""The sections that are drawn from what the run wrote: accuracy against cost, learning curves, distances between branches."""

from __future__ import annotations

import math
from itertools import combinations

from .facts import Run
from .observe import Observations
from .panels import accuracy_panel, curve_panel, distance_panel
from .pictures import picture
from .section import ACCURACY, CURVES, DISTANCE, Section

UNITS = ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (1.0, "count"))


def half_interval(percent: float, n: int) -> float:
    """Half of the 95 % interval, in points, of a percentage of `n` images: binomial, normal approximation."""
    share = percent / 100
    return 100 * 1.96 * math.sqrt(share * (1 - share) / n)


def accuracy_section(run: Run) -> Section:
    """Top-1 of every target against parameters and multiply-adds."""
    names = {t: label for t, label in run.drawn_targets().items() if "top1" in run.targets[t]}
    if not names:
        return Section(ACCURACY, missing="the run has not been evaluated yet")
    rows, split, pictures = {label: run.targets[t] for t, label in names.items()}, run.split(), []
    for cost, words in (("params", "parameters"), ("macs", "multiply-adds per image")):
        largest = max(row[cost] for row in rows.values())
        scale, unit = next((s, w) for s, w in UNITS if largest >= 0.5 * s or s == 1.0)
        points = {label: (row[cost] / scale, row["top1"], half_interval(row["top1"], row["n"])) for label, row in rows.items()}
        listing = "; ".join(f"{label}: {x:.3g} {unit}, {top1:.2f} %" for label, (x, top1, _) in points.items())
        draw = accuracy_panel(points, f"{words} ({unit})", f"{split} top-1 (%)")
        pictures.append(picture(draw, f"Top-1 against {words}, one labelled point per target. {listing}."))
    row, size = next(iter(rows.values())), run.manifest.preprocess
    text = [
        f"Every point is one network that can be cut out of this run: its top-1 on {row['n']:,} {split} images after epoch "
        f"{row.get('epoch', run.manifest.epochs)}, against its trainable parameters and against its multiply-adds "
        f"(convolutions and linear layers) for one image of {size.height} x {size.width} pixels."
    ]
    notes = [
        "The bars are 95 % intervals for the number of test images alone (binomial). One run with one seed says nothing about "
        "the spread between seeds. All targets saw the same images, so a difference between two of them is known better than "
        "the bars suggest. The numbers are those of the last evaluation, not of the best epoch."
    ]
    return Section(ACCURACY, text, notes, pictures)


def curves_section(run: Run) -> Section:
    """Loss parts and top-1 of the targets over the epochs."""
    if not run.records:
        return Section(CURVES, missing="there is no log of finished epochs (log.jsonl) with the checkpoint")
    split, pictures = run.split(), []
    parts = dict.fromkeys(part for r in run.records for part in r["losses"])
    losses = {part: [(r["epoch"], r["losses"][part]) for r in run.records if part in r["losses"]] for part in parts}
    if losses:
        last = "; ".join(f"{part}: {curve[-1][1]:.3g}" for part, curve in losses.items())
        draw = curve_panel(losses, "weighted loss part", "training loss by part", may_log=True)
        pictures.append(picture(draw, f"Training loss by epoch, one line per part. At the last epoch {last}.", height=3.1))
    evaluated = [r for r in run.records if r.get("metrics")]
    curves = {
        label: [(r["epoch"], r["metrics"][target]["top1"]) for r in evaluated if target in r["metrics"]]
        for target, label in run.drawn_targets().items()
    }
    curves = {label: curve for label, curve in curves.items() if curve}
    if curves:
        last = "; ".join(f"{label}: {curve[-1][1]:.2f} %" for label, curve in curves.items())
        draw = curve_panel(curves, f"{split} top-1 (%)", "top-1 by target")
        pictures.append(picture(draw, f"Top-1 by epoch, one line per target. At the last evaluation {last}.", height=3.1))
    text = [
        "Losses: mean of every weighted part over the training batches of an epoch; their sum is what was minimised. Accuracy: "
        f"top-1 of every target on the {split} split at the end of an epoch. Epochs in the log: {len(run.records)}."
    ]
    notes = [
        "Parts are of different kinds and weights: compare a part with itself over time, not with another. A part that rises "
        "may be one whose weight is ramped up."
    ]
    return Section(CURVES, text, notes, pictures)


def distance_section(run: Run, seen: Observations | None, source: str) -> Section:
    """Mean distance between the softmax outputs of every two branches, over the epochs where the log has it. `source` says what
    the images of `seen` are, or why there are none."""
    if run.num_branches < 2:
        return Section(DISTANCE, missing="this network has one branch, and a distance needs two")
    pairs, pictures = list(combinations(range(run.num_branches), 2)), []
    logged = run.distances()
    if logged:
        curves = {f"{i + 1}-{j + 1}": [(epoch, float(matrix[i, j])) for epoch, matrix in logged] for i, j in pairs}
        last = "; ".join(f"{pair}: {curve[-1][1]:.3f}" for pair, curve in curves.items())
        draw = curve_panel(curves, "mean L2 distance", "distance by pair of branches", from_zero=True)
        alt = f"Distance between branches by epoch, one line per pair. At the last evaluation {last}."
        pictures.append(picture(draw, alt, height=3.1 + 0.035 * max(0, len(pairs) - 8)))
        epoch, matrix = logged[-1]
        origin = (
            f"It was measured on the {run.split()} split at each evaluation of the training; the matrix is that of epoch {epoch}."
        )
    elif seen is not None:
        matrix = seen.distances()
        origin = (
            "The log of this run holds no distances, so there are no lines over the epochs: the matrix is that of the checkpoint "
            f"after epoch {run.manifest.epochs}, measured now on {source}."
        )
    else:
        reason = f"the log of this run holds no distances, and there is nothing to measure them on now: {source}"
        return Section(DISTANCE, missing=reason)
    listing = "; ".join(f"{i + 1}-{j + 1}: {matrix[i, j]:.3f}" for i, j in pairs)
    numbers = [f"{n}*" if n == run.target_branch else str(n) for n in range(1, run.num_branches + 1)]
    draw = distance_panel(matrix, numbers, "distance matrix (* target)")
    alt = f"Matrix of the mean distance between every two branches. {listing}."
    pictures.append(picture(draw, alt, height=3.1))
    text = [
        "Mean Euclidean distance between the probabilities (softmax, temperature 1) that two branches give to the same image: "
        "0 where they always agree, 1.414 where each is sure of another class.",
        origin,
    ]
    notes = [
        "Papers on distillation between branches draw it to show whether branches stay different. It is no measure of quality, "
        "and branches that only grow more confident grow apart by it, too."
    ]
    return Section(DISTANCE, text, notes, pictures)
