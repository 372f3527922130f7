"""Weights of torchvision: a table of key names, with which they load both ways.

The networks are those of the backbones with an ImageNet stem that torchvision has too; ours is the one of method `baseline`.
torchvision's weights can also be where any method starts on such a backbone. Nothing is downloaded and no pickle is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import IntegrityError, UsageError
from .backbone import BACKBONES
from .method import METHODS
from .network import MultiBranch


@dataclass(frozen=True)
class Table:
    """How one family is called here and there.

    Attributes:
        prefixes: how names begin, ours and theirs; every name of ours begins with one of them.
        words: what else differs between the dots.
    """

    prefixes: tuple[tuple[str, str], ...]
    words: Mapping[str, str]

    def theirs(self, name: str) -> str:
        """torchvision's name of our tensor."""
        ours, theirs = next(pair for pair in self.prefixes if name.startswith(f"{pair[0]}."))
        return ".".join([theirs, *(self.words.get(word, word) for word in name.removeprefix(f"{ours}.").split("."))])


STAGES = (("trunk.1", "layer1"), ("trunk.2", "layer2"), ("trunk.3", "layer3"), ("trunk.4", "layer4"))
RESNET = Table((("trunk.0.0", "conv1"), ("trunk.0.1", "bn1"), *STAGES, ("classifier1.2", "fc")), {"shortcut": "downsample"})
UNITS = (("trunk.1", "stage2"), ("trunk.2", "stage3"), ("trunk.3", "stage4"), ("trunk.4", "conv5"))
SHUFFLENET = Table((("trunk.0", "conv1"), *UNITS, ("classifier1.2", "fc")), {"left": "branch1", "right": "branch2"})

# By name of the backbone: the function of `torchvision.models`, and the table.
TORCHVISION = {
    "resnet18-imagenet": ("resnet18", RESNET),
    "resnet34-imagenet": ("resnet34", RESNET),
    "resnet50-imagenet": ("resnet50", RESNET),
    "resnet101-imagenet": ("resnet101", RESNET),
    "wide-resnet50-2-imagenet": ("wide_resnet50_2", RESNET),
    "resnext50-imagenet": ("resnext50_32x4d", RESNET),
    "shufflenetv2-imagenet": ("shufflenet_v2_x1_0", SHUFFLENET),
}
COUNTER = "num_batches_tracked"  # of BatchNorm; old files and deployed students lack it


