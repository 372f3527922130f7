"""Two processes train what one trains; a run one of whose processes is killed goes on by itself and ends with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdzoo.train.distributed import ALONE, Processes, WholeBatchNorm, share_batch_norm
from kdzoo.zoo.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

NUM_STEPS = 20
RECIPE: dict[str, Any] = {
    "method": "ahbf", "method_config": {"num_branches": 2, "aux": 1}, "backbone": "resnet8", "dataset": "colours",
    "image_size": 16, "batch_size": 10, "epochs": 4, "precision": "fp32", "eval_every": 4, "seed": 3,
    "optimizer": {"lr": 0.05}, "augment": {"pad": 2, "autoaugment": True, "cutout": 4}, "checkpoint_minutes": 1e-9,
}  # fmt: skip
# What torchrun does, but for the start of a process, which is a fork: torch and kdzoo are imported once for all of them.
START = """
import json, sys
from pathlib import Path
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from kdzoo.train.distributed import joined
from kdzoo.train.recipe import Recipe

torch.set_num_threads(1)
recipe, data, output = Recipe.from_mapping(json.loads(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])

def start(processes, name, function, *arguments):
    config = LaunchConfig(1, 1, processes, run_id=name, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=1,
                          start_method="fork")
    elastic_launch(config, function)(*arguments)
"""
# The steps of a run in double precision: in single precision a fresh network with BatchNorm magnifies the last bit of a sum up to
# ten times per step, and after twenty steps two equally right runs have nothing in common. `together`: with `accumulate`, one
# process takes the images of a batch in the order in which its parts are those of two processes.
STEPS = """
from dataclasses import replace
from kdzoo.train.batches import BatchSettings
from kdzoo.train.data import make_batches
from kdzoo.train.distributed import share_batch_norm
from kdzoo.train.loop import Training, train_step
from kdzoo.train.optim import make_optimizer
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.datasets import read_split
from kdzoo.zoo.method import METHODS, Progress

torch.Tensor.float = torch.Tensor.double
place = torch.device("cpu")

