"""Networks that are given to teach: opened in every form; refused where they do not fit."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdzoo.errors import IntegrityError, UsageError
from kdzoo.export import onnx_graph
from kdzoo.export.exporter import export
from kdzoo.export.formats import onnx as onnx_format
from kdzoo.export.onnx_file import OnnxInfo
from kdzoo.tests.small_runs import SignalAt, exit_code_of, train, write_colours
from kdzoo.tests.small_teachers import COLOURS, save_teacher, taught, written
from kdzoo.train import run_folder
from kdzoo.train.teachers import open_source
from kdzoo.zoo.checkpoint import WEIGHTS, Checkpoint
from kdzoo.zoo.target import Target

MakeCheckpoint = Callable[..., Checkpoint]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "draw_curve", lambda *_: False)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("data") / "few.npz", 16, 8)


@pytest.fixture
def make_checkpoint(npz: Path, tmp_path: Path) -> MakeCheckpoint:
    """`make(folder="teacher", **of_the_network)`: a checkpoint in `tmp_path / folder` (`save_teacher`)."""
    return lambda folder="teacher", **of_the_network: save_teacher(tmp_path / folder, npz, **of_the_network)


@pytest.fixture
def make_package(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`make(target, **of_the_checkpoint)`: the folder of its package, whose ONNX file is none."""

    def nothing(graph: object, path: Path, *_: object, **__: object) -> Any:
        path.write_bytes(b"none")
        batch = ("N", 16, 16, 3)
        return OnnxInfo(path, 20, 10, 1, (("image", "uint8", batch),), (("logits", "float32", ("N", 8)),), 4, "", "")

    monkeypatch.setattr(onnx_graph, "trace_onnx", lambda student, **_: None)
    monkeypatch.setattr(onnx_format, "write_onnx", nothing)

    def make(target: str, **of_the_checkpoint: Any) -> Path:
        checkpoint = make_checkpoint(**of_the_checkpoint)
        package = export(checkpoint, Target.parse(target), output=checkpoint.folder.parent / f"package-{target}", verify=False)
        return package.folder

    return make


@pytest.mark.parametrize("form", ["run", "checkpoint", "package"])
def test_a_teacher_is_opened_in_every_form(form: str, make_checkpoint: MakeCheckpoint, make_package: Callable[..., Path]) -> None:
    package, checkpoint = make_package("target"), make_checkpoint()
    source = open_source(str({"run": checkpoint.folder.parent, "checkpoint": checkpoint.folder, "package": package}[form]))
    assert (source.backbone, source.classes, source.preprocess) == ("resnet8", COLOURS, taught().preprocess)
    source.check("resnet8", COLOURS, taught().preprocess)
    teacher, images = source.load(), torch.randn(3, 3, 16, 16)
    said, whole = teacher.train()(images), checkpoint.network()(images)
    assert torch.equal(said.logits[0], whole.logits[0]) and torch.equal(said.features[0], whole.features[0])
    assert not said.logits[0].requires_grad and not any(p.requires_grad for p in teacher.parameters())


