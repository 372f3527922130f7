"""Losses that several methods share: pure functions of tensors, every squared temperature and every `detach` in sight.

Shapes: `B` batch, `K` classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import permutations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def sum_of(losses: Iterable[Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """Sum of at least one scalar loss."""
    first, *rest = losses
    return sum(rest, start=first)


def cross_entropy(z_BK: Float[Tensor, "B K"], y: Int[Tensor, " B"] | Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Mean over the batch of -log softmax(z)[y], or of -Σ y log softmax(z) where `y` holds probabilities."""
    return F.cross_entropy(z_BK, y)


def class_numbers(y: Int[Tensor, " B"] | Float[Tensor, "B K"]) -> Int[Tensor, " B"]:
    """`B` class numbers, of mixed or smoothed labels the likeliest, for losses that single out one class."""
    return y if y.ndim == 1 else y.argmax(dim=1)


def kl_divergence(
    student_BK: Float[Tensor, "B K"],
    teacher_BK: Float[Tensor, "B K"],
    temperature: float,
    *,
    squared: bool = True,
    epsilon: float = 0.0,
) -> Float[Tensor, ""]:
    """KL(softmax(teacher/T) || softmax(student/T)), summed over classes, mean over the batch, times T² where `squared`.

    Gradients flow into both sides; a caller that wants a fixed teacher detaches it. `epsilon` is added to the teacher's
    probabilities (the public code of AHBF-OKD adds 1e-7).
    """
    log_student_BK = F.log_softmax(student_BK / temperature, dim=1)
    if epsilon:
        teacher_prob_BK = F.softmax(teacher_BK / temperature, dim=1) + epsilon
        loss = F.kl_div(log_student_BK, teacher_prob_BK, reduction="batchmean")
    else:
        log_teacher_BK = F.log_softmax(teacher_BK / temperature, dim=1)
        loss = F.kl_div(log_student_BK, log_teacher_BK, reduction="batchmean", log_target=True)
    return loss * temperature**2 if squared else loss


def mutual_divergence(logits: Sequence[Float[Tensor, "B K"]], temperature: float) -> Float[Tensor, ""]:
    """Deep mutual learning: for every network the mean over the others l of T²·KL(l || network), the others detached; their sum."""
    pairs = permutations(logits, 2)
    return sum_of(kl_divergence(z, other.detach(), temperature) for z, other in pairs) / (len(logits) - 1)


def exponential_ramp(epoch: float, length: float) -> float:
    """exp(-5 (1 - epoch/length)²) until `length`, 1 from there on (AHBF-OKD eq. 14; Laine & Aila 2017). Epochs count from 0."""
    return math.exp(-5.0 * (1.0 - epoch / length) ** 2) if epoch < length else 1.0
