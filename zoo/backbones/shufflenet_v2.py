"""ShuffleNet V2, Ma et al., 2018, https://arxiv.org/abs/1807.11164, table 5, with three stems.

`shufflenetv2`, `shufflenetv2-x1.5` are those of the toolboxes of CRD and SimKD, `shufflenetv2-ffcl` the one that FFCL counts
(weiaicunzai's), `shufflenetv2-imagenet` the paper's, as in torchvision, with which `zoo.foreign` exchanges weights. A neck of 1x1
convolution to 1024 channels stands in front of the classifier.

Readings and deviations:
1. For 32x32 images the first convolution keeps the resolution and no pooling follows. It is 1x1, with `-ffcl` 3x3 and without the
   ReLU behind it.
2. In a unit that halves the resolution the inner width of the right branch is that of its output; with `-ffcl` that of its input.
3. Convolutions of `-ffcl` have a bias.
4. Weights start as PyTorch draws them, as in all three lines of code.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import BACKBONES, Backbone
from .shufflenet_v1 import ChannelShuffle

STEM, NECK = 24, 1024
Kind = Literal["cifar", "ffcl", "imagenet"]


def pointwise(in_channels: int, out_channels: int, bias: bool) -> list[nn.Module]:
    """1x1 convolution, BatchNorm, ReLU: `B C H W` -> `B out H W`."""
    return [nn.Conv2d(in_channels, out_channels, 1, bias=bias), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def depthwise(channels: int, stride: int, bias: bool) -> list[nn.Module]:
    """Depth-wise 3x3 convolution, BatchNorm: `B C H W` -> `B C H/stride W/stride`."""
    return [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=bias), nn.BatchNorm2d(channels)]


class SplitUnit(nn.Module):
    """One half of the channels passes untouched, figure 3 (c): `B C H W` -> `B C H W`."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        half = channels // 2
        self.right = nn.Sequential(*pointwise(half, half, bias), *depthwise(half, 1, bias), *pointwise(half, half, bias))
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        left, right = x.chunk(2, dim=1)
        return self.shuffle(torch.cat([left, self.right(right)], dim=1))


class HalvingUnit(nn.Module):
    """Two branches that halve the resolution, figure 3 (d): `B C H W` -> `B out H/2 W/2`."""

    def __init__(self, in_channels: int, out_channels: int, inner: int, bias: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.left = nn.Sequential(*depthwise(in_channels, 2, bias), *pointwise(in_channels, half, bias))
        self.right = nn.Sequential(*pointwise(in_channels, inner, bias), *depthwise(inner, 2, bias), *pointwise(inner, half, bias))
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.shuffle(torch.cat([self.left(x), self.right(x)], dim=1))


class ShuffleNetV2(Backbone):
    """ShuffleNet V2; every stage halves the resolution in its first unit."""

    depths = (4, 8, 4)
    exit_reduction = 0

    def __init__(self, widths: tuple[int, int, int], kind: Kind = "cifar") -> None:
        self.widths, self.kind, self.bias = widths, kind, kind == "ffcl"
        if kind == "imagenet":
            self.image_size = 224

    def stem(self) -> nn.Module:
        kernel, stride = {"cifar": (1, 1), "ffcl": (3, 1), "imagenet": (3, 2)}[self.kind]
        layers: list[nn.Module] = [nn.Conv2d(3, STEM, kernel, stride, kernel // 2, bias=self.bias), nn.BatchNorm2d(STEM)]
        layers += [nn.ReLU(inplace=True)] if self.kind != "ffcl" else []
        layers += [nn.MaxPool2d(3, 2, 1)] if self.kind == "imagenet" else []
        return nn.Sequential(*layers)

    def stage(self, index: int, depth: int) -> nn.Module:
        in_channels, out_channels = (STEM, *self.widths)[index : index + 2]
        inner = in_channels if self.kind == "ffcl" else out_channels // 2
        first = HalvingUnit(in_channels, out_channels, inner, self.bias)
        return nn.Sequential(first, *(SplitUnit(out_channels, self.bias) for _ in range(depth - 1)))

    def neck(self, channels: int) -> nn.Module:
        return nn.Sequential(*pointwise(channels, NECK, self.bias))

    def neck_channels(self, channels: int) -> int:
        return NECK

    def initialise(self, module: nn.Module) -> None:
        """Leaves everything as PyTorch draws it."""


@BACKBONES.register("shufflenetv2")
def shufflenetv2() -> Backbone:
    return ShuffleNetV2((116, 232, 464))


@BACKBONES.register("shufflenetv2-x1.5")
def shufflenetv2_x1_5() -> Backbone:
    return ShuffleNetV2((176, 352, 704))


@BACKBONES.register("shufflenetv2-ffcl")
def shufflenetv2_ffcl() -> Backbone:
    return ShuffleNetV2((116, 232, 464), "ffcl")


@BACKBONES.register("shufflenetv2-imagenet")
def shufflenetv2_imagenet() -> Backbone:
    return ShuffleNetV2((116, 232, 464), "imagenet")
