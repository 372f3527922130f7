"""Small layers that several backbones or methods share.

Shapes: `B` batch, `C` channels, `H` `W` space.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn


class AxisMean(nn.Module):
    """Mean over the width (`B C H W` -> `B C H 1`) or the height (-> `B C 1 W`): adaptive average pooling along one axis."""

    def __init__(self, axis: Literal["height", "width"]) -> None:
        super().__init__()
        self.dim = 2 if axis == "height" else 3

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        return x.mean(dim=self.dim, keepdim=True)
