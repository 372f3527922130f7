"""Methods of peers, heads and exits: how their networks are wired, what they count, and where their gradients stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kdzoo.errors import UnknownName, UsageError
from kdzoo.tests.reference import linear, pooled
from kdzoo.zoo.backbone import BACKBONES, Backbone
from kdzoo.zoo.branches import stage_maps
from kdzoo.zoo.losses import sum_of
from kdzoo.zoo.method import METHODS, Progress
from kdzoo.zoo.network import MultiBranch, Outputs
from kdzoo.zoo.profile import profile
from kdzoo.zoo.student import select
from kdzoo.zoo.target import Target

pytestmark = pytest.mark.slow

MakeNetwork = Callable[..., MultiBranch]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def on_meta(method: str, backbone: str, num_classes: int = 100, **config: Any) -> MultiBranch:
    with torch.device("meta"):
        return METHODS.get(method).from_mapping(config).build(BACKBONES.get(backbone)(), num_classes)


def num_params(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_fusion_of_two_resnet18_has_the_parameters_of_methods_md() -> None:
    network = on_meta("ffcl", "resnet18")
    assert num_params(network["fusion"], network["classifier_fused"]) == 587_876
    assert num_params(select(network, Target.parse("2"))) == num_params(on_meta("baseline", "resnet18")) == 11_220_132


# Worked out layer by layer by arithmetic, and the figures of methods.md 3.4 that they round to, in M parameters and G multiply-adds
# by the rule of thop 0.0.31. Those leave out the pooling in front of a classifier, 17 per channel, which our count has.
SELF_D = [
    (1, 553_636, 241_846_272, "0.5536", "0.24185"),
    (2, 1_682_340, 523_913_216, "1.6823", "0.52391"),
    (3, 8_553_892, 957_106_176, "8.5539", "0.95711"),
]


@pytest.mark.parametrize(("branch", "params", "macs", "stated_m", "stated_g"), SELF_D)
def test_branches_of_self_d_resnet34_have_the_counts_of_the_code(
    branch: int, params: int, macs: int, stated_m: str, stated_g: str
) -> None:
    found = profile(select(on_meta("self_d", "resnet34"), Target.parse(str(branch))), 32)
    assert (found.params, found.macs_dbfskd - 17 * 512) == (params, macs), "reading 1 of methods/self_d.py decides these numbers"
    assert (f"{params / 1e6:.4f}", f"{macs / 1e9:.5f}") == (stated_m, stated_g)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_exit_of_byot_is_the_bottleneck_of_the_code(stage: int) -> None:
    """ResNet-18: c to 128 to 128 (kernel 8, 4, 2) to 512, with biases and BatchNorm."""
    c, kernel, narrow, wide = 64 * 2 ** (stage - 1), 2 ** (4 - stage), 128, 512
    expected = c * narrow + narrow + kernel**2 * narrow**2 + narrow + narrow * wide + wide + 2 * (narrow + narrow + wide)
    assert num_params(on_meta("byot", "resnet18")[f"exit{stage}"]) == expected


@pytest.mark.parametrize(("method", "count"), [("byot", 3), ("self_d", 3), ("dbfskd", 4)])
@pytest.mark.parametrize("backbone", ["resnet20", "vgg13", "mobilenetv2", "shufflenetv2"])
def test_every_exit_leads_to_the_shape_of_the_last_map(method: str, count: int, backbone: str) -> None:
    network, recipe = on_meta(method, backbone), BACKBONES.get(backbone)()
    outputs = network(torch.zeros(2, 3, 32, 32, device="meta"))
    assert {tuple(x.shape[1:]) for x in outputs.features} == {recipe.map_shape()}
    assert len(outputs.features) >= count and network.target_branch == len(recipe.exit_stages()) + 1


def test_maps_of_stages_are_those_of_the_whole_network(tiny_backbone: Backbone) -> None:
    assert stage_maps(tiny_backbone) == [(8, 32), (8, 32), (12, 16), (16, 8)]
    assert stage_maps(BACKBONES.get("resnet18-imagenet")()) == [(64, 56), (64, 56), (128, 28), (256, 14), (512, 7)]


@pytest.mark.parametrize("method", ["one", "okddip", "cl_ilr", "ffl"])
@pytest.mark.parametrize("owned", [0, 2, 3])
def test_branches_share_the_stages_that_they_do_not_own(method: str, owned: int, make_network: MakeNetwork) -> None:
    network = make_network(method, num_branches=3, branch_stages=owned)
    assert len(network["trunk"]) == 1 + 3 - (owned or 1), "the stem, and the stages that no branch owns"
    branches = [network[f"branch{m}"] for m in (1, 2, 3)]
    shapes = [[p.shape for p in branch.parameters()] for branch in branches]
    assert shapes[0] == shapes[1] == shapes[2]
    weights = [next(branch.parameters()) for branch in branches]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2]), "branches start alike"


def test_branches_own_as_many_stages_as_the_backbone_says() -> None:
    assert [len(on_meta("one", name)["branch1"]) for name in ("resnet18", "resnet18-imagenet")] == [1, 2]


@pytest.mark.parametrize("method", ["dml", "kdcl", "ffcl"])
def test_peers_share_nothing_and_start_differently(method: str, make_network: MakeNetwork) -> None:
    network = make_network(method, "resnet20")
    first, second = (network[name].state_dict() for name in ("peer1", "peer2"))
    assert [t.shape for t in first.values()] == [t.shape for t in second.values()]
    assert not torch.equal(next(iter(first.values())), next(iter(second.values())))
    alone = make_network("baseline", "resnet20")
    assert num_params(select(network, Target.parse("2"))) == num_params(alone)


@pytest.mark.parametrize("pixels", [32, 64])
def test_peers_of_other_architectures_are_fused_at_the_smallest_size(pixels: int) -> None:
    network = on_meta("ffcl", "resnet20", peers=["resnet8", "resnet18"])
    assert len(network.branches) == 3 and network["fusion"].mix[0].in_channels == 64 + 64 + 512
    outputs = network(torch.zeros(2, 3, pixels, pixels, device="meta"))
    assert [tuple(x.shape[2:]) for x in outputs.features] == [(pixels // 4,) * 2, (pixels // 4,) * 2, (pixels // 8,) * 2]
    assert outputs.fused.shape == (2, 100) and network["classifier_fused"][2].in_features == 64


def test_pre_trained_copies_of_ffcl_are_those_of_its_peers_where_a_term_needs_them() -> None:
    def teachers(**config: Any) -> tuple[str, ...]:
        return METHODS.get("ffcl").from_mapping(config).teachers("resnet20")

    assert teachers() == ("resnet20", "resnet20")
    assert teachers(peers=["resnet8", "resnet20"]) == ("resnet20", "resnet8", "resnet20")
    assert [case for case in "ABCDEFG" if teachers(case=case)] == ["A", "B", "C", "G"]
    assert teachers(gamma=0.0) == ()


def test_inputs_of_the_fused_classifiers(make_network: MakeNetwork) -> None:
    image = torch.randn(2, 3, 16, 16)
    network = make_network("one")
    values, outputs = network.evaluate(image), network(image)
    torch.testing.assert_close(outputs.fused, network["gate"](values["trunk"], *outputs.logits), rtol=0, atol=0)
    for method in ("ffl", "ffcl"):
        network = make_network(method)
        outputs = network(image)
        fused = linear(network["classifier_fused"][2], pooled(network["fusion"](*outputs.features)))
        torch.testing.assert_close(outputs.fused, fused, rtol=1e-4, atol=1e-4, msg=f"{method} fuses other maps")


def test_the_target_of_okddip_is_the_leader_whom_no_peer_attends_to(make_network: MakeNetwork) -> None:
    network = make_network("okddip")
    assert network.target_branch == 4
    outputs = network(torch.randn(2, 3, 16, 16))
    expected = network["attention"](*outputs.features[:3])
    torch.testing.assert_close(outputs.extras["attention"], expected, rtol=0, atol=0)
    assert [layer.weight.shape for layer in (network["attention"].query, network["attention"].key)] == [(2, 16)] * 2
    assert on_meta("okddip", "resnet32")["attention"].query.out_features == 8


def test_the_gradient_that_cl_ilr_sends_into_the_shared_stages_is_the_mean_of_the_heads() -> None:
    gradients = []
    for rescale in (False, True):
        torch.manual_seed(0)
        method = METHODS.get("cl_ilr").from_mapping({"rescale_gradient": rescale})
        network = method.build(BACKBONES.get("resnet8")(), 5)
        outputs = network(torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
        sum_of(method.losses(outputs, torch.arange(3), Progress(0, 1)).values()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, whole in gradients[0].items():
        factor = 0.25 if name.startswith("trunk") else 1.0
        torch.testing.assert_close(gradients[1][name], factor * whole, rtol=1e-4, atol=1e-7, msg=f"{name} has another gradient")


# Part of the loss -> nodes that it must not teach. Every other node with parameters must learn from some part.
STOPS: dict[str, dict[str, set[str]]] = {
    "dml": {},
    "kdcl": {},
    "one": {"kl": {"gate"}},
    "okddip": {"kl_leader": {"attention"}},
    "cl_ilr": {},
    "ffl": {
        "fused_to_branches": {"fusion", "classifier_fused"},
        "ensemble_to_fused": {"classifier1", "classifier2"},
    },
    "ffcl": {
        "fk": {"fusion", "classifier_fused"},
        "rk": {"fusion", "classifier_fused"},
        "nrk": {"fusion", "classifier_fused"},
        "ensemble_to_fused": {"classifier1", "classifier2"},
    },
    "byot": {"soft": {"stage3", "classifier3"}, "hint": {"stage3", "classifier3", "classifier1"}},
    "self_d": {"soft": {"stage3", "classifier3"}, "hint": {"stage3", "classifier3", "exit2", "classifier1"}},
}


@pytest.mark.parametrize("name", STOPS)
def test_gradients_stop_where_they_should_and_reach_everything_else(name: str, tiny_backbone: Backbone) -> None:
    method = METHODS.get(name)()
    network = method.build(tiny_backbone, 5)
    outputs = network(torch.randn(6, 3, 16, 16))
    copies = tuple(Outputs([torch.randn(6, 5)], []) for _ in outputs.logits)
    parts = method.losses(Outputs(**{**vars(outputs), "teachers": copies}), torch.arange(6) % 5, Progress(90, 100))
    learns: set[str] = set()
    for part, loss in parts.items():
        network.zero_grad()
        loss.backward(retain_graph=True)
        moved = {node for node in network if any(p.grad is not None and p.grad.any() for p in network[node].parameters())}
        assert not moved & STOPS[name].get(part, set()), f"{part} teaches what it should leave alone"
        learns |= moved
    assert learns == {node for node in network if num_params(network[node])}


@pytest.mark.parametrize(
    ("method", "values", "error", "what"),
    [
        ("ffcl", {"case": "H"}, UsageError, "case"),
        ("kdcl", {"target": "best"}, UsageError, "target"),
        ("byot", {"hint": "maps"}, UsageError, "hint"),
        ("byot", {"hint_reduction": "mean"}, UsageError, "hint_reduction"),
        ("self_d", {"hint_reduction": "mean"}, UsageError, "hint_reduction"),
        ("one", {"num_branches": 1}, UsageError, "2 branches"),
        ("ffl", {"num_branches": 1}, UsageError, "2 branches"),
        ("cl_ilr", {"num_branches": 0}, UsageError, "2 branches"),
        ("okddip", {"num_branches": 2}, UsageError, "3 branches"),
        ("one", {"branch_stages": 4}, UsageError, "4 stages"),
        ("cl_ilr", {"branch_stages": -1}, UsageError, "-1 stages"),
        ("dml", {"peers": ["resnet23"]}, UnknownName, "resnet23"),
        ("ffcl", {"peers": ["resnet18-imagenet"]}, UsageError, "32, 224 pixels"),
    ],
)
def test_impossible_settings_are_refused(method: str, values: dict[str, Any], error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        on_meta(method, "resnet20", **values)
