"""What lies in a package: the files of the design, described as they are, the same bytes whenever they are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from kdzoo.export import tensorrt_build
from kdzoo.export.cards.package_card import package_card
from kdzoo.export.onnx_file import OnnxRunner
from kdzoo.export.package import Package
from kdzoo.tests.small_engines import HAS_RTX, needs_rtx
from kdzoo.tests.small_packages import CLASSES, LAYOUT, files_of
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.datasets import LabelledImages
from kdzoo.zoo.files import read_json, sha256

ENGINE = "model.fp32.sm86.trt-rtx.engine"
# `python -m kdzoo`, but for the seconds in which latency is measured.
KDZOO = """
import sys
from kdzoo.cli import main
from kdzoo.export import measure_rounds

measure_rounds.ROUNDS, measure_rounds.PASSES, measure_rounds.SECONDS = 2, 1, 0.002
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def second(once: Callable[..., Path], toy_checkpoint: Checkpoint, toys_npz: Path) -> tuple[Package, str]:
    """Branch 1 again, by the command line, in another process and folder, with an engine where one can be built; its stdout."""
    folder = once("elsewhere", lambda folder: export_again(toy_checkpoint, toys_npz, folder))
    return Package.open(folder / "again"), (folder / "stdout").read_text()


def export_again(toy_checkpoint: Checkpoint, toys_npz: Path, folder: Path) -> None:
    formats = ["-f", "trt-rtx", "-c", "8.6"] if HAS_RTX else ["-f", "onnx"]
    command = [sys.executable, "-c", KDZOO, "export", str(toy_checkpoint.folder), "-b", "1", *formats, "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [*command, "--data", str(toys_npz), "-o", "again"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"the second export failed: {done.stderr}"
    (folder / "stdout").write_text(done.stdout)


def test_a_package_holds_the_files_of_the_design_and_nothing_else(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    assert files_of(package.folder) == LAYOUT
    assert set(package.document["files"]) == LAYOUT - {"manifest.json"}
    assert not [p for p in package.folder.parent.iterdir() if p.name.startswith(".")], "a temporary folder was left"
    assert package.labels == list(CLASSES)
    assert package.folder.stat().st_mode & 0o777 == 0o755


def test_the_manifest_describes_every_artifact(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    (artifact,) = package.artifacts
    path = package.folder / artifact.path
    assert (artifact.sha256, artifact.bytes) == (sha256(path), path.stat().st_size)
    assert (artifact.input.name, artifact.input.dtype, artifact.input.shape) == ("image", "uint8", ("N", 32, 32, 3))
    assert (artifact.output.name, artifact.output.dtype, artifact.output.shape) == ("logits", "float32", ("N", 10))
    assert package.metrics["artifacts"][artifact.path]["batches_exercised"] == [1, 8, 64]
    inside = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(inside["kdzoo.labels"]) == list(CLASSES)
    assert json.loads(inside["kdzoo.preprocess"]) == read_json(package.folder / "preprocess.json")


def test_the_accuracy_of_a_file_is_that_of_its_own_logits(package_of: Callable[[str], Package], toys: LabelledImages) -> None:
    package = package_of("2")
    logits = OnnxRunner(package.folder / "model.fp32.onnx")(toys.images)
    stated = package.metrics["artifacts"]["model.fp32.onnx"]["accuracy"]
    assert stated["n"] == len(toys)
    assert stated["top1"] == pytest.approx(100 * (logits.argmax(1) == toys.labels).mean(), abs=1e-3)
    best_five = np.argsort(logits, axis=1)[:, -5:]
    assert stated["top5"] == pytest.approx(100 * (best_five == toys.labels[:, None]).any(1).mean(), abs=1e-3)


# --- the same command twice ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_exports_give_the_same_bytes(package_of: Callable[[str], Package], second: tuple[Package, str]) -> None:
    first, again = package_of("1").folder, second[0].folder
    names = sorted(LAYOUT - {"README.md", "manifest.json", "metrics.json"})
    differ = [name for name in names if sha256(first / name) != sha256(again / name)]
    assert len(names) == 7 and not differ, f"{differ} depend on process, folder or time"


@needs_rtx
def test_two_engines_are_the_same_bytes(second: tuple[Package, str], tmp_path: Path) -> None:
    package, _ = second
    (engine,) = [a for a in package.artifacts if a.path == ENGINE]
    if not engine.details["reproducible"]:
        pytest.skip("addresses cannot be fixed on this machine, and the builder says so")
    path = tmp_path / ENGINE
    request = tensorrt_build.EngineRequest(package.folder / "model.fp32.onnx", path, "tensorrt_rtx", "8.6", (1, 8, 64))
    assert tensorrt_build.build_engine(request).sha256 == engine.sha256


@needs_rtx
def test_an_engine_is_said_to_be_built_and_not_run(second: tuple[Package, str]) -> None:
    package, _ = second
    assert files_of(package.folder) == LAYOUT | {ENGINE, f"{ENGINE}.json"}, "the ONNX stays beside the engine, with a sidecar"
    card = (package.folder / "README.md").read_text()
    assert f"- `{ENGINE}`: built, not run" in card
    (row,) = [line for line in card.splitlines() if line.startswith(f"| `{ENGINE}`")]
    assert "compute capability 8.6" in row and row.count("not measured") == 3
    assert "TensorRT-RTX parse" in package.metrics["artifacts"]["model.fp32.onnx"]["checker"]


def test_json_on_stdout_is_the_manifest_and_the_metrics(second: tuple[Package, str]) -> None:
    package, stdout = second
    document = json.loads(stdout)
    assert document["metrics"] == package.metrics
    assert {key: document[key] for key in package.document} == package.document


# --- card ---------------------------------------------------------------------------------------------------------------


def test_the_card_is_made_of_the_json_alone(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    read = (package.document, package.metrics, package.artifacts, package.labels, package.preprocess.to_dict())
    assert package_card(*read) == (package.folder / "README.md").read_text(), "the card holds something that the JSON does not"


def test_the_card_states_the_numbers_of_the_json(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    (artifact,) = package.artifacts
    metrics = package.metrics
    measured = metrics["artifacts"][artifact.path]
    measured["accuracy"]["top1"], metrics["reference"]["top1"], metrics["student"]["params"] = 12.34, 56.78, 987654
    times = {"mean_ms": 4.44, "p50_ms": 1.11, "p90_ms": 2.22, "p99_ms": 3.33}
    measured["latency"] = [{"batch": 8, "calls": 55, **times, "images_per_s": 4321.0}]
    measured["parity"] = {**measured["parity"], "n": 4444, "agreement": 0.9876, "max_abs_diff": 0.00033}
    card = package_card(package.document, metrics, package.artifacts, package.labels, package.preprocess.to_dict())
    assert f"| `{artifact.path}` | fp32 | {artifact.bytes:,} |" in card
    for number in ("12.34 %", "56.78 %", "987,654 parameters", "98.76 % of 4,444", "0.00033"):
        assert number in card, f"{number} is in metrics.json and not in the card"
    assert "| model.fp32.onnx | 8 | 4.44 | 1.11 | 2.22 | 3.33 | 4,321 |" in card
    stated = package.metrics["artifacts"][artifact.path]["accuracy"]["top1"]
    assert f"| {stated:.2f} % |" not in card, "the card holds a number from elsewhere"
