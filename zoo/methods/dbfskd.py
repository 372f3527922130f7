"""Diversified branch fusion for self-knowledge distillation, Long et al., Information Fusion 90 (2023),
https://doi.org/10.1016/j.inffus.2022.09.007. Implements equations 1-10; parameters and multiply-adds equal table 4 but
for one figure (MobileNetV2 Br-3, a slip of the paper).

After every stage but the last hangs an attention down-sample block (ADB) that leads to the shape of the last map: branches
Br-1..Br-(N-1). Br-N is the backbone. Selective feature fusion (SFF) of all their maps is Br-(N+1); dynamic logits fusion (DLF)
of the last three branches is the teacher of all.

Readings (the paper leaves them open; those with a name in brackets are fields of `Config`):
1. Temperature 3, no squared temperature in equation 6 (`temperature`, `squared_temperature`).
2. Diversity loss as printed in equation 7, with its 1/S (`div_reduction="eq7"`). Its weight 5e-5 then leaves hardly any effect,
   against the ablation of the paper; but without 1/S ("per_sample") the term, which has no lower bound, outgrows the others:
   ResNet-20 on 500 images of CIFAR-100 ended at 12 % instead of 49 % (8 epochs, learning rate 0.1).
3. DLF reads the detached logits of its inputs, weighs them per sample with two linear layers, and is trained by its own cross
   entropy; as teacher it is detached. Hidden width = number of classes / 4.
4. Convolution of SFF: depth-wise 3x3 with BatchNorm and ReLU on the re-weighted maps, then 1x1 to the width of one map.
5. Expansion and squeeze of the ADBs (`expansion`, `attention_reduction`) are those that the published counts demand of a family:
   1.0 and 4 for ResNet-18 and -34; 1.2 and none (one 1x1 convolution) for bottleneck ResNets and SENet-18; 1.0 and none for
   MobileNetV2 and ShuffleNetV2. The backbone knows its own; ResNet-50 and -101 are taken as the other bottleneck networks.
6. BatchNorm of a down-sampling layer: after its two point-wise convolutions, the placement that reproduces all counts.
7. Convolutions of attention keep PyTorch's default initialisation, all others are He (fan out). Fan out of the spatial gate, which
   has one output, is 1: it would start saturated, and a branch whose gate starts closed stays dead.
8. Where a neck stands before the classifier, every branch has its own, and SFF and the diversity loss read the map behind it.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes, `N` number of fused logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import UsageError
from ..backbone import Backbone
from ..branches import add_stages
from ..layers import AxisMean
from ..losses import cross_entropy, kl_divergence, sum_of
from ..method import METHODS, Method, Progress
from ..network import MultiBranch, Outputs
from ..sep_conv import sep_conv


class Attention(nn.Module):
    """Channel and spatial attention, equations 8-10: `B C H W` -> `B C H W`."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        if reduction:
            narrow = channels // reduction
            squeeze: nn.Module = nn.Sequential(
                nn.Conv2d(channels, narrow, 1), nn.ReLU(inplace=True), nn.Conv2d(narrow, channels, 1)
            )
        else:
            squeeze = nn.Conv2d(channels, channels, 1)
        self.channel = nn.Sequential(nn.AdaptiveAvgPool2d(1), squeeze, nn.Sigmoid())
        self.spatial = nn.Conv2d(channels, 1, 1)
        self.mean_over_width, self.mean_over_height = AxisMean("width"), AxisMean("height")

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        map_B1HW = self.spatial(x)
        rows_B1H1 = torch.sigmoid(self.mean_over_width(map_B1HW))
        columns_B11W = torch.sigmoid(self.mean_over_height(map_B1HW))
        return x * self.channel(x) * (rows_B1H1 * columns_B11W)


def attention_down_sample(widths: tuple[int, ...], expansion: float, reduction: int) -> nn.Sequential:
    """ADB: attention on `widths[0]` channels, then one down-sampling layer (figure 3) per further width."""
    layers = [sep_conv(a, b, expansion) for a, b in pairwise(widths)]
    return nn.Sequential(Attention(widths[0], reduction), *layers)


