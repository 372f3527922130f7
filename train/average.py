"""An exponential moving average of the weights of a network, which is then what is tested and deployed.

Polyak & Juditsky, 1992; the decay grows as in TensorFlow's ExponentialMovingAverage, min(decay, (1 + n)/(10 + n)) at update n, so
that short runs are not dominated by their first weights.
"""

from __future__ import annotations

import copy

import torch

from ..zoo.network import MultiBranch


class Average:
    """The averaged copy of a network; counters are copied, statistics of BatchNorm are averaged as the weights are."""

    def __init__(self, network: MultiBranch, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: MultiBranch, num_updates: int) -> None:
        """After update `num_updates` (0-based) of `network`. The host does not wait."""
        weight = 1.0 - min(self.decay, (1.0 + num_updates) / (10.0 + num_updates))
        own, now = list(self.network.state_dict().values()), list(network.state_dict().values())
        floats = [i for i, tensor in enumerate(own) if tensor.is_floating_point()]
        torch._foreach_lerp_([own[i] for i in floats], [now[i] for i in floats], weight)
        for mine, theirs in zip(own, now, strict=True):
            if not mine.is_floating_point():
                mine.copy_(theirs)
