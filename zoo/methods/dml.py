"""Deep Mutual Learning, Zhang et al., CVPR 2018, https://arxiv.org/abs/1706.00384. Implements equations 1-8.

Two or more whole networks learn from the labels and from each other.

Deviations and readings:
1. All networks are updated at once, from the same outputs; algorithm 1 updates them in turn and recomputes the outputs between.
2. More than two networks: the mean over the others' divergences, equation 8 (not their mean prediction, the paper's DML_e).
3. Networks of different architectures share one optimizer and one schedule, the recipe's.

Shapes: `B` batch, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..backbone import Backbone
from ..branches import add_peers, peer_backbones
from ..losses import cross_entropy, mutual_divergence, sum_of
from ..method import METHODS, Method, Progress
from ..network import MultiBranch, Outputs


@METHODS.register("dml")
class DML(Method):
    """Deep mutual learning."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper.

        Attributes:
            peers: backbones of the networks besides the recipe's own; none = one more of the same.
            temperature: of the divergence, times its square.
        """

        peers: tuple[str, ...] = ()
        temperature: float = 1.0

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        network = MultiBranch()
        add_peers(network, peer_backbones(backbone, self.config.peers), num_classes)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        return {
            "ce": sum_of(cross_entropy(z, y) for z in outputs.logits),
            "kl": mutual_divergence(outputs.logits, self.config.temperature),
        }
