"""Networks that teach and are missing: trained first, and kept."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdzoo.errors import BadValue
from kdzoo.tests.small_runs import SignalAt, log_of, train, write_colours
from kdzoo.tests.small_teachers import COLOURS, Names, taught
from kdzoo.train import run_folder
from kdzoo.train.recipe import Recipe
from kdzoo.train.teacher_recipe import teacher_recipe
from kdzoo.train.teachers import teacher_folder
from kdzoo.zoo.checkpoint import WEIGHTS, Checkpoint
from kdzoo.zoo.datasets import LabelledImages, read_npz
from kdzoo.zoo.files import sha256


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "draw_curve", lambda *_: False)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("data") / "few.npz", 16, 8)


def trained_teachers(runs: Path) -> list[Path]:
    return sorted(path for path in (runs / "teachers").iterdir() if path.is_dir())


def test_a_missing_teacher_is_trained_first_and_found_by_the_next_run(npz: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe, names = taught(teacher={"epochs": 2, "optimizer": {"lr": 0.02}}), Names()
    first = train(recipe, npz, tmp_path / "runs" / "one", say=said.append, reporter=names)
    (folder,) = trained_teachers(tmp_path / "runs")
    assert [line for line in said if "kd needs a trained resnet8: training it first, 2 epochs" in line and str(folder) in line]
    assert names.names == ["baseline-resnet8-colours", "test-entry"]
    checkpoint = Checkpoint.open(folder)
    assert (checkpoint.manifest.method, checkpoint.manifest.backbone, checkpoint.manifest.epochs) == ("baseline", "resnet8", 2)
    assert (checkpoint.manifest.recipe["optimizer"]["lr"], checkpoint.manifest.recipe["optimizer"]["momentum"]) == (0.02, 0.9)
    weights = sha256(checkpoint.folder / WEIGHTS)
    described = {"folder": str(checkpoint.folder), "backbone": "resnet8", "weights_sha256": weights}
    assert Checkpoint.open(first.folder).manifest.provenance["teachers"] == [described]
    student, plain = (c.network().state_dict().keys() for c in (Checkpoint.open(first.folder), checkpoint))
    assert student == plain, "the teacher was saved with the student"

    said.clear()
    names = Names()
    train(recipe, npz, tmp_path / "runs" / "two", say=said.append, reporter=names)
    assert names.names == ["test-entry"] and trained_teachers(tmp_path / "runs") == [folder]
    assert [line for line in said if "the teacher resnet8 was trained before" in line and str(folder) in line]
    assert sha256(checkpoint.folder / WEIGHTS) == weights
    losses = [log_of(tmp_path / "runs" / name)[0]["losses"] for name in ("one", "two")]
    assert losses[0] == losses[1], "the run that trained its teacher differs from the one that found it"


def test_a_teacher_whose_training_was_stopped_is_trained_to_its_end(npz: Path, tmp_path: Path) -> None:
    recipe = taught(teacher={"epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        train(recipe, npz, tmp_path / "runs" / "one", reporter=SignalAt(signal.SIGTERM, 1, 1))
    assert not (tmp_path / "runs" / "one").exists(), "the student had not begun"
    (folder,) = trained_teachers(tmp_path / "runs")
    assert Checkpoint.open(folder).manifest.epochs == 1
    assert train(recipe, npz, tmp_path / "runs" / "one").finished
    assert [(r["epoch"], r["resumed_at_step"]) for r in log_of(folder)] == [(1, 0), (2, 1)]


def test_two_peers_of_one_architecture_have_one_teacher(npz: Path, tmp_path: Path) -> None:
    names = Names()
    result = train(taught("ffcl", method_config={"peers": ["resnet14", "resnet8"]}), npz, tmp_path / "run", reporter=names)
    assert names.names == ["baseline-resnet8-colours", "baseline-resnet14-colours", "test-entry"]
    teachers = Checkpoint.open(result.folder).manifest.provenance["teachers"]
    assert [t["backbone"] for t in teachers] == ["resnet8", "resnet14", "resnet8"] and teachers[0] == teachers[2]


def test_another_recipe_or_other_data_means_another_teacher(npz: Path, tmp_path: Path) -> None:
    data, recipe = read_npz(npz, "train"), taught()

    def place(changed: Recipe = recipe, backbone: str = "resnet8", split: LabelledImages = data) -> Path:
        return teacher_folder(tmp_path, teacher_recipe(changed, backbone), split)

    assert place() == place(taught(workers=7, checkpoint_minutes=1.0)) == place(taught("simkd")) == place(taught("tf_kd"))
    others = [
        place(taught(seed=1)), place(taught(epochs=2)), place(taught(teacher={"epochs": 3})), place(backbone="resnet14"),
        place(split=replace(data, labels=data.labels[::-1].copy())), place(split=replace(data, classes=COLOURS[::-1])),
        place(split=replace(data, images=255 - data.images)),
    ]  # fmt: skip
    assert len({place(), *others}) == 1 + len(others)


def test_the_key_teacher_of_a_recipe_changes_that_of_the_student() -> None:
    recipe = taught("simkd", seed=4, epochs=9, teacher={"epochs": 5, "schedule": {"milestones": [2]}, "augment": {"flip": False}})
    told = teacher_recipe(recipe, "resnet14")
    assert (told.method, told.backbone, told.method_config, told.teacher) == ("baseline", "resnet14", {}, {})
    assert (told.epochs, told.schedule.milestones, told.seed, told.batch_size) == (5, (2,), 4, 8)
    assert (told.augment.flip, told.augment.pad) == (False, 2), "what is not changed is as in the student's recipe"


DECIDED = [{"backbone": "resnet14"}, {"image_size": 32}, {"mean": [0.5, 0.5, 0.5]}, {"method": "dml"}, {"dataset": "cifar10"}]


@pytest.mark.parametrize("changes", DECIDED, ids=str)
def test_what_would_make_a_teacher_useless_is_refused_before_it_is_trained(
    changes: dict[str, Any], npz: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadValue, match=f"'teacher.{next(iter(changes))}' cannot be"):
        train(taught(teacher=changes), npz, tmp_path / "runs" / "one")
    assert not (tmp_path / "runs" / "one").exists()
