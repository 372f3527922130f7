"""Deep Residual Learning for Image Recognition, He et al., 2016, https://arxiv.org/abs/1512.03385, section 4.2: the CIFAR family.

Depth 6n+2, three stages of n basic blocks with 16, 32 and 64 channels on maps of 32, 16 and 8 pixels; `resnet110-bottleneck`
has depth 9n+2 and three stages of 12 bottlenecks with 64, 128 and 256 channels.

Readings and deviations:
1. Shortcuts that change the shape are 1x1 convolutions with BatchNorm (option B); the paper uses option A on CIFAR. The KD
   literature, and the public code of AHBF-OKD and THFKD, count option B.
2. `x2` and `x4` multiply the channels of the stages. The stem has 16 channels, with `x4` 32: those of the toolboxes of CRD
   (RepDistiller) and SimKD, whose names these are.
3. A bottleneck that changes the resolution does so in its 3x3 convolution, as torchvision and the code of AHBF-OKD do; the paper
   does in the first 1x1.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import BACKBONES, Backbone


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """What is added to the output of a block: its input, or (option B) a 1x1 convolution of it where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, figure 5 (left): `B C H W` -> `B out H/stride W/stride`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, figure 5 (right): `B C H W` -> `B out H/stride W/stride`.

    The inner width is `out_channels / narrow`; the 3x3 convolution has `groups` groups.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, narrow: int = 4, groups: int = 1) -> None:
        super().__init__()
        inner = out_channels // narrow
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))


Block = Callable[[int, int, int], nn.Module]


def residual_stage(in_channels: int, out_channels: int, depth: int, stride: int, block: Block = BasicBlock) -> nn.Sequential:
    """`depth` blocks, the first of which changes the shape."""
    first = block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, 1) for _ in range(depth - 1)))


class CifarResNet(Backbone):
    """ResNet of depth 6n+2 (bottlenecks: 9n+2) for 32x32 images, `factor` times as wide as the paper's."""

    def __init__(self, depth: int, factor: int = 1, bottleneck: bool = False) -> None:
        assert (depth - 2) % (9 if bottleneck else 6) == 0, "depth is 6n+2, or 9n+2 with bottlenecks"
        self.block: Block = Bottleneck if bottleneck else BasicBlock
        self.stem_channels = 32 if factor == 4 else 16
        base = 64 if bottleneck else 16
        self.widths = (base * factor, 2 * base * factor, 4 * base * factor)
        self.depths = ((depth - 2) // (9 if bottleneck else 6),) * 3

    def stem(self) -> nn.Module:
        conv = nn.Conv2d(3, self.stem_channels, 3, 1, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(self.stem_channels), nn.ReLU(inplace=True))

    def stage(self, index: int, depth: int) -> nn.Module:
        in_channels = (self.stem_channels, *self.widths)[index]
        return residual_stage(in_channels, self.widths[index], depth, 1 if index == 0 else 2, self.block)


def register(name: str, depth: int, factor: int) -> None:
    @BACKBONES.register(name)
    def make() -> Backbone:
        return CifarResNet(depth, factor)


for depth in (8, 14, 20, 32, 38, 44, 56, 110, 116):
    register(f"resnet{depth}", depth, 1)
for depth in (14, 38, 110):
    register(f"resnet{depth}x2", depth, 2)
for depth in (8, 20, 32):
    register(f"resnet{depth}x4", depth, 4)


@BACKBONES.register("resnet110-bottleneck")
def resnet110_bottleneck() -> Backbone:
    return CifarResNet(110, bottleneck=True)
