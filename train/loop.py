"""One training step and one epoch of it, for every method alike. Reads from top to bottom; the host never waits in a step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import TrainingDiverged
from ..zoo.losses import sum_of
from ..zoo.method import Method, Progress
from ..zoo.network import MultiBranch
from ..zoo.student import target_logits
from ..zoo.target import Target
from .data import TrainingBatches
from .optim import learning_rate
from .recipe import Recipe

Autocast = Callable[[], AbstractContextManager[Any]]
LOOK_SECONDS = 1.0  # between looks at the loss, each of which makes the host wait for the device
DIVERGED = "lower optimizer.lr, add schedule.warmup_epochs, or set precision=fp32; the last good checkpoint is kept"


def make_autocast(precision: str, device: torch.device) -> Autocast:
    """bf16 autocast where the recipe asks for it or, with `auto`, where the processor computes in bf16."""
    if device.type == "cpu":
        capable = torch.cpu._is_avx512_bf16_supported()
    else:
        capable = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" or (precision == "auto" and capable):
        return partial(torch.autocast, device.type, torch.bfloat16)
    return nullcontext


@dataclass
class Totals:
    """Sums over the steps of one epoch, on the device until somebody reads them."""

    images: int = 0
    steps: int = 0
    correct: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)

    def add(self, parts: dict[str, Tensor], correct: Tensor, images: int) -> None:
        self.images += images
        self.steps += 1
        self.correct = correct if self.correct is None else self.correct + correct
        self.parts = {n: self.parts[n] + p if n in self.parts else p for n, p in parts.items()}

    def read(self) -> dict[str, float]:
        """Mean of every loss part and the training accuracy in percent. Waits for the device.

        Raises:
            TrainingDiverged: a loss is not a finite number.
        """
        if self.correct is None:
            return {}
        means = {name: float(total) / self.steps for name, total in self.parts.items()}
        broken = [name for name, mean in means.items() if not math.isfinite(mean)]
        if broken:
            raise TrainingDiverged(
                f"the loss part '{broken[0]}' is {means[broken[0]]}: training diverged",
                hint=DIVERGED,
            )
        return {**means, "train_top1": 100.0 * float(self.correct) / self.images}


def check_weights(network: MultiBranch) -> None:
    """Weights and running statistics are worth saving; a finite loss can still be followed by an update that is not.

    Raises:
        TrainingDiverged: one of them is not a finite number.
    """
    broken = next((name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise TrainingDiverged(f"'{broken}' holds numbers that are not finite: training diverged", hint=DIVERGED)


def train_step(
    network: MultiBranch,
    method: Method,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    progress: Progress,
    autocast: Autocast,
) -> tuple[dict[str, Tensor], Tensor]:
    """Forward (autocast), losses (float32), backward, update. Gives the loss parts and how many images the target got right."""
    with autocast():
        outputs = network(images)
    outputs = outputs.map(Tensor.float)
    parts = method.losses(outputs, labels, progress)
    optimizer.zero_grad(set_to_none=True)
    sum_of(parts.values()).backward()
    optimizer.step()
    with torch.no_grad():
        logits = target_logits(outputs, Target("target"), network.target_branch)
        correct = (logits.argmax(dim=1) == labels).sum()
    return {name: part.detach() for name, part in parts.items()}, correct


@dataclass(frozen=True)
class StepReport:
    """Where an epoch stands, for the progress bar; `means` is filled at the steps at which the host looks."""

    epoch: int
    step: int
    num_steps: int
    images_per_s: float
    means: dict[str, float]


def train_epoch(
    network: MultiBranch,
    method: Method,
    batches: TrainingBatches,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    autocast: Autocast,
    epoch: int,
    start: int,
    totals: Totals,
) -> Iterator[StepReport]:
    """Train through the batches of one epoch from batch `start` on; yields after every step, when it is safe to save."""
    network.train()
    num_steps, seen = len(batches), 0
    began = looked = time.perf_counter()
    for step, (images, labels) in enumerate(batches.epoch(epoch, start), start=start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optimizer.lr, recipe.schedule, epoch + step / num_steps, recipe.epochs)
        progress = Progress(epoch, recipe.epochs)
        parts, correct = train_step(network, method, optimizer, images, labels, progress, autocast)
        totals.add(parts, correct, len(labels))
        seen += len(labels)
        means: dict[str, float] = {}
        if step + 1 == num_steps or time.perf_counter() - looked > LOOK_SECONDS:
            means, looked = totals.read(), time.perf_counter()
        yield StepReport(epoch, step + 1, num_steps, seen / (time.perf_counter() - began), means)
