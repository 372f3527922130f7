"""Knowledge Distillation by On-the-Fly Native Ensemble, Lan et al., NeurIPS 2018, https://arxiv.org/abs/1806.04606.
Implements equations 1-8.

Branches share the low stages; a gate that reads the shared map weighs their logits into the ensemble that teaches them.

Readings (those with a name in brackets are fields of `Config`; "code" is the public PyTorch code of OKDDip, which has ONE):
1. Ramp-up of the distillation over 80 epochs (`ramp_epochs`), as the code; the paper has none.
2. The ensemble is detached as teacher (`detach_teacher`); it learns by its own cross entropy. The code lets gradients through.
3. 1e-7 is added to the teacher's probabilities (`epsilon`), as the code.
4. The branches are alike and so are their targets; `target` means branch 1.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes, `M` branches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import Backbone
from ..branches import add_branches, require_branches, shared_stages, stage_maps
from ..losses import cross_entropy, exponential_ramp, kl_divergence, sum_of
from ..method import METHODS, Method, Progress
from ..network import MultiBranch, Outputs


class EnsembleGate(nn.Module):
    """Equation 3: the sum of the branches' logits with weights read off the shared map; they are positive and sum to 1."""

    def __init__(self, channels: int, num_branches: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_branches)
        self.bn = nn.BatchNorm1d(num_branches)

    def forward(self, shared: Float[Tensor, "B C H W"], *logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        gate_BM = torch.softmax(torch.relu(self.bn(self.linear(self.pool(shared).flatten(1)))), dim=1)
        mixed = gate_BM[:, 0:1] * logits[0]
        for m, z in enumerate(logits[1:], start=1):
            mixed = mixed + gate_BM[:, m : m + 1] * z
        return mixed


@METHODS.register("one")
class ONE(Method):
    """On-the-fly native ensemble."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper, and of the code where the paper is silent.

        Attributes:
            num_branches: M. branch_stages: how many last stages a branch owns; 0 = the backbone's own number.
            temperature: T. weight: of the distillation.
            ramp_epochs: length of its ramp-up; 0 = the whole training.
            detach_teacher, epsilon: readings 2 and 3.
        """

        num_branches: int = 3
        branch_stages: int = 0
        temperature: float = 3.0
        weight: float = 1.0
        ramp_epochs: int = 80
        detach_teacher: bool = True
        epsilon: float = 1e-7

        def __post_init__(self) -> None:
            require_branches("one", self.num_branches, 2)

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        config, network = self.config, MultiBranch()
        shared = add_branches(network, backbone, num_classes, config.num_branches, config.branch_stages)
        channels, _ = stage_maps(backbone)[shared_stages(backbone, config.branch_stages)]
        gate = EnsembleGate(channels, config.num_branches)
        network.fused = network.add("gate", gate, shared, *(branch.logits for branch in network.branches))
        backbone.initialise(network)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, ensemble = self.config, outputs.fused
        assert ensemble is not None
        teacher = ensemble.detach() if config.detach_teacher else ensemble
        ramp = exponential_ramp(progress.epoch, config.ramp_epochs or progress.num_epochs)
        distilled = sum_of(kl_divergence(z, teacher, config.temperature, epsilon=config.epsilon) for z in outputs.logits)
        return {
            "ce": sum_of(cross_entropy(z, y) for z in outputs.logits),
            "ce_fused": cross_entropy(ensemble, y),
            "kl": ramp * config.weight * distilled,
        }
