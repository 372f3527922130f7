"""How many threads a measurement gets, and on which processors. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import EnvironmentProblem

TOPOLOGY = Path("/sys/devices/system/cpu")


def usable() -> dict[int, tuple[str, str]]:
    """By number, the processors that this process may use, each with the package and the core that it belongs to."""
    numbers = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)

    def place(number: int, name: str) -> str:
        path = TOPOLOGY / f"cpu{number}" / "topology" / name
        return path.read_text().strip() if path.is_file() else f"of cpu{number}"

    return {number: (place(number, "physical_package_id"), place(number, "core_id")) for number in numbers}


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once."""
    return len(set(usable().values()))


@contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """In here this thread, and those that it starts, stay on `threads` processors, of different cores where there are as many.

    Raises:
        EnvironmentProblem: the system cannot do it, or has fewer processors.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise EnvironmentProblem("this system pins no threads to processors", hint="leave --pin out")
    before, cores = os.sched_getaffinity(0), usable()
    first = {core: number for number, core in reversed(cores.items())}
    chosen = sorted(cores, key=lambda number: (first[cores[number]] != number, number))[:threads]
    if len(chosen) < threads:
        raise EnvironmentProblem(
            f"{threads} threads cannot be pinned to {len(chosen)} processors", hint=f"--threads {len(chosen)}, or leave --pin out"
        )
    os.sched_setaffinity(0, chosen)
    try:
        yield sorted(chosen)
    finally:
        os.sched_setaffinity(0, before)
