"""Which measured file is the best within a budget. Pure functions over plain dataclasses; torch-free, numpy-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR
from math import inf

from ..errors import NothingFits, UnknownName
from .units import ACCURACY, COUNT, LATENCY, SIZE, Quantity


@dataclass(frozen=True)
class Candidate:
    """A file that was measured, or a target of a bundled entry, which `export` makes a file of.

    Attributes:
        path: the file; of a bundled entry what `kdzoo export` takes, `ENTRY --branch TARGET`. package: the folder of the file, or
            the reference that pulls it, where it is `published` and not here.
        top1: in percent, over `n` images. latency_ms: of one call at the batch and the percentile that were asked for.
        batch: smallest and largest. host: where it was measured, empty where it was not run. bytes: of the file.
        lacks: by the name of a figure that is None, why it is.
    """

    path: str
    entry: str
    target: str
    dataset: str
    package: str = ""
    published: bool = False
    format: str = ""
    precision: str = ""
    runtime: str = ""
    host: str = ""
    batch: tuple[int, int] | None = None
    top1: float | None = None
    n: int | None = None
    latency_ms: float | None = None
    macs: int | None = None
    params: int | None = None
    bytes: int | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)

    def figure(self, key: str) -> float | None:
        """One of `FIGURES`."""
        value: float | None = getattr(self, FIGURES[key].name)
        return value

    def is_measured(self, limits: Limits) -> bool:
        """Whether it has every figure that a limit asks for."""
        return all(self.figure(key) is not None for key in limits.given)


@dataclass(frozen=True)
class Figure:
    """What can be limited or optimised.

    Attributes:
        name: of the field of a candidate. title: in a sentence. option: of the command line, which limits it.
        more: whether more is better.
    """

    name: str
    title: str
    option: str
    quantity: Quantity
    more: bool = False

    @property
    def limit(self) -> str:
        """Name of the limit in a document: `max_latency_ms`."""
        return f"{self.option[2:5]}_{self.name}"

    def badness(self, value: float | None) -> float:
        """For sorting: the best first, what nobody knows last."""
        return inf if value is None else -value if self.more else value

    def excess(self, value: float, limit: float) -> float:
        """By which share of the limit `value` is beyond it; 0 within."""
        beyond = max(limit - value if self.more else value - limit, 0.0)
        return beyond / limit if beyond and limit else inf if beyond else 0.0

    def request(self, value: float) -> str:
        """The option with which a file of this `value` still fits."""
        return f"{self.option} {self.quantity.write(value, ROUND_FLOOR if self.more else ROUND_CEILING)}"


FIGURES = {
    "top1": Figure("top1", "top-1", "--min-top1", ACCURACY, more=True),
    "latency": Figure("latency_ms", "latency", "--max-latency", LATENCY),
    "macs": Figure("macs", "MACs", "--max-macs", COUNT),
    "size": Figure("bytes", "size", "--max-size", SIZE),
    "params": Figure("params", "parameters", "--max-params", COUNT),
}
PERCENTILES = ("p50", "p90", "p99")  # of latency, that are measured
TIES = ("top1", "latency", "macs", "size")  # what decides between equals, before the path


@dataclass(frozen=True)
class Limits:
    """Percent, milliseconds, multiply-adds, bytes, parameters; None is no limit. The fields are those of `FIGURES`."""

    top1: float | None = None
    latency: float | None = None
    macs: float | None = None
    size: float | None = None
    params: float | None = None

    @classmethod
    def parse(cls, **texts: str | None) -> Limits:
        """`Limits.parse(latency="2ms", top1="70%")`; raises `UsageError` for what is no such quantity."""
        return cls(**{key: FIGURES[key].quantity.parse(text) for key, text in texts.items() if text is not None})

    @property
    def given(self) -> dict[str, float]:
        return {key: value for key in FIGURES if (value := getattr(self, key)) is not None}

    @property
    def document(self) -> dict[str, float]:
        """With units in the names."""
        return {FIGURES[key].limit: value for key, value in self.given.items()}

    def __str__(self) -> str:
        return " ".join(FIGURES[key].request(value) for key, value in self.given.items())


@dataclass(frozen=True)
class Choice:
    """The answer of `choose`.

    Attributes:
        fitting: best first. left_out: those without a figure that a limit asks for.
        nearest: where nothing fits, the one that is the least beyond the limits. relaxed: where nothing fits, the limits to relax
            and the candidate that each set of them lets in, one limit at a time where that is enough.
    """

    fitting: tuple[Candidate, ...]
    left_out: tuple[Candidate, ...]
    nearest: Candidate | None = None
    relaxed: tuple[tuple[Limits, Candidate], ...] = ()


def select(candidates: Sequence[Candidate], limits: Limits, objective: str = "top1") -> Choice:
    """As `choose`; raises `NothingFits`, with the nearest miss and what to relax, where nothing is within the limits."""
    choice = choose(candidates, limits, objective)
    if choice.fitting:
        return choice
    lost = [f"{count} left out, {why}" for why, count in reasons(choice.left_out, limits).items()]
    if choice.nearest is None:
        hint = f"leave {' and '.join(FIGURES[key].option for key in limits.given)} out, or measure it"
        if not any(c.package for c in candidates):
            hint = f"kdzoo export {candidates[0].entry} --branch all-targets -o FOLDER, then kdzoo select FOLDER {limits}"
        raise NothingFits("; ".join([f"none of {len(candidates)} can be held against {limits}", *lost]), hint=hint)
    beyond = {key: choice.nearest.figure(key) or 0.0 for key in excesses(choice.nearest, limits)}
    has = " and ".join(f"{FIGURES[key].title} {FIGURES[key].quantity.write(value)}" for key, value in beyond.items())
    what = f"none of {len(candidates)} is within {limits}; the nearest, {choice.nearest.path}, has {has}"
    steps = [f"{relaxed} lets in {candidate.path}" for relaxed, candidate in choice.relaxed]
    raise NothingFits("; ".join([what, *lost]), hint=f"relax: {', or '.join(steps)}")


def choose(candidates: Iterable[Candidate], limits: Limits, objective: str = "top1") -> Choice:
    """The candidates within `limits`, by `objective`; equals by higher top-1, lower latency, fewer MACs, smaller size, path.

    What has no figure for the objective comes last. The excess over the limits is the sum of shares: 10 % too slow and 5 % too big
    is as far off as 15 % too slow.

    Raises:
        UnknownName: no such objective.
    """
    if objective not in FIGURES:
        raise UnknownName("objective", objective, list(FIGURES))
    ranked = sorted(candidates, key=lambda c: (*(FIGURES[f].badness(c.figure(f)) for f in (objective, *TIES)), c.path))
    left_out = tuple(c for c in ranked if not c.is_measured(limits))
    measured = [(c, excesses(c, limits)) for c in ranked if c.is_measured(limits)]
    fitting = tuple(c for c, beyond in measured if not beyond)
    if fitting or not measured:
        return Choice(fitting, left_out)
    nearest, beyond = min(measured, key=lambda pair: sum(pair[1].values()))  # of equals the first
    relaxed = []
    for key in limits.given:
        alone = [(each[key], c) for c, each in measured if each.keys() == {key}]
        if alone:
            relaxed.append(_letting_in(min(alone, key=lambda pair: pair[0])[1], [key]))
    return Choice((), left_out, nearest, tuple(relaxed) or (_letting_in(nearest, beyond),))


def _letting_in(candidate: Candidate, keys: Iterable[str]) -> tuple[Limits, Candidate]:
    return Limits(**{key: candidate.figure(key) for key in keys}), candidate


def excesses(candidate: Candidate, limits: Limits) -> dict[str, float]:
    """By limit that a candidate is beyond, by how much; it must have the figures."""
    each = {key: FIGURES[key].excess(candidate.figure(key) or 0.0, limit) for key, limit in limits.given.items()}
    return {key: excess for key, excess in each.items() if excess}


def reasons(left_out: Sequence[Candidate], limits: Limits) -> dict[str, int]:
    """Why candidates were left out, and how many for each reason."""
    counted: dict[str, int] = {}
    for candidate in left_out:
        without: dict[str, list[str]] = {}
        for figure in (FIGURES[key] for key in limits.given if candidate.figure(key) is None):
            without.setdefault(candidate.lacks.get(figure.name, "not measured"), []).append(figure.title)
        reason = "; ".join(f"no {' and no '.join(titles)}: {why}" for why, titles in without.items())
        counted[reason] = counted.get(reason, 0) + 1
    return counted
