"""What a load is counted in: latencies of the answers within a window of time, refusals, and what never came.

A closed loop counts what was answered in the window. An open loop counts what was to be sent in it: a request that had to wait for
its turn, because others were slow, has waited since then, and one that was never answered has waited until the end.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

from ..client.answers import LATER

GOOD = 200
PERCENTILES = {"p50_ms": 500, "p90_ms": 900, "p99_ms": 990, "p999_ms": 999}  # of a thousand
CUT, NOT_CONNECTED, TIMED_OUT = "cut", "not connected", "timed out"


class Tally:
    """Counts between `start` and `end`, which are times of `time.perf_counter`."""

    def __init__(self, start: float, end: float, by_intention: bool) -> None:
        self.start, self.end, self.by_intention = start, end, by_intention
        self.latencies, self.refused, self.late = array("d"), array("d"), array("d")
        self.statuses, self.failures = Counter[int](), Counter[str]()
        self.num_done = self.num_unanswered = 0
        self.cpu_seconds = 0.0

    def answered(self, began: float, now: float, status: int) -> None:
        if status == GOOD and self.start <= now < self.end:
            self.num_done += 1
        if self.start <= (began if self.by_intention else now) < self.end:
            self.statuses[status] += 1
            if status == GOOD:
                self.latencies.append(now - began)
            elif status in LATER:
                self.refused.append(now - began)

    def failed(self, kind: str, now: float, began: float | None = None) -> None:
        """A request without an answer, or a connection that did not come about."""
        if self.start <= (began if self.by_intention and began is not None else now) < self.end:
            self.failures[kind] += 1
            if kind == TIMED_OUT and began is not None:
                self.latencies.append(now - began)

    def unanswered(self, began: float, now: float) -> None:
        """It is waited for no longer."""
        if began < self.end and (not self.by_intention or began >= self.start):
            self.num_unanswered += 1
            if self.by_intention:
                self.latencies.append(now - began)

    def sent_late(self, intended: float, now: float) -> None:
        """How late the generator itself was."""
        if self.start <= intended < self.end:
            self.late.append(now - intended)

    def figures(self, batch: int) -> dict[str, Any]:
        """In milliseconds; a percentile that so few answers do not have is None."""
        seconds = self.end - self.start
        return {
            "requests": self.statuses[GOOD],
            "requests_per_s": self.num_done / seconds,
            "images_per_s": batch * self.num_done / seconds,
            **percentiles(self.latencies),
            "mean_ms": 1000 * sum(self.latencies) / len(self.latencies) if self.latencies else None,
            "max_ms": 1000 * max(self.latencies) if self.latencies else None,
            "by_status": {str(status): count for status, count in sorted(self.statuses.items())},
            "refused": len(self.refused),
            "refused_p50_ms": percentiles(self.refused)["p50_ms"],
            "refused_p99_ms": percentiles(self.refused)["p99_ms"],
            "connection_errors": dict(self.failures),
            "unanswered": self.num_unanswered,
            "late_p50_ms": percentiles(self.late)["p50_ms"],
            "late_p99_ms": percentiles(self.late)["p99_ms"],
            "generator_cores": self.cpu_seconds / seconds,
        }


def percentiles(seconds: array[float]) -> dict[str, float | None]:
    """In milliseconds: such a share of the answers took no longer. None where not one took longer, as of a few."""
    import numpy as np

    ordered, count = np.sort(np.asarray(seconds)), len(seconds)

    def of(share: int) -> float | None:
        return 1000 * float(ordered[-(-count * share // 1000) - 1]) if count * (1000 - share) >= 1000 else None

    return {name: of(share) for name, share in PERCENTILES.items()}
