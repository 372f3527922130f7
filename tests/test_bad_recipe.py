"""A bad recipe ends with exit code 2 before any data is read; the message names the file, the line and what was probably meant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdzoo.cli import main

HEAD = "method: ahbf\nbackbone: resnet20\ndataset: cifar100\nepochs: 2\nbatch_size: 16\n"  # lines 1 to 5
TEACHER = "base: thfkd-resnet20-from-resnet56-cifar100\n"


def refused(text: str | bytes, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `kdzoo train my.yaml` says about the recipe `text`; it must end with 2, and leave nothing behind."""
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as ending:
        main(["train", str(path), "--output", str(folder / "run"), *words])
    out, err = capsys.readouterr()
    assert ending.value.code == 2, err
    assert out == "" and err.startswith("kdzoo: ") and err.count("\n") == 1, "one sentence on stderr"
    assert not (folder / "run").exists()
    return err.replace(str(path), "my.yaml")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        # An unknown key.
        (f"{HEAD}epoch: 3\n", 6, "unknown recipe key 'epoch'; did you mean 'epochs'?"),
        (f"{HEAD}optimizer:\n  momentum: 0.9\n  lrr: 0.1\n", 8, "'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        (f"{HEAD}schedule: {{kind: step,\n           milestone: [1]}}\n", 7, "did you mean 'schedule.milestones'?"),
        (f"{HEAD}milestones: [1]\n", 6, "write it below schedule, as in schedule: {milestones: ...}"),
        (f"{HEAD}method_config:\n  aux: 1\n  num_brnches: 3\n", 8, "method setting 'num_brnches'; did you mean 'num_branches'?"),
        (f"{TEACHER}teacher:\n  epochs: 1\n  optimiser: {{lr: 0.1}}\n", 4, "did you mean 'teacher.optimizer'?"),
        # A wrong type or value.
        (f"{HEAD}seed: many\n", 6, "recipe key 'seed' cannot be 'many'. Next: it takes a int"),
        (HEAD.replace("epochs: 2", "epochs: 0"), 4, "'epochs' cannot be 0. Next: it takes at least 1"),
        (f"{HEAD}optimizer: 0.1\n", 6, "'optimizer' cannot be 0.1. Known: lr, momentum, nesterov, weight_decay"),
        (f"{HEAD}optimizer:\n  lr: fast\n", 7, "it takes a float"),
        (f"{HEAD}schedule:\n  kind: cosin\n", 7, "Known: step, cosine"),
        (f"{HEAD}method_config:\n  aux: lots\n", 7, "method setting 'aux' is 'lots'. Next: it takes a int, as in aux=4"),
        (f"{HEAD}method_config: [4]\n", 6, "it takes keys of its own"),
        (f"{TEACHER}teacher: {{epochs: 0}}\n", 2, "'teacher.epochs' cannot be 0"),
        # An impossible schedule.
        (f"{HEAD}schedule:\n  milestones: [10, -5]\n", 7, "it takes ascending epochs from 1 on"),
        (f"{HEAD}schedule: {{milestones: [-150, 225]}}\n", 6, "'schedule.milestones' cannot be [-150, 225]"),
        (f"{HEAD}schedule: {{milestones: [225, 150]}}\n", 6, "ascending"),
        (f"{HEAD}schedule:\n  milestones: [1]\n  warmup_epochs: -1\n", 8, "it takes a finite number from 0 on"),
        (f"{HEAD}schedule: {{gamma: -0.1}}\n", 6, "'schedule.gamma' cannot be -0.1. Next: it takes a finite number above 0"),
        # An impossible network.
        (f"{HEAD}method_config:\n  aux: 1\n  num_branches: 1\n", 8, "2 branches, not 1. Next: for one branch use method baseline"),
        (f"{HEAD}method_config:\n  num_branches: -3\n", 7, "at least 2 branches, not -3"),
        (f"{HEAD}method_config:\n  aux: 2\n  compress: true\n", 8, "compression cannot take 3 times 2 blocks"),
        (f"{HEAD}method_config:\n  aux: 1\n  branch_stages: 4\n", 8, "cannot own 4 stages. Next: branch_stages is 1 to 3"),
        (HEAD.replace("ahbf", "one") + "method_config: {branch_stages: 9}\n", 6, "own 9 stages. Next: branch_stages is 1 to 3"),
        (HEAD.replace("ahbf", "dbfskd") + "method_config:\n  expansion: 0.01\n", 7, "this network cannot be built"),
        (HEAD.replace("resnet20", "vgg16") + "image_size: 8\n", 6, "this network cannot be built"),
        # No teacher, or one that is unknown.
        (HEAD.replace("ahbf", "kd"), 1, "method kd needs a teacher"),
        (HEAD.replace("ahbf", "dckd") + "method_config: {reading: A}\n", 6, "Next: give trained weights with --teacher SOURCE"),
        (HEAD.replace("ahbf", "kd") + "method_config:\n  teacher: resnet111\n", 7, "backbone 'resnet111'; did you mean 'resnet11"),
        (HEAD.replace("ahbf", "dml") + "method_config:\n  peers: [resnet20, rasnet32]\n", 7, "did you mean 'resnet32'?"),
        # Names that nobody knows.
        (HEAD.replace("ahbf", "abhf"), 1, "unknown method 'abhf'; did you mean 'ahbf'?"),
        (HEAD.replace("resnet20", "resnett20"), 2, "unknown backbone 'resnett20'; did you mean 'resnet20'?"),
        (HEAD.replace("cifar100", "cifer100"), 3, "unknown data set 'cifer100'; did you mean 'cifar100'?"),
        (f"base: ahbf-cifar1000\n{HEAD}", 1, "unknown base 'ahbf-cifar1000'; did you mean 'ahbf-cifar100'?"),
        (f"base: [ahbf-cifar100]\n{HEAD}", 1, "it takes the name of a base or of an entry"),
        # What is no recipe at all.
        (f"{HEAD}seed: 1\nepochs: 3\n", 7, "key 'epochs' is there twice, first in line 4"),
        (f"{HEAD}optimizer:\n  lr: 0.1\n  momentum: 0.9\n  lr: 0.2\n", 9, "key 'optimizer.lr' is there twice, first in line 7"),
        (f"{HEAD}mean: [0.5, 0.5\nstd: 3\n", 7, "cannot be read as YAML"),
        (f"{HEAD}\tseed: 1\n", 6, "cannot be read as YAML"),
        ("- method\n- backbone\n", 1, "it is not a mapping of keys to values"),
        ("", 1, "it is not a mapping of keys to values"),
        (f"{HEAD}yes: 1\n", 6, "key 'yes' is no word to YAML. Next: put it into quotes"),
        (f"{HEAD}method_config: &a {{aux: *a}}\n", 6, "'method_config.aux' is an alias. Next: recipes have none"),
        (f"{HEAD}mean: &a [0.5, 0.5, 0.5]\nstd: *a\n", 7, "'std' is an alias"),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_refused_with_its_line_and_a_suggestion(
    text: str, line: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDZOO_DATA", raising=False)
    said = refused(text, tmp_path, capsys)
    assert said.startswith(f"kdzoo: recipe my.yaml, line {line}: "), said
    assert words in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD.replace("backbone: resnet20\n", ""), "recipe my.yaml: recipe key 'backbone' is missing"),
        (b"\xff\xfe\xfa", "recipe my.yaml cannot be read"),
    ],
)
def test_a_recipe_whose_fault_is_in_no_line_is_refused_by_name(
    text: str | bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(text, tmp_path, capsys)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epoch=3", "--set epoch=3: unknown recipe key 'epoch'; did you mean 'epochs'?"),
        ("schedule.milestones=[3, 2]", "--set schedule.milestones=[3, 2]: recipe key 'schedule.milestones'"),
        ("method_config={num_branches: 0}", "--set method_config={num_branches: 0}: ahbf needs at least 2 branches"),
        ("method_config.branch_stages=7", "--set method_config.branch_stages=7: a branch cannot own 7 stages"),
        ("backbone=resnet21", "--set backbone=resnet21: unknown backbone 'resnet21'; did you mean"),
        ("dataset=cifar-100", "--set dataset=cifar-100: unknown data set 'cifar-100'; did you mean 'cifar100'?"),
    ],
)
def test_a_bad_override_is_named_instead_of_a_line(
    override: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDZOO_DATA", raising=False)
    assert f"kdzoo: {words}" in refused(HEAD, tmp_path, capsys, "--set", override)


def test_a_given_teacher_makes_up_for_the_missing_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDZOO_DATA", raising=False)
    said = refused(HEAD.replace("ahbf", "kd"), tmp_path, capsys, "--teacher", "ahbf-resnet32-cifar100")
    assert "the images of 'cifar100' are not at hand" in said, "the recipe is all right: only the data is missing"


def test_the_line_of_a_base_is_not_mistaken_for_one_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("# a comment\nbase: ahbf-resnet32-cifar100\nbatch_size: 1\n", tmp_path, capsys)
    assert said.startswith("kdzoo: recipe my.yaml, line 3: recipe key 'batch_size' cannot be 1")
    said = refused("base: ahbf-resnet32-cifar100\nbatch_size: 4\naccumulate: 3\n", tmp_path, capsys)
    assert re.search(r"my\.yaml, line 3: recipe key 'accumulate'", said)
