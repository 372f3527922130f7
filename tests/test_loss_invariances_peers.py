"""Properties of the losses of peers, heads and exits: what must leave them unchanged, and where they must vanish."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.tests.reference import leaf
from kdzoo.zoo.method import METHODS, Progress
from kdzoo.zoo.network import Outputs

Y = torch.tensor([5, 0, 2, 2])
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "dml": ("dml", {}),
    **{f"kdcl {target}": ("kdcl", {"target": target}) for target in ("minlogit", "linear", "naive")},
    "one": ("one", {"epsilon": 0.0}),
    "okddip": ("okddip", {"epsilon": 0.0}),
    "cl_ilr": ("cl_ilr", {}),
    "cl_ilr not detached": ("cl_ilr", {"detach_teacher": False}),
    "ffl": ("ffl", {"epsilon": 0.0}),
    **{f"ffcl {case}": ("ffcl", {"case": case}) for case in "ABCDEFG"},
    "byot": ("byot", {}),
    "self_d": ("self_d", {}),
}
NO_DISTILLATION = ("ce", "ce_fused", "hint")
Change = Callable[[Tensor], Tensor]


def parts_of(case: str, change: Change = lambda z: z, y: Tensor = Y, alike: bool = False) -> dict[str, Tensor]:
    """All losses of a method whose 3 branches, fused classifier and teachers say what `change` makes of some fixed logits."""
    name, config = LOSSES[case]
    drawn = [3 * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(7)]
    zs = [change(drawn[0 if alike else i]) for i in range(7)]
    maps = [torch.ones(4, 2, 2, 2, dtype=torch.float64)] * 3
    extras = {
        "okddip": {"attention": torch.softmax(drawn[0][:, :4].reshape(4, 2, 2), dim=2)},
        "self_d": {"adapted1": torch.zeros(4, 2, dtype=torch.float64)},
    }
    outputs = Outputs(zs[:3], maps, zs[3], extras.get(name, {}), tuple(Outputs([z], []) for z in zs[4:]))
    return METHODS.get(name).from_mapping(config).losses(outputs, y, Progress(3, 9))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], case: str) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{case} {n}: {m}")


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("draw", [0, 1, 2])
def test_a_constant_added_to_all_logits_of_a_sample_changes_nothing(case: str, draw: int) -> None:
    torch.manual_seed(draw)
    assert_same(parts_of(case, lambda z: z + 50 * torch.randn(4, 1, dtype=torch.float64)), parts_of(case), case)


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("draw", [0, 1, 2])
def test_the_order_of_the_classes_does_not_matter(case: str, draw: int) -> None:
    torch.manual_seed(draw)
    order = torch.randperm(6)
    assert_same(parts_of(case, lambda z: z[:, order], order.argsort()[Y]), parts_of(case), case)


@pytest.mark.parametrize("case", [case for case in LOSSES if case != "okddip"])  # its attention would have to move along
@pytest.mark.parametrize("draw", [0, 1, 2])
def test_the_order_of_the_samples_does_not_matter(case: str, draw: int) -> None:
    torch.manual_seed(draw)
    order = torch.randperm(4)
    assert_same(parts_of(case, lambda z: z[order], Y[order]), parts_of(case), case)


@pytest.mark.parametrize("case", [case for case in LOSSES if case != "cl_ilr not detached"])  # it learns sharper soft labels, too
def test_branches_that_agree_have_nothing_to_learn_from_each_other(case: str) -> None:
    z = leaf(4, 6)
    distillation = {n: v for n, v in parts_of(case, lambda _: z, alike=True).items() if n not in NO_DISTILLATION}
    assert distillation, "the test is void: no loss distils"
    for name, value in distillation.items():
        if name != "soft":  # a cross entropy, which is least where they agree, but not 0
            assert abs(value.item()) < 1e-12, f"{case} {name}: KL(p, p) is {value}"
        gradient = torch.autograd.grad(value, z, retain_graph=True)[0]
        assert gradient.abs().max() < 1e-12, f"{case} {name} moves a branch"


@pytest.mark.parametrize("case", LOSSES)
def test_no_loss_is_negative(case: str) -> None:
    for draw in range(5):
        torch.manual_seed(draw)
        for name, value in parts_of(case, lambda z: z * 3 * torch.rand(4, 6, dtype=torch.float64)).items():
            assert value >= 0, f"{case} {name}"


@pytest.mark.parametrize("case", LOSSES)
def test_soft_labels_with_all_weight_on_one_class_are_that_class(case: str) -> None:
    assert_same(parts_of(case, y=torch.eye(6, dtype=torch.float64)[Y]), parts_of(case), case)


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_losses_of_extreme_logits_are_finite(case: str, scale: float) -> None:
    z = torch.ones(4, 6, requires_grad=True)
    parts = parts_of(case, lambda drawn: scale * drawn * z)
    assert all(value.isfinite() for value in parts.values())
    (gradient,) = torch.autograd.grad(sum(parts.values()), z)
    assert gradient.isfinite().all()
