"""Weights to start from, and what a recipe says about its teacher, are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from kdzoo.cli import main
from kdzoo.errors import UsageError
from kdzoo.tests.small_runs import exit_code_of, recipe_for, train, write_colours
from kdzoo.tests.small_teachers import taught

KD = """method: kd
method_config: {teacher: resnet18-imagenet}
backbone: resnet18-imagenet
dataset: colours
image_size: 64
epochs: 2
batch_size: 8
"""  # lines 1 to 7


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    torch.manual_seed(0)
    save_file(torchvision.models.resnet18(num_classes=8).state_dict(), path)
    return path


def said_about(text: str, folder: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """What `kdzoo train my.yaml` says. The data is not there: that is said where the recipe is all right."""
    path = folder / "my.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ending:
        main(["train", str(path), "--data", str(folder / "nowhere"), "--output", str(folder / "run"), *words])
    err = capsys.readouterr().err
    assert ending.value.code == code and err.count("\n") == 1, err
    return err.replace(str(path), "my.yaml")


@pytest.mark.parametrize("prefix", ["", "teacher."], ids=["student", "teacher"])
@pytest.mark.parametrize(
    ("value", "words", "code"),
    [
        ("none.safetensors", "there is no file none.safetensors", 2),
        (__file__, "test_bad_start.py is not a .safetensors file. Next: no pickle is loaded here; convert", 2),
        ("/", "there is no file /", 2),
        ("required", "starts from weights of ImageNet, and none were given. Next: --set {}=FILE.safetensors", 2),
        ("cut.safetensors", "cannot be read", 6),
        ("other.safetensors", "these are not the weights of torchvision's resnet18", 2),
    ],
    ids=["missing", "no safetensors", "folder", "required", "not whole", "of another network"],
)
def test_weights_to_start_from_are_checked_before_a_teacher_is_trained(
    prefix: str,
    value: str,
    words: str,
    code: int,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    save_file(torchvision.models.resnet34(num_classes=8).state_dict(), "other.safetensors")
    key = f"{prefix}init_weights"
    text = f"{KD}teacher:\n  init_weights: {value}\n" if prefix else f"{KD}\ninit_weights: {value}\n"
    said = said_about(text, tmp_path, capsys, code=code)
    assert said.startswith(f"kdzoo: recipe my.yaml, line 9: {key}: ") and words.format(key) in said, said


def test_a_backbone_that_torchvision_does_not_have_cannot_start_from_its_weights(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = KD.replace("resnet18-imagenet", "resnet20")
    said = said_about(text, tmp_path, capsys, "--set", f"init_weights={weights}")
    assert f"--set init_weights={weights}: init_weights: torchvision has no network that is backbone 'resnet20'. Known: " in said


def test_weights_of_the_backbone_are_accepted_for_student_and_teacher(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no data at" in said_about(f"{KD}init_weights: {weights}\n", tmp_path, capsys)
    other = KD.replace("teacher: resnet18-imagenet", "teacher: resnet8")
    assert "there is no data at" in said_about(f"{other}init_weights: {weights}\n", tmp_path, capsys), "a teacher has its own"


def test_the_api_refuses_weights_that_are_not_there_before_it_makes_a_folder(tmp_path: Path) -> None:
    npz = write_colours(tmp_path / "few.npz", 16, 8)
    for value, words in (("required", "none were given"), ("none.safetensors", "there is no file")):
        with pytest.raises(UsageError, match=words):
            train(recipe_for("baseline", init_weights=value), npz, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "backbone: resnet14",
            "'teacher.backbone' cannot be 'resnet14'. Next: it takes none: a teacher has that of its student",
        ),
        ("method: dml", "'teacher.method' cannot be 'dml'"),
        ("mean: [0.5, 0.5, 0.5]", "'teacher.mean' cannot be"),
        ("teacher: {epochs: 1}", "'teacher.teacher' cannot be {'epochs': 1}"),
        ("seed: -1", "'teacher.seed' cannot be -1"),
        ("schedule: {milestones: [3, 2]}", "'teacher.schedule.milestones' cannot be [3, 2]"),
        ("accumulate: 8", "'teacher.accumulate' cannot be 8. Next: it takes 1 to half of batch_size"),
        ("seeds: 1", "unknown recipe key 'teacher.seeds'; did you mean 'teacher.seed'?"),
        ("optimizer: {lrr: 1}", "unknown recipe key 'teacher.optimizer.lrr'; did you mean 'teacher.optimizer.lr'?"),
    ],
)
def test_what_a_teacher_cannot_have_is_refused_with_its_line(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = said_about(f"{KD}teacher:\n  {line}\n", tmp_path, capsys)
    assert said.startswith("kdzoo: recipe my.yaml, line 9: ") and words in said, said


def test_images_that_are_too_small_for_the_teacher_are_refused_before_it_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = KD.replace("resnet18-imagenet}", "vgg16}").replace("backbone: resnet18-imagenet", "backbone: resnet8")
    said = said_about(text.replace("64", "8"), tmp_path, capsys)
    assert said.startswith("kdzoo: recipe my.yaml, line 5: this network cannot be built"), said


@pytest.mark.slow
def test_a_run_goes_on_without_the_weights_that_it_started_from(weights: Path, tmp_path: Path) -> None:
    npz, start = write_colours(tmp_path / "few.npz", 16, 8), tmp_path / "start.safetensors"
    start.write_bytes(weights.read_bytes())
    recipe = taught("baseline", backbone="resnet18-imagenet", init_weights=str(start), optimizer={"lr": 1e-4}, precision="fp32")
    train(recipe, npz, tmp_path / "run")
    start.unlink()
    assert exit_code_of(tmp_path / "run", "--resume", "--data", npz, "--set", "epochs=2") == 0
