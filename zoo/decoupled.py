"""Parts of the KL divergence between softened softmaxes: over some of the classes, and between one class and some others.

Both are means over the batch times T². A sample whose set of classes is empty counts 0. Gradients flow into both sides.

Shapes: `B` batch, `K` classes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def other_classes(z_BK: Float[Tensor, "B K"], y_B: Int[Tensor, " B"]) -> Bool[Tensor, "B K"]:
    """All classes but `y`."""
    return torch.arange(z_BK.shape[1], device=z_BK.device) != y_B[:, None]


def kl_among(
    student_BK: Float[Tensor, "B K"], teacher_BK: Float[Tensor, "B K"], among_BK: Bool[Tensor, "B K"], temperature: float
) -> Float[Tensor, ""]:
    """KL(teacher || student) of the softmaxes over the classes of `among` alone; DKD's NCKD where that is all but the label."""

    def log_softmax(z_BK: Tensor) -> Tensor:
        # Of no class at all it is NaN, and so is its gradient; neither gets past the two fills.
        return F.log_softmax((z_BK / temperature).masked_fill(~among_BK, -math.inf), dim=1).masked_fill(~among_BK, 0.0)

    log_student_BK, log_teacher_BK = log_softmax(student_BK), log_softmax(teacher_BK)
    terms_BK = log_teacher_BK.exp() * (log_teacher_BK - log_student_BK)
    return terms_BK.sum(dim=1).mean() * temperature**2


def kl_of_label(
    student_BK: Float[Tensor, "B K"],
    teacher_BK: Float[Tensor, "B K"],
    y_B: Int[Tensor, " B"],
    others_BK: Bool[Tensor, "B K"],
    temperature: float,
) -> Float[Tensor, ""]:
    """KL(teacher || student) of two events, class `y` and any of `others`, rescaled to sum 1; DKD's TCKD where `others` is all
    but the label."""
    some_B1 = others_BK.any(dim=1, keepdim=True)
    left_out_BK = ~others_BK & some_B1  # with nothing left the logarithm of the sum is -inf

    def log_softmax(z_BK: Tensor) -> Tensor:
        z_BK = z_BK / temperature
        others_B1 = z_BK.masked_fill(left_out_BK, -math.inf).logsumexp(dim=1, keepdim=True)
        return F.log_softmax(torch.cat([z_BK.gather(1, y_B[:, None]), others_B1], dim=1), dim=1)

    log_student_B2, log_teacher_B2 = log_softmax(student_BK), log_softmax(teacher_BK)
    terms_B2 = (log_teacher_B2.exp() * (log_teacher_B2 - log_student_B2)).masked_fill(~some_B1, 0.0)
    return terms_B2.sum(dim=1).mean() * temperature**2
