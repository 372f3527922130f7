"""Decoupled Knowledge Distillation (DKD), Zhao et al., CVPR 2022, https://arxiv.org/abs/2203.08679. Implements equations 5-7.

TCKD is the KL divergence of the pair (label, all other classes), NCKD that among the other classes.

Readings and deviations:
1. Weights 1 and 8, temperature 4 and a linear warm-up of 20 epochs: the authors' settings (mdistiller) for ResNet-32x4 -> 8x4.
   In the first epoch the weight of the warm-up is 1/20, since mdistiller counts epochs from 1.
2. The label is left out of NCKD exactly; mdistiller subtracts 1000 from its logit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...errors import UsageError
from ..decoupled import kl_among, kl_of_label, other_classes
from ..losses import class_numbers, cross_entropy
from ..method import METHODS, Progress, require_teacher
from ..network import Outputs
from .baseline import Baseline


@METHODS.register("dkd")
class DKD(Baseline):
    """The backbone and its classifier, taught by another network."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of mdistiller.

        Attributes:
            teacher: backbone of the teacher.
            alpha, beta: weights of TCKD and NCKD. ce_weight: of the cross entropy. temperature: T.
            warmup_epochs: epochs until TCKD and NCKD have their full weight; 0 = from the start.
        """

        teacher: str = ""
        alpha: float = 1.0
        beta: float = 8.0
        ce_weight: float = 1.0
        temperature: float = 4.0
        warmup_epochs: int = 20

        def __post_init__(self) -> None:
            if self.warmup_epochs < 0:
                raise UsageError(f"warmup_epochs cannot be {self.warmup_epochs}", hint="it takes a number of epochs from 0 on")

    def teachers(self, backbone: str) -> tuple[str, ...]:
        return require_teacher("dkd", self.config.teacher)

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, label = self.config, class_numbers(y)
        logits, teacher = outputs.logits[0], outputs.teachers[0].logits[0]
        warmup = min((progress.epoch + 1) / config.warmup_epochs, 1.0) if config.warmup_epochs else 1.0
        others = other_classes(logits, label)
        return {
            "ce": config.ce_weight * cross_entropy(logits, y),
            "tckd": warmup * config.alpha * kl_of_label(logits, teacher, label, others, config.temperature),
            "nckd": warmup * config.beta * kl_among(logits, teacher, others, config.temperature),
        }
