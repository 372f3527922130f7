"""The learning rate by epoch, and fused SGD against the textbook."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdzoo.train.optim import learning_rate, make_optimizer
from kdzoo.train.recipe import Optimizer, Schedule


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.1), (149.99, 0.1), (150, 0.01), (224.9, 0.01), (225, 0.001), (299.9, 0.001)])
def test_the_step_schedule_of_ahbf_divides_at_its_milestones(epoch: float, expected: float) -> None:
    assert learning_rate(0.1, Schedule("step", (150, 225), 0.1), epoch, 300) == pytest.approx(expected)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.2), (5, 0.1 + 0.1 * 2**-0.5), (10, 0.1), (20, 0.0)])
def test_the_cosine_schedule_goes_from_its_peak_to_zero(epoch: float, expected: float) -> None:
    assert learning_rate(0.2, Schedule("cosine"), epoch, 20) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.01), (0.9, 0.01), (1, 0.009), (3.5, 0.00729), (59, 0.01 * 0.9**59)])
def test_the_exponential_schedule_decays_after_every_epoch(epoch: float, expected: float) -> None:
    assert learning_rate(0.01, Schedule("exponential", gamma=0.9), epoch, 60) == pytest.approx(expected)


@pytest.mark.parametrize(("epoch", "expected"), [(3, 0.1), (3.99, 0.1), (4, 0.05), (5.5, 0.025)])
def test_the_exponential_schedule_counts_the_epochs_after_the_warm_up(epoch: float, expected: float) -> None:
    schedule = Schedule("exponential", gamma=0.5, warmup_epochs=3)
    assert learning_rate(0.1, schedule, epoch, 60) == pytest.approx(expected)


@pytest.mark.parametrize(("epoch", "expected"), [(3, 0.1), (149.9, 0.1), (150, 0.01), (225, 0.001)])
def test_the_milestones_of_the_step_schedule_count_from_the_start_of_the_run(epoch: float, expected: float) -> None:
    schedule = Schedule("step", (150, 225), 0.1, warmup_epochs=3)
    assert learning_rate(0.1, schedule, epoch, 300) == pytest.approx(expected)


@pytest.mark.parametrize(("epoch", "expected"), [(4, 0.2), (12, 0.1), (20, 0.0)])
def test_the_cosine_schedule_goes_from_the_end_of_the_warm_up_to_the_end_of_the_run(epoch: float, expected: float) -> None:
    assert learning_rate(0.2, Schedule("cosine", warmup_epochs=4), epoch, 20) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["step", "cosine", "exponential"])
def test_warm_up_rises_linearly_from_almost_zero(kind: str) -> None:
    schedule = Schedule(kind, warmup_epochs=2.0)  # type: ignore[arg-type]
    assert 0 < learning_rate(0.1, schedule, 0, 20) < 1e-3
    assert learning_rate(0.1, schedule, 1, 20) == pytest.approx(0.05, rel=0.01)
    assert learning_rate(0.1, schedule, 2, 20) == pytest.approx(0.1)


def reference_step(
    weight: Tensor, gradient: Tensor, velocity: Tensor | None, lr: float, settings: Optimizer
) -> tuple[Tensor, Tensor]:
    """Sutskever et al. 2013 in the form of PyTorch, float64."""
    gradient = gradient + settings.weight_decay * weight
    velocity = gradient if velocity is None else settings.momentum * velocity + gradient
    step = gradient + settings.momentum * velocity if settings.nesterov else velocity
    return weight - lr * step, velocity


@pytest.mark.parametrize("settings", [Optimizer(), Optimizer(nesterov=False, momentum=0.8), Optimizer(momentum=0.0)], ids=repr)
def test_fused_sgd_on_channels_last_weights_equals_the_textbook_in_float64(settings: Optimizer) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5), nn.Linear(7, 4)
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, settings)
    assert all(group["fused"] for group in optimizer.param_groups)
    names = dict(network.named_parameters())
    weights = {n: p.detach().double().contiguous() for n, p in names.items()}
    velocities: dict[str, Tensor | None] = dict.fromkeys(names)
    without_momentum = settings if settings.momentum else Optimizer(momentum=0.0, nesterov=False)
    for lr in (0.1, 0.1, 0.01, 0.05):
        gradients = {n: torch.randn(p.shape) for n, p in names.items()}
        optimizer.zero_grad(set_to_none=True)
        sum((p * gradients[n]).sum() for n, p in names.items()).backward()  # type: ignore[union-attr]
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        for name, gradient in gradients.items():
            weights[name], velocities[name] = reference_step(
                weights[name], gradient.double(), velocities[name], lr, without_momentum
            )
    for name, parameter in names.items():
        torch.testing.assert_close(parameter.detach().double().contiguous(), weights[name], atol=1e-6, rtol=1e-6, msg=name)
