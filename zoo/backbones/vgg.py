"""Very Deep Convolutional Networks, Simonyan and Zisserman, 2015, https://arxiv.org/abs/1409.1556, table 1, made for CIFAR.

Five stages of 3x3 convolutions (with bias) with BatchNorm and ReLU; the depth of a stage is its number of convolutions.

Readings (the paper has no BatchNorm and images of 224 pixels; two lines of code made two networks for 32):
1. `vgg8`, `vgg13` are those of the toolboxes of CRD and SimKD: max pooling after each of the first three stages, none before the
   last, whose map of 4x4 is averaged; one linear layer. (Their "8" and "13" count two more linear layers than there are.) Early
   exits hang after the first three stages only, because the last does not halve the resolution.
2. `vgg16` is that of AHBF-OKD: each stage ends with max pooling, the last map is 1x1; three linear layers. The mean over the last
   map, the identity at 1x1, lets it take larger images.
3. Dropout of `vgg16` is .5, as in the authors' networks with branches, for every method; their baseline has none.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from ..backbone import BACKBONES, Backbone, kaiming_fan_out

WIDTHS = (64, 128, 256, 512, 512)


def convolutions(in_channels: int, out_channels: int, depth: int) -> list[nn.Module]:
    """`depth` times 3x3 convolution, BatchNorm, ReLU: `B C H W` -> `B out H W`."""
    layers: list[nn.Module] = []
    for a, b in pairwise((in_channels, *(out_channels,) * depth)):
        layers += [nn.Conv2d(a, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return layers


class VGG(Backbone):
    """VGG with one linear layer."""

    widths = WIDTHS
    exits: tuple[int, ...] = (0, 1, 2)

    def __init__(self, depths: tuple[int, int, int, int, int]) -> None:
        self.depths = depths

    def stem(self) -> nn.Module:
        return nn.Identity()

    def stage(self, index: int, depth: int) -> nn.Module:
        pool = [nn.MaxPool2d(2)] if index in (1, 2, 3) else []
        return nn.Sequential(*pool, *convolutions((3, *WIDTHS)[index], WIDTHS[index], depth))

    def initialise(self, module: nn.Module) -> None:
        """He initialisation of convolutions (fan out), N(0, 0.01) of linear layers, all biases 0; as in both lines of code."""
        kaiming_fan_out(module)
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, 0.01)
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                nn.init.zeros_(layer.bias)


class PooledVGG(VGG):
    """VGG with max pooling after every stage and three linear layers."""

    exits = ()

    def __init__(self, depths: tuple[int, int, int, int, int], dropout: float = 0.5) -> None:
        super().__init__(depths)
        self.dropout = dropout

    def stage(self, index: int, depth: int) -> nn.Module:
        return nn.Sequential(*convolutions((3, *WIDTHS)[index], WIDTHS[index], depth), nn.MaxPool2d(2))

    def classifier(self, num_classes: int, channels: int | None = None) -> nn.Module:
        """`B C H W` -> logits `B K`: three linear layers."""
        first = nn.Linear(channels or self.out_channels(), 512)
        hidden = [first, nn.ReLU(inplace=True), nn.Dropout(self.dropout)]
        hidden += [nn.Linear(512, 512), nn.ReLU(inplace=True), nn.Dropout(self.dropout)]
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *hidden, nn.Linear(512, num_classes))


@BACKBONES.register("vgg8")
def vgg8() -> Backbone:
    return VGG((1, 1, 1, 1, 1))


@BACKBONES.register("vgg13")
def vgg13() -> Backbone:
    return VGG((2, 2, 2, 2, 2))


@BACKBONES.register("vgg16")
def vgg16() -> Backbone:
    return PooledVGG((2, 2, 3, 3, 3))