class SelectiveFeatureFusion(nn.Module):
    """SFF: several `B C H W` -> `B C H W`, by attention over all their channels."""

    def __init__(self, num_maps: int, channels: int, reduction: int = 16) -> None:
        super().__init__()
        wide = num_maps * channels
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.attention = nn.Sequential(
            nn.Conv2d(wide, wide // reduction, 1), nn.ReLU(inplace=True), nn.Conv2d(wide // reduction, wide, 1), nn.Sigmoid()
        )
        self.mix = nn.Sequential(
            nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)
        )
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))

    def forward(self, *maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        x = torch.cat(maps, dim=1)
        return self.project(self.mix(x * self.attention(self.pool(x))))


class DynamicLogitsFusion(nn.Module):
    """DLF: per-sample convex combination of several `B K`, whose weights two linear layers read off the logits themselves."""

    def __init__(self, num_logits: int, num_classes: int) -> None:
        super().__init__()
        hidden = max(num_classes // 4, num_logits)
        self.weigh = nn.Sequential(
            nn.Linear(num_logits * num_classes, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_logits)
        )

    def forward(self, *logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        stacked_BNK = torch.stack(logits, dim=1).detach()
        beta_BN1 = torch.softmax(self.weigh(stacked_BNK.flatten(1)), dim=1).unsqueeze(2)
        return (beta_BN1 * stacked_BNK).sum(dim=1)


def open_gates(network: nn.Module) -> None:
    """Give the convolutions of all attention their default initialisation back (reading 7)."""
    for module in network.modules():
        if isinstance(module, (Attention, SelectiveFeatureFusion)):
            gates = (module.channel, module.spatial) if isinstance(module, Attention) else (module.attention,)
            for layer in (layer for gate in gates for layer in gate.modules()):
                if isinstance(layer, nn.Conv2d):
                    layer.reset_parameters()


def diversity(features: list[Float[Tensor, "B C H W"]], reduction: str) -> Float[Tensor, ""]:
    """Equation 7: minus the squared distance of neighbouring maps; mean over the batch and, with `eq7`, over the map too."""
    batch, per_map = features[0].shape[0], features[0][0].numel()
    squared = sum_of((a - b).square().sum() for a, b in pairwise(features))
    return -squared / (batch * per_map if reduction == "eq7" else batch)


@METHODS.register("dbfskd")
class DBFSKD(Method):
    """DBFSKD."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the paper.

        Attributes:
            gamma: weight of the distillation from DLF. alpha: weight of the diversity loss.
            expansion: e, hidden width of a down-sampling layer over its input; 0 = the backbone's own.
            attention_reduction: squeeze of channel attention, 0 = none; -1 = the backbone's own.
            temperature, squared_temperature, div_reduction: readings 1 and 2 (`eq7` or `per_sample`).
        """

        gamma: float = 1.5
        alpha: float = 5e-5
        expansion: float = 0.0
        attention_reduction: int = -1
        temperature: float = 3.0
        squared_temperature: bool = False
        div_reduction: str = "eq7"

        def __post_init__(self) -> None:
            if self.div_reduction not in ("eq7", "per_sample"):
                raise UsageError(f"div_reduction cannot be '{self.div_reduction}'", known=["eq7", "per_sample"])

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        config, network = self.config, MultiBranch()
        expansion = config.expansion or backbone.exit_expansion
        reduction = backbone.exit_reduction if config.attention_reduction < 0 else config.attention_reduction
        taps = add_stages(network, backbone)
        maps, widths = [tap.node for tap in taps], tuple(tap.channels for tap in taps)
        for j, tap in enumerate(taps[:-1]):
            adb = attention_down_sample(widths[j:], expansion, reduction)
            maps[j] = network.add(f"adb{j + 1}", adb, tap.node)
        for j, last_map in enumerate(maps, start=1):
            if (neck := backbone.neck(widths[-1])) is not None:
                maps[j - 1] = network.add(f"neck{j}", neck, last_map)
            network.add_branch(maps[j - 1], backbone.classifier(num_classes))
        network.target_branch = len(maps)

        sff = network.add("sff", SelectiveFeatureFusion(len(maps), backbone.out_channels()), *maps)
        network.fused = network.add_branch(sff, backbone.classifier(num_classes)).logits
        last_three = [branch.logits for branch in network.branches[-3:]]
        network.extras["dlf"] = network.add("dlf", DynamicLogitsFusion(3, num_classes), *last_three)
        backbone.initialise(network)
        open_gates(network)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config = self.config
        ensemble = outputs.extras["dlf"]
        teacher = ensemble.detach()
        distilled = sum_of(
            kl_divergence(z, teacher, config.temperature, squared=config.squared_temperature) for z in outputs.logits
        )
        return {
            "ce": sum_of(cross_entropy(z, y) for z in outputs.logits),
            "kl": config.gamma * distilled,
            "div": config.alpha * diversity(outputs.features[:-1], config.div_reduction),
            "ce_dlf": cross_entropy(ensemble, y),
        }
