"""What a section of the page holds. Words are plain text; `page` turns them into HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .overlay import Grid
from .pictures import Picture

ACCURACY, CURVES, DISTANCE, GRADCAM, TSNE, CORRELATION = "accuracy", "curves", "distance", "gradcam", "tsne", "correlation"
TITLES = {
    ACCURACY: "Accuracy against cost",
    CURVES: "Learning curves",
    DISTANCE: "Distance between branches",
    GRADCAM: "Where each branch looks: Grad-CAM",
    TSNE: "Features of each branch: t\u2011SNE",
    CORRELATION: "Correlation between channels",
}


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        text: paragraphs above the pictures: what is shown, of how many images of which split.
        notes: paragraphs below them: where the picture comes from, and what must not be read into it.
        legend: small pictures with their meaning.
        missing: why there are no pictures; empty where there are.
    """

    key: str
    text: Sequence[str] = ()
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    legend: Sequence[tuple[Picture, str]] = ()
    grid: Grid | None = None
    missing: str = ""

    @property
    def title(self) -> str:
        return TITLES[self.key]
