"""SGD and its learning rate, a closed formula of the step, so that resuming needs no schedule state."""

from __future__ import annotations

import math

import torch
from torch import nn

from .recipe import Optimizer, Schedule


def make_optimizer(network: nn.Module, settings: Optimizer) -> torch.optim.SGD:
    """SGD over all parameters that learn, fused into one kernel per group."""
    return torch.optim.SGD(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov and settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def learning_rate(lr: float, schedule: Schedule, epoch: float, num_epochs: int) -> float:
    """Learning rate at a point of the run; `epoch` counts from 0 and may be a fraction."""
    if epoch < schedule.warmup_epochs:
        return lr * (epoch + 1e-3) / schedule.warmup_epochs
    if schedule.kind == "cosine":
        done = (epoch - schedule.warmup_epochs) / max(num_epochs - schedule.warmup_epochs, 1e-9)
        return lr * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    if schedule.kind == "exponential":
        return float(lr * schedule.gamma ** int(epoch - schedule.warmup_epochs))
    return float(lr * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones))
