"""`kdzoo bench`: which files run in which runtime, what is told of the rest, and that the figures are those of the calls."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from kdzoo.cli import main
from kdzoo.cli.bench import describe
from kdzoo.errors import EnvironmentProblem, UnknownName, UsageError
from kdzoo.export.benchmark import bench, bench_side_by_side, facts
from kdzoo.export.package import Artifact, Package
from kdzoo.export.publish import push
from kdzoo.export.runtime import RUNTIMES, RanOn, Runtime, Session
from kdzoo.export.trials import Choice, Trial, find_trials, open_packages

Call = Callable[..., tuple[str, str]]


def quiet(line: str) -> None:
    """Takes the talk."""


@pytest.fixture
def both(package_of: Callable[[str], Package], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of two branches."""
    folder = tmp_path_factory.mktemp("both")
    for target in ("1", "2"):
        (folder / target).symlink_to(package_of(target).folder)
    return folder


class Asleep(Runtime):
    """Takes `milliseconds` for a call, and notes every batch that it gets, and from whom it hears."""

    def __init__(self, milliseconds: float, log: list[Any]) -> None:
        self.name, self.milliseconds, self.log = f"asleep-{milliseconds}", milliseconds, log  # type: ignore[misc]

    def refuses(self, artifact: Artifact) -> str:
        return ""

    def check(self, folder: Path, artifact: Artifact) -> None:
        """It runs everywhere."""

    def open(self, folder: Path, artifact: Artifact, threads: int | None = None, *, in_turns: bool = False) -> Session:
        from time import sleep

        runtime = self

        class Sleeper(Session):
            ran_on = RanOn(runtime.name, "1", "bed", threads)

            def everything(self, inputs: Any) -> Any:
                affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
                runtime.log.append((runtime.name, inputs.shape, in_turns, affinity))
                sleep(runtime.milliseconds / 1000)
                return {"logits": np.zeros((len(inputs), 10), np.float32)}

        return Sleeper()


def trials_of(package: Package, *milliseconds: float) -> tuple[list[Trial], list[Any]]:
    log: list[Any] = []
    return [Trial(package, package.artifact(), Asleep(ms, log)) for ms in milliseconds], log


def test_a_call_is_measured_as_long_as_it_takes(package_of: Callable[[str], Package]) -> None:
    trials, log = trials_of(package_of("1"), 2.0)
    found = bench(trials, batches=[4, 1], threads=1, seconds=0.1)
    assert [row["batch"] for row in found["results"]] == [4, 1] and found["threads"] == 1 and found["host"]
    assert {shape for _, shape, _, _ in log} == {(4, 32, 32, 3), (1, 32, 32, 3)}
    for row in found["results"]:
        assert 2.0 <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] and row["mean_ms"] >= 2.0 and row["calls"] >= 20
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["p50_ms"], rel=1e-3)
        assert (row["runtime"], row["device"], row["threads"], row["file"]) == ("asleep-2.0", "bed", 1, "model.fp32.onnx")
    assert len(log) > sum(row["calls"] for row in found["results"]), "nothing was warmed up"


def test_side_by_side_all_take_turns_and_the_first_is_the_measure(package_of: Callable[[str], Package]) -> None:
    trials, log = trials_of(package_of("1"), 1.0, 4.0)
    slow = bench_side_by_side(trials, batches=[2], seconds=0.1)["results"]
    names = [name for name, *_ in log[6:]]  # behind the warm-up
    assert all(in_turns for *_, in_turns, _ in log)
    rows = [names[i : i + 10] for i in range(0, len(names), 10)]
    assert all(len(set(row)) == 1 and len(row) == 10 for row in rows), "ten calls in a row"
    assert all({a[0], b[0]} == {"asleep-1.0", "asleep-4.0"} for a, b in zip(rows[::2], rows[1::2], strict=True)), "a round has both"
    assert len({row[0] for row in rows[::2]}) == 2, "the order is always the same"
    assert slow[0]["ratio"] == slow[0]["low_quartile"] == slow[0]["high_quartile"] == 1.0
    assert 2.0 < slow[1]["low_quartile"] <= slow[1]["high_quartile"] < 4.2 and 2.0 < slow[1]["ratio"] < 4.2
    assert slow[1]["ratio"] == pytest.approx(slow[1]["median_ms"] / slow[0]["median_ms"], rel=1e-3)
    assert slow[0]["rounds"] == slow[1]["rounds"] >= 5


class Broken(Asleep):
    """Says so when a file is opened only."""

    def open(self, folder: Path, artifact: Artifact, threads: int | None = None, *, in_turns: bool = False) -> Session:
        raise EnvironmentProblem("it took 2 threads instead of 4", hint="leave --threads out")


