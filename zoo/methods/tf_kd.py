"""Revisiting Knowledge Distillation via Label Smoothing Regularization (Tf-KD), Yuan et al., CVPR 2020,
https://arxiv.org/abs/1909.11723. Implements Tf-KD_self (section 5.1) and Tf-KD_reg (section 5.2).

Mode `self`: the teacher is a frozen, pre-trained network of the same architecture. Mode `reg`: the teacher is a distribution made
by hand, 0.99 on the label and the rest spread evenly, softened at T = 20.

Readings and deviations ("code": the authors'):
1. The KL divergence is also averaged over the classes and multiplied by a large number (`multiplier`, `reg_multiplier`), as in the
   code; with 100 classes that is 0.5 and 1 times the usual one. Defaults are those of ResNet-18 on CIFAR-100.
2. `reg`: softened is softmax(p/T) of the probabilities, and the student is not softened (`reg_student_temperature` = 1), both as in
   the code; the paper writes the student with the temperature too. No squared temperature.

Shapes: `B` batch, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ...errors import UsageError
from ..decoupled import other_classes
from ..losses import class_numbers, cross_entropy, kl_divergence
from ..method import METHODS, Progress
from ..network import Outputs
from .baseline import Baseline


def virtual_teacher(
    z_BK: Float[Tensor, "B K"], y_B: Int[Tensor, " B"], correct_prob: float, temperature: float
) -> Float[Tensor, "B K"]:
    """Softened probabilities of the teacher made by hand, equation 10, in the shape of the logits `z`."""
    rest = (1.0 - correct_prob) / max(z_BK.shape[1] - 1, 1)
    others_BK = other_classes(z_BK, y_B).to(z_BK.dtype)
    return F.softmax((correct_prob + (rest - correct_prob) * others_BK) / temperature, dim=1)


@METHODS.register("tf_kd")
class TfKD(Baseline):
    """The backbone and its classifier, taught by a twin or by nobody."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the code for ResNet-18 on CIFAR-100.

        Attributes:
            mode: `self` or `reg`.
            alpha, temperature, multiplier: of `self`.
            reg_alpha, reg_temperature, reg_student_temperature, reg_multiplier: of `reg`. correct_prob: a, on the label.
        """

        mode: str = "self"
        alpha: float = 0.95
        temperature: float = 6.0
        multiplier: float = 50.0
        reg_alpha: float = 0.1
        reg_temperature: float = 20.0
        reg_student_temperature: float = 1.0
        reg_multiplier: float = 100.0
        correct_prob: float = 0.99

        def __post_init__(self) -> None:
            if self.mode not in ("self", "reg"):
                raise UsageError(f"mode cannot be '{self.mode}'", known=["self", "reg"])

    def teachers(self, backbone: str) -> tuple[str, ...]:
        return (backbone,) if self.config.mode == "self" else ()

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, logits = self.config, outputs.logits[0]
        num_classes = logits.shape[1]
        if config.mode == "self":
            alpha, factor = config.alpha, config.multiplier / num_classes
            kl = kl_divergence(logits, outputs.teachers[0].logits[0], config.temperature)
        else:
            alpha, factor = config.reg_alpha, config.reg_multiplier / num_classes
            teacher = virtual_teacher(logits, class_numbers(y), config.correct_prob, config.reg_temperature)
            kl = F.kl_div(F.log_softmax(logits / config.reg_student_temperature, dim=1), teacher, reduction="batchmean")
        return {"ce": (1.0 - alpha) * cross_entropy(logits, y), "kl": alpha * factor * kl}
