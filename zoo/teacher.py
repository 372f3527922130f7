"""A frozen, pre-trained network that a method distils from. It is never saved with the student.

Shapes: `B` batch, `C` channels, `H` `W` space, `K` classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UsageError
from .network import Outputs
from .student import Student


class Teacher(nn.Module):
    """A student of an earlier run, in evaluation mode for good: it computes without gradient and learns nothing.

    Attributes:
        name: where it came from, for messages.
        backbone: name of the backbone that it was cut from.
    """

    def __init__(self, student: Student, name: str, backbone: str) -> None:
        super().__init__()
        self.student, self.name, self.backbone = student.eval().requires_grad_(False), name, backbone

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode."""
        return self

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Outputs:
        """Its logits and, where it is one branch, the map that its classifier reads."""
        values = self.student.evaluate(image)
        features = [values[node] for node in self._feature_nodes()]
        return Outputs(logits=[self.student.combine(values)], features=features)

    def _feature_nodes(self) -> tuple[str, ...]:
        return self.student.inputs[self.student.outputs[0]] if len(self.student.outputs) == 1 else ()

    def classifier(self) -> nn.Module:
        """The module that reads its last map.

        Raises:
            UsageError: the teacher is a mean or a fusion of several branches, which has no one classifier.
        """
        if len(self._feature_nodes()) != 1:
            raise UsageError(
                f"the teacher {self.name} is made of several branches, and this method takes over the classifier of one",
                hint="give a plain network, or the package of one branch",
            )
        return self.student[self.student.outputs[0]]
