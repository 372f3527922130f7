"""One training step and one epoch of it, for every method alike. Reads from top to bottom; the host never waits in a step.

Shapes: `B` batch, `H` `W` space, `K` classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import EnvironmentProblem, TrainingDiverged
from ..zoo.losses import class_numbers, sum_of
from ..zoo.method import Method, Progress
from ..zoo.network import MultiBranch
from ..zoo.student import target_logits
from ..zoo.target import Target
from ..zoo.teacher import Teacher
from .average import Average
from .batches import Batches, step_generator
from .distributed import ALONE, Processes, distribute
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
    state = network.state_dict()
    fine = torch.stack([tensor.isfinite().all() for tensor in state.values()]).tolist()  # one look at the device
    broken = [name for name, is_fine in zip(state, fine, strict=True) if not is_fine]
    if broken:
        raise TrainingDiverged(f"'{broken[0]}' holds numbers that are not finite: training diverged", hint=DIVERGED)


@dataclass
class Training:
    """What a step works on.

    Attributes:
        network: the plain network; `forward` is how it is called, compiled or distributed where that was asked for.
        average: the averaged weights, where the recipe has them.
    """

    network: MultiBranch
    method: Method
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    autocast: Autocast = nullcontext
    teachers: tuple[Teacher, ...] = ()
    processes: Processes = ALONE
    average: Average | None = None
    forward: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.forward = distribute(self.network, self.processes)
        if self.recipe.compile or self.recipe.cuda_graphs:
            self.forward = compiled(self.forward, self.recipe.cuda_graphs)

    @property
    def deployed(self) -> MultiBranch:
        """The network that is tested and saved."""
        return self.average.network if self.average else self.network


def compiled(module: nn.Module, cuda_graphs: bool) -> nn.Module:
    """`torch.compile`; with `cuda_graphs` its mode that replays CUDA graphs, which pays for small networks on a GPU.

    Raises:
        EnvironmentProblem: CUDA graphs without a CUDA GPU.
    """
    if cuda_graphs and next(module.parameters()).device.type != "cuda":
        raise EnvironmentProblem("cuda_graphs needs a CUDA GPU", hint="leave it out, or --set compile=true alone")
    # A graph per size of batch: one for all sizes takes over when the second is seen, and a resumed run sees them in another order.
    module.compile(mode="reduce-overhead" if cuda_graphs else None, dynamic=False)
    return module


def smooth_labels(y: Int[Tensor, " B"] | Float[Tensor, "B K"], num_classes: int, share: float) -> Float[Tensor, "B K"]:
    """Labels of which `share` is spread evenly over all classes (Szegedy et al., 2016, section 7)."""
    hard_BK = F.one_hot(y, num_classes).float() if y.ndim == 1 else y
    return hard_BK * (1.0 - share) + share / num_classes


def train_step(
    training: Training, images: Tensor, labels: Tensor, progress: Progress, num_images: int | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Forward (autocast), losses (float32), backward, update.

    `images` is the share of this process of a batch of `num_images`; a recipe that accumulates cuts it into parts. Gives the loss
    parts, means over the whole batch, and how many of its images the target got right.
    """
    recipe, network, processes = training.recipe, training.network, training.processes
    whole = len(images) if num_images is None else num_images
    training.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    # As many in every process, and none of a single image, which BatchNorm cannot use.
    num_pieces = max(min(recipe.accumulate, whole // processes.world // 2), 1)
    pieces = list(zip(images.tensor_split(num_pieces), labels.tensor_split(num_pieces), strict=True))
    for n, (x, y) in enumerate(pieces, start=1):
        with gradients_stay_here(training.forward) if n < len(pieces) else nullcontext():
            with training.autocast():
                outputs = training.forward(x)
                heard = {teacher: teacher(x) for teacher in dict.fromkeys(training.teachers)}  # one may teach several peers
            outputs = replace(outputs, teachers=tuple(heard[teacher] for teacher in training.teachers))
            outputs = outputs.map(Tensor.float)
            if recipe.label_smoothing:
                y = smooth_labels(y, outputs.logits[0].shape[1], recipe.label_smoothing)
            share = len(x) / whole
            parts = {name: part * share for name, part in training.method.losses(outputs, y, progress).items()}
            # Gradients are averaged over the processes; shares add up to one over all of them.
            (sum_of(parts.values()) * processes.world).backward()
        logits = target_logits(outputs, Target("target"), network.target_branch).detach()
        parts["correct"] = (logits.argmax(dim=1) == class_numbers(y)).sum()
        sums = {name: sums[name] + part.detach() if name in sums else part.detach() for name, part in parts.items()}
    if recipe.clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm, foreach=True)
    training.optimizer.step()
    sums = processes.sums(sums)
    correct = sums.pop("correct")
    return sums, correct


def gradients_stay_here(forward: nn.Module) -> AbstractContextManager[None]:
    """No exchange of gradients yet: more of this batch follows."""
    if isinstance(forward, nn.parallel.DistributedDataParallel):
        return forward.no_sync()
    return nullcontext()


@dataclass(frozen=True)
class StepReport:
    """Where an epoch stands, for the progress bar; `means` is filled at the steps at which the host looks."""

    epoch: int
    step: int
    num_steps: int
    images_per_s: float
    means: dict[str, float]


def train_epoch(training: Training, batches: Batches, epoch: int, start: int, totals: Totals) -> Iterator[StepReport]:
    """Train through the batches of one epoch from batch `start` on; yields after every step, when it is safe to save."""
    recipe, optimizer = training.recipe, training.optimizer
    training.network.train()
    num_steps, seen = len(batches), 0
    began = looked = time.perf_counter()
    for step, (images, labels) in enumerate(batches.epoch(epoch, start), start=start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optimizer.lr, recipe.schedule, epoch + step / num_steps, recipe.epochs)
        # What a layer draws (dropout) follows from the place in the run, so that a resumed run draws the same.
        torch.manual_seed(step_generator(recipe.seed, epoch, step).initial_seed() + training.processes.rank)
        num_images = batches.num_images(step)
        parts, correct = train_step(training, images, labels, Progress(epoch, recipe.epochs), num_images)
        if training.average is not None:
            training.average.update(epoch * num_steps + step)
        totals.add(parts, correct, num_images)
        seen += num_images
        means: dict[str, float] = {}
        if step + 1 == num_steps or time.perf_counter() - looked > LOOK_SECONDS:
            means, looked = totals.read(), time.perf_counter()
        yield StepReport(epoch, step + 1, num_steps, seen / (time.perf_counter() - began), means)
