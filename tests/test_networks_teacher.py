"""Methods with a pre-trained teacher: what their networks are made of, and what they take over from the teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kdzoo.errors import UsageError
from kdzoo.tests.reference import pooled
from kdzoo.zoo.backbone import Backbone
from kdzoo.zoo.method import METHODS, Method, Progress
from kdzoo.zoo.methods.simkd import SimKD
from kdzoo.zoo.network import MultiBranch, Outputs
from kdzoo.zoo.pre_activation import split_last_norm
from kdzoo.zoo.profile import profile
from kdzoo.zoo.student import select, split_tensors, target_logits
from kdzoo.zoo.target import Target
from kdzoo.zoo.teacher import Teacher

MakeNetwork = Callable[..., MultiBranch]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make(method: str, **config: Any) -> Method:
    has_teacher = "teacher" in METHODS.get(method)().settings()
    return METHODS.get(method).from_mapping({"teacher": "resnet20", **config} if has_teacher else config)


@pytest.mark.parametrize(
    ("config", "hidden", "num_blocks"),
    [({}, [16, 32], 1), ({"num_aux": 2}, [16, 32], 2), ({"aux_growth": False, "aux_width": 2.0}, [32, 32], 1)],
)
def test_thfkd_branches_differ_in_their_auxiliary_blocks_alone(
    config: dict[str, Any], hidden: list[int], num_blocks: int, make_network: MakeNetwork
) -> None:
    network = make_network("thfkd", num_branches=3, **config)  # tiny: the last map has 16 channels
    shapes = [[p.shape for p in network[f"branch{b}"].parameters()] for b in (1, 2, 3)]
    assert shapes[0] == shapes[1] == shapes[2] and "aux1" not in network
    assert [[block.body[0].out_channels for block in network[f"aux{b}"]] for b in (2, 3)] == [[c] * num_blocks for c in hidden]


def test_thfkd_without_auxiliary_blocks_or_fusion(make_network: MakeNetwork) -> None:
    assert not [name for name in make_network("thfkd", num_aux=0) if name.startswith("aux")]
    network = make_network("thfkd", use_fused=False)
    assert network.fused is None and not [name for name in network if "fuse" in name], "it would never learn"


def test_thfkd_fuses_from_branch_1_on(make_network: MakeNetwork) -> None:
    network = make_network("thfkd", num_branches=3)
    outputs = network(torch.randn(2, 3, 16, 16))
    fused = outputs.features[0]
    for b in (2, 3):
        fused = network[f"fuse{b}"](outputs.features[b - 1], fused)  # the current map first
    last = network["classifier_fused"][2]
    expected = pooled(fused) @ last.weight.T + last.bias
    torch.testing.assert_close(outputs.fused, expected, rtol=1e-4, atol=1e-4, msg="PFF has the wrong inputs")


@pytest.fixture
def with_neck(tiny_backbone: Backbone) -> Backbone:
    """A backbone with a 1x1 convolution between last stage and classifier, as MobileNetV2 has."""

    class WithNeck(type(tiny_backbone)):  # type: ignore[misc]
        def neck(self, channels: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(channels, 40, 1, bias=False), nn.BatchNorm2d(40), nn.ReLU(inplace=True))

        def neck_channels(self, channels: int) -> int:
            return 40

    return WithNeck()


@pytest.fixture
def pre_activation(tiny_backbone: Backbone) -> Backbone:
    """A backbone that ends with a BatchNorm and a ReLU of its own, as Wide ResNets do."""

    class PreActivation(type(tiny_backbone)):  # type: ignore[misc]
        def stage(self, index: int, depth: int) -> nn.Module:
            blocks = super().stage(index, depth)
            return nn.Sequential(*blocks, nn.BatchNorm2d(16), nn.ReLU(inplace=True)) if index == 2 else blocks

    return PreActivation()


@pytest.mark.parametrize("target", ["target", "3", "fused", "ensemble", "1+2"])
@torch.no_grad()
def test_thfkd_branches_share_one_neck(target: str, with_neck: Backbone) -> None:
    network = make("thfkd", num_branches=3).build(with_neck, 5).eval()
    necks = [name for name, tensor in network.state_dict().items() if tensor.shape[:1] == (40,) and tensor.ndim == 4]
    assert necks == ["neck.0.weight", *(n for n in necks if n.startswith("fuse"))], "the neck stands once in the state dict"
    assert [network["aux2"][0].body[0].out_channels, network["aux3"][0].body[0].out_channels] == [8, 16], "half as wide"

    student, image = select(network, Target.parse(target)), torch.randn(2, 3, 16, 16)
    kept, dropped = split_tensors(network, student)
    assert sorted(kept + dropped) == sorted(network.state_dict())
    own = ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert [n for n in kept if n.startswith("neck")] == [f"neck.{n}" for n in own]
    assert torch.equal(student(image), target_logits(network(image), Target.parse(target), 1))
    assert profile(student, 16).params == sum(p.numel() for p in student.parameters())
    if target == "ensemble":
        program = torch.export.export(student, (image,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
        torch.testing.assert_close(program.module()(image), student(image), rtol=1e-4, atol=1e-5)


def test_a_shared_neck_learns_from_every_branch(with_neck: Backbone) -> None:
    network = make("thfkd", num_branches=2).build(with_neck, 5)
    outputs = network(torch.randn(4, 3, 16, 16))
    gradients = [torch.autograd.grad(z.sum(), network["neck"][0].weight, retain_graph=True)[0] for z in outputs.logits]
    assert all(g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize(("bare", "normed"), [(False, {1, 2, 3}), (True, {3})])
def test_thfkd_norms_of_pre_activation_branches(bare: bool, normed: set[int], pre_activation: Backbone) -> None:
    """Its auxiliary blocks stand before the last BatchNorm and ReLU."""
    network = make("thfkd", num_branches=3, bare_branches=bare).build(pre_activation, 5)
    assert {b for b in (1, 2, 3) if f"norm{b}" in network} == normed
    assert network.inputs["norm3"] == ("aux3",) and network.inputs["aux3"] == ("branch3",)
    assert network.branches[0].features == ("branch1" if bare else "norm1")


def test_only_a_norm_that_belongs_to_no_convolution_is_split_off() -> None:
    norm = [nn.BatchNorm2d(4), nn.ReLU()]
    body, last = split_last_norm(nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity(), *norm)))
    assert last is not None and list(last) == norm and len(body[1]) == 1
    for module in (nn.Sequential(nn.Conv2d(4, 4, 1), *norm), nn.Sequential(*norm, nn.MaxPool2d(2)), nn.Identity()):
        assert split_last_norm(module)[1] is None


@pytest.fixture
def teacher(make_network: MakeNetwork) -> Teacher:
    """A tiny network that serves as the teacher of class `resnet20`, whose last map has 64 channels."""
    return Teacher(select(make_network("baseline", "resnet20"), Target("target")), "runs/teacher", "resnet20")


@pytest.mark.parametrize("method", ["simkd", "dckd"])
def test_the_classifier_of_the_teacher_is_taken_over_and_stays(method: str, teacher: Teacher, tiny_backbone: Backbone) -> None:
    recipe = make(method)
    network = recipe.build(tiny_backbone, 5)
    recipe.adopt(network, [teacher])
    images, y = torch.randn(6, 3, 32, 32), torch.arange(6) % 5
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    outputs = network.train()(images)
    told = Outputs(outputs.logits, outputs.features, teachers=(teacher(images),))
    torch.testing.assert_close(outputs.logits[0], teacher.classifier()(outputs.features[0]), rtol=0, atol=0)
    sum(recipe.losses(told, y, Progress(0, 9)).values()).backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    torch.optim.SGD(trained, lr=0.1).step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not [name for name in changed if name.startswith("classifier")], "the classifier is frozen"
    assert changed >= {name for name, p in network.named_parameters() if p.requires_grad}


def test_a_teacher_whose_classifier_does_not_fit_is_refused_with_the_shapes(teacher: Teacher, tiny_backbone: Backbone) -> None:
    for recipe, num_classes, shape in ((make("simkd", teacher="resnet8x4"), 5, "256"), (make("dckd"), 7, "7, 64")):
        with pytest.raises(UsageError, match=rf"runs/teacher does not fit.*5, 64.*expects.*{shape}"):
            recipe.adopt(recipe.build(tiny_backbone, num_classes), [teacher])


@pytest.mark.parametrize(("name", "pooled"), [("resnet20", False), ("resnet18", True)])
def test_a_map_larger_than_the_teachers_is_pooled_before_the_projector(name: str, pooled: bool, tiny_backbone: Backbone) -> None:
    with torch.device("meta"):
        network = make("simkd", teacher=name).build(tiny_backbone, 5)  # maps: 8 pixels; resnet20 8, resnet18 4
        features = network(torch.zeros(1, 3, 32, 32)).features[0]
    assert ("pool" in network) == pooled and features.shape[2] == (4 if pooled else 8)


def test_a_reused_classifier_may_hold_the_last_norm_of_the_teacher(make_network: MakeNetwork, pre_activation: Backbone) -> None:
    strong = make_network("baseline", "wrn-16-2")
    teacher = Teacher(select(strong, Target("target")), "runs/wrn", "wrn-16-2")
    recipe = SimKD.from_mapping({"teacher": "wrn-16-2", "before_last_norm": True})
    network = recipe.build(pre_activation, 5)
    assert len(network["trunk"][-1]) == 2, "the student has no last norm of its own"
    recipe.adopt(network, [teacher])
    norm = split_last_norm(strong["trunk"])[1]
    assert norm is not None and all(torch.equal(a, b) for a, b in zip(network["norm"].parameters(), norm.parameters(), strict=True))
    x = torch.randn(2, 128, 8, 8)
    assert torch.equal(network.train()["norm"](x.clone()), norm(x.clone())), "it stays in evaluation mode"
    assert not any(p.requires_grad for p in network["norm"].parameters())
    plain = Teacher(select(make_network("baseline", "resnet8x4"), Target("target")), "runs/plain", "resnet8x4")
    with pytest.raises(UsageError, match="does not fit"):
        recipe.adopt(network, [plain])


def test_teachers_that_a_method_asks_for() -> None:
    asked = {name: make(name).teachers("resnet8") for name in ("thfkd", "dckd", "simkd", "kd", "dkd")}
    assert asked == dict.fromkeys(asked, ("resnet20",))
    assert make("tf_kd").teachers("resnet8") == ("resnet8",), "a twin"
    assert make("tf_kd", mode="reg").teachers("resnet8") == ()
    assert make("thfkd", teacher="", use_teacher=False).teachers("resnet8") == ()


@pytest.mark.parametrize("method", ["thfkd", "dckd", "simkd", "kd", "dkd"])
def test_a_method_without_its_teacher_is_refused(method: str) -> None:
    with pytest.raises(UsageError, match=f"method {method} needs a teacher"):
        METHODS.get(method)().teachers("resnet8")


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("thfkd", {"num_branches": 1}),
        ("thfkd", {"num_aux": -1}),
        ("thfkd", {"pff_gate": 1.5}),
        ("thfkd", {"ramp_epochs": 0}),
        ("thfkd", {"ramp_start": -1}),
        ("dckd", {"reading": "E"}),
        ("dkd", {"warmup_epochs": -1}),
        ("tf_kd", {"mode": "both"}),
    ],
)
def test_settings_that_make_no_sense_are_refused(method: str, values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        METHODS.get(method).from_mapping(values)