@pytest.mark.parametrize("measure", [bench, bench_side_by_side])
def test_a_runtime_that_nobody_named_and_that_does_not_open_does_not_end_the_bench(
    measure: Callable[..., dict[str, Any]], package_of: Callable[[str], Package]
) -> None:
    (good,), _ = trials_of(package_of("1"), 0.5)
    broken = Trial(good.package, good.artifact, Broken(7, []))
    noted: list[dict[str, str]] = []
    found = measure([broken, good], batches=[1], seconds=0.05, not_run=noted)
    assert [row["runtime"] for row in found["results"]] == ["asleep-0.5"]
    assert [(each["runtime"], each["file"], each["reason"], each["fix"]) for each in noted] == [
        ("asleep-7", "model.fp32.onnx", "it took 2 threads instead of 4", "leave --threads out")
    ]
    for trials, takes in (([good, broken], None), ([broken], [])):  # named, or the only one
        with pytest.raises(EnvironmentProblem, match="instead of 4"):
            measure(trials, batches=[1], seconds=0.05, not_run=takes)


def test_the_command_names_what_did_not_open_beside_the_figures(
    package_of: Callable[[str], Package], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(RUNTIMES.get("openvino"), "check", lambda *_: None)
    monkeypatch.setattr(RUNTIMES.get("openvino"), "open", Broken(7, []).open)
    words = ("bench", package_of("1").folder, "--seconds", 0.05, "--batch", 1)
    document = json.loads(call(*words, "--json")[0])
    assert {row["runtime"] for row in document["results"]} == {"onnxruntime-cpu"}
    assert "it took 2 threads instead of 4" in {each["reason"] for each in document["not_run"]}
    with pytest.raises(SystemExit) as ending:
        call(*words, "-r", "openvino", "-r", "onnxruntime-cpu")
    assert ending.value.code == 4


def test_parts_are_told_with_what_computes_each_of_them(package_of: Callable[[str], Package]) -> None:
    (trial,), _ = trials_of(package_of("1"), 0.5)
    with trial.runtime.open(trial.package.folder, trial.artifact, 1) as session:
        row = facts(replace(trial, runtime=RUNTIMES.get("parts")()), session)
    assert (row["runtime"], row["runs_in"], row["device"]) == ("parts", "asleep-0.5", "bed")
    figures = {**row, "batch": 1, "calls": 9, "images_per_s": 1.0, **dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "mean_ms"), 1.0)}
    under = {"host": "h", "load_average": None, "pinned_to": None, "not_run": [], "packages": ["p"]}
    assert "parts in asleep-0.5 1 on bed, threads: 1" in describe({**under, "results": [figures]}, False).splitlines()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads")
def test_pinned_threads_stay_on_as_many_processors_and_are_free_again(package_of: Callable[[str], Package]) -> None:
    trials, log = trials_of(package_of("1"), 0.5)
    before = os.sched_getaffinity(0)
    found = bench(trials, batches=[1], threads=1, seconds=0.05, pin=True)
    assert len(found["pinned_to"]) == 1 and {affinity for *_, affinity in log} == {1}
    assert os.sched_getaffinity(0) == before
    with pytest.raises(EnvironmentProblem, match="cannot be pinned"):
        bench(trials, threads=4096, pin=True)


