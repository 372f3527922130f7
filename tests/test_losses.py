"""Losses and fusion modules equal the papers' formulas, written out here with exp, log and sums in float64: value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from kdzoo.tests.reference import assert_agree, batch_norm, ce, conv1x1, depthwise3x3, double, kl, leaf, relu, sigmoid, softmax
from kdzoo.zoo.losses import cross_entropy, exponential_ramp, kl_divergence
from kdzoo.zoo.method import METHODS, Progress
from kdzoo.zoo.methods.ahbf import AHBF, FuseFeatures, GateLogits
from kdzoo.zoo.methods.dbfskd import (
    DBFSKD,
    Attention,
    DynamicLogitsFusion,
    SelectiveFeatureFusion,
    attention_down_sample,
    diversity,
)
from kdzoo.zoo.network import MultiBranch, Outputs

MakeNetwork = Callable[..., MultiBranch]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# The formulas. Nothing in the next six functions calls kdzoo or a loss of PyTorch.


def fuse(m: Any, previous: Tensor, current: Tensor, training: bool) -> Tensor:
    return batch_norm(m.bn, conv1x1(m.conv, torch.cat([previous, current], dim=1)), training)


def gate(m: Any, fused: Tensor, previous: Tensor, current: Tensor, training: bool) -> Tensor:
    pooled = fused.sum(dim=(2, 3)) / (fused.shape[2] * fused.shape[3])
    s = softmax(relu(batch_norm(m.bn, pooled @ m.linear.weight.T + m.linear.bias, training)))
    return s[:, 0, None] * previous + s[:, 1, None] * current


def attention(m: Any, x: Tensor) -> Tensor:
    a = x.mean(dim=(2, 3), keepdim=True)
    squeeze = [layer for layer in m.channel.modules() if isinstance(layer, nn.Conv2d)]
    a = conv1x1(squeeze[0], a) if len(squeeze) == 1 else conv1x1(squeeze[1], relu(conv1x1(squeeze[0], a)))
    f = conv1x1(m.spatial, x)[:, 0]
    spatial = torch.einsum("bh,bw->bhw", sigmoid(f.mean(dim=2)), sigmoid(f.mean(dim=1)))  # outer product
    return x * sigmoid(a) * spatial[:, None]


def down(m: Any, x: Tensor, training: bool) -> Tensor:
    x = relu(batch_norm(m[2], conv1x1(m[1], depthwise3x3(m[0], x, 2)), training))
    return relu(batch_norm(m[6], conv1x1(m[5], depthwise3x3(m[4], x, 1)), training))


def selective(m: Any, maps: Sequence[Tensor], training: bool) -> Tensor:
    x = torch.cat(list(maps), dim=1)
    x = x * sigmoid(conv1x1(m.attention[2], relu(conv1x1(m.attention[0], x.mean(dim=(2, 3), keepdim=True)))))
    x = relu(batch_norm(m.mix[1], depthwise3x3(m.mix[0], x, 1), training))
    return relu(batch_norm(m.project[1], conv1x1(m.project[0], x), training))


def dynamic(m: Any, logits: Sequence[Tensor]) -> Tensor:
    fixed = [z.detach() for z in logits]
    first, second = m.weigh[0], m.weigh[2]
    beta = softmax(relu(torch.cat(fixed, dim=1) @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    return sum((beta[:, i, None] * z for i, z in enumerate(fixed)), start=torch.zeros_like(fixed[0]))


# The tests.


def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(TypeCheckError):
        cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeCheckError):
        kl_divergence(torch.zeros(2, 3), torch.zeros(2, 4), 3.0)


def test_baseline_loss_is_cross_entropy() -> None:
    z, y = leaf(5, 7), torch.tensor([0, 6, 3, 3, 1])
    assert_agree(cross_entropy(z, y), ce(z, y), [z])
    parts = METHODS.get("baseline")().losses(Outputs([z], [leaf(5, 2, 1, 1)]), y, Progress(0, 1))
    assert list(parts) == ["ce"]
    assert_agree(parts["ce"], ce(z, y), [z])


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("epsilon", [0.0, 1e-7, 1e-2])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_divergence(temperature: float, epsilon: float, squared: bool) -> None:
    student, teacher = leaf(4, 6), leaf(4, 6)
    ours = kl_divergence(student, teacher, temperature, squared=squared, epsilon=epsilon)
    assert_agree(ours, kl(student, teacher, temperature, temperature**2 if squared else 1.0, epsilon), [student, teacher])


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, math.exp(-5)), (150, math.exp(-1.25)), (299, math.exp(-5 / 90000)), (300, 1), (400, 1)]
)
def test_ramp_is_equation_14(epoch: int, expected: float) -> None:
    assert exponential_ramp(epoch, 300) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("config", "epoch", "ramp"),
    [
        ({}, 0, math.exp(-5)),
        ({}, 150, math.exp(-1.25)),
        ({"ramp_epochs": 80}, 100, 1.0),
        ({"ramp_epochs": 200}, 150, math.exp(-5 / 16)),
        ({"ta_to_branch": True}, 299, math.exp(-5 / 90000)),
        ({"detach_teacher": True, "ta_to_branch": True}, 250, math.exp(-5 / 36)),
        ({"temperature": 2.0, "lambda_takl": 0.5, "lambda_btkl": 3.0, "epsilon": 0.0}, 200, math.exp(-5 / 9)),
    ],
)
def test_ahbf_loss_is_equations_9_to_11_and_14(config: dict[str, Any], epoch: int, ramp: float) -> None:
    z1, z2, z3, ta2, ta3 = leaves = [leaf(4, 6) for _ in range(5)]
    y = torch.tensor([5, 0, 2, 2])
    outputs = Outputs([z1, z2, z3], [leaf(4, 2, 1, 1)] * 3, fused=ta3, extras={"ta2": ta2, "ta3": ta3})
    parts = AHBF.from_mapping({"num_branches": 3, **config}).losses(outputs, y, Progress(epoch, 300))

    t, epsilon = config.get("temperature", 3.0), config.get("epsilon", 1e-7)

    def k(student: Tensor, teacher: Tensor) -> Tensor:
        return kl(student, teacher.detach() if config.get("detach_teacher") else teacher, t, t * t, epsilon)

    takl, btkl = config.get("lambda_takl", 4.0), config.get("lambda_btkl", 2.0)
    expected = {
        "ce": ce(z1, y) + ce(z2, y) + ce(z3, y),
        "ce_ta": ce(ta2, y) + ce(ta3, y),
        "takl": ramp * takl * (k(z1, ta2) + k(ta2, ta3)),  # TA(1) is branch 1
        "btkl": ramp * btkl * (k(z1, z2) + k(ta2, z3)),
    }
    if config.get("ta_to_branch"):
        expected["ta_to_branch"] = ramp * takl * (k(z2, ta2) + k(z3, ta3))
    assert list(parts) == list(expected)
    for name, reference in expected.items():
        assert_agree(parts[name], reference, leaves, name)


def test_ahbf_official_code_swaps_the_lambdas_and_has_the_third_term() -> None:
    config = AHBF.official_code().config
    assert (config.lambda_takl, config.lambda_btkl, config.ta_to_branch, config.detach_teacher) == (2.0, 4.0, True, False)
    assert config.epsilon == 1e-7
    recipe = {"lambda_takl": 2, "lambda_btkl": 4, "ta_to_branch": True}  # what `method_config` of a recipe can say
    assert AHBF.from_mapping(recipe).config == config


@pytest.mark.parametrize("training", [True, False])
def test_ahbf_fusion_is_equations_3_to_6(training: bool) -> None:
    features = double(FuseFeatures(3, 4)).train(training)
    logits = double(GateLogits(4)).train(training)
    f1, f2, z1, z2 = leaf(5, 3, 3, 2), leaf(5, 4, 3, 2), leaf(5, 6), leaf(5, 6)
    expected = fuse(features, f1, f2, training)
    mixed = gate(logits, expected, z1, z2, training)  # before ours: training moves the running statistics
    ours = features(f1, f2)
    leaves = [f1, f2, z1, z2, *features.parameters(), *logits.parameters()]
    assert_agree(ours, expected, leaves, "FuseFeatures")
    assert_agree(logits(ours, z1, z2), mixed, leaves, "GateLogits")


@pytest.mark.parametrize("compress", [False, True])
def test_ahbf_chains_assistants_from_branch_1_on(compress: bool, make_network: MakeNetwork) -> None:
    network = make_network("ahbf", "resnet20", aux=1, num_branches=3, compress=compress)
    outputs = network(torch.randn(2, 3, 16, 16))
    features, logits = outputs.features[0], outputs.logits[0]
    assert list(outputs.extras) == ["ta2", "ta3"]
    for m in (2, 3):
        features = fuse(network[f"fuse{m}"], features, outputs.features[m - 1], training=False)
        logits = gate(network[f"gate{m}"], features, logits, outputs.logits[m - 1], training=False)
        torch.testing.assert_close(outputs.extras[f"ta{m}"], logits, rtol=1e-4, atol=1e-4, msg=f"TA({m}) has the wrong inputs")
    assert outputs.fused is outputs.extras["ta3"]


@pytest.mark.parametrize("reduction", [4, 0])
def test_dbfskd_attention_is_equations_8_to_10(reduction: int) -> None:
    module, x = double(Attention(8, reduction)), leaf(2, 8, 5, 4)
    assert_agree(module(x), attention(module, x), [x, *module.parameters()])


@pytest.mark.parametrize("training", [True, False])
def test_dbfskd_branch_is_attention_then_a_chain_of_down_sampling(training: bool) -> None:
    module, x = double(attention_down_sample((4, 6, 8), 1.2, 4)).train(training), leaf(3, 4, 6, 7)
    assert [tuple(m[1].weight.shape[:2]) for m in list(module)[1:]] == [(4, 4), (7, 6)], "hidden width is int(1.2 C)"
    expected = down(module[2], down(module[1], attention(module[0], x), training), training)
    assert_agree(module(x), expected, [x, *module.parameters()])


@pytest.mark.parametrize("training", [True, False])
def test_dbfskd_selective_feature_fusion(training: bool) -> None:
    module, maps = double(SelectiveFeatureFusion(3, 4, reduction=2)).train(training), [leaf(3, 4, 3, 3) for _ in range(3)]
    expected = selective(module, maps, training)
    assert_agree(module(*maps), expected, [*maps, *module.parameters()])


def test_dbfskd_dynamic_logits_fusion_trains_itself_and_not_its_inputs() -> None:
    module, logits = double(DynamicLogitsFusion(3, 6)), [leaf(4, 6) for _ in range(3)]
    ours = module(*logits)
    assert_agree(ours, dynamic(module, logits), [*logits, *module.parameters()])
    assert torch.autograd.grad(ours.sum(), logits, allow_unused=True) == (None, None, None)


@pytest.mark.parametrize("backbone", ["resnet20", "resnet18"])
def test_spatial_gates_of_dbfskd_start_open(backbone: str) -> None:
    """A gate that starts near 0 passes neither signal nor gradient: its branch would never learn."""
    from kdzoo.zoo.backbone import BACKBONES
    from kdzoo.zoo.method import METHODS

    torch.manual_seed(0)
    network = METHODS.get("dbfskd")().build(BACKBONES.get(backbone)(), 10)
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    assert attentions, "the test is void: there are no gates"
    for attention in attentions:
        x = torch.rand(4, attention.spatial.in_channels, 8, 8)
        gate = torch.sigmoid(attention.spatial(x).mean(dim=3)).flatten()
        assert gate.min() > 0.2 and gate.max() < 0.8, f"the spatial gate starts at {gate.min():.3f} to {gate.max():.3f}"


@pytest.mark.parametrize(("reduction", "divisor"), [("eq7", 3 * 2 * 4 * 5), ("per_sample", 3)])
def test_dbfskd_diversity_is_equation_7(reduction: str, divisor: int) -> None:
    a, b, c = leaves = [leaf(3, 2, 4, 5) for _ in range(3)]
    assert_agree(diversity(leaves, reduction), -(((a - b) ** 2).sum() + ((b - c) ** 2).sum()) / divisor, leaves)


@pytest.mark.parametrize(
    "config",
    [{}, {"squared_temperature": True, "temperature": 4.0}, {"div_reduction": "per_sample", "alpha": 0.1, "gamma": 0.7}],
)
def test_dbfskd_loss(config: dict[str, Any]) -> None:
    logits, features, ensemble = [leaf(4, 6) for _ in range(5)], [leaf(4, 3, 2, 2) for _ in range(5)], leaf(4, 6)
    y = torch.tensor([5, 0, 2, 2])
    parts = DBFSKD.from_mapping(config).losses(Outputs(logits, features, logits[-1], {"dlf": ensemble}), y, Progress(3, 300))
    t = config.get("temperature", 3.0)
    factor = t * t if config.get("squared_temperature") else 1.0
    distance = sum(((features[j] - features[j + 1]) ** 2).sum() for j in range(3))  # not the fused map
    expected = {
        "ce": sum(ce(z, y) for z in logits),
        "kl": config.get("gamma", 1.5) * sum(kl(z, ensemble.detach(), t, factor) for z in logits),
        "div": -config.get("alpha", 5e-5) * distance / (4 * 12 if config.get("div_reduction", "eq7") == "eq7" else 4),
        "ce_dlf": ce(ensemble, y),
    }
    assert list(parts) == list(expected)
    for name, reference in expected.items():
        assert_agree(parts[name], reference, [*logits, *features, ensemble], name)


def test_dbfskd_fuses_all_maps_and_the_last_three_logits(make_network: MakeNetwork) -> None:
    network = make_network("dbfskd")
    outputs = network(torch.randn(2, 3, 16, 16))
    expected = selective(network["sff"], outputs.features[:-1], training=False)
    torch.testing.assert_close(outputs.features[-1], expected, rtol=1e-4, atol=1e-4, msg="SFF has the wrong inputs")
    expected = dynamic(network["dlf"], outputs.logits[-3:])
    torch.testing.assert_close(outputs.extras["dlf"], expected, rtol=1e-4, atol=1e-4, msg="DLF has the wrong inputs")
    assert outputs.fused is outputs.logits[-1]
