"""Latency of whatever can be called on a batch: what a call takes, and not what else the machine does meanwhile. Torch-free.

What is measured: milliseconds by the wall clock of one call, a batch a call, from array to array. The same inputs go through in
several passes, after calls that warm up and are not counted; Python's garbage collector rests. An input is worth the median of its
calls, so that what disturbs fewer than half of them does not count.

- `p50_ms` and `mean_ms` are over the inputs, each with its median. Of a cascade, where every image takes its own exit, the mean is
  the one over the exits that the inputs take.
- `p90_ms` and `p99_ms` are over all calls, disturbed or not: how long one may have to wait on this machine.
- `images_per_s` is the batch over `mean_ms`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle
from statistics import fmean, median
from typing import Any

MIN_WARM_UP = 3  # calls

Run = Callable[[Any], object]
Passes = list[list[float]]  # milliseconds of every call, pass by pass, in the order of the inputs


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call on a batch of `batch` images; see above. `calls`: all that were counted, in `passes` passes."""

    batch: int
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    images_per_s: float
    passes: int


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of values in ascending order."""
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


@contextmanager
def without_collector() -> Iterator[None]:
    """In here Python collects no garbage; it has done so before."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def warm_up(run: Run, inputs: Sequence[Any], seconds: float) -> float:
    """Call once, then for at least `seconds` and `MIN_WARM_UP` calls; gives the shortest of these in milliseconds."""
    times: list[float] = []
    timed(run, inputs[0])
    until = time.perf_counter() + seconds
    for each in cycle(inputs):
        times.append(timed(run, each))
        if len(times) >= MIN_WARM_UP and time.perf_counter() >= until:
            break
    return min(times)


def timed(run: Run, each: Any) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    run(each)
    return 1000.0 * (time.perf_counter() - began)


def time_passes(run: Run, inputs: Sequence[Any], count: int) -> Passes:
    """So many passes over all inputs."""
    return [[timed(run, each) for each in inputs] for _ in range(count)]


def summarise(passes: Passes, batch: int) -> Latency:
    """The figures of all passes, which are over the same inputs."""
    typical = sorted(median(calls) for calls in zip(*passes, strict=True))
    calls, mean = sorted(chain.from_iterable(passes)), fmean(typical)
    p50, p90, p99 = percentile(typical, 0.5), percentile(calls, 0.9), percentile(calls, 0.99)
    return Latency(
        batch, len(calls), round(p50, 4), round(p90, 4), round(p99, 4), round(mean, 4), round(1000.0 * batch / mean, 1), len(passes)
    )


def measure_latency(run: Run, inputs: Sequence[Any], batch: int, *, seconds: float, min_calls: int = 20) -> Latency:
    """Whole passes for at least `seconds` and `min_calls`, after a tenth of that as warm-up."""
    passes: Passes = []
    with without_collector():
        warm_up(run, inputs, seconds / 10)
        until = time.perf_counter() + seconds
        while len(passes) * len(inputs) < min_calls or time.perf_counter() < until:
            passes += time_passes(run, inputs, 1)
    return summarise(passes, batch)
