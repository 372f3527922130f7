"""Methods of peers, heads and exits: losses equal the formulas written out in float64, value and gradient.

The gradients are with respect to everything that the losses read, so a `detach` too many or too few is a failure, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kdzoo.tests.reference import assert_agree, ce, kl, leaf, pooled, softmax
from kdzoo.zoo.losses import mutual_divergence
from kdzoo.zoo.method import METHODS, Progress
from kdzoo.zoo.methods.ffcl import CASES
from kdzoo.zoo.network import Outputs

B, K = 4, 6
RAMP = {0: math.exp(-5), 40: math.exp(-1.25), 80: 1.0}  # of 80 epochs


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["numbers", "probabilities"])
def y(request: pytest.FixtureRequest) -> Tensor:
    """Labels as class numbers and, with mixup or smoothing, as probabilities."""
    labels = torch.tensor([5, 0, 2, 2])
    return labels if request.param == "numbers" else 0.7 * torch.eye(K, dtype=torch.float64)[labels] + 0.3 / K


def logits(count: int) -> list[Tensor]:
    return [leaf(B, K) for _ in range(count)]


def assert_losses(
    method: str, config: dict[str, Any], outputs: Outputs, y: Tensor, expected: dict[str, Tensor], epoch: int = 3
) -> None:
    parts = METHODS.get(method).from_mapping(config).losses(outputs, y, Progress(epoch, 100))
    assert list(parts) == list(expected)
    leaves = [*outputs.logits, *outputs.features, *outputs.extras.values()]
    leaves += [] if outputs.fused is None else [outputs.fused]
    for name, reference in expected.items():
        assert_agree(parts[name], reference, [z for z in leaves if z.requires_grad], f"{method} {name}")


def total(values: Sequence[Tensor]) -> Tensor:
    return sum(values[1:], start=values[0])


# The formulas. Nothing in the next functions calls kdzoo or a loss of PyTorch.


def soft_ce(student: Tensor, teacher: Tensor, t: float, factor: float) -> Tensor:
    return -factor * (softmax(teacher / t) * softmax(student / t).log()).sum() / len(student)


def mutual(zs: list[Tensor], t: float) -> Tensor:
    """Every network learns from every other; the mean over the others."""
    pairs = [kl(zs[k], zs[j].detach(), t, t * t) for k in range(len(zs)) for j in range(len(zs)) if j != k]
    return total(pairs) / (len(zs) - 1)


def collaborative(zs: list[Tensor], y: Tensor, target: str) -> Tensor:
    """The soft target of KDCL, image by image."""
    rows = []
    for i, label in enumerate(y):
        own = [z[i].detach() for z in zs]
        number = int(label if label.ndim == 0 else max(range(K), key=lambda k, p=label: float(p[k])))
        if target == "minlogit":
            rows.append(torch.stack([min(z[k] - z[number] for z in own) for k in range(K)]))
        elif target == "linear":
            rows.append(total(own) / len(own))
        else:
            rows.append(min(own, key=lambda z, i=i: float(ce(z[None], y[i : i + 1]))))
    return torch.stack(rows)


def mix_rows(attention: Tensor, zs: list[Tensor], i: int) -> Tensor:
    """What peer i learns: the sum over j of a_ij z_j."""
    return total([attention[:, i, j, None] * z for j, z in enumerate(zs)])


# Losses.


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dml(count: int, temperature: float, y: Tensor) -> None:
    zs = logits(count)
    expected = {"ce": total([ce(z, y) for z in zs]), "kl": mutual(zs, temperature)}
    assert_losses("dml", {"temperature": temperature}, Outputs(zs, []), y, expected)
    assert_agree(mutual_divergence(zs, temperature), expected["kl"], zs)


@pytest.mark.parametrize("target", ["minlogit", "linear", "naive"])
@pytest.mark.parametrize("config", [{}, {"temperature": 3.0, "weight": 0.5}])
def test_kdcl(target: str, config: dict[str, Any], y: Tensor) -> None:
    zs, t = logits(3), config.get("temperature", 2.0)
    teacher = collaborative(zs, y, target)
    distilled = config.get("weight", 1.0) * total([kl(z, teacher, t, t * t) for z in zs])
    assert_losses("kdcl", {"target": target, **config}, Outputs(zs, []), y, {"ce": total([ce(z, y) for z in zs]), "kl": distilled})


@pytest.mark.parametrize("epoch", RAMP)
@pytest.mark.parametrize("config", [{}, {"detach_teacher": False}, {"epsilon": 1e-2, "temperature": 2.0, "weight": 0.5}])
def test_one(config: dict[str, Any], epoch: int, y: Tensor) -> None:
    zs, fused, t = logits(3), leaf(B, K), config.get("temperature", 3.0)
    teacher = fused if config.get("detach_teacher") is False else fused.detach()
    weight = RAMP[epoch] * config.get("weight", 1.0)
    expected = {
        "ce": total([ce(z, y) for z in zs]),
        "ce_fused": ce(fused, y),
        "kl": weight * total([kl(z, teacher, t, t * t, config.get("epsilon", 1e-7)) for z in zs]),
    }
    assert_losses("one", config, Outputs(zs, [], fused), y, expected, epoch)


@pytest.mark.parametrize("epoch", RAMP)
@pytest.mark.parametrize("config", [{}, {"detach_leader_target": True}, {"epsilon": 0.0, "temperature": 2.0, "weight": 0.5}])
def test_okddip(config: dict[str, Any], epoch: int, y: Tensor) -> None:
    *peers, leader = zs = logits(4)
    attention, t = torch.rand(B, 3, 3, dtype=torch.float64).requires_grad_(), config.get("temperature", 3.0)
    weight, epsilon = RAMP[epoch] * config.get("weight", 1.0), config.get("epsilon", 1e-7)
    ensemble = total(peers) / 3
    ensemble = ensemble.detach() if config.get("detach_leader_target") else ensemble
    expected = {
        "ce": total([ce(z, y) for z in zs]),
        "kl_peers": weight * total([kl(z, mix_rows(attention, peers, i), t, t * t, epsilon) for i, z in enumerate(peers)]),
        "kl_leader": weight * kl(leader, ensemble, t, t * t, epsilon),
    }
    assert_losses("okddip", config, Outputs(zs, [], extras={"attention": attention}), y, expected, epoch)


@pytest.mark.parametrize("config", [{}, {"detach_teacher": False}, {"beta": 0.2, "temperature": 3.0}])
@pytest.mark.parametrize("count", [2, 4])
def test_cl_ilr(count: int, config: dict[str, Any], y: Tensor) -> None:
    zs, beta, t = logits(count), config.get("beta", 0.5), config.get("temperature", 2.0)
    soft = []
    for h, z in enumerate(zs):
        others = total([other for j, other in enumerate(zs) if j != h]) / (count - 1)
        soft.append(soft_ce(z, others if config.get("detach_teacher") is False else others.detach(), t, t * t))
    expected = {"ce": beta * total([ce(z, y) for z in zs]), "soft": (1 - beta) * total(soft)}
    assert_losses("cl_ilr", config, Outputs(zs, []), y, expected)


@pytest.mark.parametrize("epoch", RAMP)
@pytest.mark.parametrize("config", [{}, {"epsilon": 1e-2, "temperature": 2.0}])
def test_ffl(config: dict[str, Any], epoch: int, y: Tensor) -> None:
    zs, fused, t, epsilon = logits(3), leaf(B, K), config.get("temperature", 3.0), config.get("epsilon", 1e-7)
    expected = {
        "ce": total([ce(z, y) for z in zs]),
        "ce_fused": ce(fused, y),
        "fused_to_branches": RAMP[epoch] * total([kl(z, fused.detach(), t, t * t, epsilon) for z in zs]),
        "ensemble_to_fused": RAMP[epoch] * kl(fused, (total(zs) / 3).detach(), t, t * t, epsilon),
    }
    assert_losses("ffl", config, Outputs(zs, [], fused), y, expected, epoch)


def test_ramps_can_be_as_long_as_the_training() -> None:
    zs, fused, y = logits(2), leaf(B, K), torch.tensor([5, 0, 2, 2])
    for method, part in (("one", "kl"), ("ffl", "ensemble_to_fused")):
        long, short = (
            METHODS.get(method).from_mapping(config).losses(Outputs(zs, [], fused), y, Progress(50, 100))[part]
            for config in ({"ramp_epochs": 0}, {"ramp_epochs": 50})
        )
        assert (long / short).item() == pytest.approx(math.exp(-1.25))


# Methods.md 5.2: which terms each case of the ablation has, beside the labels and what the fused classifier learns.
ABLATION = {"A": "fk rk nrk", "B": "fk nrk", "C": "rk nrk", "D": "fk rk", "E": "rk", "F": "fk", "G": "nrk"}


@pytest.mark.parametrize("case", ABLATION)
@pytest.mark.parametrize(
    "config",
    [{}, {"alpha": 0.3, "beta": 0.7, "gamma": 2.0, "temperature": 4.0, "rk_temperature": 2.0, "ensemble_to_fused": False}],
)
def test_ffcl(case: str, config: dict[str, Any], y: Tensor) -> None:
    zs, copies, fused = logits(3), logits(3), leaf(B, K)
    alpha, beta, gamma = (config.get(name, 1.0) for name in ("alpha", "beta", "gamma"))
    t, s = config.get("temperature", 3.0), config.get("rk_temperature", 1.0)
    terms = {
        "fk": beta * total([kl(z, fused.detach(), t, t * t) for z in zs]),
        "rk": beta * mutual(zs, s),
        "nrk": gamma * total([kl(z, copy.detach(), t, t * t) for z, copy in zip(zs, copies, strict=True)]),
    }
    expected = {"ce": alpha * total([ce(z, y) for z in zs]), "ce_fused": ce(fused, y)}
    if config.get("ensemble_to_fused", True):
        expected["ensemble_to_fused"] = kl(fused, (total(zs) / 3).detach(), t, t * t)
    expected.update({name: terms[name] for name in ABLATION[case].split()})
    outputs = Outputs(zs, [], fused, teachers=tuple(Outputs([copy], []) for copy in copies))
    assert_losses("ffcl", {"case": case, **config}, outputs, y, expected)


def test_ffcl_has_the_seven_cases_of_its_ablation() -> None:
    assert set(CASES) == set(ABLATION)
    for case, terms in ABLATION.items():
        config = METHODS.get("ffcl").from_mapping({"case": case}).config
        assert {name for name in ("fk", "rk", "nrk") if getattr(config, f"use_{name}")} == set(terms.split()), case


@pytest.mark.parametrize("hint", ["pooled", "map"])
@pytest.mark.parametrize("config", [{}, {"hint_reduction": "image", "beta": 0.5}, {"alpha": 0.4, "beta": 0.1, "temperature": 2.0}])
def test_byot(hint: str, config: dict[str, Any], y: Tensor) -> None:
    *exits, deepest = zs = logits(3)
    *maps, last = features = [leaf(B, 5, 3, 2) for _ in range(3)]
    alpha, beta, t = (config.get(name, value) for name, value in (("alpha", 0.1), ("beta", 1e-6), ("temperature", 3.0)))
    last = last.detach()
    squared = [(pooled(x) - pooled(last)) ** 2 if hint == "pooled" else (x - last) ** 2 for x in maps]
    expected = {
        "ce": ce(deepest, y) + (1 - alpha) * total([ce(z, y) for z in exits]),
        "soft": alpha * total([soft_ce(z, deepest.detach(), t, t * t) for z in exits]),
        "hint": beta * total([d.sum() for d in squared]) / (B if config.get("hint_reduction") == "image" else 1),
    }
    assert_losses("byot", {"hint": hint, **config}, Outputs(zs, features), y, expected)


@pytest.mark.parametrize("config", [{}, {"hint_reduction": "image", "beta": 0.5}, {"alpha": 0.4, "beta": 0.1, "temperature": 2.0}])
def test_self_d(config: dict[str, Any], y: Tensor) -> None:
    *exits, deepest = zs = logits(4)
    features, adapted = [leaf(B, 5, 3, 2) for _ in range(4)], [leaf(B, 5), leaf(B, 5)]
    alpha, beta, t = (config.get(name, value) for name, value in (("alpha", 0.3), ("beta", 0.03), ("temperature", 3.0)))
    squares = [(x - pooled(features[-1]).detach()) ** 2 for x in adapted]  # not of the third exit, next to the deepest
    if config.get("hint_reduction") == "image":
        distances = [d.sum(dim=1).sqrt().sum() / B for d in squares]
    else:
        distances = [d.sum().sqrt() for d in squares]
    expected = {
        "ce": ce(deepest, y) + (1 - alpha) * total([ce(z, y) for z in exits]),
        "soft": alpha * total([soft_ce(z, deepest.detach(), t, 1.0) for z in exits]),  # no squared temperature
        "hint": beta * total(distances),
    }
    extras = {"adapted1": adapted[0], "adapted2": adapted[1]}
    assert_losses("self_d", config, Outputs(zs, features, extras=extras), y, expected)
