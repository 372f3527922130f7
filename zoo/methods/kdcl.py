"""Online Knowledge Distillation via Collaborative Learning, Guo et al., CVPR 2020,
https://openaccess.thecvf.com/content_CVPR_2020/html/Guo_Online_Knowledge_Distillation_via_Collaborative_Learning_CVPR_2020_paper.html.
Implements section 3 without KDCL-General.

Two or more whole networks learn from the labels and from one soft target made of all their logits.

Deviations and readings (the one with a name in brackets is a field of `Config`):
1. The soft target (`target`) is `minlogit` by default: of logits shifted so that the label's is 0, the least over the networks.
2. `linear` is their mean, with equal weights; the paper optimises the weights of the sum on every batch.
3. `naive` takes, per image, the logits of the network whose cross entropy is the smallest.
4. The soft target is detached.
5. All networks see the same augmented images; the paper distorts them for every network anew.
6. Mixed or smoothed labels: their likeliest class is the label of `minlogit`.

Shapes: `B` batch, `K` classes, `N` networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ...errors import UsageError
from ..backbone import Backbone
from ..branches import add_peers, peer_backbones
from ..losses import class_numbers, cross_entropy, kl_divergence, sum_of
from ..method import METHODS, Method, Progress
from ..network import MultiBranch, Outputs, mean_logits


def minlogit(logits: list[Float[Tensor, "B K"]], y: Int[Tensor, " B"]) -> Float[Tensor, "B K"]:
    """The least over the networks of every logit minus that of the label: a bound that no network is less sure of."""
    shifted_NBK = torch.stack([z - z.gather(1, y[:, None]) for z in logits])
    return shifted_NBK.amin(dim=0)


def naive(logits: list[Float[Tensor, "B K"]], y: Int[Tensor, " B"] | Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """For every image the logits of the network whose cross entropy is the smallest."""
    stacked_NBK = torch.stack(logits)
    ce_NB = torch.stack([F.cross_entropy(z, y, reduction="none") for z in logits])
    return stacked_NBK[ce_NB.argmin(dim=0), torch.arange(len(y), device=y.device)]


@METHODS.register("kdcl")
class KDCL(Method):
    """Collaborative learning of whole networks."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper.

        Attributes:
            peers: backbones of the networks besides the recipe's own; none = one more of the same.
            target: how the soft target is made: `minlogit`, `linear` or `naive`.
            temperature: T. weight: λ, of the distillation.
        """

        peers: tuple[str, ...] = ()
        target: str = "minlogit"
        temperature: float = 2.0
        weight: float = 1.0

        def __post_init__(self) -> None:
            if self.target not in ("minlogit", "linear", "naive"):
                raise UsageError(f"target cannot be '{self.target}'", known=["minlogit", "linear", "naive"])

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        network = MultiBranch()
        add_peers(network, peer_backbones(backbone, self.config.peers), num_classes)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        target = self._target([z.detach() for z in outputs.logits], y)
        distilled = sum_of(kl_divergence(z, target, self.config.temperature) for z in outputs.logits)
        return {
            "ce": sum_of(cross_entropy(z, y) for z in outputs.logits),
            "kl": self.config.weight * distilled,
        }

    def _target(self, logits: list[Tensor], y: Tensor) -> Float[Tensor, "B K"]:
        if self.config.target == "minlogit":
            return minlogit(logits, class_numbers(y))
        return mean_logits(logits) if self.config.target == "linear" else naive(logits, y)
