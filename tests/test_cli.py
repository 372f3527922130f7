"""The command line as a user types it: data on stdout, talk on stderr, torch only where it is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdzoo import __version__
from kdzoo.cli import SECTIONS, group, main
from kdzoo.cli.console import table
from kdzoo.cli.options import expand
from kdzoo.errors import UnknownName
from kdzoo.export import format as export_format
from kdzoo.export import measure, tensorrt_build
from kdzoo.export.card import entry_card
from kdzoo.export.engine_sidecar import gpu_compute_capability, installed_version
from kdzoo.zoo.catalog import DEFAULT_ENTRY, get_entry, published_entries
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.files import read_json

VERBS = [verb for verbs in SECTIONS.values() for verb in verbs]
HAS_RTX = installed_version("tensorrt_rtx") is not None
Call = Callable[..., tuple[str, str]]


def bundled() -> Checkpoint:
    folder = get_entry(DEFAULT_ENTRY).folder
    assert folder is not None, "the default entry is not bundled"
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder in which `kdzoo export --branch 3 --format trt` was typed as it stands (one engine instead of two)."""
    folder, before = tmp_path_factory.mktemp("workplace"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure_latency", partial(measure.measure_latency, seconds=0.005, min_calls=2))
        patch.setattr(export_format, "DEFAULT_CAPABILITIES", ("8.6",))
        patch.setattr(tensorrt_build, "parse_check", lambda onnx: None)  # the build below parses, too
        patch.delenv("KDZOO_DATA", raising=False)
        patch.chdir(folder)
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            main(["export", "--branch", "3", "--format", "trt" if HAS_RTX else "onnx"])
    assert Path.cwd() == before
    yield folder


@pytest.fixture(scope="module")
def package(workplace: Path) -> Path:
    return workplace / f"{DEFAULT_ENTRY}-3"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images that travel with the bundled entry, as a test split."""
    checkpoint = bundled()
    samples = checkpoint.samples()
    path = tmp_path_factory.mktemp("data") / "cifar100.npz"
    np.savez(path, test_images=samples.images, test_labels=samples.labels, classes=np.array(checkpoint.manifest.classes))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One picture of the size of the network, one larger."""
    folder, images = tmp_path_factory.mktemp("pictures"), bundled().samples().images
    Image.fromarray(images[0]).save(folder / "small.png")
    Image.fromarray(images[1]).resize((60, 45)).save(folder / "large.jpg")
    return [str(folder / "small.png"), str(folder / "large.jpg")]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call(words...)` in an empty folder: stdout and stderr of a command that ends well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDZOO_DATA", raising=False)

    def run(*words: object) -> tuple[str, str]:
        capfd.readouterr()
        main([str(word) for word in words])
        return capfd.readouterr()

    return run


# --- the command of the design ------------------------------------------------------------------------------------------


def test_the_command_of_the_readme_works_in_an_empty_folder_and_says_what_it_chose(workplace: Path, package: Path) -> None:
    said, told = (workplace / "err").read_text(), (workplace / "out").read_text()
    assert f"taking the bundled entry {DEFAULT_ENTRY}" in said
    assert "accuracy is not measured again" in said
    assert f"next: kdzoo verify {package.name}" in said
    assert told.startswith(f"{package.name}\n"), "stdout does not begin with the folder"
    assert "model.fp32.onnx" in told
    assert {p.name for p in workplace.iterdir()} == {"out", "err", package.name}
    if HAS_RTX and gpu_compute_capability() is None:
        assert "trt -> trt-rtx: there is no NVIDIA GPU here" in said
        assert "model.fp32.sm86.trt-rtx.engine" in told and "built, not run" in told


def test_the_newest_run_is_preferred_and_said(call: Call, tmp_path: Path) -> None:
    for age, name in ((200, "older"), (100, "newer"), (300, "oldest")):
        folder = tmp_path / "runs" / name / "checkpoint"
        shutil.copytree(bundled().folder, folder, ignore=shutil.ignore_patterns("*.png", "model.*"))
        at = (folder / "manifest.json").stat().st_mtime - age
        os.utime(folder / "manifest.json", (at, at))
    out, err = call("info", "--json")
    assert "taking the newest run, runs/newer" in err
    assert json.loads(out)["folder"] == str(Path("runs/newer/checkpoint"))


def test_all_stands_for_every_target_beside_others_and_each_is_taken_once() -> None:
    expanded = expand(["1+2", "all", "2"], lambda: ("target", "1", "2"))
    assert list(map(str, expanded)) == ["1+2", "target", "1", "2"]
    with pytest.raises(UnknownName):
        expand(["al"], lambda: ())


# --- help ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_in_the_words_of_the_list(verb: str, call: Call) -> None:
    out, err = call(verb, "--help")
    assert out.startswith(f"Usage: kdzoo {verb} ") and "--json" in out and err == ""
    command = group.get_command(None, verb)  # type: ignore[arg-type]
    assert command is not None and command.help is not None
    first = command.help.splitlines()[0]
    stated = next(verbs[verb] for verbs in SECTIONS.values() if verb in verbs)
    assert first == stated, f"kdzoo --help and kdzoo {verb} --help differ"


def test_without_words_it_shows_the_help(call: Call) -> None:
    assert call() == call("--help") == call("-h")
    out, err = call()
    assert err == "" and all(verb in out for verb in VERBS) and "kdzoo export --branch 3 --format trt" in out
    assert __version__ in call("--version")[0]


# --- one JSON document --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", ["ls", "info", "card", "verify", "bench", "predict", "eval", "info-entry", "card-entry", "info-unbundled"]
)
def test_json_is_one_document_on_stdout_and_no_hint(verb: str, call: Call, package: Path, data: Path, pictures: list[str]) -> None:
    words: dict[str, list[object]] = {
        "ls": ["ls"],
        "info": ["info", package],
        "card": ["card", package],
        "verify": ["verify", package],
        "bench": ["bench", package, "--seconds", 0.05, "--batch", 2],
        "predict": ["predict", package, *pictures],
        "eval": ["eval", package, "--data", data],
        "info-entry": ["info", DEFAULT_ENTRY],
        "card-entry": ["card", DEFAULT_ENTRY],
        "info-unbundled": ["info", "dbfskd-resnet18-cifar100"],
    }
    out, err = call(*words[verb], "--json")
    assert json.loads(out)
    assert "next: " not in err
    text, _ = call(*words[verb])
    assert not text.startswith(("{", "[")), "without --json people get a table"


def test_quiet_says_nothing_but_the_result(call: Call) -> None:
    out, err = call("ls", "-q")
    assert DEFAULT_ENTRY in out and err == ""


def test_numbers_stand_right_and_words_left() -> None:
    assert table(("name", "n"), [("a", "1,000"), ("long name", "-")]).splitlines() == [
        "name           n", "---------  -----", "a          1,000", "long name      -",
    ]  # fmt: skip


# --- the verbs ----------------------------------------------------------------------------------------------------------


def test_ls_lists_published_beside_measured(call: Call) -> None:
    listed = {entry["name"]: entry for entry in json.loads(call("ls", "--json")[0])}
    assert listed.keys() >= published_entries().keys()
    assert listed[DEFAULT_ENTRY]["bundled"] and listed[DEFAULT_ENTRY]["published"]["target"] == 74.81
    assert listed[DEFAULT_ENTRY]["measured"] == read_json(bundled().folder / "metrics.json")["targets"]


def test_verify_states_files_and_accuracy(call: Call, package: Path, data: Path) -> None:
    plain, hint = call("verify", package)
    assert "as the manifest describes them" in plain and "--data FOLDER" in hint
    found = json.loads(call("verify", package, "--data", data, "--json")[0])
    accuracy = found["artifacts"]["model.fp32.onnx"]["accuracy"]
    assert accuracy["n"] == 64
    evaluated = json.loads(call("eval", package, "--data", data, "--json")[0])
    assert evaluated == {"model.fp32.onnx": accuracy}


def test_eval_of_a_checkpoint_agrees_with_the_file_that_was_cut_out_of_it(call: Call, package: Path, data: Path) -> None:
    words = ("eval", DEFAULT_ENTRY, "--branch", "3", "--branch", "1+2", "--data", data, "--device", "cpu", "--json")
    measured = json.loads(call(*words)[0])
    of_file = json.loads(call("eval", package, "--data", data, "--json")[0])["model.fp32.onnx"]
    assert set(measured) == {"3", "1+2"}
    assert {k: measured["3"][k] for k in ("n", "top1", "split")} == {k: of_file[k] for k in ("n", "top1", "split")}


def test_bench_measures_the_batches_that_were_asked_for(call: Call, package: Path) -> None:
    document = json.loads(call("bench", package, "--seconds", 0.05, "--batch", 1, "--batch", 3, "--threads", 1, "--json")[0])
    assert [row["batch"] for row in document["results"]] == [1, 3]
    assert all(0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] and row["calls"] >= 20 for row in document["results"])
    if HAS_RTX:
        assert document["not_run"]["model.fp32.sm86.trt-rtx.engine"].startswith("built, not run")


def test_package_and_checkpoint_predict_the_same(call: Call, package: Path, pictures: list[str]) -> None:
    by_package = json.loads(call("predict", package, *pictures, "--top", 3, "--json")[0])
    by_checkpoint = json.loads(call("predict", DEFAULT_ENTRY, "--branch", 3, *pictures, "--top", 3, "--json")[0])
    assert [r["image"] for r in by_package] == pictures
    assert [[c["class"] for c in r["classes"]] for r in by_package] == [[c["class"] for c in r["classes"]] for r in by_checkpoint]
    assert [c["probability"] for c in by_package[1]["classes"]] == pytest.approx(
        [c["probability"] for c in by_checkpoint[1]["classes"]], abs=1e-4
    )
    first = by_package[0]["classes"][0]
    assert bundled().manifest.classes[first["index"]] == first["class"]


@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_a_package_refuses_another_branch_than_its_own(
    verb: str, package: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        main([verb, str(package), *(pictures if verb == "predict" else []), "--branch", "1"])
    assert ending.value.code == 2 and "it holds branch 3 only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "verbs"),
    [
        ("model.fp32.onnx", ["predict", "verify", "bench"]),
        ("labels.txt", ["predict", "verify"]),
        ("preprocess.json", ["predict", "verify"]),
    ],
)
def test_a_damaged_file_is_not_used(
    name: str, verbs: list[str], package: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    content = bytearray((copy / name).read_bytes())
    content[-2] ^= 1
    (copy / name).write_bytes(content)
    for verb in verbs:
        with pytest.raises(SystemExit) as ending:
            main([verb, str(copy), *(pictures if verb == "predict" else [])])
        err = capsys.readouterr().err
        assert ending.value.code == 6 and name in err, f"kdzoo {verb}: {err}"


def test_the_card_of_a_package_is_its_readme(call: Call, package: Path) -> None:
    assert call("card", package)[0].strip() == (package / "README.md").read_text().strip()


def test_the_card_of_an_entry_is_its_readme_and_states_its_measurements() -> None:
    checkpoint = bundled()
    targets = read_json(checkpoint.folder / "metrics.json")["targets"]
    card = entry_card(checkpoint.manifest, targets, published_entries()[DEFAULT_ENTRY])
    assert (checkpoint.folder / "README.md").read_text() == card, "the README is not made of these numbers: run tools/bundle.py"
    for target, measured in targets.items():
        (row,) = [line for line in card.splitlines() if line.startswith(f"| `{target}` |")]
        assert f"| {measured['params']:,} |" in row and f"| {measured['top1']:.2f} % |" in row


def test_an_entry_card_counts_the_points_from_the_paper() -> None:
    manifest = bundled().manifest
    facts = {"params": 10, "macs": 20, "top1": 73.81, "top5": None, "n": 10000, "split": "test"}
    published = published_entries()[DEFAULT_ENTRY]
    assert published["published"]["target"] == 74.81  # table 2: 25.19 % error
    assert "**1.00 points below**" in entry_card(manifest, {"target": facts}, published)
    assert "| 73.81 % | - | 74.81 % | -1.00 |" in entry_card(manifest, {"target": facts}, published)
    assert "publishes no figures" in entry_card(manifest, {"target": facts}, {})


def test_the_card_of_an_unfinished_run_says_so() -> None:
    manifest = bundled().manifest
    facts = {"params": 10, "macs": 20, "top1": 73.81, "top5": None, "n": 10000, "split": "test"}
    for epochs, unfinished in ((3, True), (7, False)):
        card = entry_card(replace(manifest, epochs=epochs, recipe={**manifest.recipe, "epochs": 7}), {"target": facts}, {})
        assert f"after epoch {epochs} of 7" in card
        assert ("The run is not finished" in card) == unfinished


# --- what is imported ---------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "onnxscript"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
from kdzoo.cli import main
for line in sys.argv[1:]:
    try:
        main(line.split("\\t"))
    except SystemExit as ending:
        assert not ending.code, f"{line} ended with {ending.code}"
"""


def test_everything_but_training_and_export_works_without_torch(package: Path, pictures: list[str], tmp_path: Path) -> None:
    lines: list[list[object]] = [
        ["--help"], ["export", "--help"], ["train", "--help"], ["ls", "--json"], ["info", package, "--json"],
        ["info", DEFAULT_ENTRY], ["card", package], ["card", DEFAULT_ENTRY], ["verify", package], ["predict", package, *pictures],
        ["bench", package, "--seconds", 0.05, "--batch", 1],
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = ["\t".join(map(str, line)) for line in lines]
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_imports_click_and_little_else() -> None:
    code = "import sys, kdzoo.cli; print(sorted({'numpy', 'onnx', 'PIL', 'rich', 'torch', 'onnxruntime'} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "kdzoo", "info", DEFAULT_ENTRY, "--json"], env=environment, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=120)
    assert err == ""
