"""Deep Residual Learning for Image Recognition, He et al., 2016, https://arxiv.org/abs/1512.03385, table 1: ResNet-18 and -34.

`resnet18`, `resnet34` have the stem of the KD literature for 32x32 images (one 3x3 convolution, stride 1, no pooling);
`resnet18-imagenet`, `resnet34-imagenet` have the paper's (7x7, stride 2, max pooling) for 224x224.

Readings:
1. Shortcuts that change the shape are option B (1x1 convolution with BatchNorm), as in torchvision.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from ..backbone import BACKBONES, Backbone
from .resnet_cifar import residual_stage


class ResNet(Backbone):
    """Four stages of basic blocks with 64, 128, 256 and 512 channels."""

    widths = (64, 128, 256, 512)

    def __init__(self, depths: tuple[int, int, int, int], stem: Literal["cifar", "imagenet"]) -> None:
        self.depths = depths
        self.stem_kind = stem
        if stem == "imagenet":
            self.image_size, self.branch_stages = 224, 2

    def stem(self) -> nn.Module:
        imagenet = self.stem_kind == "imagenet"
        conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False) if imagenet else nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        layers = [conv, nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if imagenet else []))

    def stage(self, index: int, depth: int) -> nn.Module:
        in_channels = (64, *self.widths)[index]
        return residual_stage(in_channels, self.widths[index], depth, stride=1 if index == 0 else 2)


@BACKBONES.register("resnet18")
def resnet18() -> Backbone:
    return ResNet((2, 2, 2, 2), "cifar")


@BACKBONES.register("resnet34")
def resnet34() -> Backbone:
    return ResNet((3, 4, 6, 3), "cifar")


@BACKBONES.register("resnet18-imagenet")
def resnet18_imagenet() -> Backbone:
    return ResNet((2, 2, 2, 2), "imagenet")


@BACKBONES.register("resnet34-imagenet")
def resnet34_imagenet() -> Backbone:
    return ResNet((3, 4, 6, 3), "imagenet")
