"""Deep Residual Learning for Image Recognition, He et al., 2016, https://arxiv.org/abs/1512.03385, section 4.2: the CIFAR family.

Depth 6n+2, three stages of n basic blocks with 16, 32 and 64 channels on maps of 32, 16 and 8 pixels.

Deviations:
1. Shortcuts that change the shape are 1x1 convolutions with BatchNorm (option B); the paper uses option A on CIFAR. The KD
   literature, and the public code of AHBF-OKD and THFKD, count option B.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import BACKBONES, Backbone


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, figure 5 (left): `B C H W` -> `B out H/stride W/stride`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


def residual_stage(in_channels: int, out_channels: int, depth: int, stride: int) -> nn.Sequential:
    """`depth` basic blocks, the first of which changes the shape."""
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(depth - 1)))


class CifarResNet(Backbone):
    """ResNet of depth 6n+2 for 32x32 images."""

    widths = (16, 32, 64)

    def __init__(self, depth: int) -> None:
        self.depths = ((depth - 2) // 6,) * 3

    def stem(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))

    def stage(self, index: int, depth: int) -> nn.Module:
        in_channels = (16, *self.widths)[index]
        return residual_stage(in_channels, self.widths[index], depth, stride=1 if index == 0 else 2)


@BACKBONES.register("resnet20")
def resnet20() -> Backbone:
    return CifarResNet(20)


@BACKBONES.register("resnet32")
def resnet32() -> Backbone:
    return CifarResNet(32)


@BACKBONES.register("resnet56")
def resnet56() -> Backbone:
    return CifarResNet(56)


@BACKBONES.register("resnet110")
def resnet110() -> Backbone:
    return CifarResNet(110)
