"""Methods with a pre-trained teacher: losses and modules equal the formulas written out in float64, value and gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.tests.reference import (
    assert_agree,
    batch_norm,
    ce,
    conv1x1,
    conv3x3,
    double,
    kl,
    kl_rows,
    leaf,
    pkd_skd,
    pooled,
    relu,
    sigmoid,
    softmax,
)
from kdzoo.zoo.decoupled import kl_among, kl_of_label
from kdzoo.zoo.method import METHODS, Method, Progress
from kdzoo.zoo.methods.thfkd import THFKD, AuxiliaryBlock, ProgressiveFusion
from kdzoo.zoo.network import Outputs
from kdzoo.zoo.projector import map_distance, projector

Y = torch.tensor([5, 0, 2, 2])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def taught(logits: Sequence[Tensor], teacher: Tensor, fused: Tensor | None = None, maps: Sequence[Tensor] = ()) -> Outputs:
    """Outputs with one teacher; `maps` = (student's, teacher's)."""
    own, others = maps or [torch.zeros(len(teacher), 1, 1, 1, dtype=teacher.dtype)] * 2
    return Outputs(list(logits), [own] * len(logits), fused, teachers=(Outputs([teacher], [others]),))


def make(method: str, **config: Any) -> Method:
    has_teacher = "teacher" in METHODS.get(method)().settings()
    return METHODS.get(method).from_mapping({"teacher": "resnet20", **config} if has_teacher else config)


def assert_parts(parts: dict[str, Tensor], expected: dict[str, Tensor], leaves: Sequence[Tensor]) -> None:
    assert list(parts) == list(expected)
    for name, reference in expected.items():
        assert_agree(parts[name], reference, leaves, name)


# The formulas. Nothing in the next two functions calls kdzoo or a loss of PyTorch.


def auxiliary(m: Any, x: Tensor, training: bool) -> Tensor:
    out = relu(batch_norm(m.body[1], conv1x1(m.body[0], x), training))
    out = relu(batch_norm(m.body[4], conv3x3(m.body[3], out), training))
    return relu(x + batch_norm(m.body[7], conv1x1(m.body[6], out), training))


def progressive(m: Any, current: Tensor, previous: Tensor, training: bool, g: float, scale: float, complement: bool) -> Tensor:
    def squeeze(layers: Sequence[Any], x: Tensor) -> Tensor:
        inner = relu(batch_norm(layers[1], conv1x1(layers[0], x), training))
        return batch_norm(layers[4], conv1x1(layers[3], inner), training)

    u = current + previous
    w = sigmoid(squeeze(list(m.local_path), u) + squeeze(list(m.global_path)[1:], pooled(u)[:, :, None, None]))
    return scale * (g * w * current + (1 - g) * ((1 - w) if complement else w) * previous)


# THFKD.


@pytest.mark.parametrize("training", [True, False])
def test_thfkd_auxiliary_block_is_equation_6(training: bool) -> None:
    module, x = double(AuxiliaryBlock(4, 6)).train(training), leaf(3, 4, 5, 3)
    expected = auxiliary(module, x, training)  # before ours: training moves the running statistics
    assert_agree(module(x), expected, [x, *module.parameters()])


@pytest.mark.parametrize(("gate", "scale", "complement"), [(0.5, 2.0, True), (0.5, 1.0, False), (0.8, 2.0, True)])
@pytest.mark.parametrize("training", [True, False])
def test_thfkd_fusion_is_equations_7_and_8(training: bool, gate: float, scale: float, complement: bool) -> None:
    module = double(ProgressiveFusion(8, 4, gate, scale, complement)).train(training)
    current, previous = leaf(3, 8, 4, 3), leaf(3, 8, 4, 3)
    assert module.local_path[0].out_channels == 2, "r = 4"
    expected = progressive(module, current, previous, training, gate, scale, complement)
    assert_agree(module(current, previous), expected, [current, previous, *module.parameters()])


@pytest.mark.parametrize(
    ("config", "epoch", "ramp"),
    [
        ({}, 0, math.exp(-5)),
        ({}, 60, math.exp(-1.25)),
        ({}, 120, 1.0),
        ({"ramp_start": 30, "ramp_epochs": 80}, 29, 1.0),  # before the ramp: full weight
        ({"ramp_start": 30, "ramp_epochs": 80, "early_weight": 0.0}, 29, 0.0),
        ({"ramp_start": 30, "ramp_epochs": 80}, 70, math.exp(-1.25)),
        ({"ramp_start": 30, "ramp_epochs": 80}, 110, 1.0),
        ({"detach": True}, 60, math.exp(-1.25)),
        ({"use_fused": False, "detach": True}, 200, 1.0),
        ({"use_teacher": False, "use_ensemble": False}, 200, 1.0),
        ({"temperature": 5.0, "epsilon": 0.0, "alpha": 0.7}, 30, math.exp(-45 / 16)),
    ],
)
def test_thfkd_loss_is_equations_9_to_14(config: dict[str, Any], epoch: int, ramp: float) -> None:
    z1, z2, z3, fused, teacher = leaves = [leaf(4, 6) for _ in range(5)]
    parts = make("thfkd", num_branches=3, **config).losses(taught([z1, z2, z3], teacher, fused), Y, Progress(epoch, 300))
    t, detach = config.get("temperature", 3.0), config.get("detach", False)

    def guide(target: Tensor) -> Tensor:
        target = target.detach() if detach else target
        each = [kl(z, target, t, t * t, config.get("epsilon", 1e-7)) for z in (z1, z2, z3)]
        return ramp * config.get("alpha", 1.0) * sum(each)

    expected = {"ce": ce(z1, Y) + ce(z2, Y) + ce(z3, Y)}
    if config.get("use_teacher", True):
        expected["teacher"] = guide(teacher)
    if config.get("use_fused", True):
        expected["fused"] = guide(fused)
        if detach:
            expected["ce_fused"] = ce(fused, Y)
    if config.get("use_ensemble", True):
        expected["ensemble"] = guide((z1 + z2 + z3) / 3)
    assert_parts(parts, expected, leaves)


def test_thfkd_of_the_official_code() -> None:
    config = THFKD.official_code("resnet110").config
    assert (config.teacher, config.temperature, config.ramp_epochs, config.bare_branches) == ("resnet110", 5.0, 80, True)


# KD, DKD, Tf-KD, SimKD.


@pytest.mark.parametrize("config", [{}, {"temperature": 2.0, "kd_weight": 1.0, "ce_weight": 0.3}])
def test_kd_loss(config: dict[str, Any]) -> None:
    z, teacher = leaf(4, 6), leaf(4, 6)
    t = config.get("temperature", 4.0)
    expected = {
        "ce": config.get("ce_weight", 0.1) * ce(z, Y),
        "kl": config.get("kd_weight", 0.9) * kl(z, teacher, t, t * t),
    }
    assert_parts(make("kd", **config).losses(taught([z], teacher), Y, Progress(0, 9)), expected, [z, teacher])


@pytest.mark.parametrize(
    ("config", "epoch", "warmup"),
    [({}, 0, 0.05), ({}, 9, 0.5), ({}, 19, 1.0), ({}, 100, 1.0), ({"warmup_epochs": 0, "alpha": 0.3, "beta": 2.0}, 0, 1.0)],
)
def test_dkd_loss(config: dict[str, Any], epoch: int, warmup: float) -> None:
    z, teacher = leaf(4, 6), leaf(4, 6)
    nckd, tckd = pkd_skd(z, teacher, Y, 4.0, "D")  # by the formulas: a pair with the label, and all but the label
    expected = {
        "ce": ce(z, Y),
        "tckd": warmup * config.get("alpha", 1.0) * tckd,
        "nckd": warmup * config.get("beta", 8.0) * nckd,
    }
    assert_parts(make("dkd", **config).losses(taught([z], teacher), Y, Progress(epoch, 300)), expected, [z, teacher])


def test_dkd_parts_add_up_to_kd() -> None:
    """Equation 7 of DKD: KL = TCKD + (1 - p(label)) NCKD, sample by sample; p is the teacher's."""
    z, teacher, y = leaf(1, 6), leaf(1, 6), torch.tensor([3])
    parts = make("dkd", beta=1.0, warmup_epochs=0).losses(taught([z], teacher), y, Progress(0, 1))
    rest = 1 - softmax(teacher / 4)[0, 3].detach()
    torch.testing.assert_close(parts["tckd"] + rest * parts["nckd"], kl(z, teacher, 4.0, 16.0), rtol=1e-9, atol=0)


