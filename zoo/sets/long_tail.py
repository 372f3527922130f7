"""Long-tailed training splits: CIFAR100-LT and its like, as subsets of the balanced set.

Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019, https://arxiv.org/abs/1901.05555, section 5.1: class c
of C keeps n_max * IF^(-c/(C-1)) images, rounded down, for the imbalance factor IF. CIFAR-100 keeps 19,573 images for IF = 10,
12,608 for 50 and 10,847 for 100.

Deviations: 1. public code draws the images of a class at random with a seed of its own; here they are the first in the order of the
set, so that everybody has the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...errors import DataError
from .images import ImageSplit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def imbalance(dataset: str) -> tuple[str, int]:
    """Name of the balanced set and imbalance factor of a name like `cifar100-lt50`; 1 is balanced."""
    match = re.fullmatch(r"(.+)-lt(\d+)", dataset)
    if match is None:
        return dataset, 1
    factor = int(match[2])
    if factor < 1:
        raise DataError(f"'{dataset}' has the imbalance factor {factor}", hint="the usual ones are lt10, lt50 and lt100")
    return match[1], factor


def class_counts(largest: int, num_classes: int, factor: int) -> list[int]:
    """Images that each class keeps."""
    return [int(largest * (1 / factor) ** (c / max(num_classes - 1, 1))) for c in range(num_classes)]


def long_tail(data: ImageSplit, factor: int) -> ImageSplit:
    """The images of `data` that remain, in their order. The largest class decides what the others may keep.

    Raises:
        DataError: a class would be left without an image.
    """
    import numpy as np

    there = np.bincount(data.labels, minlength=len(data.classes))
    keep = class_counts(int(there.max()), len(data.classes), factor)
    if min(keep) < 1:
        raise DataError(
            f"an imbalance of {factor} leaves no image of class '{data.classes[keep.index(0)]}'", hint="use a smaller factor"
        )
    return data.take(_first_of_each(data.labels, keep))


def _first_of_each(labels: NDArray[np.int64], keep: list[int]) -> NDArray[np.int64]:
    import numpy as np

    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label, count in enumerate(keep)]))
