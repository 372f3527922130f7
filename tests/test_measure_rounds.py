"""Latency by a clock that is given: every figure is known beforehand, and nothing but the calls takes time."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdzoo.errors import GateFailed
from kdzoo.export import measure_latency as timing
from kdzoo.export import measure_rounds
from kdzoo.export.exporter import load_student
from kdzoo.export.format import ExportOptions
from kdzoo.export.measure import Measurement, measure_package
from kdzoo.export.measure_latency import measure_latency, summarise, without_collector
from kdzoo.export.measure_rounds import ROUNDS, FileTimes, batches, sample
from kdzoo.export.package import Package
from kdzoo.export.runtime import RUNTIMES, Session
from kdzoo.export.runtimes.onnxruntime import OnnxRuntimeCPU
from kdzoo.export.torch_answers import node_logits, student_outputs
from kdzoo.export.trials import Trial
from kdzoo.zoo.datasets import LabelledImages

MS = {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.25}  # of the exits of a cascade
SHARES = {1: 0.31, 2: 0.17, 3: 0.17, 4: 0.35}
MEAN = sum(SHARES[number] * MS[number] for number in MS)
OF_BEFORE = {"batch", "calls", "p50_ms", "p90_ms", "p99_ms", "mean_ms", "images_per_s", "threads"}  # what old readers look for


class Cascade:
    """An image is the number of its exit. The first calls are slow, and so is one of three later ones, where `disturbed`."""

    def __init__(self, disturbed: bool, scale: float = 1.0) -> None:
        self.disturbed, self.scale, self.now, self.calls, self.collects = disturbed, scale, 0.0, 0, set[bool]()

    def perf_counter(self) -> float:
        return self.now

    def __call__(self, images: np.ndarray[Any, Any]) -> None:
        self.calls += 1
        self.collects.add(gc.isenabled())
        slow = 200.0 if self.calls <= 2 else 40.0 if self.disturbed and self.calls % 3 == 0 else 0.0
        self.now += (self.scale * MS[int(images.max())] + slow) / 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cascade]:
    def make(disturbed: bool = False, scale: float = 1.0) -> Cascade:
        made = Cascade(disturbed, scale)
        monkeypatch.setattr(timing, "time", made)
        return made

    return make


def exits_of(count: int) -> np.ndarray[Any, Any]:
    """In an order as data sets have it: all of one kind first."""
    return np.repeat(list(SHARES), [round(share * count) for share in SHARES.values()]).astype(np.int64)


def rounds_of(session: Cascade, sizes: list[int], count: int = 1000) -> FileTimes:
    exits = exits_of(count)
    images = LabelledImages(exits.astype(np.uint8)[:, None, None, None], exits, tuple("01234"), "numbers")
    times = FileTimes(sizes, images, lambda raw: raw, exits)
    for _ in range(ROUNDS):
        times.round(session)  # type: ignore[arg-type]
    return times


@pytest.mark.parametrize("disturbed", [False, True])
def test_the_mean_of_a_cascade_is_the_one_over_the_exits_of_all_images(disturbed: bool, clock: Callable[..., Cascade]) -> None:
    session = clock(disturbed)
    times = rounds_of(session, [1, 8])
    one, eight = times.latency(2)
    assert one["mean_ms"] == pytest.approx(MEAN, rel=0.02) and one["p50_ms"] == MS[3], "at 48 % images leave exit 2"
    assert one["images_per_s"] == pytest.approx(1000 / MEAN, rel=0.02)
    assert one["p99_ms"] > 40.0 if disturbed else one["p99_ms"] == pytest.approx(MS[4]), "a tail is the one of all calls"
    assert one["passes"] == ROUNDS * measure_rounds.PASSES and one["calls"] == one["passes"] * measure_rounds.MOST
    assert eight["mean_ms"] == pytest.approx(MS[4], rel=0.1), "of eight images one nearly always goes to the end"
    assert times.of_exits() == {str(number): pytest.approx(ms) for number, ms in MS.items()}
    assert session.collects == {False} and gc.isenabled(), "the collector rests only while it is timed"
    assert set(one) >= OF_BEFORE


@pytest.mark.parametrize(("scale", "images", "passes", "seconds"), [(4000.0, 1, 1, 75), (360.0, 5, 3, 40), (20.0, 16, 3, 5)])
def test_a_slow_call_gets_fewer_images_and_passes(
    scale: float, images: int, passes: int, seconds: float, clock: Callable[..., Cascade]
) -> None:
    """The fastest takes 1 s, 90 ms, 5 ms; of all images the mean is three times that."""
    session = clock(scale=scale)
    row = rounds_of(session, [1], 100).latency(None)[0]
    assert (row["passes"], row["calls"]) == (ROUNDS * passes, ROUNDS * passes * images)
    of_exits = sum(ROUNDS * (1 + 4 + passes * (1 if images == 1 else 2)) * scale * ms / 1000 for ms in MS.values())
    assert session.now < seconds + of_exits, f"{session.now} s"


def test_the_sample_of_a_cascade_has_every_exit_with_its_share() -> None:
    exits = exits_of(1000)
    for count in (256, 100):
        chosen = exits[sample(1000, exits, count)]
        found = {number: float((chosen == number).mean()) for number in SHARES}
        assert found == {number: pytest.approx(share, abs=1 / count) for number, share in SHARES.items()}
        assert len(set(sample(1000, exits, count).tolist())) == count, "the same image twice"
        called = np.concatenate(batches(chosen, 1, 32))
        assert [(called == n).mean() for n in SHARES] == [pytest.approx(share, abs=2 / 32) for share in SHARES.values()]
        assert not np.array_equal(called, np.sort(called)), "one exit after the other"
    assert np.array_equal(sample(1000, None, 50), sample(1000, None, 50)), "another sample in the next export"
    assert [len(batch) for batch in batches(np.arange(5), 8, 3)] == [8, 8, 8], "filled up where there are few images"


def test_figures_are_of_the_images_and_tails_of_the_calls() -> None:
    found = summarise([[1.0, 9.0, 1.0, 3.0], [1.0, 1.0, 8.0, 3.0], [7.0, 1.0, 1.0, 3.0]], 2)
    assert (found.p50_ms, found.mean_ms, found.p90_ms, found.p99_ms) == (1.0, 1.5, 8.0, 9.0)
    assert (found.batch, found.calls, found.passes, found.images_per_s) == (2, 12, 3, pytest.approx(1333.3))


def test_the_collector_comes_back_as_it_was() -> None:
    with pytest.raises(ZeroDivisionError), without_collector():
        assert not gc.isenabled()
        _ = 1 / 0
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_bench_takes_whole_passes_and_as_many_calls_as_are_asked_for(clock: Callable[..., Cascade]) -> None:
    images = [np.full((1, 1, 1, 1), number) for number in MS]
    found = measure_latency(clock(disturbed=True), images, 1, seconds=0.01, min_calls=22)
    assert found.calls == 4 * found.passes >= 22 and found.mean_ms == pytest.approx(sum(MS.values()) / 4)


def test_a_bench_of_a_cascade_takes_each_golden_image_and_another_file_one_batch(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    golden, _ = package.golden()
    trial = Trial(package, package.artifact(), RUNTIMES.get("onnxruntime-cpu")())
    assert [batch.shape[0] for batch in trial.calls(12)] == [12]
    cascade = replace(trial, package=Package(package.folder, {**package.document, "target": "cascade"}))
    assert np.array_equal(np.concatenate(cascade.calls(1)), golden)
    twos = cascade.calls(2)
    assert np.array_equal(np.concatenate([batch[:1] for batch in twos]), golden), "one is in fewer batches than another"


@pytest.fixture
def measured(package_of: Callable[[str], Package], toys: LabelledImages, tmp_path: Path, quick: None) -> Callable[..., Measurement]:
    """Two files of the same bytes are measured."""
    package = package_of("1")
    student, images, first = load_student(package), toys.head(16), package.artifact()
    reference = student_outputs(student, node_logits(student, student.outputs, package.preprocess, images))
    for name in (first.path, "again.onnx"):
        shutil.copyfile(package.folder / first.path, tmp_path / name)
    files = [first, replace(first, path="again.onnx")]

    def run(refused: dict[str, str] | None = None) -> Measurement:
        return measure_package(
            tmp_path, student, package.preprocess, files, images, None, ExportOptions(), reference, lambda line: None, refused
        )

    return run


def test_the_files_of_a_package_take_turns_in_sessions_of_their_own(
    measured: Callable[..., Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = list[str](), OnnxRuntimeCPU.open

    def counted(self: Any, folder: Path, artifact: Any, *rest: Any, **how: Any) -> Session:
        opened.append(artifact.path)
        return real(self, folder, artifact, *rest, **how)

    monkeypatch.setattr(OnnxRuntimeCPU, "open", counted)
    rows = [found["latency"][0] for found in measured().artifacts.values()]
    assert opened == ["model.fp32.onnx", "again.onnx"] * measure_rounds.ROUNDS
    assert {row["passes"] for row in rows} == {measure_rounds.ROUNDS * measure_rounds.PASSES}


def test_a_file_that_does_not_open_again_is_refused_and_the_other_stays(
    measured: Callable[..., Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = list[str](), OnnxRuntimeCPU.open

    def once(self: Any, folder: Path, artifact: Any, *rest: Any, **how: Any) -> Session:
        if artifact.path in opened and artifact.path == "again.onnx":
            raise GateFailed("it is gone")
        opened.append(artifact.path)
        return real(self, folder, artifact, *rest, **how)

    monkeypatch.setattr(OnnxRuntimeCPU, "open", once)
    refused: dict[str, str] = {}
    found = measured(refused)
    assert refused == {"again.onnx": "it is gone"} and list(found.artifacts) == ["model.fp32.onnx"]
    opened.clear()
    with pytest.raises(GateFailed, match="it is gone"):
        measured()


def test_a_row_says_all_that_it_said_before() -> None:
    assert set(asdict(summarise([[1.0]], 1))) >= OF_BEFORE - {"threads"}
