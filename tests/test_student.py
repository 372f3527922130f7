"""A student holds what its target needs and nothing else, and gives the logits of the whole network bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kdzoo.errors import UnknownName
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.checkpoint import load_weights
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.student import Student, select, split_tensors, target_logits
from kdzoo.zoo.target import Target

MakeNetwork = Callable[..., MultiBranch]
# Settings that a method needs, or that make another network of it; every other method is tested with its defaults.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "ahbf": [{"aux": 1}, {"aux": 1, "compress": True, "num_branches": 3}],
    "dbfskd": [{}, {"attention_reduction": 0, "expansion": 1.2}],
}


def num_branches(method: str, backbone: str, config: dict[str, Any]) -> int:
    if method == "dbfskd":
        return {"tiny": 4, "resnet20": 4, "resnet18": 5}[backbone]
    return int(config.get("num_branches", 4)) if method == "ahbf" else 1


def cases(*backbones: str) -> list[Any]:
    """(method, backbone, settings, target): the targets are written out here, so that a lost one is noticed."""
    found = []
    for method in METHODS.names():
        for i, config in enumerate(SETTINGS.get(method, [{}])):
            for backbone in backbones if i == 0 else backbones[:1]:
                numbers = [str(n + 1) for n in range(num_branches(method, backbone, config))]
                several = ["fused", "ensemble", "1+2"] if len(numbers) > 1 else []
                for target in ("target", *(numbers if several else []), *several):
                    label = "-".join([method, backbone, *config, target])
                    found.append(pytest.param(method, backbone, config, target, id=label))
    return found


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(("method", "backbone", "config", "target"), cases("tiny", "resnet20"))
@torch.no_grad()
def test_student_is_the_part_of_the_network_that_its_target_needs(
    method: str, backbone: str, config: dict[str, Any], target: str, make_network: MakeNetwork, image: Tensor
) -> None:
    network, parsed = make_network(method, backbone, **config), Target.parse(target)
    assert target == "1+2" or target in network.targets(), "targets() does not offer it"
    student = select(network, parsed)

    kept, dropped = split_tensors(network, student)
    assert sorted(kept + dropped) == sorted(network.state_dict()), "a tensor is neither kept nor dropped, or both"
    assert set(kept) == set(student.state_dict())
    assert not [n for n in kept if n.endswith("num_batches_tracked")], "inference never reads the counters"
    assert all(torch.equal(student.state_dict()[n], network.state_dict()[n]) for n in kept)

    for memory_format in (torch.contiguous_format, torch.channels_last):
        whole = deepcopy(network).to(memory_format=memory_format)
        x = image.contiguous(memory_format=memory_format)
        expected = target_logits(whole(x), parsed, whole.target_branch)
        assert torch.equal(select(whole, parsed)(x), expected), f"logits differ in {memory_format}"


@pytest.mark.parametrize(("method", "backbone", "config", "target"), cases("tiny"))
@torch.no_grad()
def test_every_tensor_of_a_student_matters(
    method: str, backbone: str, config: dict[str, Any], target: str, make_network: MakeNetwork
) -> None:
    student = select(make_network(method, backbone, **config), Target.parse(target))
    image = torch.ones(1, 3, 8, 8)
    unused = []
    for name, tensor in student.state_dict().items():
        before = tensor.clone()
        tensor.fill_(torch.nan)
        if not student(image).isnan().any():
            unused.append(name)
        tensor.copy_(before)
    assert student(image).isfinite().all()
    assert not unused, "logits do not depend on these tensors"


@pytest.mark.parametrize("method", METHODS.names())
def test_selecting_leaves_the_network_alone(method: str, make_network: MakeNetwork, image: Tensor) -> None:
    network = deepcopy(make_network(method)).train()
    before = deepcopy(network.state_dict())
    student = select(network, Target.parse("target"))
    assert not student.training and all(m.training for m in network.modules()), "the network goes on training"
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert same(network.state_dict(), before), "the student shares memory with its network"
    network(image)
    assert not same(network.state_dict(), before), "BatchNorm of the network no longer learns its statistics"


@pytest.mark.parametrize(
    ("method", "target", "known"),
    [
        ("ahbf", "5", {"1", "2", "3", "4", "target", "ensemble", "fused"}),
        ("dbfskd", "1+6", {"1", "2", "3", "4", "target", "ensemble", "fused"}),
        ("baseline", "2", {"1", "target", "ensemble"}),
        ("baseline", "fused", {"1", "target", "ensemble"}),
        ("ahbf", "all", {"1", "2", "3", "4", "target", "ensemble", "fused"}),
    ],
)
def test_an_unknown_branch_is_refused_with_the_known_ones(
    method: str, target: str, known: set[str], make_network: MakeNetwork
) -> None:
    network = make_network(method)
    with pytest.raises(UnknownName) as caught:
        select(network, Target.parse(target))
    assert caught.value.name == target and known <= set(caught.value.known)
    assert ("fused" in caught.value.known) == (network.fused is not None)


@pytest.mark.parametrize(("compress", "target_branch"), [(False, 1), (True, 3)])
def test_the_target_of_ahbf_is_the_branch_with_the_unmodified_backbone(
    compress: bool, target_branch: int, make_network: MakeNetwork
) -> None:
    network = make_network("ahbf", "resnet20", aux=1, num_branches=3, compress=compress)
    plain = select(make_network("baseline", "resnet20"), Target.parse("target"))
    student = select(network, Target.parse("target"))
    assert network.target_branch == target_branch
    assert [t.shape for t in student.state_dict().values()] == [t.shape for t in plain.state_dict().values()]
    assert same(student.state_dict(), select(network, Target.parse(str(target_branch))).state_dict())


@pytest.mark.parametrize(("method", "target"), [("baseline", "target"), ("ahbf", "3"), ("dbfskd", "ensemble")])
@torch.no_grad()
def test_a_student_is_rebuilt_from_its_file(
    method: str, target: str, make_network: MakeNetwork, image: Tensor, tmp_path: Path
) -> None:
    student = select(make_network(method, "resnet20"), Target.parse(target))
    save_file(student.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        again = select(METHODS.get(method)().build(BACKBONES.get("resnet20")(), 5), Target.parse(target))
    load_weights(again, tmp_path / "model.safetensors")
    assert torch.equal(again(image), student(image))


@pytest.mark.parametrize(("method", "target"), [("ahbf", "fused"), ("dbfskd", "ensemble")])
def test_a_student_can_be_exported_with_a_dynamic_batch_while_shapes_are_checked(
    method: str, target: str, make_network: MakeNetwork, image: Tensor
) -> None:
    student: Student = select(make_network(method), Target.parse(target))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(student, (image,), dynamic_shapes=({0: batch},))
    for size in (1, 5):
        x = torch.randn(size, 3, 16, 16)
        torch.testing.assert_close(program.module()(x), student(x), rtol=1e-4, atol=1e-5)
