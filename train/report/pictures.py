"""How a picture becomes bytes: two themes, one small panel each, so that two stand side by side on a page and one on a phone.

matplotlib (extra `plot`) is imported inside functions only.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import EnvironmentProblem

WIDTH = 3.4  # inches; with 96 pixels to the inch of a page, half of 700 pixels
DOTS_PER_INCH = 200
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


@dataclass(frozen=True)
class Theme:
    """Colours of paper and ink, as the page has them."""

    paper: str
    ink: str
    faint: str


LIGHT = Theme(paper="#ffffff", ink="#1a1a1a", faint="#8a8a8a")
DARK = Theme(paper="#1c2026", ink="#e8e8e8", faint="#8f959d")


@dataclass(frozen=True)
class Picture:
    """One panel for light and for dark paper, with what it shows in words for those who do not see it."""

    light: bytes
    dark: bytes
    alt: str


Draw = Callable[[Any, Theme], None]


def render(draw: Draw, theme: Theme, width: float, height: float) -> bytes:
    """PNG of a figure that `draw` fills. Settings of the user's matplotlib do not change it.

    Raises:
        EnvironmentProblem: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise EnvironmentProblem(
            "the pictures need matplotlib, which is not installed", hint="pip install matplotlib scikit-learn"
        ) from None
    settings: Any = {"font.size": 8, "axes.titlesize": 9, "grid.color": theme.faint, "grid.alpha": 0.35, "legend.frameon": False}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), theme.ink)
    settings |= {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def picture(draw: Draw, alt: str, *, width: float = WIDTH, height: float = 2.9) -> Picture:
    """`draw` on light and on dark paper; `width` and `height` in inches."""
    return Picture(render(draw, LIGHT, width, height), render(draw, DARK, width, height), alt)


def label_points(figure: Any, axes: Any, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Write each text beside its point, where it covers no point and no other text; farther away with a line to the point."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles where the axes are
    radius, offsets = 5 * figure.dpi / 72, _offsets()
    taken = [Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius) for x, y in map(axes.transData.transform, points)]
    frame = axes.get_window_extent()
    for point, text in zip(points, texts, strict=True):
        for attempt, (dx, dy) in enumerate(offsets, start=1):
            line = {"arrowstyle": "-", "linewidth": 0.5, "color": axes.xaxis.label.get_color()} if attempt > 8 else None
            label = axes.annotate(text, point, xytext=(dx, dy), textcoords="offset points", fontsize=7.5, arrowprops=line)
            label.set(
                ha=("right", "center", "left")[1 + (dx > 0) - (dx < 0)], va=("top", "center", "bottom")[1 + (dy > 0) - (dy < 0)]
            )
            label.set_in_layout(False)
            label.update_positions(figure.canvas.get_renderer())
            box = Text.get_window_extent(label)  # without the line
            inside = frame.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if attempt == len(offsets) or (inside and not any(map(box.overlaps, taken))):
                taken.append(box)
                break
            label.remove()


def _offsets() -> list[tuple[float, float]]:
    """Where a label may stand, in points from its point, the nearest first."""
    around = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    return [(reach * x, reach * y) for reach in (6.0, 14.0, 22.0, 32.0, 44.0) for x, y in around]
