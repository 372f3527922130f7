"""Runs of a few seconds: their recipe, how they are watched and stopped, and how two of them are compared.

Import it as `kdzoo.tests.small_runs`. The images are those of the fixture `colours`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdzoo.cli import main
from kdzoo.train.loop import StepReport
from kdzoo.train.recipe import Recipe
from kdzoo.train.reporter import Silent
from kdzoo.train.run import RunResult, run_training
from kdzoo.zoo.checkpoint import Checkpoint

NUM_COLOURS = 8


def write_colours(path: Path, num_train: int, num_test: int, **changes: Any) -> Path:
    """Images of 16x16 pixels, noise around one colour per class, as `.npz`; `changes` replace arrays."""
    draw = np.random.default_rng(0)
    colours = np.array([[60 + 136 * (n >> bit & 1) for bit in range(3)] for n in range(NUM_COLOURS)])[:, None, None]
    arrays: dict[str, Any] = {"classes": np.array([f"colour {i}" for i in range(NUM_COLOURS)])}
    for split, count in (("train", num_train), ("test", num_test)):
        labels = np.arange(count) % NUM_COLOURS
        arrays[f"{split}_labels"] = labels
        arrays[f"{split}_images"] = (colours[labels] + draw.integers(-40, 40, (count, 16, 16, 3))).astype(np.uint8)
    np.savez(path, **{**arrays, **changes})
    return path


def recipe_for(method: str = "ahbf", **changes: Any) -> Recipe:
    small = {"num_branches": 2, "aux": 1} if method == "ahbf" else {}
    document = {
        "method": method, "method_config": small, "backbone": "resnet20", "dataset": "colours", "epochs": 2,
        "batch_size": 16, "image_size": 16, "optimizer": {"lr": 0.05}, "augment": {"pad": 2},
    }  # fmt: skip
    return Recipe.from_mapping({**document, **changes})


def train(recipe: Recipe, npz: Path, output: Path, *, reporter: Any = None, **options: Any) -> RunResult:
    return run_training("test-entry", recipe, data=npz, output=output, reporter=reporter or Silent(), **options)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_state(one: Path, other: Path) -> None:
    """Weights, statistics and momentum of two runs are the same, bit for bit."""
    a, b = Checkpoint.open(one), Checkpoint.open(other)
    pairs = [(a.network().state_dict(), b.network().state_dict()), (a.training_state().tensors, b.training_state().tensors)]
    for left, right in pairs:
        assert left.keys() == right.keys()
        different = [name for name in left if not torch.equal(left[name], right[name])]
        assert not different, f"{len(different)} of {len(left)} tensors differ, among them {different[:3]}"
    assert any(name.startswith("momentum.") for name in pairs[1][0])
    assert a.training_state().values == b.training_state().values


class SignalAt(Silent):
    """Sends a signal to this process after a given step."""

    def __init__(self, number: int, epoch: int, step: int) -> None:
        self.number, self.at = number, (epoch, step)

    def step(self, report: StepReport) -> None:
        if (report.epoch, report.step) == self.at:
            os.kill(os.getpid(), self.number)


def exit_code_of(*arguments: object) -> int:
    """Exit code of `kdzoo train` on the CPU."""
    try:
        main(["train", *map(str, arguments), "--device", "cpu"])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
