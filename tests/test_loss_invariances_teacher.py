"""Properties of the losses of methods with a pre-trained teacher: what must leave them unchanged, and where they must vanish."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.tests.reference import assert_agree, ce, leaf
from kdzoo.zoo.method import METHODS, Progress
from kdzoo.zoo.network import Outputs

Y = torch.tensor([5, 0, 2, 2])
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "thfkd": ("thfkd", {"num_branches": 2}),
    "thfkd detached": ("thfkd", {"num_branches": 2, "detach": True}),
    "kd": ("kd", {}),
    "dkd": ("dkd", {}),
    "tf_kd self": ("tf_kd", {}),
    "tf_kd reg": ("tf_kd", {"mode": "reg"}),
    "simkd": ("simkd", {"ce_weight": 1.0, "kl_weight": 1.0}),
    **{f"dckd {reading}": ("dckd", {"reading": reading}) for reading in "ABCD"},
}
NO_DISTILLATION = {"ce", "ce_fused", "feature"}


def parts_of(case: str, student: Tensor, teacher: Tensor, y: Tensor, **more: Any) -> dict[str, Tensor]:
    """All losses of a method whose branches (and fused classifier) say `student`."""
    name, config = LOSSES[case]
    second = student.flip(0) if more.pop("differ", True) else student
    logits, fused = ([student, second], 0.5 * student + 0.5 * second) if name == "thfkd" else ([student], None)
    settings = {**config, **more} if name == "tf_kd" else {"teacher": "resnet20", **config, **more}
    maps = torch.zeros(len(teacher), 1, 1, 1, dtype=teacher.dtype)
    outputs = Outputs(logits, [maps] * len(logits), fused, teachers=(Outputs([teacher], [maps]),))
    return METHODS.get(name).from_mapping(settings).losses(outputs, y, Progress(3, 9))


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("draw", [0, 1, 2])
def test_a_constant_added_to_all_logits_of_a_sample_changes_nothing(case: str, draw: int) -> None:
    torch.manual_seed(draw)
    z, teacher, shift = leaf(4, 6), leaf(4, 6), 50 * torch.randn(2, 4, 1, dtype=torch.float64)
    before, after = parts_of(case, z, teacher, Y), parts_of(case, z + shift[0], teacher + shift[1], Y)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{case} {n}: {m}")


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("draw", [0, 1, 2])
def test_the_order_of_the_classes_does_not_matter(case: str, draw: int) -> None:
    torch.manual_seed(draw)
    z, teacher, order = leaf(4, 6), leaf(4, 6), torch.randperm(6)
    before = parts_of(case, z, teacher, Y)
    after = parts_of(case, z[:, order], teacher[:, order], order.argsort()[Y])
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{case} {n}: {m}")


@pytest.mark.parametrize("case", [case for case in LOSSES if case != "tf_kd reg"])  # its teacher is never what a student says
def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn_from_it(case: str) -> None:
    z = leaf(4, 6)
    settings = {"epsilon": 0.0, "differ": False} if case.startswith("thfkd") else {}
    parts = parts_of(case, z, z.detach().clone(), Y, **settings)
    assert parts.keys() - NO_DISTILLATION, "the test is void: no loss distils"
    for name in parts.keys() - NO_DISTILLATION:
        assert abs(parts[name]) < 1e-12, f"{case} {name}: KL(p, p) is {parts[name]}"
        gradient = torch.autograd.grad(parts[name], z, retain_graph=True)[0]
        assert gradient.abs().max() < 1e-12, f"{case} {name} moves the student"


@pytest.mark.parametrize("case", LOSSES)
def test_no_distillation_loss_is_negative(case: str) -> None:
    for draw in range(5):
        torch.manual_seed(draw)
        for name, value in parts_of(case, leaf(4, 6), leaf(4, 6), Y).items():
            assert value >= 0, f"{case} {name}"


@pytest.mark.parametrize("case", LOSSES)
def test_soft_labels_with_all_weight_on_one_class_are_that_class(case: str) -> None:
    z, teacher = leaf(4, 6), leaf(4, 6)
    hard, soft = parts_of(case, z, teacher, Y), parts_of(case, z, teacher, torch.eye(6, dtype=torch.float64)[Y])
    for name, value in hard.items():
        torch.testing.assert_close(soft[name], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", LOSSES)
def test_soft_labels_enter_the_cross_entropy_as_they_are(case: str) -> None:
    z, teacher = leaf(4, 6), leaf(4, 6)
    y = torch.full((4, 6), 0.05, dtype=torch.float64)
    y[range(4), Y] = 0.75
    hard, soft = parts_of(case, z, teacher, Y), parts_of(case, z, teacher, y)
    for name in hard:
        if not name.startswith("ce"):
            torch.testing.assert_close(soft[name], hard[name], rtol=1e-12, atol=0)  # the likeliest class is the label
    if case == "kd":
        assert_agree(soft["ce"], 0.1 * ce(z, y), [z])


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_losses_of_extreme_logits_are_finite(case: str, scale: float) -> None:
    z = (scale * torch.randn(4, 6)).requires_grad_()
    parts = parts_of(case, z, scale * torch.randn(4, 6), Y)
    assert all(value.isfinite() for value in parts.values())
    (gradient,) = torch.autograd.grad(sum(parts.values()), z)
    assert gradient.isfinite().all()
