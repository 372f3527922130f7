"""Several callables timed side by side: in every round each is called once, in random order, so that whatever else the machine does
falls on all of them alike. Torch-free."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Compared:
    """One of them. `ratio`: its median over the median of the first, below one where it is faster; the quartiles are of the ratios
    round by round."""

    name: str
    rounds: int
    median_ms: float
    ratio: float
    low_quartile: float
    high_quartile: float


def interleave(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, min_rounds: int = 20, warm_up: int = 3, seed: int = 0
) -> dict[str, list[float]]:
    """Milliseconds of every call by name, over as many rounds as fit into `seconds`, at least `min_rounds`."""
    order, shuffle = list(calls), random.Random(seed).shuffle
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name in order * warm_up:
        calls[name]()
    until, rounds = time.perf_counter() + seconds, 0
    while rounds < min_rounds or time.perf_counter() < until:
        shuffle(order)
        for name in order:
            began = time.perf_counter()
            calls[name]()
            times[name].append(1000.0 * (time.perf_counter() - began))
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
