"""`kdzoo bench`: the latency of files in their runtimes (`trials`), one after the other or side by side. Torch-free.

A package carries eight images, the golden ones, and no others: a file of a cascade is timed on each of them, as each takes its own
exit; what it takes over all exits in their true proportion is measured by `export` (`measure_rounds`), on the test images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentProblem, GateFailed, KdzooError, UsageError
from ..zoo.manifest import host_description
from .measure_latency import measure_latency

if TYPE_CHECKING:
    from .runtime import Session
    from .trials import Trial

CANNOT = (EnvironmentProblem, GateFailed)  # what a runtime finds out when it opens or runs a file


def bench(
    trials: Sequence[Trial],
    *,
    batches: Sequence[int] = (),
    threads: int | None = None,
    seconds: float = 2.0,
    pin: bool = False,
    not_run: list[dict[str, str]] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Latency of every trial, one after the other, by batch size.

    Args:
        batches: sizes; by default those of the export. threads: of the processor; by default its physical cores.
        seconds: for each trial and size. pin: keep them on as many processors (`threads.pinned`).
        not_run: takes the trials that turn out not to run here, with the reason; without it the first of them is an error.

    Raises:
        UsageError: a file cannot take a batch. EnvironmentProblem: a runtime does not run on what was asked for; GateFailed: it
        does not take a file. With `not_run` only where nothing runs.
    """
    from .threads import physical_cores

    sizes = [trial.batches(batches) for trial in trials]
    count, results, problems = threads or physical_cores(), list[dict[str, Any]](), list[KdzooError]()
    with processors(count, pin) as used:
        under = conditions(count, used)
        for trial, own_sizes in zip(trials, sizes, strict=True):
            say(f"{trial.artifact.path} on {trial.runtime.name}")
            try:
                with trial.runtime.open(trial.package.folder, trial.artifact, threads) as session:
                    for size in own_sizes:
                        found = measure_latency(session, trial.calls(size), size, seconds=seconds)
                        results.append({**facts(trial, session), **asdict(found)})
            except CANNOT as problem:
                note(trial, problem, not_run)
                problems.append(problem)
    if problems and not results:
        raise problems[0]
    return {**under, "results": results}


def facts(trial: Trial, session: Session) -> dict[str, Any]:
    """What was measured and on what it ran. `runs_in`: of the parts of a cascade, what computes each; else the runtime itself."""
    ran_on = asdict(session.ran_on)
    return {"runs_in": ran_on.pop("runtime"), **ran_on, **trial.labels}


def note(trial: Trial, problem: KdzooError, not_run: list[dict[str, str]] | None) -> None:
    """In `not_run`, why a trial does not run here; without it, raises that."""
    if not_run is None:
        raise problem
    not_run.append(trial.not_run(problem))


def bench_side_by_side(
    trials: Sequence[Trial],
    *,
    batches: Sequence[int] = (),
    threads: int | None = None,
    seconds: float = 2.0,
    pin: bool = False,
    not_run: list[dict[str, str]] | None = None,
) -> dict[str, Any]:
    """As `bench`, all trials in turns, each against the first that runs. `seconds` is for each trial and size here, too."""
    from .comparison import compare_times, interleave
    from .threads import physical_cores

    count, results = threads or physical_cores(), list[dict[str, Any]]()
    sizes = [size for size in trials[0].batches(batches) if batches or all(size in trial.batches(()) for trial in trials)]
    for trial in trials:
        trial.batches(sizes)
    if not sizes:
        raise UsageError("these files share no batch size", hint="name one with --batch")
    with processors(count, pin) as used, ExitStack() as stack:
        under = conditions(count, used)
        opened, problems = [], list[KdzooError]()
        for trial in trials:
            try:
                session = trial.runtime.open(trial.package.folder, trial.artifact, threads, in_turns=True)
            except CANNOT as problem:
                note(trial, problem, not_run)
                problems.append(problem)
            else:
                opened.append((trial, stack.enter_context(session)))
        if not opened:
            raise problems[0]
        for size in sizes:
            inputs = [trial.calls(size) for trial, _ in opened]
            calls = {str(n): partial(in_a_row, session, inputs[n]) for n, (_, session) in enumerate(opened)}
            times = interleave(calls, seconds=seconds * len(calls))
            for row in compare_times({name: [t / len(inputs[int(name)]) for t in own] for name, own in times.items()}):
                trial, session = opened[int(row.name)]
                figures = {key: value for key, value in asdict(row).items() if key != "name"}
                rate = round(1000.0 * size / row.median_ms, 1)
                results.append({**facts(trial, session), "batch": size, **figures, "images_per_s": rate})
    return {**under, "results": results}


def in_a_row(session: Session, inputs: Sequence[Any]) -> None:
    """One call on each."""
    for each in inputs:
        session(each)


def conditions(threads: int, used: list[int] | None) -> dict[str, Any]:
    """Under which something was measured: the machine, how busy it was before, threads, and processors where they were pinned."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"host": host_description(), "load_average": load, "threads": threads, "pinned_to": used}


@contextmanager
def processors(threads: int, pin: bool) -> Iterator[list[int] | None]:
    """Pins, or does nothing and gives None."""
    from .threads import pinned

    if not pin:
        yield None
        return
    with pinned(threads) as used:
        yield used
