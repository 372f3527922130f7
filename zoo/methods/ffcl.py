"""Feature fusion-based collaborative learning for knowledge distillation, Li et al., International Journal of Distributed Sensor
Networks 17(11), 2021, https://doi.org/10.1177/15501477211057037.

Two or more whole networks (peers) learn from the fused classifier that reads all their last maps (FK), from each other (RK), and
from frozen, pre-trained copies of themselves (NRK).

The equations are lost, and so are the weights; readings (those with a name in brackets are fields of `Config`):
1. Loss of peer k: α·CE + β·(FK + RK) + γ·NRK with weights 1, 1, 1 (`alpha`, `beta`, `gamma`).
2. FK and NRK at temperature 3, times its square (`temperature`), as FFL, summed over the peers; RK at 1
   (`rk_temperature`), as stated.
3. RK with more than two peers: the mean over the others, as in deep mutual learning.
4. The fused classifier learns by cross entropy and from the mean of the peers' logits, as in FFL, whose second term
   `ensemble_to_fused` switches. Its gradients also train the peers through their maps, as one network trained at once does
   (`fusion_trains_peers`); where it teaches nobody (cases C, E, G) it only reads along: the maps are detached.
5. All teachers are detached. There is no ramp-up.
6. The fusion module is FFL's; maps of different sizes are pooled to the smallest, and its channels are those of peer 1.
7. One optimizer trains everything.
8. Copy k is the pre-trained network of peer k's architecture; peers of one architecture have the same.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ...errors import UsageError
from ..backbone import Backbone
from ..branches import add_peers, peer_backbones
from ..fusion import add_fusion
from ..losses import cross_entropy, kl_divergence, mutual_divergence, sum_of
from ..method import METHODS, Method, Progress
from ..network import MultiBranch, Outputs, mean_logits

# The seven cases of the ablation: which terms teach the peers, beside the labels.
CASES = {
    "A": ("fk", "rk", "nrk"),
    "B": ("fk", "nrk"),
    "C": ("rk", "nrk"),
    "D": ("fk", "rk"),
    "E": ("rk",),
    "F": ("fk",),
    "G": ("nrk",),
}


@METHODS.register("ffcl")
class FFCL(Method):
    """Feature fusion-based collaborative learning."""

    @dataclass(frozen=True)
    class Config:
        """Readings of the paper.

        Attributes:
            peers: backbones of the peers besides the recipe's own; none = one more of the same.
            case: A (everything) to G, of the ablation: which of FK, RK and NRK there are.
            alpha: of the labels. beta: of FK and RK. gamma: of NRK.
            temperature, rk_temperature, ensemble_to_fused, fusion_trains_peers: readings 2 and 4.
        """

        peers: tuple[str, ...] = ()
        case: str = "A"
        alpha: float = 1.0
        beta: float = 1.0
        gamma: float = 1.0
        temperature: float = 3.0
        rk_temperature: float = 1.0
        ensemble_to_fused: bool = True
        fusion_trains_peers: bool = True

        def __post_init__(self) -> None:
            if self.case not in CASES:
                raise UsageError(f"case cannot be '{self.case}'", known=list(CASES))

        @property
        def use_fk(self) -> bool:
            return "fk" in CASES[self.case] and self.beta != 0

        @property
        def use_rk(self) -> bool:
            return "rk" in CASES[self.case] and self.beta != 0

        @property
        def use_nrk(self) -> bool:
            """Whether pre-trained copies are needed at all."""
            return "nrk" in CASES[self.case] and self.gamma != 0

    def teachers(self, backbone: str) -> tuple[str, ...]:
        if not self.config.use_nrk:
            return ()
        return (backbone, *(self.config.peers or (backbone,)))

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        network, backbones = MultiBranch(), peer_backbones(backbone, self.config.peers)
        add_peers(network, backbones, num_classes)
        reads_along = not (self.config.use_fk and self.config.fusion_trains_peers)
        add_fusion(network, [peer.map_shape() for peer in backbones], num_classes, detach_maps=reads_along)
        assert network.fused is not None
        backbone.initialise(nn.ModuleList([network["fusion"], network[network.fused]]))
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, peers, fused = self.config, outputs.logits, outputs.fused
        assert fused is not None
        t = config.temperature
        parts = {"ce": config.alpha * sum_of(cross_entropy(z, y) for z in peers), "ce_fused": cross_entropy(fused, y)}
        if config.ensemble_to_fused:
            parts["ensemble_to_fused"] = kl_divergence(fused, mean_logits(peers).detach(), t)
        if config.use_fk:
            parts["fk"] = config.beta * sum_of(kl_divergence(z, fused.detach(), t) for z in peers)
        if config.use_rk:
            parts["rk"] = config.beta * mutual_divergence(peers, config.rk_temperature)
        if config.use_nrk:
            copies = [teacher.logits[0].detach() for teacher in outputs.teachers]
            assert len(copies) == len(peers), "one pre-trained copy per peer"
            parts["nrk"] = config.gamma * sum_of(kl_divergence(z, copy, t) for z, copy in zip(peers, copies, strict=True))
        return parts
