"""The picture of a family: accuracy against latency of every file that was run. Needs matplotlib (extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .family import Member

    Box = tuple[float, float, float, float]  # left, low, right, high, in pixels

COLOURS = {"fp32": "#0072B2", "fp16": "#E69F00", "bf16": "#CC79A7", "int8": "#009E73"}
WIDTH, HEIGHT = 7.0, 11.0  # of a letter of a label, in pixels


def draw_pareto(members: Sequence[Member], path: Path, title: str) -> bool:
    """Top-1 against latency of every file that was run. False where matplotlib (extra `plot`) is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7.0, 4.6), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    run = [(m, m.p50_ms, m.top1) for m in members if m.p50_ms is not None and m.top1 is not None]
    front = [(ms, top1) for m, ms, top1 in run if m.pareto]
    axes.step([ms for ms, _ in front], [top1 for _, top1 in front], where="post", color="#999999", linewidth=1, zorder=1)
    for precision, colour in COLOURS.items():
        some = [(ms, top1) for m, ms, top1 in run if m.precision == precision]
        if some:
            axes.scatter([ms for ms, _ in some], [top1 for _, top1 in some], color=colour, label=precision, s=45, zorder=2)
    axes.set(xlabel="milliseconds, smallest batch (p50)", ylabel="test top-1 (%)", title=f"{title}: {len(run)} measured files")
    if run:
        axes.legend(fontsize=8, title="precision", title_fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    axes.margins(0.12)
    figure.draw_without_rendering()  # settles where a point is on the paper
    points = [axes.transData.transform((ms, top1)) for _, ms, top1 in run]
    boxes = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for (member, ms, top1), (x, y) in zip(run, points, strict=True):
        if member.pareto:
            offset, box = free_place(x, y, member.target, boxes)
            boxes.append(box)
            axes.annotate(member.target, (ms, top1), textcoords="offset pixels", xytext=offset, fontsize=8)
    figure.savefig(path, metadata={"Software": None})
    return True


def free_place(x: float, y: float, text: str, boxes: Sequence[Box]) -> tuple[tuple[float, float], Box]:
    """Where beside a point its label covers the least of what is there, in pixels from it."""
    width, height = WIDTH * len(text), HEIGHT
    best: tuple[float, tuple[float, float], Box] | None = None
    for offset in ((6.0, 5.0), (6.0, -14.0), (-6.0 - width, 5.0), (-6.0 - width, -14.0), (-width / 2, 12.0), (-width / 2, -22.0)):
        left, low = x + offset[0], y + offset[1]
        box = (left, low, left + width, low + height)
        covered = sum(
            max(0.0, min(box[2], other[2]) - max(box[0], other[0])) * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
            for other in boxes
        )
        if best is None or covered < best[0]:
            best = (covered, offset, box)
    assert best is not None
    return best[1], best[2]
