"""The network that a method trains: named nodes in a small graph, of which any target is a part.

A node is a module with named inputs; the order of declaration is the order of evaluation. What a target needs is then a matter
of following inputs backwards (`zoo.student.select`), for every method alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor, nn

IMAGE = "image"


@dataclass(frozen=True)
class Outputs:
    """What a multi-branch network gives for one batch.

    Attributes:
        logits: one `B K` tensor per branch, branch 1 first.
        features: one `B C H W` tensor per branch: the last map, which its classifier pools.
        fused: logits `B K` of the fused classifier, where the method has one.
        extras: further tensors by name (mostly logits `B K`), as the losses of the method need them.
        teachers: what each frozen, pre-trained network says of the same images; filled by the training loop, without gradient.
    """

    logits: list[Tensor]
    features: list[Tensor]
    fused: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    teachers: tuple[Outputs, ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """The same outputs with `function` applied to every tensor."""
        return replace(
            self,
            logits=[function(z) for z in self.logits],
            features=[function(f) for f in self.features],
            fused=None if self.fused is None else function(self.fused),
            extras={name: function(z) for name, z in self.extras.items()},
            teachers=tuple(teacher.map(function) for teacher in self.teachers),
        )


class Graph(nn.ModuleDict):
    """Named modules with named inputs. The name `image` stands for the input, `B 3 H W`.

    Attributes:
        inputs: of every node, in order of evaluation.
        calls: name of the module that every node calls; mostly the node's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, tuple[str, ...]] = {}
        self.calls: dict[str, str] = {}

    def add(self, name: str, module: nn.Module, *inputs: str) -> str:
        """Append a node that calls `module` on the values of `inputs`; gives back its name, to be the input of others."""
        return self.add_call(name, self.hold(name, module), *inputs)

    def hold(self, name: str, module: nn.Module) -> str:
        """Keep a module for several nodes to call; gives back its name."""
        assert name not in self and name != IMAGE, f"module '{name}' exists"
        self[name] = module
        return name

    def add_call(self, name: str, module: str, *inputs: str) -> str:
        """Append a node that calls the held `module`, which other nodes may call as well."""
        assert name not in self.inputs and name != IMAGE, f"node '{name}' exists"
        assert all(i == IMAGE or i in self.inputs for i in inputs), f"node '{name}' has an input that does not exist"
        self.inputs[name], self.calls[name] = inputs, module
        return name

    def needed(self, names: Iterable[str]) -> list[str]:
        """`names` and everything they depend on, in order of evaluation."""
        wanted = set(names)
        for name in reversed(self.inputs):
            if name in wanted:
                wanted.update(self.inputs[name])
        return [name for name in self.inputs if name in wanted]

    def evaluate(self, image: Float[Tensor, "B 3 H W"]) -> dict[str, Tensor]:
        """The value of every node."""
        values = {IMAGE: image}
        for name, inputs in self.inputs.items():
            values[name] = self[self.calls[name]](*(values[i] for i in inputs))
        return values


@dataclass(frozen=True)
class Branch:
    """The nodes that give the features and the logits of one branch."""

    features: str
    logits: str


class MultiBranch(Graph):
    """A whole training network. A plain classifier is the case of one branch.

    Attributes:
        branches: in the order of their numbers, branch 1 first.
        target_branch: number of the branch that `target` means.
        fused: node of the fused logits.
        extras: nodes of further tensors by name, for the losses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.branches: list[Branch] = []
        self.target_branch = 1
        self.fused: str | None = None
        self.extras: dict[str, str] = {}

    def add_branch(self, features: str, classifier: nn.Module) -> Branch:
        """The next branch: its classifier reads the node `features`."""
        name = f"classifier{len(self.branches) + 1}"
        branch = Branch(features, self.add(name, classifier, features))
        self.branches.append(branch)
        return branch

    def targets(self) -> tuple[str, ...]:
        """Every target that can be deployed, `target` first."""
        if len(self.branches) == 1:
            return ("target",)
        return ("target", *(str(n + 1) for n in range(len(self.branches))), *(["fused"] if self.fused else []), "ensemble")

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Outputs:
        values = self.evaluate(image)
        return Outputs(
            logits=[values[b.logits] for b in self.branches],
            features=[values[b.features] for b in self.branches],
            fused=None if self.fused is None else values[self.fused],
            extras={name: values[node] for name, node in self.extras.items()},
        )


def mean_logits(logits: Sequence[Float[Tensor, "B K"]]) -> Float[Tensor, "B K"]:
    """Arithmetic mean of the logits of an ensemble; one member alone is passed on untouched."""
    total = logits[0]
    for z_BK in logits[1:]:
        total = total + z_BK
    return total if len(logits) == 1 else total / len(logits)
