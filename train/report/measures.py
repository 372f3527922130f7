"""What the pictures show as numbers: correlation between channels, and where t-SNE puts images.

Shapes: `N` images, `C` channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ...errors import EnvironmentProblem


def channel_correlation(pooled_NC: Float[ndarray, "N C"]) -> Float[ndarray, "C C"]:
    """Pearson correlation of every two channels over the images, in float64; NaN for a channel that never changes."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.atleast_2d(np.corrcoef(pooled_NC.astype(np.float64), rowvar=False))


def mean_strength(correlation_CC: Float[ndarray, "C C"]) -> float | None:
    """Mean |r| of different channels, those that never change left out; None where fewer than two change."""
    off_diagonal = np.abs(correlation_CC[~np.eye(len(correlation_CC), dtype=bool)])
    known = off_diagonal[~np.isnan(off_diagonal)]
    return float(known.mean()) if known.size else None


@dataclass(frozen=True)
class Choice:
    """Images for t-SNE, class by class: their places in the split, which of `classes` each is of (0 = the first), the classes."""

    images: Int[ndarray, " N"]
    groups: Int[ndarray, " N"]
    classes: tuple[int, ...]


def spread(num_items: int, count: int) -> Int[ndarray, " N"]:
    """`count` places, evenly over a list: image folders are sorted by class, so the first images would be of a few classes."""
    count = min(count, num_items)
    return np.arange(count) * num_items // max(1, count)


def choose_classes(labels_N: Int[ndarray, " N"], num_classes: int = 10, per_class: int = 50, at_least: int = 10) -> Choice:
    """Up to `num_classes` classes and the first `per_class` images of each. Where more classes than that are full, they are taken
    evenly from the list; otherwise the fullest. Fewer than `at_least` images of a class show no cluster: it is left out."""
    names, counts = np.unique(labels_N, return_counts=True)
    full = names[counts >= per_class]
    if len(full) > num_classes:
        taken = full[spread(len(full), num_classes)]
    else:
        fullest = np.argsort(-counts, kind="stable")[:num_classes]
        taken = np.sort(names[fullest][counts[fullest] >= at_least])
    places = [np.flatnonzero(labels_N == c)[:per_class] for c in taken]
    groups = np.repeat(np.arange(len(places)), [len(p) for p in places])
    return Choice(np.concatenate([np.empty(0, np.int64), *places]), groups, tuple(int(c) for c in taken))


def perplexity(num_images: int) -> float:
    """30, or a third of the images where they are few."""
    return min(30.0, (num_images - 1) / 3)


def embed(pooled_NC: Float[ndarray, "N C"], seed: int) -> Float[ndarray, "N 2"]:
    """t-SNE (van der Maaten & Hinton, 2008) to two axes, of no unit: started from PCA.

    Raises:
        EnvironmentProblem: scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise EnvironmentProblem("t-SNE needs scikit-learn, which is not installed", hint="pip install scikit-learn") from None
    tsne = TSNE(2, perplexity=perplexity(len(pooled_NC)), init="pca", learning_rate="auto", random_state=seed, n_jobs=1)
    with threadpool_limits(1):  # a thousand tiny steps: on a busy machine a second thread only waits
        return tsne.fit_transform(pooled_NC.astype(np.float64))