def to_torchvision(backbone: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `baseline` network under the names of torchvision.

    Raises:
        UsageError: torchvision has no such network, or `weights` are not those of ours.
    """
    table = _names(backbone, weights, "classifier1.2.bias", f"a baseline network on {backbone}")
    _compare({ours: shape for ours, (_, shape) in table.items()}, weights, f"a baseline network on {backbone}")
    return {theirs: weights[ours] for ours, (theirs, _) in table.items() if ours in weights}


def from_torchvision(backbone: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of torchvision's network under the names of a `baseline` network.

    Raises:
        UsageError: torchvision has no such network, or `weights` are not those of its.
    """
    model = f"torchvision's {_lookup(backbone)[0]}"
    table = _names(backbone, weights, "fc.bias", model)
    _compare(dict(table.values()), weights, model)
    return {ours: weights[theirs] for ours, (theirs, _) in table.items() if theirs in weights}


@dataclass(frozen=True)
class Initialised:
    """Names of the tensors of a network that were filled, and of those that were left as they were."""

    loaded: tuple[str, ...]
    left: tuple[str, ...]


@torch.no_grad()
def initialise_from_torchvision(network: MultiBranch, backbone: str, weights: Mapping[str, Tensor] | Path) -> Initialised:
    """Start `network`, of any method on `backbone`, from torchvision's weights: their state or a `.safetensors` file with it.

    Every stem, stage and neck of the backbone in `network` is filled, in every branch: a part is recognised by the names and
    shapes of its (first block's) tensors. Blocks that a branch has in addition are left. So is a classifier, unless it reads the
    end of the backbone and has the classes of `weights`.

    Raises:
        UsageError: torchvision has no such network, `weights` are not those of its, or `network` holds no part of it.
    """
    state = from_torchvision(backbone, read_weights(weights) if isinstance(weights, Path) else weights)
    num_parts = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("trunk."))
    parts = [_below(state, f"trunk.{i}") for i in range(num_parts)]
    own, loaded, ends = network.state_dict(), set[str](), set[str]()

    def fill(path: str, part: Mapping[str, Tensor]) -> None:
        for name, value in part.items():
            if (target := own.get(f"{path}.{name}")) is not None and target.shape == value.shape:
                target.copy_(value)
                loaded.add(f"{path}.{name}")

    for path, module in network.named_modules():
        if isinstance(module, nn.Sequential):
            signature = _signature(module.state_dict())
            for number, part in enumerate(parts):
                if signature and signature == _signature(part):
                    fill(path, part)
                    ends |= {path} if number == num_parts - 1 else set()
    classifier = _below(state, "classifier1")
    for features, logits in ((network.calls[b.features], network.calls[b.logits]) for b in network.branches):
        reads_an_end = any(f"{end}.".startswith(f"{features}.") for end in ends)
        if reads_an_end and _shapes(classifier) == _shapes(network[logits].state_dict()):
            fill(logits, classifier)
    if not loaded:
        raise UsageError(f"the network holds no part of {backbone}", hint="give the backbone that it was built on")
    return Initialised(tuple(n for n in own if n in loaded), tuple(n for n in own if n not in loaded))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file.

    Raises:
        UsageError: it is another kind of file, and the hint says how to convert a `.pth`, or may not be read.
        IntegrityError: it is not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors" or not path.is_file():
        what = f"{path} is not a .safetensors file" if path.is_file() else f"there is no file {path}"
        line = f"save_file(torch.load('{path}', weights_only=True), '{path.parent / path.stem}.safetensors')"
        imports = "import torch; from safetensors.torch import save_file"
        raise UsageError(what, hint=f'no pickle is loaded here; convert a .pth once: python -c "{imports}; {line}"')
    try:
        return load_file(path)
    except SafetensorError as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint="copy or convert it again") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", hint="look at who may read it") from None


def _lookup(backbone: str) -> tuple[str, Table]:
    """Name of torchvision's network, and the table."""
    if backbone not in TORCHVISION:
        raise UsageError(f"torchvision has no network that is backbone '{backbone}'", known=list(TORCHVISION))
    return TORCHVISION[backbone]


def _names(backbone: str, weights: Mapping[str, Tensor], bias: str, what: str) -> dict[str, tuple[str, torch.Size]]:
    """By our name of every tensor: theirs, and the shape. The number of classes is the length of the tensor `bias`."""
    _, table = _lookup(backbone)
    if bias not in weights:
        raise UsageError(f"these are not the weights of {what}: there is no {bias}")
    with torch.device("meta"):
        network = METHODS.get("baseline")().build(BACKBONES.get(backbone)(), len(weights[bias]))
    return {name: (table.theirs(name), tensor.shape) for name, tensor in network.state_dict().items()}


def _compare(expected: Mapping[str, torch.Size], weights: Mapping[str, Tensor], what: str) -> None:
    """Raises `UsageError` with the first tensor that is missing, not known or of another shape."""
    found = _shapes(weights)
    reasons = [f"{n} is {tuple(found[n])}, not {tuple(s)}" for n, s in expected.items() if n in found and found[n] != s]
    reasons += [f"there is no {n}" for n in expected if n not in weights and not n.endswith(COUNTER)]
    reasons += [f"{n} is not one of them" for n in weights if n not in expected]
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise UsageError(f"these are not the weights of {what}: {reasons[0]}{more}")


def _below(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """The tensors of `state` whose names begin with `path`, without it."""
    return {name.removeprefix(f"{path}."): tensor for name, tensor in state.items() if name.startswith(f"{path}.")}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """By name, counters excepted."""
    return {name: tensor.shape for name, tensor in state.items() if not name.endswith(COUNTER)}


def _signature(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """What a part is recognised by: its tensors; of a stage, whose blocks have numbers, those of the first block."""
    is_stage = any(name.count(".") > 1 for name in state)
    return _shapes(_below(state, "0") if is_stage else state)
