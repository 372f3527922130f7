"""OpenVINO files: the logits of the ONNX they are made of, in the precision that they say, and always the same bytes."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdzoo.errors import EnvironmentProblem, GateFailed, IntegrityError, UsageError
from kdzoo.export.cascade import nest_file
from kdzoo.export.exporter import export
from kdzoo.export.format import FORMATS, Batch, ExportOptions
from kdzoo.export.gates import Gates, passing
from kdzoo.export.measure import Measurement
from kdzoo.export.onnx_file import OnnxRunner
from kdzoo.export.onnx_graph import trace_onnx, write_onnx
from kdzoo.export.outputs import run_file_outputs
from kdzoo.export.package import Package
from kdzoo.export.pull import needed
from kdzoo.export.request import Request
from kdzoo.export.runtime import runtime_for
from kdzoo.export.runtimes import openvino as openvino_runtime
from kdzoo.export.thresholds import confidence_of
from kdzoo.export.verify import verify_package
from kdzoo.tests.small_packages import quick_exports
from kdzoo.tests.small_students import SIZE, conv_bn, raw_images
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.datasets import LabelledImages
from kdzoo.zoo.network import IMAGE, MultiBranch
from kdzoo.zoo.paths import check_name
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.student import select
from kdzoo.zoo.target import Target

pytestmark = pytest.mark.slow

openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'kdzoo[openvino]'")
OPTIONS = ExportOptions(precisions=("fp32", "fp16", "int8"), batch=Batch(1, 4, 16), calibration_images=16, int8_grid="unsigned")
OPEN = Gates.of(100.0, 0.0)


@pytest.fixture(scope="module")
def data(toys: LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toys, for calibration and for measuring."""
    path, arrays = tmp_path_factory.mktemp("data") / "toy.npz", dict[str, object](classes=np.array(toys.classes))
    for split in ("train", "test"):
        arrays |= {f"{split}_images": toys.images, f"{split}_labels": toys.labels}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def package(toy_checkpoint: Checkpoint, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Branch 1 in three precisions; what the precision costs the toys is not gated."""
    folder = tmp_path_factory.mktemp("openvino") / "package"
    with quick_exports():
        return export(
            toy_checkpoint, Target.parse("1"), formats=("openvino",), options=OPTIONS, gates=OPEN, output=folder, data=data
        )


def job_in(folder: Path, thresholds: tuple[float, ...] | None = None) -> Any:
    """What `emit` reads of a job."""
    return SimpleNamespace(folder=folder, scratch=folder, options=OPTIONS, thresholds=thresholds)


def write_flat_cascade(path: Path) -> Path:
    """Two exits, `logits_1` and `logits`; not nested yet."""
    torch.manual_seed(0)
    network, node = MultiBranch(), IMAGE
    for number, (inputs, outputs) in enumerate(((3, 8), (8, 16)), start=1):
        node = network.add(f"stage{number}", conv_bn(inputs, outputs, 2), node)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 10))
        nn.init.normal_(head[-1].weight, 0, 4.0)
        network.add_branch(node, head)
    network.target_branch = 2
    return write_onnx(trace_onnx(select(network.eval(), Target.parse("cascade")), **SIZE), path).path


@pytest.mark.parametrize("precision", OPTIONS.precisions)
def test_graph_and_weights_are_described_and_measured_like_every_file(package: Package, precision: str) -> None:
    artifact, source = package.artifact("openvino", precision), package.artifact("onnx", precision)
    assert artifact.path == f"model.{precision}.openvino.xml" and artifact.companions == (f"model.{precision}.openvino.bin",)
    graph, weights = ((package.folder / name).read_bytes() for name in (artifact.path, *artifact.companions))
    assert artifact.sha256 == sha256(graph).hexdigest() and artifact.details["weights_sha256"] == sha256(weights).hexdigest()
    assert artifact.bytes == len(graph) + len(weights)
    assert package.document["files"][artifact.companions[0]]["sha256"] == artifact.details["weights_sha256"]
    assert (artifact.details["from"], artifact.input, artifact.output) == (source.path, source.input, source.output)
    assert b"package" not in graph and str(package.folder).encode() not in graph, "a path of this machine is in the file"
    measured = package.metrics["artifacts"][artifact.path]
    assert measured["runtime"]["runtime"] == "openvino" and measured["runtime"]["device"] == "CPU, computing in f32"
    assert measured["accuracy"]["n"] == 45 and measured["batches_exercised"] == [1, 4, 16]
    assert [row["batch"] for row in measured["latency"]] == [1, 4, 16]
    assert {row["threads"] for row in measured["latency"]} == {measured["runtime"]["threads"]} != {None}


@pytest.mark.parametrize(("precision", "apart"), [("fp32", 1e-4), ("fp16", 1e-2)])
def test_it_gives_the_logits_of_the_onnx_file(package: Package, toys: LabelledImages, precision: str, apart: float) -> None:
    found, expected = (
        run_file_outputs(package.folder, package.artifact(format, precision), toys.images, package.preprocess)["logits"]
        for format in ("openvino", "onnx")
    )
    assert np.abs(found - expected).max() < apart * max(1.0, np.abs(expected).max())


def test_float32_weights_stay_float32_and_half_stay_half(package: Package) -> None:
    sizes = {p: package.document["files"][f"model.{p}.openvino.bin"]["bytes"] for p in ("fp32", "fp16")}
    assert sizes["fp32"] > 3.9 * package.metrics["student"]["params"] > 1.9 * sizes["fp16"]


def test_the_golden_logits_of_every_file_are_its_own(package: Package) -> None:
    found = verify_package(package)["artifacts"]
    for precision in OPTIONS.precisions:
        assert found[f"model.{precision}.openvino.xml"]["golden"]["n"] == 8


def test_the_same_onnx_file_gives_the_same_bytes_in_a_process_that_has_done_much(package: Package, tmp_path: Path) -> None:
    for precision in OPTIONS.precisions:
        shutil.copyfile(package.folder / f"model.{precision}.onnx", tmp_path / f"model.{precision}.onnx")
        (artifact,) = FORMATS.get("openvino")().emit(job_in(tmp_path), precision)
        for name in (artifact.path, *artifact.companions):
            assert (tmp_path / name).read_bytes() == (package.folder / name).read_bytes(), name


def test_pulling_one_format_takes_the_weights_along_and_no_other_file(package: Package) -> None:
    some = needed(package, ("openvino",), ("fp16",))
    assert {name for name in some if name.startswith("model.")} == {"model.fp16.openvino.xml", "model.fp16.openvino.bin"}


def test_its_weights_are_no_pickle_and_other_bin_files_still_are() -> None:
    assert check_name("3/model.fp16.openvino.bin") == "3/model.fp16.openvino.bin"
    for name in ("pytorch_model.bin", "openvino.bin", "model.openvino.BIN"):
        with pytest.raises(IntegrityError, match="such files can hold code"):
            check_name(name)


def test_a_refused_onnx_file_takes_what_was_made_of_it_along(package: Package, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(package.folder, tmp_path / "copy"))
    measured, refused = Measurement({}), dict[str, str]()
    measured.artifacts = copy.deepcopy(package.metrics["artifacts"])
    measured.artifacts["model.fp16.onnx"]["parity"]["nan_count"] = 1
    left = passing(folder, package.artifacts, measured, OPEN, refused)
    assert set(refused) == {"model.fp16.onnx", "model.fp16.openvino.xml"} and "not finite" in refused["model.fp16.onnx"]
    assert refused["model.fp16.openvino.xml"] == "model.fp16.openvino.xml is made from model.fp16.onnx, which was refused"
    kept = {"model.fp32.onnx", "model.fp32.openvino.xml", "model.int8.onnx", "model.int8.openvino.xml"}
    assert {artifact.path for artifact in left} == set(measured.artifacts) == kept
    assert not [path.name for path in folder.iterdir() if "fp16" in path.name]


def test_what_openvino_cannot_do_here_is_told(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harmed = Package.open(Path(shutil.copytree(package.folder, tmp_path / "copy")))
    artifact = harmed.artifact("openvino", "fp32")
    runtime, _ = runtime_for(artifact)
    with pytest.raises(EnvironmentProblem, match="with 4096 threads"):
        runtime.open(harmed.folder, artifact, 4096)
    (harmed.folder / artifact.companions[0]).unlink()
    with pytest.raises(IntegrityError, match=r"model\.fp32\.openvino\.bin.* is missing"):
        runtime.check(harmed.folder, artifact)
    (harmed.folder / artifact.path).write_text("<net/>")
    with pytest.raises(GateFailed, match=r"model\.fp32\.openvino\.xml does not load in OpenVINO"):
        runtime.open(harmed.folder, replace(artifact, details={}))
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(EnvironmentProblem, match="computes in bfloat16"):
        runtime.check(package.folder, replace(package.artifact("onnx", "fp32"), precision="bf16"))
    monkeypatch.setattr(openvino_runtime, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="openvino is not installed") as error:
        runtime.check(package.folder, package.artifact("openvino", "fp32"))
    assert "pip install openvino" in error.value.hint


def test_a_cascade_runs_in_float32_and_is_refused_in_eight_bits(
    preprocess: Preprocess, toy_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path, images = write_flat_cascade(tmp_path / "model.fp32.onnx"), raw_images(16)
    logits = OnnxRunner(path).everything(images)["logits_1"]
    between = float(np.sort(confidence_of(logits))[7:9].mean())
    nest_file(path, (between,))
    expected = OnnxRunner(path).everything(images)
    assert set(expected["exit"]) == {1, 2}

    job = job_in(tmp_path, thresholds=(between,))
    (artifact,) = FORMATS.get("openvino")().emit(job, "fp32")
    assert artifact.details["outputs"] == ["logits", "exit"]
    found = run_file_outputs(tmp_path, artifact, images, preprocess)
    assert found["exit"].tolist() == expected["exit"].tolist() and np.abs(found["logits"] - expected["logits"]).max() < 1e-4
    with pytest.raises(UsageError, match="eight bits behind a condition wrongly") as error:
        Request(("openvino",), OPTIONS).check(toy_checkpoint, {Target("cascade"): tmp_path / "c"})
    assert "right in onnxruntime" in error.value.hint
