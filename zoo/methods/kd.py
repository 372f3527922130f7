"""Distilling the Knowledge in a Neural Network (KD), Hinton et al., 2015, https://arxiv.org/abs/1503.02531, section 2.

Readings:
1. Temperature 4 and weights 0.9 (KL, with the squared temperature) and 0.1 (cross entropy) as in mdistiller.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..losses import cross_entropy, kl_divergence
from ..method import METHODS, Progress, require_teacher
from ..network import Outputs
from .baseline import Baseline


@METHODS.register("kd")
class KD(Baseline):
    """The backbone and its classifier, taught by another network."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of mdistiller.

        Attributes:
            teacher: backbone of the teacher.
            temperature: T. kd_weight, ce_weight: of the two losses.
        """

        teacher: str = ""
        temperature: float = 4.0
        kd_weight: float = 0.9
        ce_weight: float = 0.1

    def teachers(self, backbone: str) -> tuple[str, ...]:
        return require_teacher("kd", self.config.teacher)

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, logits = self.config, outputs.logits[0]
        return {
            "ce": config.ce_weight * cross_entropy(logits, y),
            "kl": config.kd_weight * kl_divergence(logits, outputs.teachers[0].logits[0], config.temperature),
        }
