"""How far the logits of a file are from those of torch, and how accurate they are. NumPy only.

Shapes: `N` images, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..zoo.datasets import EncodedImages, ImageSplit, LabelledImages

# The largest |logit difference| from torch that an export may have, and that a file may have from itself in other batches and on
# other machines; for logits up to `USUAL_LOGIT`, as rounding grows with them. Eight bits are judged by accuracy and agreement.
EXACT = ("fp32", "fp16")
TOLERANCE = {"fp32": 1e-3, "fp16": 0.5, "bf16": 1.0, "int8": 0.5}
USUAL_LOGIT = 32.0

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Parity:
    """Agreement of two sets of logits.

    Attributes:
        agreement: share of images with the same argmax, 0..1. max_abs_diff: largest |logit difference|; None if one is not finite.
        nan_count: logits of the file that are not finite. largest_logit: largest |logit| of the reference.
    """

    n: int
    agreement: float
    max_abs_diff: float | None
    nan_count: int
    largest_logit: float


def tolerance(precision: str, largest_logit: float) -> float:
    """The largest |logit difference| that is right for a precision and for reference logits of up to `largest_logit`."""
    return TOLERANCE[precision] * max(1.0, largest_logit / USUAL_LOGIT)


def compare(logits_NK: NDArray[np.float32], reference_NK: NDArray[np.float32]) -> Parity:
    """Parity of the logits of a file with the reference. Where there are none, nothing agrees."""
    import numpy as np

    if not len(logits_NK):
        return Parity(0, 0.0, None, 0, 0.0)
    nan_count = int((~np.isfinite(logits_NK)).sum())
    worst = None if nan_count else float(np.abs(logits_NK - reference_NK).max())
    agreement = float((logits_NK.argmax(axis=1) == reference_NK.argmax(axis=1)).mean())
    return Parity(len(logits_NK), agreement, worst, nan_count, float(np.abs(reference_NK).max()))


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 in percent over `n` images; top-5 only where there are more than five classes."""

    n: int
    top1: float
    top5: float | None


def measure_accuracy(logits_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> Accuracy:
    """Accuracy of logits; a logit that is not finite counts as the smallest."""
    import numpy as np

    clean = np.nan_to_num(logits_NK, nan=-np.inf, posinf=-np.inf, neginf=-np.inf)
    top1 = 100.0 * float((clean.argmax(axis=1) == labels_N).mean())
    top5 = None
    if clean.shape[1] > 5:
        best_N5 = np.argpartition(-clean, 5, axis=1)[:, :5]
        top5 = round(100.0 * float((best_N5 == labels_N[:, None]).any(axis=1).mean()), 4)
    return Accuracy(len(labels_N), round(top1, 4), top5)


def in_batches(images: NDArray[np.uint8] | ImageSplit, batch: int) -> Iterator[NDArray[np.uint8]]:
    """Raw images, `batch` at a time: those of an array, or of a split that may still be encoded."""
    if isinstance(images, LabelledImages | EncodedImages):
        return images.batches(batch)
    return (images[start : start + batch] for start in range(0, len(images), batch))


def run_over(runner: Runner, inputs: Iterable[NDArray[Any]], batch: int, *, fixed: bool = False) -> NDArray[np.float32]:
    """Logits `N K` of inputs that come `batch` at a time; a graph of `fixed` batch gets its last batch filled up with zeros."""
    return run_outputs(lambda chunk: {"logits": runner(chunk)}, inputs, batch if fixed else 1)["logits"]


def run_outputs(
    runner: Callable[[NDArray[Any]], dict[str, NDArray[Any]]], inputs: Iterable[NDArray[Any]], least: int = 1
) -> dict[str, NDArray[Any]]:
    """As `run_over`, for every output by its name; what is smaller than the `least` batch that is taken is filled up with zeros."""
    import numpy as np

    parts: list[dict[str, NDArray[Any]]] = []
    for chunk in inputs:
        size = len(chunk)
        if size < least:
            chunk = np.concatenate([chunk, np.zeros((least - size, *chunk.shape[1:]), chunk.dtype)])
        parts.append({name: values[:size] for name, values in runner(chunk).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
