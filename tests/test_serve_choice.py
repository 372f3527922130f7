"""Which file of a package answers: what runs here, by what was measured; whatever is not as asked is said."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdzoo.cli import main
from kdzoo.errors import EnvironmentProblem, IntegrityError, UnknownName, UsageError
from kdzoo.export.machine import Machine
from kdzoo.export.package import Artifact, Package
from kdzoo.serve.choice import Chosen, choose
from kdzoo.serve.settings import Wishes
from kdzoo.tests.small_machines import WHOLE, engine, onnx_file, package_with

CPU = replace(WHOLE, gpus=(), num_gpus=0, driver=None, cuda=None)
Made = Callable[[Path], Artifact]


def timed(made: Made, milliseconds: float | None, batch: int = 1) -> Made:
    """The same file, with its time in the figures of the package; None is not timed."""

    def make(folder: Path) -> Artifact:
        artifact = made(folder)
        path = folder / "metrics.json"
        document = json.loads(path.read_text()) if path.exists() else {"schema_version": 1, "artifacts": {}}
        latency = [] if milliseconds is None else [{"batch": batch, "p50_ms": milliseconds}]
        document["artifacts"][artifact.path] = {"latency": latency}
        path.write_text(json.dumps(document))
        return artifact

    return make


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """Three precisions, of which eight bits are the fastest, and an engine."""
    return package_with(
        tmp_path / "package", timed(onnx_file("fp32"), 2.0), timed(onnx_file("fp16"), 3.0), timed(onnx_file("int8"), 1.0),
        timed(engine(), 0.1),
    )  # fmt: skip


def chosen(package: Package, machine: Machine = CPU, **wishes: object) -> Chosen:
    return choose(package, machine, Wishes(**wishes))  # type: ignore[arg-type]


def test_what_was_measured_to_be_fastest_answers(package: Package) -> None:
    found = chosen(package)
    assert (found.artifact.path, found.runtime.name, found.device) == ("model.int8.onnx", "onnxruntime-cpu", "cpu")
    assert found.why == "1.00 ms for an image when it was measured, first of 3 that run here"


def test_a_file_that_was_timed_in_batches_is_judged_by_the_image(tmp_path: Path) -> None:
    package = package_with(tmp_path / "p", timed(onnx_file("fp32"), 2.0), timed(onnx_file("fp16"), 4.0, batch=8))
    assert chosen(package).artifact.precision == "fp16"


def test_a_file_that_was_not_timed_comes_last_and_that_is_said(tmp_path: Path) -> None:
    both = package_with(tmp_path / "both", timed(onnx_file("fp32"), 9.0), timed(onnx_file("int8"), None))
    assert chosen(both).artifact.precision == "fp32"
    one = package_with(tmp_path / "one", timed(onnx_file("int8"), None))
    assert chosen(one).why == "not timed where it was made"


@pytest.mark.parametrize(
    ("wishes", "path"),
    [
        ({"precision": "fp16"}, "model.fp16.onnx"),
        ({"format": "onnx", "precision": "fp32"}, "model.fp32.onnx"),
        ({"runtime": "onnxruntime-cpu"}, "model.int8.onnx"),
        ({"device": "cpu"}, "model.int8.onnx"),
    ],
)
def test_a_wish_is_followed(package: Package, wishes: dict[str, str], path: str) -> None:
    assert chosen(package, **wishes).artifact.path == path


def test_whatever_does_not_run_here_has_a_reason(package: Package) -> None:
    passed = chosen(package).passed_over
    assert list(passed) == ["model.fp16.trt-rtx.engine"], "a file was passed over in silence, or one that runs was"
    assert passed["model.fp16.trt-rtx.engine"].startswith("needs an NVIDIA GPU"), "the name stands before it already"


def test_an_engine_that_is_asked_for_and_does_not_run_is_an_error_with_the_fix(package: Package) -> None:
    with pytest.raises(EnvironmentProblem, match=r"--format trt-rtx.*model\.fp16\.trt-rtx\.engine: needs an ") as caught:
        chosen(package, format="trt-rtx")
    assert caught.value.hint and caught.value.exit_code == 4


def test_a_fallback_is_taken_only_where_it_is_allowed_and_is_told(package: Package) -> None:
    found = chosen(package, format="trt-rtx", allow_fallback=True)
    assert found.artifact.path == "model.int8.onnx"
    assert found.why.startswith("--format trt-rtx does not run here, fallback: 1.00 ms")
    assert "model.fp16.trt-rtx.engine" in found.passed_over


def test_a_gpu_that_is_asked_for_is_not_replaced_by_a_processor(package: Package) -> None:
    with pytest.raises(EnvironmentProblem, match=r"--device gpu.*runs on the cpu") as caught:
        chosen(package, device="gpu")
    assert caught.value.hint
    assert chosen(package, device="gpu", allow_fallback=True).device == "cpu"


def test_a_runtime_of_another_format_is_no_choice(package: Package) -> None:
    with pytest.raises(EnvironmentProblem, match=r"runtime onnxruntime-cpu.*runs ONNX files"):
        chosen(package, format="trt-rtx", machine=WHOLE, runtime="onnxruntime-cpu")


def test_a_file_that_the_package_does_not_have_is_told_with_those_that_it_has(package: Package) -> None:
    with pytest.raises(UsageError, match="no file for --precision bf16") as caught:
        chosen(package, precision="bf16")
    assert "model.int8.onnx" in caught.value.known


@pytest.mark.parametrize("wish", [{"precision": "fp64"}, {"runtime": "onnxruntime"}, {"device": "tpu"}])
def test_a_wish_that_means_nothing_is_told_with_what_is_known(package: Package, wish: dict[str, str]) -> None:
    with pytest.raises(UnknownName) as caught:
        chosen(package, **wish)
    assert caught.value.known


def test_a_damaged_file_answers_for_nothing(package: Package) -> None:
    path = package.folder / "model.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError) as caught:
        chosen(package)
    assert caught.value.exit_code == 6 and "fp32" in caught.value.what


def test_figures_that_were_changed_choose_nothing(package: Package) -> None:
    path = package.folder / "metrics.json"
    path.write_text(path.read_text().replace("2.0", "0.2"))
    with pytest.raises(IntegrityError):
        chosen(package)


def test_the_command_ends_with_the_code_of_what_was_wrong(package_copy: Package, capfd: pytest.CaptureFixture[str]) -> None:
    def ends(*words: str) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as caught:
            main(["serve", str(package_copy.folder), "--port", "0", "--json", *words])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(str(caught.value.code)), json.loads(out)["error"]

    code, error = ends("--device", "gpu")
    assert code == error["exit_code"] == 4 and "--device gpu" in error["message"] and error["hint"]
    code, error = ends("--precision", "int8")
    assert code == 2 and "model.fp32.onnx" in error["known"]
    path = package_copy.folder / "model.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, error = ends()
    assert code == 6 and "model.fp32.onnx" in error["message"]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "signals stay blocked in a process that serves nothing"
