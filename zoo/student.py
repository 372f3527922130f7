"""The deployable part of a multi-branch network: only the nodes that one target needs."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UsageError
from .files import read_json
from .network import Graph, MultiBranch, Outputs, mean_logits
from .target import SEVERAL, Target


class Student(Graph):
    """A network with one output, built by `select`.

    Attributes:
        outputs: nodes whose mean is the output.
    """

    def __init__(self, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Normalised images `B 3 H W` -> logits `B K`."""
        return self.combine(self.evaluate(image))

    def combine(self, values: dict[str, Tensor]) -> Float[Tensor, "B K"]:
        """The logits, given the value of every node."""
        return mean_logits([values[name] for name in self.outputs])

    def output_names(self) -> tuple[str, ...]:
        """What an exported graph calls its outputs."""
        return ("logits",)

    def drop_counters(self) -> None:
        """Forget how many batches BatchNorm has seen; only training reads it."""
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.num_batches_tracked = None


class Several(Student):
    """A student that gives the logits of several branches, one by one.

    Attributes:
        words: the target of every output: `1`, `2`, .. and `fused`. main: which of them is the answer, and is called `logits`.
    """

    def __init__(self, outputs: tuple[str, ...], words: tuple[str, ...], main: str) -> None:
        super().__init__(outputs)
        self.words, self.main = words, main

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Normalised images `B 3 H W` -> logits `B K` of every output."""
        values = self.evaluate(image)
        return tuple(values[name] for name in self.outputs)

    def output_names(self) -> tuple[str, ...]:
        return tuple("logits" if word == self.main else f"logits_{word}" for word in self.words)


def logit_nodes(network: MultiBranch, target: Target) -> dict[str, str]:
    """Nodes of `network` whose mean is the output of `target`, or that it gives one by one, by the target of each."""
    numbers = target.numbers(len(network.branches), network.target_branch, network.fused is not None)
    nodes = {str(n): network.branches[n - 1].logits for n in numbers}
    if network.fused is not None and (not numbers or target.word == "all"):
        nodes["fused"] = network.fused
    return nodes


def select(network: MultiBranch, target: Target) -> Student:
    """The student of `target`: copies of the nodes that it needs, and nothing else, in evaluation mode.

    In float32 on the same device its logits equal those of the whole network bit for bit: it runs the same modules in the same
    order. Counters of BatchNorm (`num_batches_tracked`), which inference never reads, are dropped.

    Raises:
        UnknownName: the network has no such target.
    """
    nodes = logit_nodes(network, target)
    outputs = tuple(nodes.values())
    student = Student(outputs)
    if target.word in SEVERAL:
        main = str(network.target_branch) if target.word == "all" else list(nodes)[-1]
        student = Several(outputs, tuple(nodes), main)
    for name in network.needed(outputs):
        module = network.calls[name]
        if module not in student:
            student.hold(module, copy.deepcopy(network[module]))
        student.add_call(name, module, *network.inputs[name])
    student.drop_counters()
    return student.eval()


def rebuild_student(config: Path, weights: Path) -> Student:
    """The student of a package out of its `config.json` and `model.safetensors`, in float32 and evaluation mode.

    Raises:
        IntegrityError: the weights are not those of the configuration.
    """
    from .backbone import BACKBONES
    from .checkpoint import load_weights
    from .method import METHODS

    document = read_json(config)
    with torch.device("meta"):
        method = METHODS.get(document["method"]).from_mapping(document["method_config"])
        network = method.build(BACKBONES.get(document["backbone"])(), document["num_classes"])
        student = select(network, Target.parse(document["target"]))
    load_weights(student, weights)
    return student


def target_logits(outputs: Outputs, target: Target, target_branch: int) -> Float[Tensor, "B K"]:
    """Logits of `target` out of the outputs of the whole network, by the same arithmetic as the student's.

    Raises:
        UsageError: a target that has no logits of its own but those of several others.
    """
    if target.word in SEVERAL:
        raise UsageError(f"'{target}' is measured as the file that it is exported to", hint=f"kdzoo export --branch {target}")
    numbers = target.numbers(len(outputs.logits), target_branch, outputs.fused is not None)
    if not numbers:
        assert outputs.fused is not None
        return outputs.fused
    return mean_logits([outputs.logits[n - 1] for n in numbers])


def split_tensors(network: MultiBranch, student: Student) -> tuple[list[str], list[str]]:
    """Names of the tensors of `network` that the student keeps, and that it drops: together, all of them."""
    kept, everything = set(student.state_dict()), list(network.state_dict())
    assert kept <= set(everything), "a student holds a tensor that its network does not have"
    return [n for n in everything if n in kept], [n for n in everything if n not in kept]
