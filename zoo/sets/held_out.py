"""Training images that are never trained on, so that what is calibrated on them afterwards meets images that it has not seen."""

from __future__ import annotations

from ...errors import DataError
from .images import ImageSplit


def held_out(data: ImageSplit, count: int) -> tuple[ImageSplit, ImageSplit]:
    """`data` without `count` of its images, and those: evenly spaced over the images in the order of their classes, so every class
    gives its share, and everybody has the same.

    Raises:
        DataError: nothing would be left to train on.
    """
    import numpy as np

    if count >= len(data):
        raise DataError(f"there are {len(data)} training images, {count} cannot be held out", hint="set a smaller holdout")

    by_class = np.argsort(data.labels, kind="stable")
    chosen = np.sort(by_class[np.arange(count) * len(data) // max(count, 1)])
    return data.take(np.setdiff1d(np.arange(len(data)), chosen)), data.take(chosen)
