"""torchvision's weights load both ways, give torchvision's outputs, and start the networks of any method."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from kdzoo.errors import IntegrityError, UsageError
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.foreign import TORCHVISION, from_torchvision, initialise_from_torchvision, read_weights, to_torchvision
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.student import select
from kdzoo.zoo.target import Target

pytestmark = pytest.mark.slow


def randomise(module: nn.Module) -> nn.Module:
    """Weights of a size that keeps signals alive through 100 layers, BatchNorm statistics away from initialisation; eval mode."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.ndim > 1:
            nn.init.normal_(tensor, 0.0, (1.5 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point():
            nn.init.uniform_(tensor, *((0.8, 1.2) if name.endswith(("weight", "running_var")) else (-0.2, 0.2)))
    return module.eval()


@cache
def peer(backbone: str, num_classes: int = 10) -> nn.Module:
    """torchvision's network. Built on the meta device: drawing its weights twice would take the longest here."""
    with torch.device("meta"):
        empty = getattr(torchvision.models, TORCHVISION[backbone][0])(num_classes=num_classes)
    return randomise(empty.to_empty(device="cpu"))


def built(method: str, backbone: str, num_classes: int = 10, **config: object) -> MultiBranch:
    """On the meta device."""
    with torch.device("meta"):
        return METHODS.get(method).from_mapping(config).build(BACKBONES.get(backbone)(), num_classes)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", TORCHVISION)
@torch.no_grad()
def test_weights_of_torchvision_load_both_ways_and_outputs_agree(backbone: str, image: Tensor) -> None:
    theirs = peer(backbone)
    ours = built("baseline", backbone)
    ours.load_state_dict(from_torchvision(backbone, theirs.state_dict()), assign=True)
    expected = theirs(image)
    assert expected.std() > 0.01, "the peer's output carries no signal"
    torch.testing.assert_close(ours.eval()(image).logits[0], expected, rtol=1e-4, atol=1e-5)

    back = to_torchvision(backbone, ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_every_imagenet_backbone_that_torchvision_has_is_in_the_table() -> None:
    without = {name for name in BACKBONES.names() if name.endswith("-imagenet")} - set(TORCHVISION)
    assert without == {"senet18-imagenet"}, "torchvision has no SENet; a new backbone that it has belongs into zoo/foreign.py"


def test_a_student_without_counters_loads_there() -> None:
    backbone = "resnet18-imagenet"
    network = built("baseline", backbone)
    network.load_state_dict(from_torchvision(backbone, peer(backbone).state_dict()), assign=True)
    weights = to_torchvision(backbone, select(network, Target.parse("target")).state_dict())
    assert not [name for name in weights if "num_batches" in name]
    torchvision.models.resnet18(num_classes=10).load_state_dict(weights, strict=True)


FUSION = ("fuse", "gate")
# Method, its settings, the branch that is the plain backbone, and how the names of what has no counterpart begin.
NETWORKS = [
    ("baseline", "shufflenetv2-imagenet", {}, "target", ()),
    (
        "ahbf",
        "resnet18-imagenet",
        {"aux": 1, "num_branches": 3},
        "1",
        ("fuse", "gate", "branch2.0.2", "branch3.0.2", "branch3.1.2"),
    ),
    ("ahbf", "resnet18-imagenet", {"aux": 1, "num_branches": 2, "compress": True}, "2", FUSION),
    ("ahbf", "shufflenetv2-imagenet", {"aux": 1, "num_branches": 2}, "1", (*FUSION, "branch2.0.4")),
    ("dbfskd", "resnet18-imagenet", {}, "4", ("adb", "sff", "dlf", *(f"classifier{n}" for n in (1, 2, 3, 5)))),
]


@pytest.mark.parametrize(("method", "backbone", "config", "branch", "left"), NETWORKS)
@torch.no_grad()
def test_any_method_starts_from_the_weights_of_torchvision(
    method: str, backbone: str, config: dict[str, object], branch: str, left: tuple[str, ...], image: Tensor
) -> None:
    network = randomise(built(method, backbone, **config).to_empty(device="cpu"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = initialise_from_torchvision(network, backbone, peer(backbone).state_dict())
    after = network.state_dict()

    assert sorted(found.loaded + found.left) == sorted(after) and not set(found.loaded) & set(found.left)
    assert {name for name in after if name.startswith(left)} == set(found.left)
    assert all(torch.equal(after[name], before[name]) for name in found.left)
    assert any(not torch.equal(after[name], before[name]) for name in found.loaded)
    logits = select(network, Target.parse(branch))(image)
    torch.testing.assert_close(logits, peer(backbone)(image), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_other_classes_leave_the_classifiers_alone() -> None:
    backbone = "resnet18-imagenet"
    network = built("ahbf", backbone, 7, aux=1, num_branches=2).to_empty(device="cpu")
    found = initialise_from_torchvision(network, backbone, peer(backbone).state_dict())
    assert {name for name in found.left if name.startswith("classifier")} == {
        f"classifier{n}.2.{kind}" for n in (1, 2) for kind in ("weight", "bias")
    }
    torch.testing.assert_close(network["branch2"][1][0].conv1.weight, peer(backbone).layer4[0].conv1.weight, rtol=0, atol=0)


@torch.no_grad()
def test_weights_are_read_from_a_safetensors_file_and_in_half_precision(tmp_path: Path) -> None:
    backbone = "resnet18-imagenet"
    state = {name: t.half() if t.is_floating_point() else t for name, t in peer(backbone).state_dict().items()}
    save_file(state, tmp_path / "r18.safetensors")
    network = built("baseline", backbone).to_empty(device="cpu")
    assert not initialise_from_torchvision(network, backbone, tmp_path / "r18.safetensors").left
    weight = network["trunk"][0][0].weight
    assert weight.dtype == torch.float32 and torch.equal(weight, state["conv1.weight"].float())


def test_a_backbone_that_torchvision_does_not_have_is_refused() -> None:
    for name in ("resnet18", "senet18-imagenet"):
        with pytest.raises(UsageError, match=f"no network that is backbone '{name}'") as caught:
            from_torchvision(name, {})
        assert "resnet18-imagenet" in caught.value.known


def test_weights_of_another_network_are_refused_and_nothing_is_filled() -> None:
    network = built("baseline", "resnet18-imagenet").to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.zero_()
    deeper = peer("resnet34-imagenet").state_dict()
    with pytest.raises(UsageError, match=r"not the weights of torchvision's resnet18: layer1\.2\.\S+ is not one of them"):
        initialise_from_torchvision(network, "resnet18-imagenet", deeper)
    assert not any(tensor.any() for tensor in network.state_dict().values())

    state = peer("resnet18-imagenet").state_dict()
    for changed, reason in (
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, r"conv1\.weight is \(64, 3, 3, 3\), not \(64, 3, 7, 7\)"),
        ({"fc.bias": None}, r"there is no fc\.bias"),
        ({"layer2.0.bn1.running_var": None, "layer2.0.bn2.running_var": None}, r"there is no layer2\.\S+ \(and 1 more\)"),
    ):
        wrong = {name: tensor for name, tensor in (state | changed).items() if tensor is not None}
        with pytest.raises(UsageError, match=reason):
            from_torchvision("resnet18-imagenet", wrong)
    with pytest.raises(UsageError, match="not the weights of a baseline network on resnet18-imagenet"):
        to_torchvision("resnet18-imagenet", state)


def test_a_network_on_another_backbone_is_refused() -> None:
    with pytest.raises(UsageError, match="holds no part of resnet18-imagenet"):
        initialise_from_torchvision(built("baseline", "resnet20"), "resnet18-imagenet", peer("resnet18-imagenet").state_dict())


def test_no_pickle_is_read_and_the_hint_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "r18.pth"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(UsageError, match=r"r18\.pth is not a \.safetensors file") as caught:
        read_weights(path)
    code = caught.value.hint.split('python -c "')[1].rstrip('"')
    exec(code, {})  # the line that the user is told to run
    assert torch.equal(read_weights(path.with_suffix(".safetensors"))["a"], torch.ones(2))

    with pytest.raises(UsageError, match="there is no file"):
        read_weights(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.with_suffix(".safetensors").read_bytes()[:-3])
    with pytest.raises(IntegrityError, match=r"cut\.safetensors cannot be read"):
        read_weights(tmp_path / "cut.safetensors")
