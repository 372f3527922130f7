"""Decoupled Classifier Knowledge Distillation (DCKD), Wang et al., PLoS ONE, 2025, https://doi.org/10.1371/journal.pone.0314267.
Implements figure 1 and equations 6-19: the network of SimKD, and a KL divergence in two parts, PKD and SKD.

The formulas are lost in the available text; t is the label, s the class that the student predicts, both parts prune the same
classes from student and teacher. Readings and deviations:
1. `reading` says what the two parts are. No reading is certain; the paper contradicts itself.
   B (default): PKD is the KL divergence among the classes other than t and s, SKD that of the pair (t, all classes but t and s),
     rescaled to sum 1. Where every student is right, this is DKD with weights 1 and 0.5.
   A: PKD is the KL divergence of the pair (t, all others); SKD that over all classes, without t where the student is right.
   C: as B, but PKD is over all classes but a wrongly predicted s.
   D: the parts of DKD: PKD among all classes but t, SKD of the pair (t, all others).
2. Both parts have the squared temperature, as in the public code of SimKD, on which the paper builds. No cross entropy
   (`ce_weight`): the paper names none.
3. With an empty set of classes (two classes, one right and one predicted) a part is 0.
4. Network, adoption of the classifier and `before_last_norm`: see methods/simkd.py.

Shapes: `B` batch, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ...errors import UsageError
from ..decoupled import kl_among, kl_of_label, other_classes
from ..losses import class_numbers, cross_entropy
from ..method import METHODS, Progress, require_teacher
from ..network import Outputs
from ..projector import map_distance
from .simkd import SimKD

READINGS = ("A", "B", "C", "D")


def decoupled(
    student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], t: Int[Tensor, " B"], temperature: float, reading: str
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """PKD and SKD, equations 9-17, by the given reading."""
    s = student.argmax(dim=1)
    wrong_B1 = (s != t)[:, None]
    but_t, but_s = other_classes(student, t), other_classes(student, s)
    if reading == "A":
        pkd = kl_of_label(student, teacher, t, but_t, temperature)
        return pkd, kl_among(student, teacher, but_t | wrong_B1, temperature)
    others = but_t if reading == "D" else but_t & but_s
    among = but_s | ~wrong_B1 if reading == "C" else others
    return kl_among(student, teacher, among, temperature), kl_of_label(student, teacher, t, others, temperature)


@METHODS.register("dckd")
class DCKD(SimKD):
    """DCKD."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper.

        Attributes:
            teacher: backbone of the teacher.
            factor, before_last_norm: of the network, as in SimKD.
            reading: A, B, C or D, see above.
            pkd_weight, skd_weight, feature_weight, ce_weight: of the losses.
            temperature: T.
        """

        teacher: str = ""
        factor: int = 2
        before_last_norm: bool = False
        reading: str = "B"
        pkd_weight: float = 0.5
        skd_weight: float = 1.0
        feature_weight: float = 1.0
        ce_weight: float = 0.0
        temperature: float = 4.0

        def __post_init__(self) -> None:
            if self.reading not in READINGS:
                raise UsageError(f"reading cannot be '{self.reading}'", known=READINGS)

    def teachers(self, backbone: str) -> tuple[str, ...]:
        return require_teacher("dckd", self.config.teacher)

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, teacher, logits = self.config, outputs.teachers[0], outputs.logits[0]
        pkd, skd = decoupled(logits, teacher.logits[0], class_numbers(y), config.temperature, config.reading)
        parts = {
            "feature": config.feature_weight * map_distance(outputs.features[0], teacher.features[0]),
            "pkd": config.pkd_weight * pkd,
            "skd": config.skd_weight * skd,
        }
        if config.ce_weight:
            parts["ce"] = config.ce_weight * cross_entropy(logits, y)
        return parts
