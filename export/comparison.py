"""Several callables timed side by side: in every round each is called a few times in a row, in random order, so that whatever else
the machine does falls on all of them alike. Torch-free.

In a row, because whoever deploys a file calls it again and again, with its weights in the caches of the processor; call by call
each of them finds those of the others there, and the smaller file loses more (int8 of a ResNet-32: 1.72 times as fast as float32
instead of 1.98).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

LONGEST_ROW = 0.06  # seconds; a call that takes as long fills the caches itself


@dataclass(frozen=True)
class Compared:
    """One of them, by the medians of its rounds. `ratio`: its median over the median of the first, below one where it is
    faster; the quartiles are of the ratios round by round."""

    name: str
    rounds: int
    median_ms: float
    ratio: float
    low_quartile: float
    high_quartile: float


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    min_rounds: int = 5,
    in_a_row: int = 10,
    warm_up: int = 3,
    seed: int = 0,
) -> dict[str, list[float]]:
    """By name, the milliseconds of a call in every round, the median of those `in_a_row`, fewer where calls are long; over as many
    rounds as fit into `seconds`, at least `min_rounds`."""
    order, shuffle = list(calls), random.Random(seed).shuffle
    times: dict[str, list[float]] = {name: [] for name in calls}
    slowest = 0.0
    for name in order * warm_up:
        began = time.perf_counter()
        calls[name]()
        slowest = time.perf_counter() - began if name == order[0] else max(slowest, time.perf_counter() - began)
    in_a_row = max(1, min(in_a_row, int(LONGEST_ROW / max(slowest, 1e-9))))
    until, rounds = time.perf_counter() + seconds, 0
    while rounds < min_rounds or time.perf_counter() < until:
        shuffle(order)
        for name in order:
            row = []
            for _ in range(in_a_row):
                began = time.perf_counter()
                calls[name]()
                row.append(1000.0 * (time.perf_counter() - began))
            times[name].append(median(row))
        rounds += 1
    return times


def compare_times(times: Mapping[str, list[float]]) -> list[Compared]:
    """What `interleave` gave, each against the first."""
    first = next(iter(times.values()))
    found = []
    for name, own in times.items():
        low, _, high = quantiles([a / b for a, b in zip(own, first, strict=True)], n=4, method="inclusive")
        ratio = median(own) / median(first)
        found.append(Compared(name, len(own), round(median(own), 4), round(ratio, 4), round(low, 4), round(high, 4)))
    return found
