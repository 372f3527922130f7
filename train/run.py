"""A training run from its recipe to its checkpoint, alone or in several processes; it can be resumed at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError, UsageError
from ..zoo.backbone import BACKBONES
from ..zoo.checkpoint import Checkpoint, save_checkpoint
from ..zoo.datasets import ImageSplit, Split, find_data, held_out, open_split
from ..zoo.files import alone
from ..zoo.foreign import initialise_from_torchvision
from ..zoo.manifest import Manifest
from ..zoo.method import METHODS
from .average import Average
from .batches import Batches
from .data import make_batches
from .distributed import Processes, joined, launch, own_device, restarts, share_batch_norm
from .evaluate import count_targets, evaluate
from .loop import Totals, Training, check_weights, make_autocast, train_epoch
from .optim import make_optimizer
from .recipe import Recipe
from .reporter import Reporter, Silent
from .resume import check_company, check_data, history, restore, training_state
from .run_folder import RunFolder, provenance, read_log
from .stop import StopSignals
from .teachers import Source, fingerprint, open_source, teacher_folder, teacher_recipe

SPLITS: tuple[Split, Split] = ("train", "test")
ASK_STEPS = 5  # between questions among processes whether one of them was told to stop
Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """What a run left. `finished` is False where a signal ended it; it can be resumed then."""

    folder: Path
    checkpoint: Path
    epochs: int
    finished: bool
    metrics: dict[str, dict[str, Any]]


def run_training(
    entry: str,
    recipe: Recipe,
    *,
    data: Path | None,
    output: Path,
    resume: bool = False,
    device: str = "cpu",
    teachers: Sequence[Source] = (),
    reporter: Reporter,
    say: Say = lambda line: None,
) -> RunResult:
    """Train `recipe` in the folder `output`; with `resume`, go on from the checkpoint there.

    A resumed run gives the weights of an uninterrupted one, bit for bit on CPU. The folder can be resumed from its first moment
    on: the initial weights are saved before the first step, which also tells early that the disk can be written. Started by
    `torchrun`, all processes train one network; where torchrun starts them again after one has died, they resume by themselves.
    Teachers that the method needs and that are not given are trained first and kept (`train.teachers`).

    Raises:
        OutputError: the folder is not empty and `resume` was not asked for.
        DataError, IntegrityError: the images are missing or wrong.
        UsageError: method, backbone or teachers do not fit.
        TrainingDiverged: a loss or a weight is not finite; the last good checkpoint is kept.
    """
    place = own_device(torch.device(device))
    with joined(place) as processes:
        folder = RunFolder(output, processes.first)
        result = _Run(entry, recipe, folder, data, place, processes, reporter if processes.first else Silent(), say).train(
            resume, teachers
        )
        processes.barrier()
    return result


@dataclass
class _Run:
    """What all parts of a run know."""

    entry: str
    recipe: Recipe
    folder: RunFolder
    data: Path | None
    place: torch.device
    processes: Processes
    reporter: Reporter
    say: Say
    train_data: ImageSplit = field(init=False)
    test_data: ImageSplit = field(init=False)
    origin: dict[str, Any] = field(init=False)

    def train(self, resume: bool, given: Sequence[Source]) -> RunResult:
        recipe, folder, preprocess = self.recipe, self.folder, self.recipe.preprocess
        resume = resume or self.processes.any(self.processes.first and self.was_restarted(), self.place)
        folder.claim(resume)
        self.processes.barrier()
        if recipe.init_weights == "required":
            raise UsageError(
                f"{self.entry} starts from weights of ImageNet, and none were given",
                hint="--set init_weights=FILE.safetensors, or --set init_weights='' to start from scratch",
            )
        method = METHODS.get(recipe.method).from_mapping(recipe.method_config)
        path = find_data(recipe.dataset, self.data)
        self.train_data, self.test_data = (
            open_split(
                path, split, preprocess, dataset=recipe.dataset, workers=recipe.workers,
                lazy=split == "train" and recipe.augment.random_resized_crop,
            )
            for split in SPLITS
        )  # fmt: skip
        if self.train_data.classes != self.test_data.classes:
            raise UsageError(f"train and test of {path} have different classes", known=[*self.train_data.classes[:3], "..."])
        if recipe.holdout:
            self.train_data, _ = held_out(self.train_data, recipe.holdout)
        checkpoint = Checkpoint.open(folder.path) if resume else None
        if checkpoint is not None:
            check_data(checkpoint, self.train_data, path)
            given = given or [open_source(t["folder"]) for t in checkpoint.manifest.provenance.get("teachers", [])]
        sources = self.find_teachers(method.teachers(recipe.backbone), given)

        torch.manual_seed(recipe.seed)
        network = method.build(BACKBONES.get(recipe.backbone)(), len(self.train_data.classes))
        loaded = {source.folder: source.load() for source in sources}
        for teacher in loaded.values():
            teacher.to(self.place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        teachers = tuple(loaded[source.folder] for source in sources)
        counts = count_targets(network, network.targets(), preprocess)
        if recipe.init_weights and checkpoint is None:
            start = initialise_from_torchvision(network, recipe.backbone, Path(recipe.init_weights))
            self.say(f"{len(start.loaded)} tensors start from {recipe.init_weights}, {len(start.left)} from scratch")
        method.adopt(network, teachers)
        network.to(self.place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = Average(network, recipe.ema_decay) if recipe.ema_decay else None
        share_batch_norm(network, self.processes)
        batches: Batches = make_batches(
            self.train_data, preprocess, recipe.augment, batch_size=recipe.batch_size, seed=recipe.seed, device=self.place,
            rank=self.processes.rank, world=self.processes.world, workers=recipe.workers,
        )  # fmt: skip
        if len(batches) == 0:
            raise DataError(f"{path} holds a single training image", hint="a batch needs two")
        training = Training(
            network, method, make_optimizer(network, recipe.optimizer), recipe,
            make_autocast(recipe.precision, self.place), teachers, self.processes, average,
        )  # fmt: skip
        self.origin = {
            **provenance(self.place),
            "precision": "fp32" if training.autocast is nullcontext else "bf16",
            "data_fingerprint": fingerprint(self.train_data),
            "processes": self.processes.world,
            "launch": launch(),
            "teachers": [source.describe() for source in sources],
        }
        if checkpoint is not None:
            check_company(checkpoint, self.origin["teachers"], self.processes.world)
        folder.make()
        return self.loop(training, batches, counts, checkpoint)

    def was_restarted(self) -> bool:
        """Whether torchrun has started this very run again after a process had died, and there is something to go on from."""
        if restarts() == 0 or not self.folder.begun:
            return False
        return Checkpoint.open(self.folder.path).manifest.provenance.get("launch") == launch()

    def find_teachers(self, backbones: Sequence[str], given: Sequence[Source]) -> list[Source]:
        """A source for each backbone: those given, in this order, and for the rest networks that are trained now, or were before.

        Raises:
            UsageError: more were given than the method takes, or one does not fit.
        """
        if len(given) > len(backbones):
            raise UsageError(
                f"method {self.recipe.method} takes {len(backbones)} teachers, {len(given)} were given",
                hint="give fewer --teacher, or another method",
            )
        sources = list(given)
        for source, backbone in zip(given, backbones, strict=False):  # before the others are trained
            source.check(backbone, self.train_data.classes, self.recipe.preprocess)
        for backbone in backbones[len(given) :]:
            sources.append(self.trained_teacher(backbone))
            sources[-1].check(backbone, self.train_data.classes, self.recipe.preprocess)
        return sources

    def trained_teacher(self, backbone: str) -> Source:
        """The baseline of `backbone`, trained now, or before: one run trains it, others wait for it."""
        recipe = teacher_recipe(self.recipe, backbone)
        place = teacher_folder(self.folder.path.parent, recipe, self.train_data)
        entry = f"baseline-{backbone}-{recipe.dataset}"
        run = replace(self, entry=entry, recipe=recipe, folder=replace(self.folder, path=place))
        waiting = partial(self.say, f"another run is training the teacher {backbone} in {place}: waiting for it")
        with alone(place, waiting) if self.processes.first else nullcontext():
            self.processes.barrier()
            begun = run.folder.begun
            if begun and Checkpoint.open(place).manifest.epochs >= recipe.epochs:
                self.say(f"the teacher {backbone} was trained before: {place}")
            else:
                self.say(f"{self.recipe.method} needs a trained {backbone}: training it first, {recipe.epochs} epochs, in {place}")
                if not run.train(resume=begun, given=()).finished:
                    raise KeyboardInterrupt
            self.processes.barrier()
        return open_source(str(place))

    def loop(
        self, training: Training, batches: Batches, counts: dict[str, dict[str, int]], checkpoint: Checkpoint | None
    ) -> RunResult:
        """The epochs that are left, each trained, tested and saved."""
        recipe, folder, processes = self.recipe, self.folder, self.processes
        epoch, step, totals = 0, 0, Totals()
        if checkpoint is not None:
            epoch, step, totals = restore(checkpoint, training)
            self.entry, self.origin["resumed"] = checkpoint.manifest.entry, history(checkpoint.manifest, epoch, step)
        records = [r for r in read_log(folder.log) if r["epoch"] <= epoch]
        metrics: dict[str, dict[str, Any]] = {} if checkpoint is None else checkpoint.manifest.metrics
        signals, saved = StopSignals(), time.monotonic()
        self.reporter.begin(self.entry, epoch, recipe.epochs)
        with signals.listen():
            if checkpoint is None:
                self.save(training, epoch, step, totals, metrics)
            folder.write_recipe(recipe)
            while epoch < recipe.epochs:
                began = time.perf_counter()
                for report in train_epoch(training, batches, epoch, step, totals):
                    self.reporter.step(report)
                    if report.step == report.num_steps:
                        break
                    asked = processes.world == 1 or report.step % ASK_STEPS == 0
                    stop = asked and processes.any(signals.received is not None, self.place)
                    if stop or (processes.first and time.monotonic() - saved > 60 * recipe.checkpoint_minutes):
                        totals.read()
                        check_weights(training.network)
                        self.save(training, epoch, report.step, totals, metrics)
                        saved = time.monotonic()
                    if stop:
                        return RunResult(folder.path, folder.checkpoint, epoch, False, metrics)
                losses = totals.read()
                check_weights(training.network)
                seconds = time.perf_counter() - began
                last = epoch + 1 == recipe.epochs
                tested: dict[str, Any] = {"metrics": {}}
                if last or (epoch + 1) % recipe.eval_every == 0:
                    tested = self.test(training, last)
                    metrics = {t: {**counts[t], **m, "epoch": epoch + 1} for t, m in tested["metrics"].items()}
                    tested["metrics"] = metrics
                record = {
                    "epoch": epoch + 1, "lr": training.optimizer.param_groups[0]["lr"], "train_top1": losses.pop("train_top1"),
                    "losses": losses, **tested, "seconds": round(seconds, 3),
                    "images_per_s": round(report.images_per_s, 1), "resumed_at_step": step,
                }  # fmt: skip
                records.append(record)
                epoch, step, totals = epoch + 1, 0, Totals()
                # The log first: a resumed run drops a record that is ahead of its checkpoint, but cannot make up for a missing one.
                folder.write_log(records)
                self.save(training, epoch, step, totals, metrics)
                saved = time.monotonic()
                folder.draw(records, f"{self.entry}: {epoch} of {recipe.epochs} epochs")
                self.reporter.epoch(record)
                if not last and processes.any(signals.received is not None, self.place):
                    return RunResult(folder.path, folder.checkpoint, epoch, False, metrics)
        return RunResult(folder.path, folder.checkpoint, epoch, True, metrics)

    def test(self, training: Training, last: bool) -> dict[str, Any]:
        """What the deployed network gets right on the test split; in the last epoch, for manifest and card, in float32."""
        network, recipe = training.deployed, self.recipe
        found = evaluate(
            network, self.test_data, recipe.preprocess, network.targets(),
            device=self.place, split="test", autocast=nullcontext if last else training.autocast,
            train_counts=np.bincount(self.train_data.labels, minlength=len(self.train_data.classes)),
            rank=self.processes.rank, world=self.processes.world, workers=recipe.workers,
        )  # fmt: skip
        return {"metrics": found.targets, "distances": found.distances}

    def save(self, training: Training, epoch: int, step: int, totals: Totals, metrics: dict[str, dict[str, Any]]) -> None:
        """A whole checkpoint, by the first process: all of them hold the same weights."""
        if not self.folder.writes:
            return
        recipe = self.recipe
        manifest = Manifest(
            self.entry, recipe.method, training.method.settings(), recipe.backbone, recipe.dataset, self.train_data.classes,
            recipe.preprocess, recipe.to_dict(), epoch, metrics=metrics, provenance=self.origin,
        )  # fmt: skip
        state = training_state(training, epoch, step, totals)
        save_checkpoint(self.folder.checkpoint, training.deployed, manifest, self.test_data, state)
