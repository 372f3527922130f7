"""Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation, Zhang et al., ICCV 2019,
https://arxiv.org/abs/1905.08094. Implements equations 1-5.

After every stage but the last hangs an exit: a bottleneck that leads to the shape of the last map, and a classifier. The deepest
classifier teaches the exits by its logits, and its map by a hint.

Readings (those with a name in brackets are fields of `Config`; "code" is the public PyTorch code of luanyunteng):
1. An exit is 1x1 to a quarter of the last channels, a convolution whose kernel and stride lead to the last size, 1x1 to the last
   channels, each with bias, BatchNorm and ReLU: the bottleneck of the code.
2. The deepest classifier keeps the whole weight of its cross entropy, as in the paper; the code gives it 1-α like the exits.
3. The soft term is a cross entropy times the squared temperature, as the code; the deepest classifier is detached.
4. The hint compares the pooled maps (`hint="pooled"`), as the code, or the maps (`"map"`), as the paper's figure.
5. The hint sums over the batch as well (`hint_reduction="batch"`), as the code, which its weight 1e-6 belongs to; its strength then
   grows with the batch, and parts of a batch (accumulation, several processes) weaken it. `"image"` is the mean over the images.
6. Backbones with a neck: an exit leads to the map behind the neck.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import UsageError
from ..backbone import Backbone
from ..branches import add_stages
from ..losses import cross_entropy, sum_of
from ..method import METHODS, Method, Progress
from ..network import MultiBranch, Outputs


def bottleneck(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """An exit without its classifier, `B C H W` -> `B out H/stride W/stride`."""
    narrow = out_channels // 4
    shapes = [(in_channels, narrow, 1), (narrow, narrow, stride), (narrow, out_channels, 1)]
    layers: list[nn.Module] = []
    for channels, width, kernel in shapes:
        layers += [nn.Conv2d(channels, width, kernel, kernel), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@METHODS.register("byot")
class BYOT(Method):
    """Self-distillation with bottleneck exits."""

    @dataclass(frozen=True)
    class Config:
        """Defaults of the code.

        Attributes:
            alpha: α, weight of the soft term of an exit; its labels have 1-α. beta: λ, weight of the hint. temperature: T.
            hint: `pooled` or `map`. hint_reduction: `batch` or `image`.
        """

        alpha: float = 0.1
        beta: float = 1e-6
        temperature: float = 3.0
        hint: str = "pooled"
        hint_reduction: str = "batch"

        def __post_init__(self) -> None:
            for name, known in (("hint", ["pooled", "map"]), ("hint_reduction", ["batch", "image"])):
                if getattr(self, name) not in known:
                    raise UsageError(f"{name} cannot be '{getattr(self, name)}'", known=known)

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        network, channels = MultiBranch(), backbone.out_channels()
        *taps, last = add_stages(network, backbone)
        for j, tap in enumerate(taps, start=1):
            exit_map = bottleneck(tap.channels, channels, tap.height // last.height)
            network.add_branch(network.add(f"exit{j}", exit_map, tap.node), backbone.classifier(num_classes))
        neck = backbone.neck(last.channels)
        deepest = last.node if neck is None else network.add("neck", neck, last.node)
        network.add_branch(deepest, backbone.classifier(num_classes))
        network.target_branch = len(network.branches)
        backbone.initialise(network)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        config, t = self.config, self.config.temperature
        *exits, deepest = outputs.logits
        *maps, last_map = outputs.features
        soft_labels = torch.softmax(deepest.detach() / t, dim=1)
        return {
            "ce": cross_entropy(deepest, y) + (1 - config.alpha) * sum_of(cross_entropy(z, y) for z in exits),
            "soft": config.alpha * t**2 * sum_of(cross_entropy(z / t, soft_labels) for z in exits),
            "hint": config.beta * sum_of(self._hint(x, last_map.detach()) for x in maps),
        }

    def _hint(self, x: Float[Tensor, "B C H W"], last: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """Squared distance of the maps or of their means over space."""
        if self.config.hint == "pooled":
            x, last = x.mean(dim=(2, 3), keepdim=True), last.mean(dim=(2, 3), keepdim=True)
        squared = (x - last).square().sum()
        return squared / len(x) if self.config.hint_reduction == "image" else squared
