"""An exponential moving average of the weights of a network, which is then what is tested and deployed.

Polyak & Juditsky, 1992; the decay grows as in TensorFlow's ExponentialMovingAverage, min(decay, (1 + n)/(10 + n)) at update n, so
that short runs are not dominated by their first weights.
"""

from __future__ import annotations

import copy

import torch

from ..zoo.network import MultiBranch


class Average:
    """The averaged copy of a network; counters are copied, statistics of BatchNorm are averaged as the weights are.

    The tensors of the network are held: it stays on its device, in its layout.
    """

    def __init__(self, network: MultiBranch, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        own, now = self.network.state_dict(), network.state_dict()
        floats = [name for name, tensor in own.items() if tensor.is_floating_point()]
        self.averages, self.weights = ([state[name] for name in floats] for state in (own, now))
        self.counters = [(own[name], now[name]) for name in own.keys() - set(floats)]

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """After update `num_updates` (0-based) of the network. The host does not wait."""
        weight = 1.0 - min(self.decay, (1.0 + num_updates) / (10.0 + num_updates))
        torch._foreach_lerp_(self.averages, self.weights, weight)
        for mine, theirs in self.counters:
            mine.copy_(theirs)
