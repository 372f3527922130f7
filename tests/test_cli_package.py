"""The verbs on a package that was exported as README types it; and those that do without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdzoo.cli import main
from kdzoo.export import format as export_format
from kdzoo.export.engine_sidecar import gpu_compute_capability
from kdzoo.tests.small_engines import HAS_RTX
from kdzoo.tests.small_packages import bundled, quick_exports
from kdzoo.zoo.catalog import DEFAULT_ENTRY

Call = Callable[..., tuple[str, str]]
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


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder in which `kdzoo export --branch 3 --format trt` was typed as it stands (one engine instead of two)."""
    folder, before = tmp_path_factory.mktemp("workplace"), Path.cwd()
    with quick_exports() as patch:  # TensorRT's parser is run by the build
        patch.setattr(export_format, "DEFAULT_CAPABILITIES", ("8.6",))
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
    assert [row["batch"] for row in document["results"] if row["runtime"] == "onnxruntime-cpu"] == [1, 3]
    assert all(0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] and row["calls"] >= 20 for row in document["results"])
    if HAS_RTX:
        engines = [each for each in document["not_run"] if each["runtime"] == "trt-rtx"]
        assert {each["file"] for each in engines} == {path.name for path in package.glob("*.engine")} != set()
        assert all(each["reason"] and each["fix"] for each in engines)


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
