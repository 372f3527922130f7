"""ShuffleNet, Zhang et al., 2018, https://arxiv.org/abs/1707.01083, table 1 with 3 groups, for CIFAR.

`shufflenetv1` is that of the toolboxes of CRD and SimKD, `shufflenetv1-ffcl` the one that FFCL counts (weiaicunzai's).

Readings and deviations:
1. The first convolution keeps the resolution and no pooling follows; the paper halves it twice. It is 1x1, with `-ffcl` 3x3.
2. Inner width of a unit: a quarter of the channels that its own branch gives (54 in the very first, where 24 of the 240 come from
   the shortcut); with `-ffcl` a quarter of all channels that leave the unit.
3. The first 1x1 convolution of stage 1 is not grouped, as in the paper; with `-ffcl` it is, by an oversight of that code.
4. ReLU follows the depth-wise convolution; with `-ffcl`, as in the paper, none.
5. Convolutions of `-ffcl` have a bias.
6. Weights start as PyTorch draws them, as in both lines of code.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import BACKBONES, Backbone

STEM, GROUPS = 24, 3


class ChannelShuffle(nn.Module):
    """Deals the channels of `groups` groups out in turn, figure 1 (c): `B C H W` -> `B C H W`."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x.unflatten(1, (self.groups, x.shape[1] // self.groups)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depth-wise 3x3, grouped 1x1, figure 2 (b): `B C H W` -> `B C H W`. With `halves`, figure 2 (c), its
    output is put beside the averaged input instead of added to it: -> `B out H/2 W/2`."""

    def __init__(self, in_channels: int, out_channels: int, halves: bool, ffcl: bool) -> None:
        super().__init__()
        own = out_channels - in_channels if halves else out_channels
        inner = (out_channels if ffcl else own) // 4
        groups = 1 if in_channels == STEM and not ffcl else GROUPS
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, inner, 1, groups=groups, bias=ffcl),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            ChannelShuffle(groups),
            nn.Conv2d(inner, inner, 3, 2 if halves else 1, 1, groups=inner, bias=ffcl),
            nn.BatchNorm2d(inner),
            nn.Identity() if ffcl else nn.ReLU(inplace=True),
            nn.Conv2d(inner, own, 1, groups=GROUPS, bias=ffcl),
            nn.BatchNorm2d(own),
        )
        self.pool = nn.AvgPool2d(3, 2, 1) if halves else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        out = self.residual(x)
        return self.relu(out + x if self.pool is None else torch.cat([out, self.pool(x)], dim=1))


class ShuffleNetV1(Backbone):
    """ShuffleNet with 3 groups for 32x32 images; every stage halves the resolution in its first unit."""

    widths = (240, 480, 960)
    depths = (4, 8, 4)

    def __init__(self, ffcl: bool) -> None:
        self.ffcl = ffcl

    def stem(self) -> nn.Module:
        kernel = 3 if self.ffcl else 1
        conv = nn.Conv2d(3, STEM, kernel, 1, kernel // 2, bias=self.ffcl)
        return nn.Sequential(conv, nn.BatchNorm2d(STEM), nn.ReLU(inplace=True))

    def stage(self, index: int, depth: int) -> nn.Module:
        in_channels, out_channels = (STEM, *self.widths)[index : index + 2]
        first = ShuffleUnit(in_channels, out_channels, True, self.ffcl)
        return nn.Sequential(first, *(ShuffleUnit(out_channels, out_channels, False, self.ffcl) for _ in range(depth - 1)))

    def initialise(self, module: nn.Module) -> None:
        """Leaves everything as PyTorch draws it."""


@BACKBONES.register("shufflenetv1")
def shufflenetv1() -> Backbone:
    return ShuffleNetV1(ffcl=False)


@BACKBONES.register("shufflenetv1-ffcl")
def shufflenetv1_ffcl() -> Backbone:
    return ShuffleNetV1(ffcl=True)
