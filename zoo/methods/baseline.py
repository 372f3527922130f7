"""Plain training with cross entropy: a network with one branch. The yardstick of every other entry."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..backbone import Backbone
from ..losses import cross_entropy
from ..method import METHODS, Method, Progress
from ..network import IMAGE, MultiBranch, Outputs


@METHODS.register("baseline")
class Baseline(Method):
    """The backbone and its classifier."""

    @dataclass(frozen=True)
    class Config:
        """Nothing to set."""

    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        network = MultiBranch()
        network.add_branch(network.add("trunk", backbone.body(), IMAGE), backbone.classifier(num_classes))
        backbone.initialise(network)
        return network

    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        return {"ce": cross_entropy(outputs.logits[0], y)}
