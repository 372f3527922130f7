"""MobileNetV2: Inverted Residuals and Linear Bottlenecks, Sandler et al., 2018, https://arxiv.org/abs/1801.04381, table 2.

Made for CIFAR. One stage per row of the table; a neck of 1x1 convolution to 1280 channels stands in front of the classifier.

Readings and deviations (those of the KD literature: the toolbox of CRD and the code of AHBF-OKD and THFKD):
1. ReLU where the paper has ReLU6; the blocks with t = 1 keep their 1x1 expansion; the second stage does not halve the resolution.
   torchvision's network differs in all three.
2. `mobilenetv2-x0.5` halves the resolution in its first convolution. `mobilenetv2`, of full width, does not: so are the published
   counts of DBFSKD met.
3. The neck is not narrowed with the rest.
4. A branch owns the last three stages (AHBF-OKD, THFKD). Early exits hang after stages 2, 3 and 5, where the resolution is halved
   next (DBFSKD).

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ..backbone import BACKBONES, Backbone, kaiming_fan_out

# Expansion t, channels c, blocks n, stride s.
ROWS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 expansion, depth-wise 3x3, linear 1x1, figure 4 (d): `B C H W` -> `B out H/stride W/stride`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(Backbone):
    """MobileNetV2 with `width` times the channels and a first convolution of stride `stem_stride`, for 32x32 images."""

    depths = tuple(blocks for _, _, blocks, _ in ROWS)
    branch_stages = 3
    exits = (1, 2, 4)
    exit_reduction = 0

    def __init__(self, width: float, stem_stride: int) -> None:
        self.stem_channels, self.stem_stride = int(32 * width), stem_stride
        self.widths = tuple(int(channels * width) for _, channels, _, _ in ROWS)
        self.head = int(1280 * max(width, 1.0))

    def stem(self) -> nn.Module:
        conv = nn.Conv2d(3, self.stem_channels, 3, self.stem_stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(self.stem_channels), nn.ReLU(inplace=True))

    def stage(self, index: int, depth: int) -> nn.Module:
        in_channels, out_channels = (self.stem_channels, *self.widths)[index : index + 2]
        expansion, _, _, stride = ROWS[index]
        first = InvertedResidual(in_channels, out_channels, stride, expansion)
        return nn.Sequential(first, *(InvertedResidual(out_channels, out_channels, 1, expansion) for _ in range(depth - 1)))

    def neck(self, channels: int) -> nn.Module:
        conv = nn.Conv2d(channels, self.head, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(self.head), nn.ReLU(inplace=True))

    def neck_channels(self, channels: int) -> int:
        return self.head

    def initialise(self, module: nn.Module) -> None:
        """He initialisation of convolutions (fan out), N(0, 0.01) of linear layers, their biases 0; as in the toolbox of CRD."""
        kaiming_fan_out(module)
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, 0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


@BACKBONES.register("mobilenetv2")
def mobilenetv2() -> Backbone:
    return MobileNetV2(1.0, stem_stride=1)


@BACKBONES.register("mobilenetv2-x0.5")
def mobilenetv2_half() -> Backbone:
    return MobileNetV2(0.5, stem_stride=2)
