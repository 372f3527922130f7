"""Runs: what they write, how they stop, and that a resumed one ends where an uninterrupted one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdzoo.cli import train as cli_train
from kdzoo.errors import DataError, OutputError, TrainingDiverged, UsageError
from kdzoo.tests.small_runs import NUM_COLOURS, SignalAt, assert_same_state, exit_code_of, log_of, recipe_for, train
from kdzoo.train import loop
from kdzoo.train.recipe import Recipe
from kdzoo.train.recipe_file import load_recipe
from kdzoo.train.reporter import Silent
from kdzoo.train.run import RunResult, run_training
from kdzoo.train.run_folder import RunFolder
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.profile import profile
from kdzoo.zoo.student import select
from kdzoo.zoo.target import Target


@pytest.fixture(scope="module")
def whole(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """An uninterrupted run with every augmentation."""
    recipe = recipe_for(augment={"pad": 2, "autoaugment": True, "cutout": 4})
    return train(recipe, colours, tmp_path_factory.mktemp("whole") / "run")


def test_a_run_leaves_recipe_log_curve_and_checkpoint(whole: RunResult) -> None:
    assert whole.finished and whole.epochs == 2
    assert sorted(p.name for p in whole.folder.iterdir() if p.suffix != ".png") == ["checkpoint", "log.jsonl", "recipe.yaml"]
    assert load_recipe(str(whole.folder / "recipe.yaml"))[1] == recipe_for(augment={"pad": 2, "autoaugment": True, "cutout": 4})
    records = log_of(whole.folder)
    assert [r["epoch"] for r in records] == [1, 2]
    for record in records:
        assert set(record["losses"]) == {"ce", "ce_ta", "takl", "btkl"}
        assert record["images_per_s"] > 0 and 0 <= record["train_top1"] <= 100 and record["lr"] == 0.05
    checkpoint = Checkpoint.open(whole.folder)
    checkpoint.verify()
    assert checkpoint.manifest.epochs == 2 and checkpoint.manifest.recipe["seed"] == 0
    assert checkpoint.manifest.provenance["versions"].keys() >= {"python", "torch", "numpy"}


def test_a_run_draws_its_learning_curve(whole: RunResult) -> None:
    pytest.importorskip("matplotlib")
    assert (whole.folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_manifest_and_log_hold_accuracy_and_cost_of_every_target(whole: RunResult) -> None:
    checkpoint = Checkpoint.open(whole.folder)
    network = checkpoint.network()
    metrics = checkpoint.manifest.metrics
    assert metrics == whole.metrics == log_of(whole.folder)[-1]["metrics"]
    assert set(metrics) == set(network.targets()) == {"target", "1", "2", "fused", "ensemble"}
    for target, found in metrics.items():
        counted = profile(select(network, Target.parse(target)), 16, 16)
        assert (found["params"], found["macs"], found["macs_dbfskd"]) == (counted.params, counted.macs, counted.macs_dbfskd)
        assert 0 <= found["top1"] <= found["top5"] <= 100
        assert (found["n"], found["split"], found["epoch"]) == (32, "test", 2)


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(colours: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        train(recipe_for("baseline", epochs=1, seed=seed), colours, tmp_path / name)
    assert_same_state(tmp_path / "one", tmp_path / "same")
    with pytest.raises(AssertionError, match="differ"):
        assert_same_state(tmp_path / "one", tmp_path / "other")


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from kdzoo.train.recipe_file import load_recipe
from kdzoo.train.reporter import Silent
from kdzoo.train.run import run_training

torch.set_num_threads(1)

class Killer(Silent):
    def step(self, report):
        if (report.epoch, report.step) == (1, 3):
            os.kill(os.getpid(), signal.SIGKILL)
    def epoch(self, record): pass

recipe = load_recipe(sys.argv[1])[1]
run_training("test-entry", recipe, data=Path(sys.argv[2]), output=Path(sys.argv[3]), reporter=Killer())
"""


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_and_resumed_ends_with_the_weights_of_an_uninterrupted_one(
    whole: RunResult, colours: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load((whole.folder / "recipe.yaml").read_text()), "checkpoint_minutes": 1e-9})
    )
    arguments = [str(tmp_path / "recipe.yaml"), str(colours), str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    state = Checkpoint.open(tmp_path / "run").training_state().values
    assert (state["epoch"], state["step"]) == (1, 2), "the checkpoint to resume from is not one of mid-epoch"

    recipe = load_recipe(str(whole.folder / "recipe.yaml"))[1]
    result = train(recipe, colours, tmp_path / "run", resume=True)
    assert result.finished
    assert_same_state(whole.folder, tmp_path / "run")
    assert result.metrics == whole.metrics
    for resumed, plain in zip(log_of(tmp_path / "run"), log_of(whole.folder), strict=True):
        assert resumed["losses"] == plain["losses"] and resumed["train_top1"] == plain["train_top1"]
    assert log_of(tmp_path / "run")[-1]["resumed_at_step"] == 2
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")], "the killed run left temporary files behind"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize(("step", "saved_at"), [(2, (0, 2)), (4, (1, 0))], ids=["mid-epoch", "last step"])
def test_a_signal_saves_stops_and_can_be_resumed(
    colours: Path, tmp_path: Path, number: int, step: int, saved_at: tuple[int, int]
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    result = train(recipe_for("baseline"), colours, tmp_path / "run", reporter=SignalAt(number, 0, step))
    assert not result.finished
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    state = Checkpoint.open(tmp_path / "run").training_state().values
    assert (state["epoch"], state["step"]) == saved_at
    assert train(recipe_for("baseline"), colours, tmp_path / "run", resume=True).finished
    assert [r["epoch"] for r in log_of(tmp_path / "run")] == [1, 2]


def write_recipe(path: Path, recipe: Recipe) -> Path:
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    return path


def test_the_command_line_exits_130_after_sigterm_and_resumes_by_folder(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path / "small.yaml", recipe_for("baseline")), tmp_path / "run"
    killer = SignalAt(signal.SIGTERM, 1, 1)
    with monkeypatch.context() as patched:
        patched.setattr(cli_train.LineReporter, "step", lambda self, report: killer.step(report))
        assert exit_code_of(recipe, "--data", colours, "-o", out, "--json") == 130
    document = json.loads(capsys.readouterr().out)
    assert document["finished"] is False and document["epochs"] == 1
    assert exit_code_of(recipe, "--data", colours, "-o", out) == 2
    assert "--resume" in capsys.readouterr().err
    assert exit_code_of(out, "--resume", "--data", colours, "--json") == 0
    assert json.loads(capsys.readouterr().out)["finished"] is True


def test_a_run_that_died_before_its_recipe_was_written_is_resumed_by_folder(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path / "small.yaml", recipe_for("baseline", epochs=1)), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_recipe", lambda *_: 1 / 0)
        assert exit_code_of(recipe, "--data", colours, "-o", out) == 1
    assert [path.name for path in out.iterdir()] == ["checkpoint"]
    capsys.readouterr()
    assert exit_code_of(out, "--resume", "--data", colours, "--set", "seed=-1") == 2
    assert "--set seed=-1: recipe key 'seed' cannot be -1" in capsys.readouterr().err
    assert exit_code_of(out / "checkpoint", "--resume", "--data", colours) == 2
    assert f"Next: kdzoo train {out} --resume" in capsys.readouterr().err
    assert exit_code_of(out, "--resume", "--data", colours) == 0
    assert load_recipe(str(out / "recipe.yaml"))[1] == recipe_for("baseline", epochs=1)
    assert Checkpoint.open(out).manifest.entry == "small"


# At 1e30 the next loss is not finite, at 1e60 the weights after the first step are, whose loss was still finite.
@pytest.mark.parametrize("factor", [1e30, 1e60])
@pytest.mark.parametrize("checkpoint_minutes", [10.0, 0.0], ids=["at the end", "at the next save"])
def test_divergence_stops_and_keeps_the_last_good_checkpoint(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, checkpoint_minutes: float
) -> None:
    monkeypatch.setattr(loop, "learning_rate", lambda lr, schedule, epoch, num_epochs: lr * (1 if epoch < 1 else factor))
    recipe = recipe_for("baseline", epochs=3, checkpoint_minutes=checkpoint_minutes, precision="fp32")
    with pytest.raises(TrainingDiverged, match="diverged"):
        train(recipe, colours, tmp_path / "run")
    checkpoint = Checkpoint.open(tmp_path / "run")
    checkpoint.verify()
    assert checkpoint.manifest.epochs == 1
    assert all(tensor.isfinite().all() for tensor in checkpoint.network().state_dict().values())
    assert [r["epoch"] for r in log_of(tmp_path / "run")] == [1]


def test_the_command_line_exits_3_after_divergence(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "wild.yaml", recipe_for("baseline", optimizer={"lr": 1e30}, precision="fp32"))
    assert exit_code_of(recipe, "--data", colours, "-o", tmp_path / "run") == 3
    assert "last good checkpoint is kept" in capsys.readouterr().err
    assert Checkpoint.open(tmp_path / "run").manifest.epochs == 0, "the checkpoint of the start is gone"


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        train(recipe_for(), colours, tmp_path)
    with pytest.raises(OutputError, match="not a folder"):
        train(recipe_for(), colours, tmp_path / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_resuming_an_empty_folder_is_refused(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no checkpoint"):
        train(recipe_for(), colours, tmp_path, resume=True)


def test_resuming_with_another_recipe_names_what_differs(colours: Path, tmp_path: Path) -> None:
    train(recipe_for("baseline", epochs=1), colours, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint" / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="another optimizer, seed"):
        train(recipe_for("baseline", epochs=1, seed=5, optimizer={"lr": 0.2}), colours, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "checkpoint" / "manifest.json").read_bytes() == before


def test_more_epochs_may_be_asked_of_a_finished_run(colours: Path, tmp_path: Path) -> None:
    train(recipe_for("baseline", epochs=1), colours, tmp_path / "run")
    again = train(recipe_for("baseline", epochs=1), colours, tmp_path / "run", resume=True)
    assert again.finished and set(again.metrics) == {"target"}
    more = train(recipe_for("baseline", epochs=2, checkpoint_minutes=1.0), colours, tmp_path / "run", resume=True)
    assert more.finished and more.epochs == 2
    assert [r["epoch"] for r in log_of(tmp_path / "run")] == [1, 2]


def test_resuming_with_images_of_other_classes_is_refused(colours: Path, tmp_path: Path) -> None:
    train(recipe_for("baseline", epochs=1), colours, tmp_path / "run")
    with np.load(colours) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "classes": np.array([f"other {i}" for i in range(NUM_COLOURS)])})
    with pytest.raises(UsageError, match="other classes"):
        train(recipe_for("baseline", epochs=2), tmp_path / "other.npz", tmp_path / "run", resume=True)


def test_missing_data_is_said_with_the_places_that_were_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDZOO_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        run_training("test-entry", recipe_for(), data=None, output=tmp_path / "run", reporter=Silent())
    assert exit_code_of("baseline-resnet32-cifar100") == 2
    assert "--data" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "a run that cannot begin left a folder"


def test_a_single_training_image_is_refused(colours: Path, tmp_path: Path) -> None:
    with np.load(colours) as arrays:
        one = {"train_images": arrays["train_images"][:1], "train_labels": arrays["train_labels"][:1]}
        np.savez(tmp_path / "one.npz", **{**arrays, **one})
    with pytest.raises(DataError, match="single training image"):
        train(recipe_for(), tmp_path / "one.npz", tmp_path / "run")


def test_training_learns_colours(colours: Path, tmp_path: Path) -> None:
    schedule = {"kind": "cosine"}
    result = train(recipe_for("baseline", epochs=6, augment={"pad": 0}, schedule=schedule), colours, tmp_path / "run")
    losses = [record["losses"]["ce"] for record in log_of(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0], losses
    assert result.metrics["target"]["top1"] > 60, "eight colours are hardly told apart"
