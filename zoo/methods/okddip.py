"""Online Knowledge Distillation with Diverse Peers, Chen et al., AAAI 2020, https://arxiv.org/abs/1912.00350.
Implements equations 3-8 in the branch-based form.

The last branch is the group leader, all others are auxiliary peers. First level: every peer learns from its own mix of all peers,
weighed by attention between their features. Second level: the leader learns from the mean of the peers.

Readings (those with a name in brackets are fields of `Config`; "code" is the authors' public code):
1. Queries and keys come from two linear maps without bias that all peers share; a peer attends to itself as well; the products
   are not divided by a root. All as the code.
2. They have an eighth of the channels (`projection`), as the code: 8 for 64.
3. Gradients flow through the mixed targets, as in the code: the attention learns by nothing else. They also flow from the leader's
   loss into the peers, as in the code; `detach_leader_target` stops those.
4. 1e-7 is added to the teacher's probabilities (`epsilon`), as the code.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes, `P` peers, `D` projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import Backbone
from ..branches import add_branches, require_branches
from ..losses import cross_entropy, exponential_ramp, kl_divergence, sum_of
from ..method import METHODS, Method, Progress
from ..network import MultiBranch, Outputs


class PeerAttention(nn.Module):
    """Equation 5: how much peer i learns from peer j, `P` maps `B C H W` -> `B P P` whose rows sum to 1."""

    def __init__(self, channels: int, projection: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.query = nn.Linear(channels, projection, bias=False)
        self.key = nn.Linear(channels, projection, bias=False)

    def forward(self, *maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P P"]:
        pooled_BPC = torch.stack([self.pool(x).flatten(1) for x in maps], dim=1)
        energy_BPP = self.query(pooled_BPC) @ self.key(pooled_BPC).transpose(1, 2)
        return torch.softmax(energy_BPP, dim=2)


@METHODS.register("okddip")
class OKDDip(Method):
    """Diverse peers and a group leader."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper and the code.

        Attributes:
            num_branches: the peers and the leader.
            branch_stages: how many last stages a branch owns; 0 = the backbone's own number.
            projection: channels of queries and keys; 0 = an eighth of the features'.
            temperature: T. weight: of both distillations. ramp_epochs: length of their ramp-up; 0 = the whole training.
            detach_leader_target, epsilon: readings 3 and 4.
        """

        num_branches: int = 4
        branch_stages: int = 0
        projection: int = 0
        temperature: float = 3.0
        weight: float = 1.0
        ramp_epochs: int = 80
        detach_leader_target: bool = False
        epsilon: float = 1e-7

        def __post_init__(self) -> None:
            require_branches("okddip", self.num_branches, 3)

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        config, network, channels = self.config, MultiBranch(), backbone.out_channels()
        add_branches(network, backbone, num_classes, config.num_branches, config.branch_stages)
        network.target_branch = config.num_branches
        attention = PeerAttention(channels, config.projection or max(channels // 8, 1))
        peers = network.branches[:-1]
        network.extras["attention"] = network.add("attention", attention, *(peer.features for peer in peers))
        backbone.initialise(network)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, (*peers, leader) = self.config, outputs.logits
        weight = config.weight * exponential_ramp(progress.epoch, config.ramp_epochs or progress.num_epochs)
        stacked_BPK = torch.stack(peers, dim=1)
        targets_BPK = outputs.extras["attention"] @ stacked_BPK
        ensemble = stacked_BPK.mean(dim=1)
        return {
            "ce": sum_of(cross_entropy(z, y) for z in outputs.logits),
            "kl_peers": weight * sum_of(self._kl(z, targets_BPK[:, i]) for i, z in enumerate(peers)),
            "kl_leader": weight * self._kl(leader, ensemble.detach() if config.detach_leader_target else ensemble),
        }

    def _kl(self, student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        return kl_divergence(student, teacher, self.config.temperature, epsilon=self.config.epsilon)