def test_by_default_every_runtime_that_takes_a_file_here_runs_it(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    packages = open_packages([str(both)], ["1", "2"], quiet)
    found = find_trials(packages, Choice())
    ran = {(trial.package.document["target"], trial.runtime.name) for trial in found.chosen}
    assert {("1", "onnxruntime-cpu"), ("2", "onnxruntime-cpu")} <= ran
    assert not {name for _, name in ran} & {"onnxruntime-cuda", "torch", "trt-rtx"}
    told = {(each["target"], each["runtime"]): each for each in found.not_run}
    assert "has no CUDAExecutionProvider" in told["2", "onnxruntime-cuda"]["reason"]
    assert "pip install" in told["2", "onnxruntime-cuda"]["fix"]
    assert not [each for each in found.not_run if each["runtime"] in ("tensorrt", "torch")], "it takes no such file anyway"


def test_named_runtimes_run_or_it_is_an_error(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    packages = open_packages([str(both / "1")], [], quiet)
    (trial, student) = find_trials(packages, Choice(runtimes=("onnxruntime-cpu", "torch"))).chosen
    assert (trial.artifact.path, student.artifact.path) == ("model.fp32.onnx", "model.safetensors")
    with pytest.raises(EnvironmentProblem, match="has no CUDAExecutionProvider"):
        find_trials(packages, Choice(runtimes=("onnxruntime-cpu", "onnxruntime-cuda")))
    with pytest.raises(UsageError, match="trt-rtx runs none of these files: trt-rtx runs engines that it built"):
        find_trials(packages, Choice(runtimes=("trt-rtx",)))
    with pytest.raises(UnknownName, match="unknown runtime"):
        find_trials(packages, Choice(runtimes=("onnx",)))
    with pytest.raises(UsageError, match="no file of these packages is chosen") as error:
        find_trials(packages, Choice(precisions=("int8",)))
    assert error.value.known == ("model.fp32.onnx",)


def test_branches_choose_packages_and_an_unknown_one_is_told(both: Path) -> None:
    found = open_packages([str(both), str(both / "2")], ["2"], quiet)
    assert [package.folder for package in found] == [both / "2"]
    with pytest.raises(UsageError, match="no package of 9") as error:
        open_packages([str(both)], ["9"], quiet)
    assert {"1", "2"} <= set(error.value.known)


def test_of_a_published_collection_every_branch_that_is_asked_for_is_fetched(both: Path, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/org/toys"
    for target in ("1", "2"):
        shutil.copytree(both / target, tmp_path / "two" / target)
    push(tmp_path / "two", place)
    found = open_packages([place], ["2", "1"], quiet)
    assert [package.document["target"] for package in found] == ["1", "2"]
    assert [package.document["target"] for package in open_packages([place, str(both)], ["2"], quiet)] == ["2", "2"]
    with pytest.raises(UnknownName, match="unknown target '9'") as error:
        open_packages([place], ["9"], quiet)
    assert error.value.known == ("1", "2")


@pytest.mark.parametrize(
    ("changes", "size", "says"),
    [
        ({"batch": (4, 4, 4)}, 8, "has a fixed batch of 4, not 8"),
        ({"batch": (2, 4, 16), "compute_capability": "8.6"}, 32, "takes batches of 2 to 16, not 32"),
    ],
)
def test_a_batch_that_a_file_cannot_take_is_told_first(
    changes: dict[str, Any], size: int, says: str, package_of: Callable[[str], Package]
) -> None:
    package = package_of("1")
    trial = Trial(package, replace(package.artifact(), **changes), RUNTIMES.get("onnxruntime-cpu")())
    with pytest.raises(UsageError, match=says):
        trial.batches([size])
    assert trial.batches([]) == list(dict.fromkeys(changes["batch"]))
    assert Trial(package, package.artifact(), trial.runtime).batches([size]) == [size]


def test_the_command_gives_tables_and_one_document(package_of: Callable[[str], Package], call: Call) -> None:
    words = (
        "bench",
        package_of("1").folder,
        "-r",
        "onnxruntime-cpu",
        "--seconds",
        0.05,
        "--batch",
        1,
        "--batch",
        3,
        "--threads",
        1,
    )
    document = json.loads(call(*words, "--json")[0])
    assert [(row["batch"], row["threads"], row["device"]) for row in document["results"]] == [
        (1, 1, "CPUExecutionProvider"),
        (3, 1, "CPUExecutionProvider"),
    ]
    assert document["not_run"] == [] and document["pinned_to"] is None
    text, _ = call(*words)
    assert f"onnxruntime-cpu {onnxruntime.__version__} on CPUExecutionProvider, threads: 1" in text and "not pinned" in text
    compared = json.loads(call(*words, "-r", "torch", "--compare", "--json")[0])["results"]
    assert [(row["runtime"], row["batch"]) for row in compared] == [
        ("onnxruntime-cpu", 1), ("torch", 1), ("onnxruntime-cpu", 3), ("torch", 3),
    ]  # fmt: skip
    assert compared[0]["ratio"] == 1.0 != compared[1]["ratio"] and "quartiles" in call(*words, "--compare")[0]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-r", "tensorrt"], 2, "tensorrt runs none of these files"),
        (["-r", "onnxruntime-cuda"], 4, "CUDAExecutionProvider"),
        (["-r", "openvin"], 2, "did you mean 'openvino'?"),
        (["-b", "nine"], 2, "nine"),
    ],
)
def test_what_cannot_be_measured_ends_with_the_code_of_its_kind(
    words: list[str], code: int, says: str, package_of: Callable[[str], Package], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SystemExit) as ending:
        main(["bench", str(package_of("1").folder), "--seconds", "0.05", *words])
    said = capsys.readouterr()
    assert ending.value.code == code and says in said.err and said.out == ""
