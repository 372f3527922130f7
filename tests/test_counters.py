"""What is counted: sums over workers, in memory that outlives any of them."""

from __future__ import annotations

import mmap

import pytest

from kdzoo.serve.counters import EDGES_MS, FIELDS, Counters, num_bytes


def two_workers(*models: str, max_batch: int = 4) -> tuple[mmap.mmap, list[Counters]]:
    memory = mmap.mmap(-1, num_bytes(len(models), max_batch, 2))
    return memory, [Counters(models, max_batch, memory, 2, own) for own in range(2)]


def test_any_worker_tells_the_sum_of_all() -> None:
    _, workers = two_workers("a", "b")
    workers[0].row("a").add("refused")
    workers[1].row("a").add("refused", 2)
    workers[1].row("b").add("late")
    for worker in workers:
        assert worker.total("a")["refused"] == 3 and worker.total("a")["late"] == 0
        assert worker.total("b")["refused"] == 0 and worker.total("b")["late"] == 1


def test_what_a_worker_that_died_had_counted_is_not_lost_and_its_queue_is_empty() -> None:
    memory, workers = two_workers("a")
    workers[1].row("a").answered(1_000_000)
    workers[1].row("a").set("waiting", 5)
    workers[0].row("a").set("waiting", 2)
    reborn = Counters(["a"], 4, memory, 2, 1)
    assert reborn.total("a")["success"] == 1
    assert reborn.total("a")["waiting"] == 2
    reborn.row("a").answered(1_000_000)
    assert workers[0].total("a")["success"] == 2


@pytest.mark.parametrize(
    ("milliseconds", "place"), [(0.1, 0), (0.5, 0), (0.51, 1), (4999, len(EDGES_MS) - 1), (5001, len(EDGES_MS))]
)
def test_the_time_of_an_answer_falls_between_its_edges(milliseconds: float, place: int) -> None:
    counters = Counters(["a"], 4)
    counters.row("a").answered(round(milliseconds * 1e6))
    total = counters.total("a")
    assert [number for number, count in enumerate(total.times) if count] == [place]
    assert total["success_ns"] == round(milliseconds * 1e6)


def test_batches_count_by_their_size() -> None:
    counters = Counters(["a", "b"], 4)
    for size in (1, 4, 4):
        counters.row("a").executed(size, 10)
    assert counters.total("a").batches == {1: (1, 10), 4: (2, 20)}
    assert (counters.total("a")["images"], counters.total("a")["executions"], counters.total("a")["infer_ns"]) == (9, 3, 30)
    assert counters.total("b").batches == {}, "a row ran over into the next one"


def test_a_batch_larger_than_any_when_the_server_started_counts_as_the_largest() -> None:
    counters = Counters(["a", "b"], 4)
    counters.row("a").executed(16, 10)
    assert counters.total("a").batches == {4: (1, 10)} and counters.total("a")["images"] == 16
    assert all(counters.total("b")[name] == 0 for name in FIELDS)


def test_the_last_inference_is_the_latest_of_all_workers() -> None:
    _, workers = two_workers("a")
    workers[0].row("a").set("last_ms", 20)
    workers[1].row("a").set("last_ms", 10)
    assert workers[1].total("a")["last_ms"] == 20
