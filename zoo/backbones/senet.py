"""Squeeze-and-Excitation Networks, Hu et al., 2018, https://arxiv.org/abs/1709.01507, figure 3 (right): SE-ResNet-18.

`senet18` has the CIFAR stem, `senet18-imagenet` the paper's; both as in `resnet.py`.

Readings:
1. The paper starts at SE-ResNet-50; basic blocks get the same module after their last BatchNorm. Squeeze by 16, two linear layers
   with bias: so are the published counts of DBFSKD met.
2. No ReLU between the last BatchNorm and the squeeze, as in the paper; some public code (weiaicunzai's) has one. Counts cannot
   tell the two apart.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import BACKBONES, Backbone
from .resnet import ResNet
from .resnet_cifar import BasicBlock


class SqueezeExcitation(nn.Module):
    """Equations 2-4: every channel times a number in (0, 1) read off the means of all channels; `B C H W` -> `B C H W`."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        narrow = channels // reduction
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Linear(channels, narrow), nn.ReLU(inplace=True), nn.Linear(narrow, channels), nn.Sigmoid())

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        gate_BC = self.gate(self.pool(x).flatten(1))
        return x * gate_BC[:, :, None, None]


class SEBasicBlock(BasicBlock):
    """A basic block whose residual is re-weighted before the shortcut is added: `B C H W` -> `B out H/stride W/stride`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.se = SqueezeExcitation(out_channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        return self.relu(out + self.shortcut(x))


@BACKBONES.register("senet18")
def senet18() -> Backbone:
    return ResNet((2, 2, 2, 2), "cifar", SEBasicBlock)


@BACKBONES.register("senet18-imagenet")
def senet18_imagenet() -> Backbone:
    return ResNet((2, 2, 2, 2), "imagenet", SEBasicBlock)
