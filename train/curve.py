"""The learning curve of a run, out of its log."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

# Okabe-Ito: told apart by colour-blind readers, on light and on dark paper.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#F0E442")


def draw_curve(records: Sequence[dict[str, Any]], path: Path, title: str) -> bool:
    """Test top-1 of every target and mean loss by epoch, as PNG. False where matplotlib (extra `plot`) is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7.0, 6.0), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    accuracy, loss = figure.subplots(2, 1, sharex=True)
    evaluated = [r for r in records if r.get("metrics")]
    for colour, target in zip(cycle(PALETTE), evaluated[-1]["metrics"] if evaluated else [], strict=False):
        points = [(r["epoch"], r["metrics"][target]["top1"]) for r in evaluated]
        accuracy.plot(*zip(*points, strict=True), color=colour, label=target, marker=".", markersize=4)
    accuracy.set(ylabel="test top-1 (%)", title=title)
    if evaluated:
        accuracy.legend(ncols=2, fontsize=8, title="target", title_fontsize=8)
    for colour, part in zip(cycle(PALETTE), records[-1]["losses"] if records else [], strict=False):
        points = [(r["epoch"], r["losses"][part]) for r in records]
        loss.plot(*zip(*points, strict=True), color=colour, label=part, marker=".", markersize=4)
    loss.set(ylabel="training loss (weighted part)", xlabel="epoch")
    loss.legend(ncols=2, fontsize=8)
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Software": None})
    return True
