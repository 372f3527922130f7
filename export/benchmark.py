"""Latency of whatever can be called: warm-up, many calls, percentiles. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Wall-clock milliseconds of one call on a batch of `batch` images, over `calls` calls."""

    batch: int
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    images_per_s: float


def percentile(sorted_values: list[float], share: float) -> float:
    """Nearest-rank percentile of values in ascending order."""
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def measure_latency(call: Callable[[], object], batch: int, *, seconds: float = 0.6, min_calls: int = 20) -> Latency:
    """Call for at least `seconds` and `min_calls`, after a tenth of that as warm-up."""
    times: list[float] = []
    until = time.perf_counter() + seconds / 10
    while time.perf_counter() < until:
        call()
    call()
    until = time.perf_counter() + seconds
    while len(times) < min_calls or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        times.append(1000.0 * (time.perf_counter() - began))
    times.sort()
    p50, p90, p99 = (round(percentile(times, share), 4) for share in (0.5, 0.9, 0.99))
    mean = round(sum(times) / len(times), 4)
    return Latency(batch, len(times), p50, p90, p99, mean, round(1000.0 * batch / percentile(times, 0.5), 1))
