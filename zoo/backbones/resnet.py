"""ResNet-18 to -101 and two of its kin, each with two stems.

- Deep Residual Learning for Image Recognition, He et al., 2016, https://arxiv.org/abs/1512.03385, table 1: `resnet18`, `resnet34`
  (basic blocks), `resnet50`, `resnet101` (bottlenecks).
- Wide Residual Networks, Zagoruyko and Komodakis, 2016, https://arxiv.org/abs/1605.07146, table 8: `wide-resnet50-2`, bottlenecks
  with an inner width of half the outer one.
- Aggregated Residual Transformations, Xie et al., 2017, https://arxiv.org/abs/1611.05431, table 1: `resnext50`, 32x4d.

The plain name has the stem of the KD literature for 32x32 images (one 3x3 convolution, stride 1, no pooling); with `-imagenet` it
is the paper's (7x7, stride 2, max pooling) for 224x224. `resnet18-x0.5` has half the channels everywhere.

Readings:
1. Shortcuts that change the shape are option B (1x1 convolution with BatchNorm), and a bottleneck halves the resolution in its 3x3
   convolution; both as in torchvision, with which `zoo.foreign` exchanges weights.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn

from ..backbone import BACKBONES, Backbone
from .resnet_cifar import BasicBlock, Block, Bottleneck, residual_stage

Stem = Literal["cifar", "imagenet"]


class ResNet(Backbone):
    """Four stages of basic blocks with 64, 128, 256 and 512 channels, or of other blocks with `expansion` times as many; all of it
    `width` times as wide."""

    def __init__(
        self, depths: tuple[int, ...], stem: Stem, block: Block = BasicBlock, expansion: int = 1, width: float = 1.0
    ) -> None:
        self.depths, self.block, self.stem_kind = depths, block, stem
        self.stem_channels = int(64 * width)
        self.widths = tuple(self.stem_channels * expansion * factor for factor in (1, 2, 4, 8))
        if stem == "imagenet":
            self.image_size, self.branch_stages = 224, 2
        if block is not BasicBlock:
            self.exit_expansion, self.exit_reduction = 1.2, 0

    def stem(self) -> nn.Module:
        imagenet = self.stem_kind == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        conv = nn.Conv2d(3, self.stem_channels, kernel, stride, kernel // 2, bias=False)
        layers = [conv, nn.BatchNorm2d(self.stem_channels), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if imagenet else []))

    def stage(self, index: int, depth: int) -> nn.Module:
        in_channels = (self.stem_channels, *self.widths)[index]
        return residual_stage(in_channels, self.widths[index], depth, 1 if index == 0 else 2, self.block)


def register(name: str, depths: tuple[int, ...], block: Block, expansion: int) -> None:
    @BACKBONES.register(name)
    def for_cifar() -> Backbone:
        return ResNet(depths, "cifar", block, expansion)

    @BACKBONES.register(f"{name}-imagenet")
    def for_imagenet() -> Backbone:
        return ResNet(depths, "imagenet", block, expansion)


register("resnet18", (2, 2, 2, 2), BasicBlock, 1)
register("resnet34", (3, 4, 6, 3), BasicBlock, 1)
register("resnet50", (3, 4, 6, 3), Bottleneck, 4)
register("resnet101", (3, 4, 23, 3), Bottleneck, 4)
register("wide-resnet50-2", (3, 4, 6, 3), partial(Bottleneck, narrow=2), 4)
register("resnext50", (3, 4, 6, 3), partial(Bottleneck, narrow=2, groups=32), 4)


@BACKBONES.register("resnet18-x0.5")
def resnet18_half() -> Backbone:
    return ResNet((2, 2, 2, 2), "cifar", width=0.5)
