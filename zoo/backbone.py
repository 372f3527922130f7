"""What a method may know of a CNN: a stem, stages, a neck and a classifier, which can be split after any stage.

Shape legend: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .registry import Registry

BACKBONES: Registry[Callable[[], Backbone]] = Registry("backbone", "kdzoo.zoo.backbones")


class Backbone(ABC):
    """A recipe for a CNN. It holds numbers only; every call builds fresh modules.

    Attributes:
        widths: channels that leave each stage at its own depth.
        depths: blocks of each stage.
        image_size: height and width, in pixels, of the images it is made for.
        branch_stages: how many of the last stages a branch owns where the method does not say (AHBF, section 1.1).
        exits: stages (0-based) after which early exits may hang; empty = after each but the last.
        exit_expansion, exit_reduction: of the blocks that lead exits to the last map, as DBFSKD's published counts demand them.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    image_size: int = 32
    branch_stages: int = 1
    exits: tuple[int, ...] = ()
    exit_expansion: float = 1.0
    exit_reduction: int = 4

    @abstractmethod
    def stem(self) -> nn.Module:
        """`B 3 H W` -> input of the first stage."""

    @abstractmethod
    def stage(self, index: int, depth: int) -> nn.Module:
        """Stage `index` (0-based) with `depth` blocks, its down-sampling included."""

    def channels(self, index: int, depth: int) -> int:
        """Channels that leave stage `index` with `depth` blocks. Only networks whose blocks add channels depend on the depth."""
        return self.widths[index]

    def neck(self, channels: int) -> nn.Module | None:
        """What stands between the last stage, of so many channels, and the classifier: mostly nothing, else a 1x1 convolution."""
        return None

    def neck_channels(self, channels: int) -> int:
        """Channels that the classifier reads where the last stage gives so many."""
        return channels

    def classifier(self, num_classes: int, channels: int | None = None) -> nn.Module:
        """`B C H W` -> logits `B K`: global average pooling and one linear layer. `channels`: of its input, if not the usual."""
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels or self.out_channels(), num_classes))

    def out_channels(self, last_depth: int | None = None) -> int:
        """Channels that the classifier reads, for a last stage of its own depth or of another."""
        last = len(self.depths) - 1
        return self.neck_channels(self.channels(last, self.depths[last] if last_depth is None else last_depth))

    def exit_stages(self) -> tuple[int, ...]:
        """The stages (0-based, ascending) after which early exits hang."""
        return self.exits or tuple(range(len(self.depths) - 1))

    def initialise(self, module: nn.Module) -> None:
        """Draw the weights of `module`, made of this backbone's parts, as its paper does; by default `kaiming_fan_out`."""
        kaiming_fan_out(module)

    def split(self, k: int) -> tuple[nn.Sequential, Callable[[Sequence[int]], nn.Sequential]]:
        """Cut after stage `k` (0 = after the stem): the shared trunk, and a maker of branches, which end with the neck.

        The maker takes the number of blocks of each stage that the branch owns, `len(depths) - k` numbers.
        """
        trunk = nn.Sequential(self.stem(), *(self.stage(i, self.depths[i]) for i in range(k)))

        def make_branch(depths: Sequence[int]) -> nn.Sequential:
            assert len(depths) == len(self.depths) - k, "one depth per stage that the branch owns"
            layers = [self.stage(k + i, depth) for i, depth in enumerate(depths)]
            last = depths[-1] if depths else self.depths[-1]
            neck = self.neck(self.channels(len(self.depths) - 1, last))
            return nn.Sequential(*layers, *([] if neck is None else [neck]))

        return trunk, make_branch

    def body(self) -> nn.Sequential:
        """Everything in front of the classifier: `B 3 H W` -> `B C h w`."""
        trunk, make_branch = self.split(len(self.depths))
        neck = make_branch(())
        return nn.Sequential(*trunk, *neck)

    def map_shape(self) -> tuple[int, int, int]:
        """`C h w` of the map that the classifier reads, for one image of `image_size`. Nothing is computed."""
        with torch.device("meta"):
            image = torch.zeros(1, 3, self.image_size, self.image_size)
            _, channels, height, width = self.body().eval()(image).shape
        return channels, height, width


def kaiming_fan_out(module: nn.Module) -> None:
    """He initialisation of convolutions (fan out), BatchNorm 1 and 0; linear layers keep PyTorch's default."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
