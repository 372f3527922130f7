"""Densely Connected Convolutional Networks, Huang et al., 2017, https://arxiv.org/abs/1608.06993, section 3: DenseNet-BC.

`densenet40-12-bc`: growth rate 12, three blocks of 6 dense layers (depth 40 = 3 * 6 * 2 + 4), bottlenecks of 4 * 12 channels,
transitions that halve the channels.

Readings:
1. The transition belongs to the end of the stage before it, so that a branch that owns the last stage starts with its dense block.
   Its output is half of what the stage has at its own depth, at any depth: the next stage need not know.
2. The last stage ends with BatchNorm and ReLU, so that every branch that owns it has its own.
3. Early exits hang after the first stage only: the second transition brings the map to the size of the last one.
4. The stem has 2 * 12 channels, and neither BatchNorm nor ReLU, as in the code of AHBF-OKD for small images.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import BACKBONES, Backbone


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and convolution, 1x1 and 3x3; its output is appended to its input: `B C H W` -> `B C+growth H W`."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        return torch.cat([x, out], dim=1)


class DenseNet(Backbone):
    """DenseNet-BC of three blocks for 32x32 images."""

    exits = (0,)

    def __init__(self, depths: tuple[int, int, int], growth: int) -> None:
        self.depths, self.growth = depths, growth
        self.inputs = [2 * growth]
        for depth in depths[:-1]:
            self.inputs.append((self.inputs[-1] + depth * growth) // 2)
        self.widths = tuple(self.channels(i, depth) for i, depth in enumerate(depths))

    def stem(self) -> nn.Module:
        return nn.Conv2d(3, self.inputs[0], 3, 1, 1, bias=False)

    def channels(self, index: int, depth: int) -> int:
        """Channels that leave stage `index`: only those of the last depend on its depth."""
        return self.inputs[index + 1] if index < 2 else self.inputs[2] + depth * self.growth

    def stage(self, index: int, depth: int) -> nn.Module:
        channels = [self.inputs[index] + i * self.growth for i in range(depth + 1)]
        layers: list[nn.Module] = [DenseLayer(c, self.growth) for c in channels[:-1]]
        layers += [nn.BatchNorm2d(channels[-1]), nn.ReLU(inplace=True)]
        if index < 2:
            layers += [nn.Conv2d(channels[-1], self.inputs[index + 1], 1, bias=False), nn.AvgPool2d(2)]
        return nn.Sequential(*layers)

    def initialise(self, module: nn.Module) -> None:
        """He initialisation of convolutions (fan in), biases of linear layers 0, as in the code of AHBF-OKD."""
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
            elif isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)


@BACKBONES.register("densenet40-12-bc")
def densenet40_12_bc() -> Backbone:
    return DenseNet((6, 6, 6), growth=12)