def test_of_a_network_with_several_branches_the_target_teaches(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(method="okddip")
    images = torch.randn(3, 3, 16, 16)
    said = open_source(str(checkpoint.folder)).load()(images)
    assert torch.equal(said.logits[0], checkpoint.network()(images).logits[3]), "the group leader is branch 4"


def test_a_given_teacher_is_used_none_is_trained_and_a_resumed_run_finds_it(
    npz: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, run = make_checkpoint(backbone="resnet14"), tmp_path / "runs" / "one"
    recipe = written(taught("simkd", method_config={}), tmp_path)
    assert exit_code_of(recipe, "--teacher", checkpoint.folder.parent, "--data", npz, "-o", run) == 0, capsys.readouterr().err
    assert not (tmp_path / "runs" / "teachers").exists()
    student = Checkpoint.open(run)
    assert student.manifest.method_config["teacher"] == "resnet14" and student.manifest.entry == "my-modified"
    classifiers = [c.network().state_dict()["classifier1.2.weight"] for c in (checkpoint, student)]
    assert torch.equal(*classifiers), "SimKD takes over the classifier of its teacher"

    arguments = (run, "--resume", "--data", npz, "--set", "epochs=2")
    capsys.readouterr()
    shutil.move(checkpoint.folder.parent, tmp_path / "away")
    assert exit_code_of(*arguments) == 2
    assert f"there is no teacher '{checkpoint.folder}'" in capsys.readouterr().err
    shutil.move(tmp_path / "away", checkpoint.folder.parent)
    assert exit_code_of(*arguments) == 0
    assert Checkpoint.open(run).manifest.epochs == 2


@pytest.mark.parametrize("target", ["fused", "ensemble"])
def test_several_branches_teach_by_their_logits_and_have_no_classifier_to_take_over(
    target: str, npz: Path, tmp_path: Path, make_package: Callable[..., Path]
) -> None:
    source = open_source(str(make_package(target, method="ahbf", num_branches=2, aux=1)))
    assert train(taught("kd"), npz, tmp_path / "kd", teachers=[source]).finished
    for method in ("simkd", "dckd"):
        with pytest.raises(UsageError, match="made of several branches"):
            train(taught(method), npz, tmp_path / method, teachers=[source])
        assert not (tmp_path / method).exists()


WARM = replace(taught().preprocess, mean=(0.5, 0.5, 0.5))
LARGE = replace(taught().preprocess, height=32, width=32)


@pytest.mark.parametrize(
    ("method", "teachers", "words"),
    [
        ("kd", [{"classes": COLOURS[:5]}], "its number of classes is 5, the student's 8"),
        ("kd", [{"classes": ("scarlet", *COLOURS[1:])}], "its class 0 is 'scarlet', the student's 'colour 0'"),
        ("dkd", [{"classes": (*COLOURS[:2], "colour 3", "colour 2", *COLOURS[4:])}], "its class 2 is 'colour 3', the student's"),
        ("simkd", [{"preprocess": LARGE}], "its input is (32, 32), the student's (16, 16)"),
        ("kd", [{"preprocess": WARM}], "its normalisation is ((0.5, 0.5, 0.5), "),
        ("tf_kd", [{"backbone": "resnet14"}], "its backbone is resnet14, the student's resnet8"),
        ("ffcl", [{}, {"backbone": "resnet14"}], "its backbone is resnet14, the student's resnet8"),
        ("ffcl", [{"backbone": "resnet14"}], "its backbone is resnet14, the student's resnet8"),
        ("kd", [{}, {}], "method kd takes 1 teachers, 2 were given"),
        ("baseline", [{}], "method baseline takes 0 teachers, 1 were given"),
    ],
    ids=["number of classes", "classes", "order of classes", "input", "normalisation", "backbone", "second of two",
         "first of two", "too many", "any"],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_refused_with_the_difference(
    method: str,
    teachers: list[dict[str, Any]],
    words: str,
    npz: Path,
    tmp_path: Path,
    make_checkpoint: MakeCheckpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [make_checkpoint(folder=f"teacher{n}", **changes).folder.parent for n, changes in enumerate(teachers)]
    given = [word for folder in folders for word in ("--teacher", folder)]
    assert exit_code_of(written(taught(method), tmp_path), *given, "--data", npz, "-o", tmp_path / "runs" / "one") == 2
    err = capsys.readouterr().err
    assert words in err and "Next: " in err
    assert ("my.yaml, line " in err) == ("does not fit" in err)
    assert err.count("\n") == 1, "it was refused after something else had been done"
    assert not (tmp_path / "runs").exists()


def test_a_run_is_resumed_with_the_weights_that_taught_it(npz: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    one, other = (open_source(str(make_checkpoint(folder=f"teacher{seed}", seed=seed).folder)) for seed in (1, 2))
    recipe, run = taught(epochs=2), tmp_path / "run"
    train(recipe, npz, run, teachers=[one], reporter=SignalAt(signal.SIGTERM, 1, 1))
    before = (run / "checkpoint" / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match=r"learnt from other weights than .*teacher2"):
        train(recipe, npz, run, teachers=[other], resume=True)
    assert (run / "checkpoint" / "manifest.json").read_bytes() == before
    assert train(recipe, npz, run, teachers=[one], resume=True).finished


@pytest.mark.parametrize("form", ["checkpoint", "package"])
def test_a_corrupt_teacher_is_refused(
    form: str, npz: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint, make_package: Callable[..., Path]
) -> None:
    folder = make_checkpoint().folder if form == "checkpoint" else make_package("target")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(IntegrityError, match=WEIGHTS):
        train(taught(), npz, tmp_path / "run", teachers=[open_source(str(folder))])
    assert not (tmp_path / "run").exists()


def test_what_holds_no_trained_network_is_no_teacher(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(UsageError, match="there is no teacher 'runs/nothing'") as caught:
        open_source("runs/nothing")
    assert "ahbf-resnet32-cifar100" in caught.value.known, "a bundled entry may teach"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no checkpoint"):
        open_source(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="has not been trained for an epoch"):
        open_source(str(make_checkpoint(epochs=0).folder))
