"""The panels: points, curves, scatter plots and matrices, each drawn into a figure for one theme.

Okabe-Ito colours; whatever a colour tells, a marker, a line style or a number tells, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ..curve import PALETTE
from .pictures import MARKERS, Draw, Theme, label_points

STYLES = ("-", "--", ":", "-.")
MANY_LINES = 10
BROWN = "#A6611A"


def colour(number: int, theme: Theme) -> str:
    """Ten that can be told apart on `theme`; yellow, which is faint on white, comes last."""
    colours = (*PALETTE[:7], theme.ink, BROWN, PALETTE[7])
    return colours[number % len(colours)]


def marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def accuracy_panel(points: Mapping[str, tuple[float, float, float]], xlabel: str, ylabel: str) -> Draw:
    """Labelled points `(cost, top-1, half of the interval)` in thousands or millions; a log axis from a factor of four on."""

    def draw(figure: Any, theme: Theme) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes = figure.subplots()
        costs = [cost for cost, _, _ in points.values()]
        for number, (cost, top1, half) in enumerate(points.values()):
            axes.errorbar(
                cost, top1, yerr=half, fmt=marker(number), color=colour(number, theme), markersize=6, markeredgecolor=theme.ink,
                markeredgewidth=0.6, elinewidth=0.8, capsize=2, ecolor=theme.faint,
            )  # fmt: skip
        log = min(costs) > 0 and max(costs) / min(costs) >= 4
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=f"{xlabel}, log scale" if log else xlabel, ylabel=ylabel)
        axes.margins(x=0.16, y=0.16)
        axes.grid()
        label_points(figure, axes, [(cost, top1) for cost, top1, _ in points.values()], list(points))

    return draw


def curve_panel(
    curves: Mapping[str, Sequence[tuple[int, float]]], ylabel: str, title: str, *, may_log: bool = False, from_zero: bool = False
) -> Draw:
    """Lines over epochs with a legend below; with `may_log`, a log axis where positive values span a factor of fifty."""

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        values = [value for curve in curves.values() for _, value in curve]
        log = may_log and min(values) > 0 and max(values) / min(values) >= 50
        crowd = len(curves) > MANY_LINES
        for number, (name, curve) in enumerate(curves.items()):
            style, look = STYLES[number // len(MARKERS) % len(STYLES)], {"color": colour(number, theme), "marker": marker(number)}
            size, width = (2.5, 0.8) if crowd else (3.5, 1.2)
            axes.plot(*zip(*curve, strict=True), **look, label=name, linestyle=style, markersize=size, linewidth=width)
        if log:
            axes.set_yscale("log")
        axes.set(xlabel="epoch", ylabel=f"{ylabel}, log scale" if log else ylabel, title=title)
        if from_zero:
            axes.set_ylim(bottom=0.0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid()
        figure.legend(loc="outside lower center", ncols=4 if crowd else 3, fontsize=6.5 if crowd else 7.5)

    return draw


def distance_panel(matrix_MM: Float[ndarray, "M M"], names: Sequence[str], title: str) -> Draw:
    """The matrix as colours from zero on, with its numbers written in; the diagonal, which is zero, stays empty."""

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        largest = max(float(matrix_MM.max()), 1e-6)
        between_MM = np.ma.masked_where(np.eye(len(matrix_MM), dtype=bool), matrix_MM)
        image = axes.imshow(between_MM, cmap="cividis", vmin=0.0, vmax=largest)
        if len(matrix_MM) <= 8:
            for row, column in permutations(range(len(matrix_MM)), 2):
                ink = "#ffffff" if matrix_MM[row, column] < 0.55 * largest else "#000000"
                axes.text(column, row, f"{matrix_MM[row, column]:.3f}", ha="center", va="center", fontsize=7, color=ink)
        axes.set(xlabel="branch", ylabel="branch", title=title)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, shrink=0.85).set_label("mean L2 distance of softmax outputs")

    return draw


def embedding_panel(points_N2: Float[ndarray, "N 2"], group_N: Sequence[int], title: str) -> Draw:
    """t-SNE: one colour and one marker per group."""

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        groups = np.asarray(group_N)
        for number in np.unique(groups).tolist():
            look = {"color": colour(number, theme), "marker": marker(number), "edgecolors": theme.ink}
            axes.scatter(*points_N2[groups == number].T, **look, s=26 if marker(number) == "*" else 13, linewidths=0.2)
        axes.set(xlabel="t-SNE axis 1 (no unit)", ylabel="t-SNE axis 2 (no unit)", title=title)
        axes.tick_params(labelbottom=False, labelleft=False, length=0)
        axes.set_aspect("equal", adjustable="datalim")

    return draw


def marker_icon(number: int) -> Draw:
    """One marker of `embedding_panel`, for the legend."""

    def draw(figure: Any, theme: Theme) -> None:
        from matplotlib.lines import Line2D

        figure.set_layout_engine("none")
        shape = Line2D([0.5], [0.5], color=colour(number, theme), marker=marker(number), markersize=7)
        shape.set(markeredgecolor=theme.ink, markeredgewidth=0.4)
        figure.add_artist(shape)

    return draw


def correlation_panel(correlation_CC: Float[ndarray, "C C"], title: str) -> Draw:
    """Pearson correlation on the fixed scale -1..1, channel number on both axes; a channel that never changes is grey."""

    def draw(figure: Any, theme: Theme) -> None:
        import matplotlib as mpl

        axes = figure.subplots()
        colours = mpl.colormaps["PuOr_r"].with_extremes(bad="#777777")
        image = axes.imshow(
            correlation_CC, cmap=colours, vmin=-1.0, vmax=1.0, interpolation="nearest" if len(correlation_CC) <= 256 else None
        )
        axes.set(xlabel="channel", ylabel="channel", title=title)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.85, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.set_label("Pearson r")

    return draw
