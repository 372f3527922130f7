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
        (HEAD.replace("epochs: 2", "epochs: 0"), 4, "'epochs' cannot be 0. Next: it takes a number from 1 to 1000000"),
        (f"{HEAD}optimizer: 0.1\n", 6, "'optimizer' cannot be 0.1. Known: lr, momentum, nesterov, weight_decay"),
        (f"{HEAD}optimizer:\n  lr: fast\n", 7, "it takes a float"),
        (f"{HEAD}schedule:\n  kind: cosin\n", 7, "Known: step, cosine"),
        (f"{HEAD}method_config:\n  aux: lots\n", 7, "method setting 'aux' is 'lots'. Next: it takes a int, as in aux=4"),
        (f"{HEAD}method_config: [4]\n", 6, "it takes keys of its own"),
        (f"{TEACHER}teacher: {{epochs: 0}}\n", 2, "'teacher.epochs' cannot be 0"),
        # An impossible schedule.
        (f"{HEAD}schedule:\n  milestones: [10, -5]\n", 7, "it takes ascending epochs from 1 to 1000000"),
        (f"{HEAD}schedule: {{milestones: [-150, 225]}}\n", 6, "'schedule.milestones' cannot be [-150, 225]"),
        (f"{HEAD}schedule: {{milestones: [225, 150]}}\n", 6, "ascending"),
        (f"{HEAD}schedule:\n  milestones: [1]\n  warmup_epochs: -1\n", 8, "it takes a finite number from 0 on"),
        (f"{HEAD}schedule: {{gamma: -0.1}}\n", 6, "'schedule.gamma' cannot be -0.1. Next: it takes a number above 0, up to 1"),
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
        (f"{HEAD}yes: 1\n", 6, "key 'yes' is no word to YAML. Next: keys are names, as in epochs: 300"),
        (f"{HEAD}1: x\n", 6, "key '1' is no word to YAML"),
        (f"{HEAD}method_config:\n  null: x\n", 7, "key 'method_config.null' is no word to YAML"),
        (f"{HEAD}? [a, b]\n: x\n", 6, "key '[...]' is no word to YAML"),
        (f"{HEAD}<<: {{seed: 3}}\n", 6, "key '<<' is no word to YAML"),
        (f"{HEAD}base: null\n", 6, "'base' cannot be None. Next: it takes the name of a base or of an entry"),
        (f"{HEAD}seed: 0x_\n", 6, "'0x_' cannot be a value of type int"),
        (f"{HEAD}seed: !!bool many\n", 6, "'many' cannot be a value of type bool"),
        (f"{HEAD}seed: 2012-13-45\n", 6, "'seed' cannot be '2012-13-45'"),
        (f"{HEAD}seed: {'9' * 5000}\n", 6, "cannot be a value of type int"),
        (f"{HEAD}seed: 0x{'f' * 5000}\n", 6, "cannot be a value of type int"),
        (f'{HEAD}dataset2: "\\ud800"\n', 6, "cannot be a value of type str"),
        (f"{HEAD}mean: {'[' * 400}\n", 6, "there are lists within lists"),
        (f"{HEAD}method_config: &a {{aux: *a}}\n", 6, "an anchor or an alias, 'a'. Next: recipes have none: write"),
        (f"{HEAD}mean: &a [0.5, 0.5, 0.5]\nstd: *a\n", 6, "there is an anchor or an alias, 'a'"),
        (f"{HEAD}seed: &a 1\n", 6, "there is an anchor or an alias, 'a'"),
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


BIG = "9" * 400
NUMBERS = {
    "seed": ("a number from 0 to 9223372036854775807", "-1", f"{2**70}", BIG),
    "epochs": ("a number from 1 to 1000000", BIG),
    "image_size": ("a number from 1 to 1000000", f"{2**70}"),
    "workers": ("a number from 1 to 1000", "1001"),
    "mean": ("three numbers from 0 to 1", "[.nan, 0.5, 0.5]", "[0.5, .inf, 0.5]", f"[0.5, 0.5, {BIG}]", "[124, 116, 104]"),
    "std": ("three numbers above 0, up to 1", "[.nan, 0.5, 0.5]", "[0.5, .inf, 0.5]", f"[0.5, 0.5, {BIG}]"),
    "schedule.milestones": ("ascending epochs from 1 to 1000000", f"[{BIG}]"),
    "schedule.gamma": ("a number above 0, up to 1", ".nan", BIG, "10"),
    "schedule.warmup_epochs": ("a finite number from 0 on", ".inf", BIG),
    "optimizer.lr": ("a finite number from 0 on", ".nan", ".inf", BIG, "nan", "1e999"),
    "augment.mixup": ("a number from 0 to 1000000", ".nan", ".inf", BIG),
    "augment.pad": ("a number from 0 to 32", BIG),
    "augment.cutout": ("a number from 0 to 1000000", BIG),
    "ema_decay": ("a number from 0 to below 1", ".nan", "-.inf", BIG),
    "checkpoint_minutes": ("a finite number from 0 on", ".nan", ".inf", BIG, "-1"),
    "teacher.seed": ("a number from 0 to 9223372036854775807", "-1", BIG),
    "teacher.optimizer.lr": ("a finite number from 0 on", ".nan", BIG),
    "method_config.aux": ("a number between -1000 and 1000", f"{2**70}", BIG),
    "method_config.temperature": ("a number between -1e+09 and 1e+09", ".nan", ".inf", BIG),
    "method_config.lambda_takl": ("a number between -1e+09 and 1e+09", ".nan", "-.inf", BIG),
}


@pytest.mark.parametrize("how", ["file", "override"])
@pytest.mark.parametrize(("key", "takes", "value"), [(k, takes, v) for k, (takes, *values) in NUMBERS.items() for v in values])
def test_a_number_that_nothing_can_be_computed_with_is_refused_with_its_place(
    how: str, key: str, takes: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *parents, last = key.split(".")
    lines = [f"{'  ' * depth}{parent}:\n" for depth, parent in enumerate(parents)]
    head = "".join(line for line in HEAD.splitlines(keepends=True) if not line.startswith(f"{key}:"))
    text = f"{head}{''.join(lines)}{'  ' * len(parents)}{last}: {value}\n"
    if how == "file":
        said, place = refused(text, tmp_path, capsys), f"recipe my.yaml, line {text.count(chr(10))}"
    else:
        said, place = refused(HEAD, tmp_path, capsys, "--set", f"{key}={value}"), f"--set {key}={value}"
    assert said.startswith(f"kdzoo: {place}: "), said
    assert f"'{key.removeprefix('method_config.')}'" in said and said.endswith(f"Next: it takes {takes}\n")


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
        ("mean.x=3", "--set mean.x=3: recipe key 'mean' cannot be {'x': 3}"),
        ("optimizer={1: 2}", "--set optimizer={1: 2}: key 'optimizer.1' is no word to YAML"),
        ("method_config={1: 2}", "--set method_config={1: 2}: key 'method_config.1' is no word to YAML"),
        ("optimizer={lr: 1, lr: 2}", "--set optimizer={lr: 1, lr: 2}: key 'optimizer.lr' is there twice"),
        ("epochs=&a 3", "--set epochs=&a 3: there is an anchor or an alias, 'a'"),
        ("epochs=!!int many", "--set epochs=!!int many: cannot be read as YAML: 'many' cannot be a value of type int"),
        ("epochs=[", "--set epochs=[: cannot be read as YAML"),
        ("optimizer..lr=3", "--set optimizer..lr=3: it is not of the form key=value"),
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
