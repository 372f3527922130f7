"""What is measured of a file, and which of it closes a gate: exits of a cascade, other batches, files that fail alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdzoo.errors import EnvironmentProblem, GateFailed
from kdzoo.export import measure
from kdzoo.export.format import ExportOptions
from kdzoo.export.gates import Gates, passing
from kdzoo.export.measure import Measurement, exercise_batches, mark_dominated, measure_package, why_not_run
from kdzoo.export.onnx_file import check_onnx
from kdzoo.export.outputs import file_outputs
from kdzoo.export.package import Artifact, Package
from kdzoo.export.parity import compare
from kdzoo.export.runtimes.onnxruntime import OnnxRuntimeCPU
from kdzoo.export.torch_answers import node_logits, student_outputs
from kdzoo.tests.small_engines import write_classifier
from kdzoo.zoo.datasets import LabelledImages

GOOD = {"n": 100, "agreement": 1.0, "max_abs_diff": 1e-5, "nan_count": 0, "largest_logit": 20.0}


@pytest.fixture
def artifact(package_of: Callable[[str], Package]) -> Artifact:
    return package_of("1").artifact()


class Cascade:
    """Images are numbers: exit 1 below the threshold, 2 above; in batches of other sizes the threshold is another."""

    def __init__(self, moves: float = 0.0, shift: float = 0.0) -> None:
        self.moves, self.shift = moves, shift

    def everything(self, inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        exits = np.where(inputs < 50 + (self.moves if len(inputs) < 100 else 0), 1, 2)
        logits = np.stack([inputs * 0.0, exits * 10.0], axis=1) + (self.shift if len(inputs) < 100 else 0)
        return {"logits": logits.astype(np.float32), "exit": exits}


def exercise(session: Cascade, artifact: Artifact) -> None:
    images = np.arange(100.0)
    exercise_batches(session, images, Cascade().everything(images), [1, 8, 64], artifact)  # type: ignore[arg-type]


def test_an_image_at_its_threshold_may_leave_elsewhere_in_another_batch(artifact: Artifact) -> None:
    exercise(Cascade(), artifact)
    exercise(Cascade(moves=1), artifact)  # image 50 leaves at exit 1 in the batch of 64: logits 10 apart
    with pytest.raises(GateFailed, match="lets 5 of 73 images leave at another exit"):
        exercise(Cascade(moves=5), artifact)
    with pytest.raises(GateFailed, match=r"other logits in a batch of 1: they differ by 0\.5"):
        exercise(Cascade(shift=0.5), artifact)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99), ("fp16", 0.97), ("bf16", 0.85), ("int8", 0.85)])
def test_the_exits_of_a_cascade_are_gated(precision: str, least: float, artifact: Artifact) -> None:
    gates, found = Gates(), {"parity": GOOD, "exits": {"agreement": least}}
    gates.check(replace(artifact, precision=precision), found, None)
    found["exits"] = {"agreement": least - 0.001}
    with pytest.raises(GateFailed, match=f"the gate is {100 * least:.0f} %"):
        gates.check(replace(artifact, precision=precision), found, None)


def test_a_cascade_that_never_leaves_where_torch_does_is_refused_and_no_crash(artifact: Artifact) -> None:
    nothing = compare(np.zeros((0, 10), np.float32), np.zeros((0, 10), np.float32))
    assert (nothing.n, nothing.agreement, nothing.max_abs_diff, nothing.nan_count) == (0, 0.0, None, 0)
    with pytest.raises(GateFailed, match=r"lets 0\.00 % of the images leave"):
        Gates().check(artifact, {"parity": vars(nothing), "exits": {"agreement": 0.0}}, None)
    with pytest.raises(GateFailed, match=r"agrees with torch on 0\.000 % of 0 images"):
        Gates().check(artifact, {"parity": vars(nothing)}, None)


def figures(top1: float, p50: float, **parity: Any) -> dict[str, Any]:
    return {"parity": {**GOOD, **parity}, "accuracy": {"top1": top1}, "latency": [{"p50_ms": p50}]}


def test_only_a_file_that_stays_dominates_another(artifact: Artifact, tmp_path: Path) -> None:
    names = {
        "best": figures(70.0, 1.0, nan_count=1),
        "good": figures(69.9, 2.0),
        "worse": figures(69.8, 3.0),
        "fast": figures(60.0, 0.5),
    }
    artifacts = [replace(artifact, path=name) for name in names]
    for name in names:
        (tmp_path / name).touch()
    measured, refused = Measurement({}, artifacts=names), dict[str, str]()
    left = passing(tmp_path, artifacts, measured, Gates(), refused)
    assert [a.path for a in left] == ["good", "worse", "fast"] and set(refused) == {"best"}
    assert {name: found.get("dominated_by") for name, found in measured.artifacts.items()} == {
        "good": None, "worse": "good", "fast": None,
    }  # fmt: skip
    equal = {"a": figures(50.0, 1.0), "b": figures(50.0, 1.0)}
    mark_dominated(equal)
    assert not [found for found in equal.values() if "dominated_by" in found]


@pytest.fixture
def measured(package_of: Callable[[str], Package], toys: LabelledImages, quick: None) -> Callable[..., Measurement]:
    """`measured(refused)`: the package of branch 1 is measured again; `changes` are of its file."""
    from kdzoo.export.exporter import load_student

    package = package_of("1")
    student, images = load_student(package), toys.head(16)
    reference = student_outputs(student, node_logits(student, student.outputs, package.preprocess, images))

    def run(refused: dict[str, str] | None, **changes: Any) -> Measurement:
        artifacts = [replace(artifact, **changes) for artifact in package.artifacts]
        return measure_package(
            package.folder, student, package.preprocess, artifacts, images, images.labels, ExportOptions(), reference,
            lambda line: None, refused,
        )  # fmt: skip

    return run


def fails(error: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> None:
        raise error

    return call


@pytest.mark.parametrize("step", ["check_graph", "exercise_batches", "file_outputs"])
def test_what_is_wrong_with_one_file_refuses_that_file(
    step: str, measured: Callable[..., Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, step, fails(GateFailed("it is crooked")))
    with pytest.raises(GateFailed, match="it is crooked"):
        measured(None)
    refused: dict[str, str] = {}
    assert measured(refused).artifacts == {} and refused == {"model.fp32.onnx": "it is crooked"}
    monkeypatch.setattr(measure, step, fails(EnvironmentProblem("the disk is full")))
    with pytest.raises(EnvironmentProblem):
        measured(refused)
    monkeypatch.setattr(measure, "why_not_run", lambda *_: "")
    monkeypatch.setattr(measure, step, fails(EnvironmentProblem("model.fp32.onnx was built by another version")))
    monkeypatch.setattr(OnnxRuntimeCPU, "own_formats", ("onnx", "trt-rtx"))
    found = measured(refused, format="trt-rtx").artifacts
    assert found == {"model.fp32.onnx": {"not_run": "built, not run: was built by another version"}}


def test_parts_that_no_processor_runs_are_made_for_tensorrt(artifact: Artifact, tmp_path: Path) -> None:
    def made(precision: str) -> Artifact:
        part = replace(artifact, precision=precision)
        return replace(part, path="model.parts.json", format="parts", details={"parts": [asdict(part)]})

    assert why_not_run(tmp_path, made("bf16")) == (
        "made for TensorRT, not run: onnxruntime does not compute in bfloat16 on a processor"
    )
    assert why_not_run(tmp_path, made("fp16")) == ""


def test_the_last_images_are_filled_up_to_the_smallest_batch(artifact: Artifact) -> None:
    sizes: list[int] = []

    def everything(inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        sizes.append(len(inputs))
        return {"logits": inputs.reshape(len(inputs), -1)[:, :1].astype(np.float32)}

    images = np.arange(80, dtype=np.uint8).repeat(12).reshape(80, 2, 2, 3)
    session: Any = SimpleNamespace(everything=everything)
    found = file_outputs(session, replace(artifact, batch=(20, 32, 64)), images, lambda chunk: chunk)
    assert sizes == [64, 20] and found["logits"].ravel().tolist() == list(range(80))


def test_a_file_that_was_refused_while_measuring_is_removed_with_what_was_made_of_it(artifact: Artifact, tmp_path: Path) -> None:
    made = replace(artifact, path="engine", format="trt-rtx", details={"from": "model", "sidecar": "engine.json"})
    artifacts = [replace(artifact, path="model"), made, replace(artifact, path="other")]
    for name in ("model", "engine", "engine.json", "other"):
        (tmp_path / name).touch()
    found = Measurement({}, artifacts={"engine": {"not_run": "no GPU"}, "other": {"parity": GOOD}})
    refused = {"model": "why"}
    assert [a.path for a in passing(tmp_path, artifacts, found, Gates(), refused)] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["other"] and set(found.artifacts) == {"other"}
    assert refused == {"model": "why", "engine": "engine is made from model, which was refused"}


@pytest.mark.parametrize("stays", [True, False])
def test_the_driver_of_a_cascade_goes_with_the_last_of_its_parts(stays: bool, artifact: Artifact, tmp_path: Path) -> None:
    artifacts = [replace(artifact, path=name, format="parts", details={}) for name in ("a", "b")]
    for name in ("a", "b", "cascade_driver.py"):
        (tmp_path / name).touch()
    found = Measurement({}, artifacts={"b": {"parity": GOOD}} if stays else {})
    passing(tmp_path, artifacts, found, Gates(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == (["b", "cascade_driver.py"] if stays else [])


def test_latency_states_runtime_device_and_threads(measured: Callable[..., Measurement]) -> None:
    found = measured(None).artifacts["model.fp32.onnx"]
    assert found["runtime"]["runtime"] == "onnxruntime-cpu" and found["runtime"]["device"] == "CPUExecutionProvider"
    assert found["runtime"]["threads"] >= 1 and {row["threads"] for row in found["latency"]} == {found["runtime"]["threads"]}


def test_a_graph_that_the_checker_takes_and_onnxruntime_does_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    path = write_classifier(tmp_path / "model.onnx")
    check_onnx(path)
    model = onnx.load(path)
    model.ir_version = 10**6  # newer than any runtime
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: None)
    with pytest.raises(GateFailed, match="does not load in onnxruntime"):
        check_onnx(path)
    with pytest.raises(GateFailed, match=r"model\.onnx does not load in onnxruntime"):
        file = SimpleNamespace(path="model.onnx", format="onnx", precision="fp32", details={})
        OnnxRuntimeCPU().open(tmp_path, file)  # type: ignore[arg-type]
