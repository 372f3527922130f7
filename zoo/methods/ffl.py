"""Feature Fusion for Online Mutual Knowledge Distillation, Kim et al., ICPR 2020, https://arxiv.org/abs/1904.09058.
Implements equations 1-8 for sub-networks of one architecture.

The mean of the sub-networks' logits teaches the fused classifier, which teaches the sub-networks.

Deviations and readings (those with a name in brackets are fields of `Config`; "code" is the authors' public code):
1. One optimizer, the recipe's, trains everything; the code gives the fusion module one of its own with weight decay 1e-5.
2. Sub-networks share the low stages, as in the code; networks that share nothing are method ffcl.
3. Ramp-up of all divergences over 80 epochs (`ramp_epochs`) and 1e-7 on the teacher's probabilities (`epsilon`), as the code.
4. All teachers are detached, as in the code. The losses of the fused classifier also train the sub-networks, through their maps.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..backbone import Backbone
from ..branches import add_branches, require_branches
from ..fusion import add_fusion
from ..losses import cross_entropy, exponential_ramp, kl_divergence, sum_of
from ..method import METHODS, Method, Progress
from ..network import MultiBranch, Outputs, mean_logits


@METHODS.register("ffl")
class FFL(Method):
    """Feature fusion learning."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper and the code.

        Attributes:
            num_branches: sub-networks. branch_stages: how many last stages each owns; 0 = the backbone's own number.
            temperature: T. ramp_epochs: length of the ramp-up of the divergences; 0 = the whole training.
            epsilon: reading 3.
        """

        num_branches: int = 2
        branch_stages: int = 0
        temperature: float = 3.0
        ramp_epochs: int = 80
        epsilon: float = 1e-7

        def __post_init__(self) -> None:
            require_branches("ffl", self.num_branches, 2)

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        config, network = self.config, MultiBranch()
        add_branches(network, backbone, num_classes, config.num_branches, config.branch_stages)
        add_fusion(network, [backbone.map_shape()] * config.num_branches, num_classes)
        backbone.initialise(network)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, fused = self.config, outputs.fused
        assert fused is not None
        ramp = exponential_ramp(progress.epoch, config.ramp_epochs or progress.num_epochs)
        return {
            "ce": sum_of(cross_entropy(z, y) for z in outputs.logits),
            "ce_fused": cross_entropy(fused, y),
            "fused_to_branches": ramp * sum_of(self._kl(z, fused) for z in outputs.logits),
            "ensemble_to_fused": ramp * self._kl(fused, mean_logits(outputs.logits)),
        }

    def _kl(self, student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        return kl_divergence(student, teacher.detach(), self.config.temperature, epsilon=self.config.epsilon)
