"""What the server counts, in memory that its worker processes share, so that any of them tells the sum, and what a worker that died
had counted is not lost. Torch-free.

A row of 64-bit integers for each worker and model; each worker writes its own rows only, from the thread of its event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap

# Sums of nanoseconds end in `_ns`. `waiting` is no sum: the images that are in the queue now.
FIELDS = (
    "success", "success_ns", "fail", "fail_ns", "queue_ns", "input_ns", "infer_ns", "output_ns",
    "images", "executions", "last_ms", "refused", "late", "cancelled", "waiting",
)  # fmt: skip
EDGES_MS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)  # of the time of an answer
INDEX = {name: number for number, name in enumerate(FIELDS)}
BYTES = 8


@dataclass
class Totals:
    """Sums over the workers.

    Attributes:
        times: answers by `EDGES_MS`, the last for slower ones. batches: by batch size, executions and their nanoseconds.
    """

    counts: dict[str, int]
    times: list[int]
    batches: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.counts[name]


class Row:
    """What one worker counts of one model."""

    def __init__(self, values: memoryview) -> None:
        self.values = values
        values[INDEX["waiting"]] = 0  # of a worker that died

    def add(self, name: str, count: int = 1) -> None:
        self.values[INDEX[name]] += count

    def set(self, name: str, value: int) -> None:
        self.values[INDEX[name]] = value

    def answered(self, nanoseconds: int) -> None:
        """An answer was ready so long after its request."""
        self.values[INDEX["success"]] += 1
        self.values[INDEX["success_ns"]] += nanoseconds
        self.values[len(FIELDS) + bisect_left(EDGES_MS, nanoseconds / 1e6)] += 1

    def executed(self, size: int, nanoseconds: int) -> None:
        """A batch of `size` images was computed; one that is larger than the row knows, after a hot swap, counts as the largest."""
        place = min(len(FIELDS) + len(EDGES_MS) + 1 + 2 * size, len(self.values) - 2)
        self.values[place] += 1
        self.values[place + 1] += nanoseconds
        self.values[INDEX["executions"]] += 1
        self.values[INDEX["images"]] += size
        self.values[INDEX["infer_ns"]] += nanoseconds


class Counters:
    """The rows of all workers; `memory` is a shared mapping of `num_bytes`, or anything writable in a process alone."""

    def __init__(
        self,
        models: Sequence[str],
        max_batch: int,
        memory: mmap.mmap | bytearray | None = None,
        workers: int = 1,
        own: int = 0,
    ) -> None:
        self.models, self.max_batch, self.workers, self.own = list(models), max_batch, workers, own
        whole = memory if memory is not None else bytearray(num_bytes(len(models), max_batch, workers))
        self.values = memoryview(whole).cast("q")
        self.rows = {model: Row(self._row(model, own)) for model in models}

    def row(self, model: str) -> Row:
        """Where this worker counts."""
        return self.rows[model]

    def total(self, model: str) -> Totals:
        rows = [self._row(model, worker) for worker in range(self.workers)]
        sums = [sum(values) for values in zip(*rows, strict=True)]
        counts = dict(zip(FIELDS, sums[: len(FIELDS)], strict=True))
        counts["last_ms"] = max(row[INDEX["last_ms"]] for row in rows)
        start = len(FIELDS) + len(EDGES_MS) + 1
        batches = {size: (sums[place], sums[place + 1]) for size in range(self.max_batch + 1) if sums[place := start + 2 * size]}
        return Totals(counts, sums[len(FIELDS) : start], batches)

    def _row(self, model: str, worker: int) -> memoryview:
        width = row_width(self.max_batch)
        start = (worker * len(self.models) + self.models.index(model)) * width
        return self.values[start : start + width]


def row_width(max_batch: int) -> int:
    return len(FIELDS) + len(EDGES_MS) + 1 + 2 * (max_batch + 1)


def num_bytes(models: int, max_batch: int, workers: int) -> int:
    """What the rows need; at least a byte, since no mapping can be empty."""
    return max(1, models * workers * row_width(max_batch)) * BYTES
