"""A training run: a folder with the resolved recipe, a log, a learning curve and the checkpoint, which can be resumed.

runs/<entry>/  recipe.yaml  log.jsonl  curve.png  checkpoint/{model.safetensors, manifest.json, training.*}
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
import yaml

from ..errors import DataError, OutputError, UsageError
from ..zoo.backbone import BACKBONES
from ..zoo.checkpoint import Checkpoint, save_checkpoint
from ..zoo.datasets import find_data, read_split
from ..zoo.files import not_writable, write_bytes
from ..zoo.manifest import Manifest, command_line, git_commit, host_description, library_versions
from ..zoo.method import METHODS
from ..zoo.preprocess import Preprocess
from .curve import draw_curve
from .data import TrainingBatches
from .evaluate import count_targets, evaluate
from .loop import StepReport, Totals, check_weights, make_autocast, train_epoch
from .optim import make_optimizer
from .recipe import Recipe
from .resume import history, restore, training_state

LIBRARIES = ("kdzoo", "torch", "torchvision", "numpy", "safetensors")


@runtime_checkable
class Reporter(Protocol):
    """Who watches a run. The command line draws a progress bar."""

    def step(self, report: StepReport) -> None: ...

    def epoch(self, record: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """What a run left. `finished` is False where a signal ended it; it can be resumed then."""

    folder: Path
    checkpoint: Path
    epochs: int
    finished: bool
    metrics: dict[str, dict[str, Any]]


class StopSignals:
    """Remembers Ctrl-C and SIGTERM, so that the step at hand can end. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    @contextmanager
    def listen(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def run_training(
    entry: str,
    recipe: Recipe,
    *,
    data: Path | None,
    output: Path,
    resume: bool = False,
    device: str = "cpu",
    reporter: Reporter,
) -> RunResult:
    """Train `recipe` in the folder `output`; with `resume`, go on from the checkpoint there.

    A resumed run gives the weights of an uninterrupted one, bit for bit on CPU. The folder can be resumed from its first moment
    on: the initial weights are saved before the first step, which also tells early that the disk can be written.

    Raises:
        OutputError: the folder is not empty and `resume` was not asked for.
        DataError, IntegrityError: the images are missing or wrong.
        TrainingDiverged: a loss or a weight is not finite; the last good checkpoint is kept.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is not a folder", hint="name another place with --output")
    if not resume and output.exists() and any(output.iterdir()):
        raise OutputError(f"{output} is not empty", hint="go on with it by --resume, or name another folder with --output")
    place, preprocess = torch.device(device), recipe_preprocess(recipe)
    method = METHODS.get(recipe.method).from_mapping(recipe.method_config)
    backbone = BACKBONES.get(recipe.backbone)()
    path = find_data(recipe.dataset, data)
    train_data, test_data = (read_split(path, split, preprocess) for split in ("train", "test"))
    if train_data.classes != test_data.classes:
        raise UsageError(f"train and test of {path} have different classes", known=[*train_data.classes[:3], "..."])

    checkpoint = Checkpoint.open(output) if resume else None
    if checkpoint is not None and checkpoint.manifest.classes != train_data.classes:
        raise UsageError(f"the run in {output} has other classes than {path}", hint="resume it with the data of its start")
    torch.manual_seed(recipe.seed)
    network = method.build(backbone, len(train_data.classes))
    network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, recipe.optimizer)
    batches = TrainingBatches(train_data, preprocess, recipe.augment, recipe.batch_size, recipe.seed, place)
    if len(batches) == 0:
        raise DataError(f"{path} holds a single training image", hint="a batch needs two")
    autocast = make_autocast(recipe.precision, place)
    origin = {**provenance(place), "precision": "fp32" if autocast is nullcontext else "bf16"}
    counts = count_targets(network, network.targets(), preprocess)

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(output, error) from error
    epoch, step, totals = 0, 0, Totals()
    if checkpoint is not None:
        epoch, step, totals = restore(checkpoint, recipe, network, optimizer)
        entry, origin["resumed"] = checkpoint.manifest.entry, history(checkpoint.manifest, epoch, step)
    records = [r for r in read_log(output / "log.jsonl") if r["epoch"] <= epoch]
    metrics: dict[str, dict[str, Any]] = {} if checkpoint is None else checkpoint.manifest.metrics

    def save(next_epoch: int, next_step: int) -> Checkpoint:
        manifest = Manifest(
            entry, recipe.method, method.settings(), recipe.backbone, recipe.dataset, train_data.classes, preprocess,
            recipe.to_dict(), next_epoch, metrics=metrics, provenance=origin,
        )  # fmt: skip
        state = training_state(network, optimizer, next_epoch, next_step, totals)
        return save_checkpoint(output / "checkpoint", network, manifest, test_data, state)

    signals, saved = StopSignals(), time.monotonic()
    with signals.listen():
        if checkpoint is None:
            save(epoch, step)
        write_bytes(output / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False).encode())
        while epoch < recipe.epochs:
            began = time.perf_counter()
            reports = train_epoch(network, method, batches, optimizer, recipe, autocast, epoch, step, totals)
            for report in reports:
                reporter.step(report)
                unfinished = report.step < report.num_steps
                due = time.monotonic() - saved > 60 * recipe.checkpoint_minutes
                if unfinished and (signals.received or due):
                    totals.read()
                    check_weights(network)
                    save(epoch, report.step)
                    saved = time.monotonic()
                if unfinished and signals.received:
                    return RunResult(output, output / "checkpoint", epoch, False, metrics)
            losses = totals.read()
            check_weights(network)
            seconds = time.perf_counter() - began
            last = epoch + 1 == recipe.epochs
            evaluated: dict[str, dict[str, Any]] = {}
            if last or (epoch + 1) % recipe.eval_every == 0:
                # The last word, which goes into the manifest and the card, is in float32.
                accuracy = evaluate(
                    network, test_data, preprocess, network.targets(),
                    device=place, split="test", autocast=nullcontext if last else autocast,
                )  # fmt: skip
                metrics = evaluated = {t: {**counts[t], **accuracy[t], "epoch": epoch + 1} for t in accuracy}
            record = {
                "epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], "train_top1": losses.pop("train_top1"),
                "losses": losses, "metrics": evaluated, "seconds": round(seconds, 3),
                "images_per_s": round(report.images_per_s, 1), "resumed_at_step": step,
            }  # fmt: skip
            records.append(record)
            epoch, step, totals = epoch + 1, 0, Totals()
            # The log first: a resumed run drops a record that is ahead of its checkpoint, but cannot make up for a missing one.
            write_bytes(output / "log.jsonl", "".join(json.dumps(r) + "\n" for r in records).encode())
            save(epoch, step)
            saved = time.monotonic()
            draw_curve(records, output / "curve.png", f"{entry}: {epoch} of {recipe.epochs} epochs")
            reporter.epoch(record)
            if signals.received and not last:
                return RunResult(output, output / "checkpoint", epoch, False, metrics)
    return RunResult(output, output / "checkpoint", epoch, True, metrics)


def recipe_preprocess(recipe: Recipe) -> Preprocess:
    """Geometry and normalisation of a recipe, as students carry them."""
    return Preprocess(recipe.image_size, recipe.image_size, recipe.mean, recipe.std)  # type: ignore[arg-type]


def provenance(device: torch.device) -> dict[str, Any]:
    """Commit, versions, host and command of this process."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else host_description()
    return {
        "git_commit": git_commit(),
        "versions": library_versions(*LIBRARIES),
        "host": name,
        "command": command_line(),
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, none where there is no log yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