def test_tf_kd_self_loss_is_averaged_over_the_classes() -> None:
    z, teacher = leaf(4, 6), leaf(4, 6)
    expected = {"ce": 0.05 * ce(z, Y), "kl": 0.95 * 50 / 6 * kl(z, teacher, 6.0, 36.0)}
    assert_parts(make("tf_kd").losses(taught([z], teacher), Y, Progress(0, 9)), expected, [z, teacher])


@pytest.mark.parametrize("student_temperature", [1.0, 20.0])
def test_tf_kd_reg_loss_has_a_teacher_made_by_hand(student_temperature: float) -> None:
    z = leaf(4, 6)
    by_hand = torch.full((4, 6), 0.01 / 5, dtype=torch.float64)
    for i, label in enumerate(Y):
        by_hand[i, label] = 0.99
    q, p = softmax(by_hand / 20), softmax(z / student_temperature)
    expected = {"ce": 0.9 * ce(z, Y), "kl": 0.1 * 100 / 6 * (q * (q / p).log()).sum() / 4}
    method = make("tf_kd", mode="reg", reg_student_temperature=student_temperature)
    assert_parts(method.losses(Outputs([z], [leaf(4, 1, 1, 1)]), Y, Progress(0, 9)), expected, [z])


@pytest.mark.parametrize("config", [{}, {"feature_weight": 2.0, "ce_weight": 0.3, "kl_weight": 0.4, "temperature": 2.0}])
def test_simkd_loss(config: dict[str, Any]) -> None:
    z, teacher, own, others = leaves = [leaf(4, 6), leaf(4, 6), leaf(4, 3, 2, 2), leaf(4, 3, 2, 2)]
    expected = {"feature": config.get("feature_weight", 1.0) * ((own - others) ** 2).sum() / own.numel()}
    if config:
        expected |= {"ce": 0.3 * ce(z, Y), "kl": 0.4 * kl(z, teacher, 2.0, 4.0)}
    parts = make("simkd", **config).losses(taught([z], teacher, maps=(own, others)), Y, Progress(0, 9))
    assert_parts(parts, expected, leaves)


