"""The separable convolution pair with which Self-D and DBFSKD lead a shallow map to the shape of the last one.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from torch import nn


def sep_conv(in_channels: int, out_channels: int, expansion: float = 1.0, stride: int = 2) -> nn.Sequential:
    """Depth-wise 3x3 (with the stride), 1x1 to the hidden width, depth-wise 3x3, 1x1: `B C H W` -> `B out H/stride W/stride`.

    BatchNorm and ReLU stand after the two point-wise convolutions, the placement that reproduces the counts of both papers.
    """
    hidden = int(expansion * in_channels)
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False),
        nn.Conv2d(hidden, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
