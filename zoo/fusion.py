"""The fusion module of FFL and FFCL: the last maps of several networks become one map, which a classifier of its own reads.

Kim et al., Feature Fusion for Online Mutual Knowledge Distillation, ICPR 2020, https://arxiv.org/abs/1904.09058, figure 2,
as in the authors' public code.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes; maps may differ in channels and in size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .network import MultiBranch


class FeatureFusion(nn.Module):
    """Depth-wise 3x3 on the concatenated maps, then 1x1 to `channels`, each with BatchNorm and ReLU.

    `maps` are their shapes `C H W`. Where sizes differ, all are pooled to the smallest. With `detach_maps` no gradient flows from
    here into the networks that give them.
    """

    def __init__(self, maps: Sequence[tuple[int, int, int]], channels: int, detach_maps: bool = False) -> None:
        super().__init__()
        self.detach_maps = detach_maps
        wide = sum(shape[0] for shape in maps)
        sizes = [shape[1:] for shape in maps]
        pools = [nn.AdaptiveAvgPool2d(min(sizes)) for _ in maps] if len(set(sizes)) > 1 else []
        self.pools = nn.ModuleList(pools)
        self.mix = nn.Sequential(
            nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)
        )
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))

    def forward(self, *maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B C H W"]:
        given = [x.detach() for x in maps] if self.detach_maps and self.training else list(maps)
        pooled = [pool(x) for pool, x in zip(self.pools, given, strict=True)] if self.pools else given
        return self.project(self.mix(torch.cat(pooled, dim=1)))


def add_fusion(network: MultiBranch, maps: Sequence[tuple[int, int, int]], num_classes: int, detach_maps: bool = False) -> None:
    """Fuse the last maps of all branches, of shapes `maps`, to the channels of the first, and classify the result."""
    channels = maps[0][0]
    node = network.add("fusion", FeatureFusion(maps, channels, detach_maps), *(branch.features for branch in network.branches))
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    network.fused = network.add("classifier_fused", classifier, node)
