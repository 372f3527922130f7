"""What a method may know of a CNN: a stem, stages and a classifier, which can be split after any stage.

Shape legend: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import nn

from .registry import Registry

BACKBONES: Registry[Callable[[], Backbone]] = Registry("backbone", "kdzoo.zoo.backbones")


class Backbone(ABC):
    """A recipe for a CNN. It holds numbers only; every call builds fresh modules.

    Attributes:
        widths: channels that leave each stage.
        depths: blocks of each stage.
        image_size: height and width, in pixels, of the images it is made for.
        branch_stages: how many of the last stages a branch owns where the method does not say (AHBF, section 1.1).
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    image_size: int = 32
    branch_stages: int = 1

    @abstractmethod
    def stem(self) -> nn.Module:
        """`B 3 H W` -> input of the first stage."""

    @abstractmethod
    def stage(self, index: int, depth: int) -> nn.Module:
        """Stage `index` (0-based) with `depth` blocks, its down-sampling included."""

    def classifier(self, num_classes: int) -> nn.Module:
        """`B C H W` -> logits `B K`: global average pooling and one linear layer."""
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.widths[-1], num_classes))

    def split(self, k: int) -> tuple[nn.Sequential, Callable[[Sequence[int]], nn.Sequential]]:
        """Cut after stage `k` (0 = after the stem): the shared trunk, and a maker of branches.

        The maker takes the number of blocks of each stage that the branch owns, `len(depths) - k` numbers.
        """
        trunk = nn.Sequential(self.stem(), *(self.stage(i, self.depths[i]) for i in range(k)))

        def make_branch(depths: Sequence[int]) -> nn.Sequential:
            assert len(depths) == len(self.depths) - k, "one depth per stage that the branch owns"
            return nn.Sequential(*(self.stage(k + i, depth) for i, depth in enumerate(depths)))

        return trunk, make_branch


def kaiming_fan_out(module: nn.Module) -> None:
    """He initialisation of convolutions (fan out), BatchNorm 1 and 0; linear layers keep PyTorch's default."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
