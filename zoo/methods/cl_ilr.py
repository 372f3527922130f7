"""Collaborative Learning for Deep Neural Networks, Song & Chai, NeurIPS 2018, https://arxiv.org/abs/1805.11761: several heads with
shared intermediate-level representations and backpropagation rescaling (CL-ILR). Implements equations 1-6.

Every head learns from the labels and from the mean logits of the other heads.

Readings (those with a name in brackets are fields of `Config`):
1. Four heads (`num_branches`) that split once, in front of the stages that a branch owns; the paper also splits hierarchically.
2. The soft labels, made of the other heads, are detached (`detach_teacher`).
3. The soft term is a cross entropy, as in the paper, times the squared temperature.
4. What the heads send back into the shared stages is divided by their number: the mean of the gradients, not the sum.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import Backbone
from ..branches import add_branches, require_branches
from ..losses import cross_entropy, sum_of
from ..method import METHODS, Method, Progress
from ..network import MultiBranch, Outputs, mean_logits


class _Scale(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class RescaleGradient(nn.Module):
    """Section 3.2: the identity, whose gradient is multiplied by `factor` while training; otherwise nothing at all."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        if not self.training:
            return x
        scaled: Tensor = _Scale.apply(x, self.factor)
        return scaled


@METHODS.register("cl_ilr")
class CLILR(Method):
    """Collaborative learning with shared low layers."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper.

        Attributes:
            num_branches: H, number of heads. branch_stages: how many last stages a head owns; 0 = the backbone's own number.
            beta: β, weight of the labels; the rest is the soft term's. temperature: T.
            rescale_gradient: reading 4. detach_teacher: reading 2.
        """

        num_branches: int = 4
        branch_stages: int = 0
        beta: float = 0.5
        temperature: float = 2.0
        rescale_gradient: bool = True
        detach_teacher: bool = True

        def __post_init__(self) -> None:
            require_branches("cl_ilr", self.num_branches, 2)

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        config, network = self.config, MultiBranch()
        bridge = RescaleGradient(1 / config.num_branches) if config.rescale_gradient else None
        add_branches(network, backbone, num_classes, config.num_branches, config.branch_stages, bridge)
        backbone.initialise(network)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        beta, heads = self.config.beta, range(len(outputs.logits))
        return {
            "ce": beta * sum_of(cross_entropy(z, y) for z in outputs.logits),
            "soft": (1 - beta) * sum_of(self._soft(outputs.logits, head) for head in heads),
        }

    def _soft(self, logits: list[Float[Tensor, "B K"]], head: int) -> Float[Tensor, ""]:
        """Equation 4: what the others, on average, say."""
        t = self.config.temperature
        others = mean_logits([z for h, z in enumerate(logits) if h != head])
        soft_labels = torch.softmax((others.detach() if self.config.detach_teacher else others) / t, dim=1)
        return t**2 * cross_entropy(logits[head] / t, soft_labels)
