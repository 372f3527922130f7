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
from kdzoo.tests.small_methods import all_settings, small_method
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.checkpoint import load_weights
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.student import Student, select, split_tensors, target_logits
from kdzoo.zoo.target import Target

MakeNetwork = Callable[..., MultiBranch]
CASES = [
    pytest.param(name, settings, backbone, id="-".join([name, *settings, backbone]))
    for name in METHODS.names()
    for n, settings in enumerate(all_settings(name))
    for backbone in (("tiny", "resnet8") if n == 0 else ("tiny",))
]
# Written out, so that a lost one is noticed; a method that is not here is tested with the targets that its network states.
TARGETS = {
    "target": ("baseline", "kd", "dkd", "tf_kd", "simkd", "dckd"),
    "target 1 2 ensemble": ("dml", "kdcl"),
    "target 1 2 fused ensemble": ("ffl", "ffcl"),
    "target 1 2 3 ensemble": ("byot", "self_d"),
    "target 1 2 3 fused ensemble": ("one",),
    "target 1 2 3 4 ensemble": ("okddip", "cl_ilr"),
    "target 1 2 3 4 fused ensemble": ("ahbf", "thfkd", "dbfskd"),
}


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def targets_of(network: MultiBranch) -> list[Target]:
    """Everything that can be cut out of `network`, and one mean of two branches."""
    return [Target.parse(t) for t in (*network.targets(), *(["1+2"] if len(network.branches) > 1 else []))]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(("method", "targets"), [(method, targets) for targets, methods in TARGETS.items() for method in methods])
def test_no_target_of_a_method_is_lost(method: str, targets: str, make_network: MakeNetwork) -> None:
    """The tiny backbone has three stages."""
    assert list(make_network(method).targets()) == targets.split()


@pytest.mark.parametrize(("method", "settings", "backbone"), CASES)
@torch.no_grad()
def test_a_student_is_the_part_of_the_network_that_its_target_needs(
    method: str, settings: dict[str, Any], backbone: str, make_network: MakeNetwork, image: Tensor
) -> None:
    network = make_network(method, backbone, **settings)
    outputs = network(image)
    swapped, swapped_image = deepcopy(network).to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)
    swapped_outputs = swapped(swapped_image)
    for target in targets_of(network):
        student = select(network, target)
        own, everything = student.state_dict(), network.state_dict()
        kept, dropped = split_tensors(network, student)
        assert sorted(kept + dropped) == sorted(everything), f"{target}: a tensor is neither kept nor dropped, or both"
        assert set(kept) == set(own), target
        assert not [n for n in kept if n.endswith("num_batches_tracked")], "inference never reads the counters"
        assert all(torch.equal(own[n], everything[n]) for n in kept), target

        assert torch.equal(student(image), target_logits(outputs, target, network.target_branch)), f"logits of {target} differ"
        student.to(memory_format=torch.channels_last)
        expected = target_logits(swapped_outputs, target, network.target_branch)
        assert torch.equal(student(swapped_image), expected), f"logits of {target} differ with channels last"


@pytest.mark.parametrize("method", METHODS.names())
@torch.no_grad()
def test_every_tensor_of_a_student_matters(method: str, make_network: MakeNetwork) -> None:
    network, image = make_network(method), torch.ones(1, 3, 8, 8)
    for target in targets_of(network):
        student = select(network, target)
        values = student.evaluate(image)
        for node, inputs in student.inputs.items():
            module = student[student.calls[node]]
            tensors = module.state_dict()
            before = {name: tensor.clone() for name, tensor in tensors.items()}
            for name, tensor in tensors.items():
                tensor.fill_(torch.nan)
                assert module(*(values[i] for i in inputs)).isnan().any(), f"{target}: {node} does not depend on its {name}"
                tensor.copy_(before[name])
            for tensor in tensors.values():
                tensor.fill_(torch.nan)
            assert not tensors or student(image).isnan().any(), f"the logits of {target} do not depend on {node}"
            for name, tensor in tensors.items():
                tensor.copy_(before[name])
        assert student(image).isfinite().all(), target


@pytest.mark.parametrize("method", METHODS.names())
def test_selecting_leaves_the_network_alone(method: str, make_network: MakeNetwork, image: Tensor) -> None:
    network = deepcopy(make_network(method)).train()
    before, modes = deepcopy(network.state_dict()), [module.training for module in network.modules()]
    student = select(network, Target.parse("target"))
    assert not student.training and modes == [module.training for module in network.modules()], "the network goes on training"
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
        ("ahbf", "all-targets", {"1", "2", "3", "4", "target", "ensemble", "fused"}),
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
        again = select(small_method(method).build(BACKBONES.get("resnet20")(), 5), Target.parse(target))
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
