"""When a cascade may stop: a threshold on the confidence of every exit but the last, found on images that training has not seen.

An exit answers with the mean of all logits so far, each weighing twice as much as the one before it: what has been computed costs
nothing more. Its confidence is the largest softmax probability of that mean.

Thresholds lie on a path from never stopping to stopping early: each exit asks for less than the one before, by a step that is
chosen on a few of the images. Along that path, from the careful end, each set is tested on all the other images; the last one whose
loss of accuracy against the last branch alone is below the limit with 95 % is taken. Because the order of the tests is fixed before
they are made and the first failure ends them, the bound holds for what is taken (fixed-sequence testing: Angelopoulos et al., Learn
then Test, 2021, https://arxiv.org/abs/2110.01052, section 2.3). NumPy only.

Shapes: `N` images, `J` exits, the last of which always answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import GateFailed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Z95 = 1.645  # one-sided
LEARNT_ON = 5  # one image in so many chooses the path; the others test it
STEPS = (0.0, 0.05, 0.1, 0.15)
CONFIDENCES = tuple(k / 100 for k in range(99, 29, -1))  # of the first exit


@dataclass(frozen=True)
class Answers:
    """What every exit said of labelled images.

    Attributes:
        confidence: `N J`. right: `N J`, whether the answer is that of the label. full: `N`, the same of the last branch alone.
        macs: `J`, multiply-adds up to and with each exit.
    """

    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]
    full: NDArray[np.bool_]
    macs: NDArray[np.float64]

    @classmethod
    def of(cls, logits: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], macs: Sequence[int]) -> Answers:
        """From the logits `N K` of each branch."""
        import numpy as np

        means = so_far(logits)
        right = np.stack([z.argmax(axis=1) == labels for z in means], axis=1)
        full = logits[-1].argmax(axis=1) == labels
        return cls(np.stack([confidence_of(z) for z in means], axis=1), right, full, np.asarray(macs, np.float64))

    def take(self, index: NDArray[np.int64]) -> Answers:
        return Answers(self.confidence[index], self.right[index], self.full[index], self.macs)


@dataclass(frozen=True)
class Thresholds:
    """What was found. `loss` and `bound` are points of top-1 below the last branch, on `n` images: the mean, and the 95 % bound.

    Attributes:
        values: one per exit but the last. shares: of images that leave at each exit. macs: mean multiply-adds of an image.
    """

    values: tuple[float, ...]
    limit: float
    loss: float
    bound: float
    n: int
    shares: tuple[float, ...]
    macs: float


def share_of(j: int) -> float:
    """The weight of branch `j`, from 0, in the mean of the branches up to it."""
    return float(2**j / (2 ** (j + 1) - 1))


def so_far(logits: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The answers of the exits `N K`: weighted means of the logits of the branches so far."""
    means = [logits[0]]
    for j, z_NK in enumerate(logits[1:], start=1):
        means.append(means[-1] + (z_NK - means[-1]) * share_of(j))
    return means


def confidence_of(logits_NK: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest softmax probability of each row."""
    import numpy as np

    shifted = logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = 1.0 / np.exp(shifted).sum(axis=1)
    return result


def exits_of(confidence: NDArray[Any], values: tuple[float, ...]) -> NDArray[np.int64]:
    """The exit, from 0, at which each image leaves: the first that is at least as sure as its threshold, else the last."""
    import numpy as np

    sure = np.concatenate([confidence[:, :-1] >= np.asarray(values), np.ones((len(confidence), 1), bool)], axis=1)
    return sure.argmax(axis=1)


def find_thresholds(answers: Answers, limit: float) -> Thresholds:
    """The cheapest thresholds whose loss of top-1 is at most `limit` points with 95 % certainty.

    Raises:
        GateFailed: not even the most careful of them can be shown to lose so little.
    """
    import numpy as np

    everything = np.arange(len(answers.right))
    if len(everything) < LEARNT_ON:
        raise GateFailed(f"{len(everything)} images held out are too few to find thresholds on", hint="hold more of them out")
    learn, test = answers.take(everything[::LEARNT_ON]), answers.take(everything[everything % LEARNT_ON != 0])
    found, nearest = None, None
    for values in path(learn, limit):
        result = judge(test, values, limit)
        nearest = nearest or result
        if result.bound > limit:
            break
        found = result
    if found is None:
        assert nearest is not None
        raise GateFailed(
            f"no early exit can be shown to lose at most {limit} points with 95 %: the most careful thresholds lose "
            f"{nearest.loss:.2f} on {nearest.n} images, at most {nearest.bound:.2f}",
            hint=f"--cascade-loss {max(nearest.bound, limit):.2f}, or hold more images out when training",
        )
    return found


def judge(answers: Answers, values: tuple[float, ...], limit: float) -> Thresholds:
    """Loss and its bound on `answers`. One image is added to those that differ, so that few differences do not mean certainty."""
    import numpy as np

    n, leave = len(answers.right), exits_of(answers.confidence, values)
    right, full = answers.right[np.arange(n), leave], answers.full
    worse, better = int((full & ~right).sum()), int((right & ~full).sum())
    loss = (worse - better) / n
    spread = Z95 * np.sqrt(max((worse + better + 1) / n - loss**2, 0.0) / n)
    shares = np.bincount(leave, minlength=len(answers.macs)) / n
    return Thresholds(
        values, limit, round(100 * loss, 4), round(100 * float(loss + spread), 4), n, tuple(round(float(s), 6) for s in shares),
        round(float(shares @ answers.macs), 1),
    )  # fmt: skip


def path(answers: Answers, limit: float) -> list[tuple[float, ...]]:
    """Sets of thresholds, the careful ones first, along the step that saves most on `answers` within the limit."""

    def along(step: float) -> list[tuple[float, ...]]:
        return [tuple(max(t - step * j, 0.0) for j in range(len(answers.macs) - 1)) for t in CONFIDENCES]

    def cheapest(step: float) -> float:
        judged = [judge(answers, values, limit) for values in along(step)]
        return min((found.macs for found in judged if found.loss <= limit), default=float(answers.macs[-1]))

    return along(min(STEPS, key=cheapest))
