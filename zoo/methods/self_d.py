"""Self-Distillation: Towards Efficient and Compact Neural Networks, Zhang, Bao & Ma, IEEE TPAMI 44(8), 2022,
https://doi.org/10.1109/TPAMI.2021.3067100. Parameters and multiply-adds of ResNet-34's branches equal those of the authors' code.

After every stage but the last hangs an exit: attention, then separable convolutions down to the shape of the last map, and a
classifier. The deepest classifier teaches the exits.

Readings (those with a name in brackets are fields of `Config`; "code" is the authors' pytorch-self-distillation-final):
1. Attention is a separable convolution of stride 2, BatchNorm, ReLU, bilinear enlargement, sigmoid: the code's first version, which
   the counts demand (its last version lacks the second BatchNorm and ReLU).
2. The soft term is a cross entropy without the squared temperature; the deepest classifier is detached.
3. Hint: distance of the deepest pooled map, detached, from a linear map of the exit's; not for the exit next to the deepest, as the
   code has it (its comment says the shallowest).
4. The distance is the root of the squares summed over the batch (`hint_reduction="batch"`), as the code, which its weight .03
   belongs to; parts of a batch (accumulation, several processes) change it. `"image"` is the mean of the images' distances.
5. Backbones with a neck: the convolutions lead to the last stage's map, behind which every exit has a neck of its own.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UsageError
from ..backbone import Backbone
from ..branches import Tap, add_stages
from ..losses import cross_entropy, sum_of
from ..method import METHODS, Method, Progress
from ..network import MultiBranch, Outputs
from ..sep_conv import sep_conv


class SelfAttention(nn.Module):
    """Weighs every position and channel of a map by what a coarser view of it says: `B C H W` -> `B C H W`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coarse = nn.Sequential(sep_conv(channels, channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        enlarged = F.interpolate(self.coarse(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(enlarged)


def make_exit(taps: list[Tap]) -> nn.Sequential:
    """From the first map to the shape of the last: attention, then one separable convolution per map on the way."""
    steps = [sep_conv(a.channels, b.channels, stride=a.height // b.height) for a, b in pairwise(taps)]
    return nn.Sequential(SelfAttention(taps[0].channels), *steps)


@METHODS.register("self_d")
class SelfD(Method):
    """Self-distillation with attention and separable exits."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the code.

        Attributes:
            alpha: weight of the soft term of an exit; its labels have 1-alpha. beta: weight of the hint. temperature: T.
            hint_reduction: `batch` or `image`, reading 4.
        """

        alpha: float = 0.3
        beta: float = 0.03
        temperature: float = 3.0
        hint_reduction: str = "batch"

        def __post_init__(self) -> None:
            if self.hint_reduction not in ("batch", "image"):
                raise UsageError(f"hint_reduction cannot be '{self.hint_reduction}'", known=["batch", "image"])

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        network, channels = MultiBranch(), backbone.out_channels()
        taps = add_stages(network, backbone)
        nodes = [network.add(f"exit{j + 1}", make_exit(taps[j:]), tap.node) for j, tap in enumerate(taps[:-1])]
        for j, node in enumerate((*nodes, taps[-1].node), start=1):
            neck = backbone.neck(taps[-1].channels)
            features = node if neck is None else network.add(f"neck{j}", neck, node)
            network.add_branch(features, backbone.classifier(num_classes))
        network.target_branch = len(network.branches)
        for j, branch in enumerate(network.branches[:-2], start=1):
            adapt = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, channels))
            network.extras[f"adapted{j}"] = network.add(f"adapt{j}", adapt, branch.features)
        backbone.initialise(network)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, t = self.config, self.config.temperature
        *exits, deepest = outputs.logits
        soft_labels = torch.softmax(deepest.detach() / t, dim=1)
        parts = {
            "ce": cross_entropy(deepest, y) + (1 - config.alpha) * sum_of(cross_entropy(z, y) for z in exits),
            "soft": config.alpha * sum_of(cross_entropy(z / t, soft_labels) for z in exits),
        }
        if outputs.extras:
            last_BC = outputs.features[-1].mean(dim=(2, 3)).detach()
            parts["hint"] = config.beta * sum_of(self._distance(x, last_BC) for x in outputs.extras.values())
        return parts

    def _distance(self, x: Float[Tensor, "B C"], last: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
        return (x - last).norm() if self.config.hint_reduction == "batch" else (x - last).norm(dim=1).mean()