def as_of_two(whole, pieces):
    shares = [torch.arange(whole)[r * whole // 2 : (r + 1) * whole // 2].tensor_split(pieces) for r in (0, 1)]
    return torch.cat([share[n] for n in range(pieces) for share in shares])

def steps(recipe, processes, together=False):
    torch.manual_seed(recipe.seed)
    method = METHODS.get(recipe.method).from_mapping(recipe.method_config)
    network = method.build(BACKBONES.get(recipe.backbone)(), 6).double()
    share_batch_norm(network, processes)
    images = read_split(data, "train", recipe.preprocess)
    batches = make_batches(images, BatchSettings(recipe.preprocess, recipe.augment, recipe.batch_size, recipe.seed, place,
                                               processes.rank, processes.world))
    training = Training(network, method, make_optimizer(network, recipe.optimizer), recipe, processes=processes)
    losses = []
    for epoch in range(recipe.epochs):
        for step, (images, labels) in enumerate(batches.epoch(epoch)):
            progress, whole = Progress(epoch, recipe.epochs), batches.num_images(step)
            if together and processes.world == 1:
                order = as_of_two(whole, recipe.accumulate)
                images, labels = images[order], labels[order]
            parts, _ = train_step(training, images.double(), labels, progress, whole)
            losses.append({name: float(part) for name, part in parts.items()})
    return losses

def all_steps(path):
    in_parts = replace(recipe, accumulate=2, batch_size=12, epochs=1)
    with joined(place) as processes:
        runs = [steps(recipe, processes), steps(in_parts, processes, together=True), steps(in_parts, processes)]
        if processes.first:
            path.write_text(json.dumps(runs))

for number in (1, 2):
    start(number, f"steps of {number}", all_steps, output / f"{number}.json")
"""
# Two whole runs, of two epochs. In the second, process 1 of the first start dies by SIGKILL in mid-epoch.
RUNS = """
import os, signal
from dataclasses import replace
from kdzoo.train import run
from kdzoo.train.distributed import launched, restarts

real = run.train_epoch

def whole_run(folder, kill):
    def watched(*arguments):
        for report in real(*arguments):
            if kill and not restarts() and launched().rank == 1 and (report.epoch, report.step) == (1, 3):
                os.kill(os.getpid(), signal.SIGKILL)
            yield report
    run.train_epoch = watched
    short = replace(recipe, epochs=2, eval_every=2)
    assert run.run_training("test-entry", short, data=data, output=folder, reporter=run.Silent()).finished

start(2, "whole", whole_run, output / "whole", False)
start(2, "killed", whole_run, output / "killed", True)
"""


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 training images, so that the last batch of an epoch (7 images) is shared unevenly."""
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 47), ("test", 9)):
        labels = np.arange(count) % 6
        arrays[f"{split}_labels"] = labels
        arrays[f"{split}_images"] = (30 * labels[:, None, None, None] + draw.integers(0, 90, (count, 16, 16, 3))).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def output(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the runs and the steps leave. The runs come first: the steps change torch."""
    output = tmp_path_factory.mktemp("distributed")
    (output / "script.py").write_text(START + RUNS + STEPS)
    command = [sys.executable, str(output / "script.py"), json.dumps(RECIPE), str(npz), str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return output


def test_two_processes_have_the_losses_of_one_over_twenty_steps(output: Path) -> None:
    """But for the parts of their batches, which hold other images than those of one, as README says."""
    losses = {}  # by number of processes: of whole batches, of batches in the parts of two processes, of batches in parts
    for processes in (1, 2):
        runs = json.loads((output / f"{processes}.json").read_text())
        losses[processes] = [torch.tensor([list(step.values()) for step in run], dtype=torch.float64) for run in runs]
    one, as_two, in_parts = losses[1]
    two, again, parts_of_two = losses[2]
    assert len(one) == NUM_STEPS and one.std(dim=0).min() > 0, "the losses do not move: nothing was compared"
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
    assert torch.equal(again, parts_of_two) and len(again) == 4
    torch.testing.assert_close(again, as_two, rtol=0, atol=1e-6)
    assert (again - in_parts).abs().max() > 1e-3, "BatchNorm saw the same images: mend README and train.distributed"


def test_a_run_with_a_killed_process_goes_on_and_ends_with_the_same_weights(output: Path) -> None:
    again, whole = (Checkpoint.open(output / name) for name in ("killed", "whole"))
    assert not whole.manifest.provenance.get("resumed")
    resumed = again.manifest.provenance["resumed"]
    assert [(r["epoch"], r["step"]) for r in resumed] in ([(1, 2)], [(1, 3)]), "it did not resume in mid-epoch"
    pairs = zip(again.network().state_dict().items(), whole.network().state_dict().values(), strict=True)
    different = [name for (name, tensor), other in pairs if not torch.equal(tensor, other)]
    assert not different
    metrics = whole.manifest.metrics
    assert again.manifest.metrics == metrics
    assert {m["n"] for m in metrics.values()} == {9}, "two processes do not test every image once"
    assert all(abs(m["top1"] * 9 / 100 - round(m["top1"] * 9 / 100)) < 1e-3 for m in metrics.values())


def test_batch_norm_is_left_alone_in_a_run_of_one_process() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    share_batch_norm(network, ALONE)
    assert type(network[1]) is nn.BatchNorm2d


def test_shared_batch_norm_keeps_names_values_and_evaluation() -> None:
    network = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten(), nn.BatchNorm1d(4 * 9))
    x = torch.randn(5, 4, 3, 3)
    network(x)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = network.eval()(x)
    share_batch_norm(network, Processes(rank=0, world=2))
    assert isinstance(network[0][0], WholeBatchNorm) and isinstance(network[2], WholeBatchNorm)
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(network(x), expected)