def test_a_larger_map_of_the_teacher_is_pooled_to_the_students() -> None:
    own, others = leaf(2, 3, 2, 2), leaf(2, 3, 4, 4)
    small = sum(others[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    assert_agree(map_distance(own, others), ((own - small) ** 2).mean(), [own, others])


@pytest.mark.parametrize("training", [True, False])
def test_simkd_projector_is_three_convolutions(training: bool) -> None:
    module, x = double(projector(3, 6, 2)).train(training), leaf(4, 3, 4, 5)
    expected = relu(batch_norm(module[1], conv1x1(module[0], x), training))
    expected = relu(batch_norm(module[4], conv3x3(module[3], expected), training))
    expected = relu(batch_norm(module[7], conv1x1(module[6], expected), training))
    assert_agree(module(x), expected, [x, *module.parameters()])


# DCKD.


def some_right() -> tuple[Tensor, Tensor]:
    """Logits of a student that is right in the first and the third of four samples, and of a teacher."""
    z, teacher = leaf(4, 6), leaf(4, 6)
    with torch.no_grad():
        for i, guess in enumerate((5, 3, 2, 1)):
            z[i, guess] = z[i].max() + 1
    return z, teacher


@pytest.mark.parametrize("temperature", [4.0, 1.0])
@pytest.mark.parametrize("reading", ["A", "B", "C", "D"])
def test_dckd_loss_is_equations_9_to_19_by_every_reading(reading: str, temperature: float) -> None:
    z, teacher = some_right()
    own, others = leaf(4, 3, 2, 2), leaf(4, 3, 2, 2)
    pkd, skd = pkd_skd(z, teacher, Y, temperature, reading)
    assert pkd > 0 and skd > 0
    expected = {"feature": ((own - others) ** 2).mean(), "pkd": 0.5 * pkd, "skd": skd}
    parts = make("dckd", reading=reading, temperature=temperature).losses(
        taught([z], teacher, maps=(own, others)), Y, Progress(0, 9)
    )
    assert_parts(parts, expected, [z, teacher, own, others])


def test_readings_of_dckd_differ() -> None:
    z, teacher = some_right()
    parts = [make("dckd", reading=r).losses(taught([z], teacher), Y, Progress(0, 9)) for r in "ABCD"]
    for a, b in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (0, 3)):
        assert abs(parts[a]["pkd"] - parts[b]["pkd"]) > 1e-3, "PKD"
    assert abs(parts[1]["skd"] - parts[2]["skd"]) == 0 and abs(parts[1]["skd"] - parts[3]["skd"]) > 1e-3, "SKD"


def test_dckd_of_a_student_that_is_always_right_is_dkd_with_weights_1_and_half() -> None:
    z, teacher = leaf(4, 6), leaf(4, 6)
    y = z.argmax(dim=1)
    dckd = make("dckd").losses(taught([z], teacher), y, Progress(0, 1))
    dkd = make("dkd", alpha=1.0, beta=0.5, warmup_epochs=0).losses(taught([z], teacher), y, Progress(0, 1))
    assert_agree(dckd["pkd"] + dckd["skd"], dkd["tckd"] + dkd["nckd"], [z, teacher])
    nckd, tckd = pkd_skd(z, teacher, y, 4.0, "D")
    assert_agree(dckd["pkd"] + dckd["skd"], tckd + 0.5 * nckd, [z, teacher])


@pytest.mark.parametrize("reading", ["A", "B", "C", "D"])
def test_dckd_of_two_classes_is_finite(reading: str) -> None:
    """Of a wrong guess no class is left."""
    z = torch.tensor([[2.0, 1.0], [1.0, 3.0]], requires_grad=True)
    teacher, y = torch.tensor([[0.5, 1.0], [2.0, -1.0]]), torch.tensor([0, 0])
    expected = pkd_skd(z.detach().double(), teacher.double(), y, 4.0, reading)
    parts = make("dckd", reading=reading).losses(taught([z], teacher), y, Progress(0, 1))
    torch.testing.assert_close(parts["pkd"].double(), 0.5 * expected[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(parts["skd"].double(), expected[1], rtol=1e-5, atol=1e-7)
    (parts["pkd"] + parts["skd"]).backward()
    assert z.grad is not None and z.grad.isfinite().all()


def test_a_sample_without_classes_counts_nothing() -> None:
    z, teacher, y = leaf(2, 3), leaf(2, 3), torch.tensor([0, 1])
    among = torch.tensor([[False, False, False], [True, False, True]])
    one = kl_rows(z, teacher, 2.0, lambda i: [[0], [2]] if i else [[]])
    assert_agree(kl_among(z, teacher, among, 2.0), one, [z, teacher])
    pair = kl_rows(z, teacher, 2.0, lambda i: [[1], [0, 2]] if i else [[0], []])
    assert_agree(kl_of_label(z, teacher, y, among, 2.0), pair, [z, teacher])
