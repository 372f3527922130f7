"""Wide Residual Networks, Zagoruyko and Komodakis, 2016, https://arxiv.org/abs/1605.07146, table 1: the CIFAR family.

`wrn-D-K`: depth D = 6n+4, three stages of n pre-activation blocks with 16K, 32K and 64K channels. (`wide-resnet50-2`, of the same
paper's table 8, is a ResNet of bottlenecks and stands in `resnet.py`.)

Readings:
1. No dropout in the blocks, as in the KD literature.
2. The last stage ends with the BatchNorm and ReLU that a pre-activation network has in front of its pooling, so that every branch
   that owns the stage has its own. `blocks` gives a stage without them: the published code of THFKD applies one shared pair to
   its deepest branch only.
3. The first block of a stage shares its first BatchNorm and ReLU with the shortcut where the number of channels changes, as in the
   authors' code.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import BACKBONES, Backbone, kaiming_fan_out


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice, and a shortcut; figure 1 (b): `B C H W` -> `B out H/stride W/stride`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        active = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(Backbone):
    """Wide ResNet of depth 6n+4 for 32x32 images."""

    def __init__(self, depth: int, factor: int) -> None:
        assert (depth - 4) % 6 == 0, "depth is 6n+4"
        self.widths = (16 * factor, 32 * factor, 64 * factor)
        self.depths = ((depth - 4) // 6,) * 3

    def stem(self) -> nn.Module:
        return nn.Conv2d(3, 16, 3, 1, 1, bias=False)

    def stage(self, index: int, depth: int) -> nn.Module:
        last = index == len(self.depths) - 1
        return nn.Sequential(*self.blocks(index, depth), *(self.final_activation() if last else ()))

    def blocks(self, index: int, depth: int) -> nn.Sequential:
        """Stage `index` with `depth` blocks, without a final activation."""
        in_channels, out_channels = (16, *self.widths)[index : index + 2]
        first = PreActivationBlock(in_channels, out_channels, 1 if index == 0 else 2)
        return nn.Sequential(first, *(PreActivationBlock(out_channels, out_channels) for _ in range(depth - 1)))

    def final_activation(self) -> nn.Sequential:
        """BatchNorm and ReLU behind the last block."""
        return nn.Sequential(nn.BatchNorm2d(self.widths[-1]), nn.ReLU(inplace=True))

    def initialise(self, module: nn.Module) -> None:
        """He initialisation of convolutions (fan out), biases of linear layers 0, as in the code of the KD literature."""
        kaiming_fan_out(module)
        for layer in module.modules():
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)


def register(name: str, depth: int, factor: int) -> None:
    @BACKBONES.register(name)
    def make() -> Backbone:
        return WideResNet(depth, factor)


for depth, factor in ((16, 2), (40, 1), (40, 2), (28, 10)):
    register(f"wrn-{depth}-{factor}", depth, factor)
