"""One counter of parameters and multiply-adds for everything, under two rules.

`plain`: multiply-adds of convolutions and linear layers, no biases, nothing else.
`dbfskd`: the rule behind table 4 of the DBFSKD paper, that of thop 0.0.31 (2020): a convolution also counts one per output for its
bias, BatchNorm 2 per element, adaptive average pooling (window + 1) per output, other average pooling 1 per output; activations,
additions and products count nothing.
Current thop (0.1.1) counts BatchNorm as 4 per element and does not reproduce that table.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .layers import AxisMean

Rule = Literal["plain", "dbfskd"]


@dataclass(frozen=True)
class Profile:
    """Counts for one image: trainable parameters, and multiply-adds by rule."""

    params: int
    macs: int
    macs_dbfskd: int


def layer_macs(layer: nn.Module, x: Tensor, out: Tensor, rule: Rule) -> int:
    """Multiply-adds of one layer for the given input and output.

    Raises:
        TypeError: a layer with parameters that no rule knows; a silent zero would be a wrong figure on a card.
    """
    plain = rule == "plain"
    if isinstance(layer, nn.Conv2d):
        window = prod(layer.kernel_size) * layer.in_channels // layer.groups
        return out.numel() * (window + (layer.bias is not None and not plain))
    if isinstance(layer, nn.Linear):
        return out.numel() * layer.in_features
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return 0 if plain else 2 * x.numel()
    if isinstance(layer, (nn.AdaptiveAvgPool2d, AxisMean)):
        return 0 if plain else (x.numel() // out.numel() + 1) * out.numel()
    if isinstance(layer, nn.AvgPool2d):
        return 0 if plain else out.numel()
    if not any(True for _ in layer.parameters()):
        return 0
    raise TypeError(f"no counting rule for {type(layer).__name__}; add one to zoo/profile.py")


def profile(network: nn.Module, image_size: int, image_width: int | None = None) -> Profile:
    """Count `network` for one image of `image_size` pixels (square unless `image_width` is given). Nothing is computed: the
    network is copied to the meta device, where only shapes exist."""
    with torch.device("meta"):
        image = torch.zeros(1, 3, image_size, image_width or image_size)
    shadow = copy.deepcopy(network).to("meta").eval()
    macs: dict[Rule, int] = {"plain": 0, "dbfskd": 0}

    def count(layer: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
        for rule in macs:
            macs[rule] += layer_macs(layer, inputs[0], out, rule)

    for layer in shadow.modules():
        if not any(True for _ in layer.children()) or any(True for _ in layer.parameters(recurse=False)):
            layer.register_forward_hook(count)
    shadow(image)
    return Profile(sum(p.numel() for p in network.parameters()), macs["plain"], macs["dbfskd"])
