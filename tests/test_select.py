"""The choice within a budget: brute force says which file is the best, which the nearest, and what to relax."""

from __future__ import annotations

import random
from decimal import ROUND_CEILING, ROUND_FLOOR
from typing import Any

import pytest

from kdzoo.errors import NothingFits, UnknownName, UsageError
from kdzoo.export.select import Candidate, Limits, choose, reasons, select
from kdzoo.export.units import ACCURACY, COUNT, LATENCY, SIZE, Quantity

FIELDS = {"top1": "top1", "latency": "latency_ms", "macs": "macs", "size": "bytes", "params": "params"}


def file(path: str, **figures: Any) -> Candidate:
    given = {"top1": 70.0, "latency_ms": 1.0, "macs": 10, "bytes": 100, "params": 50, **figures}
    return Candidate(path, "entry", "1", "toy", package="p", **given)


def paths(candidates: tuple[Candidate, ...]) -> list[str]:
    return [candidate.path for candidate in candidates]


# --- choose: brute force ------------------------------------------------------------------------------------------------


def is_within(candidate: Candidate, key: str, limit: float) -> bool:
    value = getattr(candidate, FIELDS[key])
    return value is not None and (value >= limit if key == "top1" else value <= limit)


def is_better(a: Candidate, b: Candidate, objective: str) -> bool:
    """Whether `a` comes before `b`: the first figure in which they differ decides, and what is unknown loses."""
    for key in (objective, "top1", "latency", "macs", "size"):
        x, y = getattr(a, FIELDS[key]), getattr(b, FIELDS[key])
        if x != y:
            if x is None or y is None:
                return y is None
            return bool(x > y if key == "top1" else x < y)
    return a.path < b.path


def best_of(candidates: list[Candidate], objective: str) -> Candidate | None:
    return next((a for a in candidates if all(a is b or is_better(a, b, objective) for b in candidates)), None)


def random_query(draw: random.Random) -> tuple[list[Candidate], Limits, str]:
    """Few values, so that ties and exact hits are common; a figure in six is missing, a limit in two."""

    def some(*values: float) -> Any:
        return None if draw.random() < 1 / 6 else draw.choice(values)

    candidates = [
        file(
            f"f{number}", top1=some(50.0, 62.5, 75.0), latency_ms=some(0.5, 1.0, 2.0, 4.0), macs=some(8, 16, 32),
            bytes=some(64, 128, 256), params=some(4, 8),
        )
        for number in draw.sample(range(20), draw.randrange(8))
    ]  # fmt: skip
    limits = {
        "top1": (50.0, 60.0, 62.5, 80.0),
        "latency": (0.25, 0.5, 1.0, 3.0),
        "macs": (4, 16, 32),
        "size": (32, 64, 256),
        "params": (2, 4),
    }
    given = {key: draw.choice(values) for key, values in limits.items() if draw.random() < 0.5}
    return candidates, Limits(**given), draw.choice(list(FIELDS))  # type: ignore[arg-type]


def test_the_choice_is_that_of_brute_force() -> None:
    draw, fitted, missed, alone = random.Random(4), 0, 0, 0
    for _ in range(10_000):
        candidates, limits, objective = random_query(draw)
        choice = choose(candidates, limits, objective)
        within = [c for c in candidates if all(is_within(c, key, limit) for key, limit in limits.given.items())]
        expected = best_of(within, objective)
        assert (choice.fitting[0] if choice.fitting else None) == expected, (candidates, limits, objective)
        assert sorted(paths(choice.fitting)) == sorted(c.path for c in within)
        assert all(is_better(a, b, objective) for a, b in zip(choice.fitting, choice.fitting[1:], strict=False))
        complete = [c for c in candidates if None not in [getattr(c, FIELDS[key]) for key in limits.given]]
        assert {c.path for c in choice.left_out} == {c.path for c in candidates} - {c.path for c in complete}
        fitted += bool(within)
        if within or not complete:
            assert choice.nearest is None and choice.relaxed == ()
            continue
        missed += 1

        def excess(c: Candidate, limits: Limits = limits) -> float:
            beyond = [(getattr(c, FIELDS[k]), limit) for k, limit in limits.given.items() if not is_within(c, k, limit)]
            return sum(abs(value - limit) / limit for value, limit in beyond)

        least = min(map(excess, complete))
        assert choice.nearest == best_of([c for c in complete if excess(c) == least], objective)
        singles = {
            k for k in limits.given for c in complete if [q for q, v in limits.given.items() if not is_within(c, q, v)] == [k]
        }
        alone += bool(singles)
        for relaxed, candidate in choice.relaxed:
            assert (set(relaxed.given) in [{key} for key in singles]) if singles else candidate == choice.nearest
            easier = Limits(**{**limits.given, **relaxed.given})
            assert candidate in choose(candidates, easier).fitting, "what is said to be let in is not"
            for key, value in relaxed.given.items() if singles else ():
                harder = value + 1e-6 if key == "top1" else value - 1e-6
                assert not choose(candidates, Limits(**{**limits.given, key: harder})).fitting, "a smaller step is enough"
        assert len(choice.relaxed) == max(len(singles), 1)
    assert min(fitted, missed, alone, missed - alone) > 300, "the queries do not try every kind of answer"


def test_the_order_of_the_files_does_not_matter() -> None:
    draw = random.Random(5)
    for _ in range(300):
        candidates, limits, objective = random_query(draw)
        shuffled = draw.sample(candidates, len(candidates))
        assert choose(candidates, limits, objective) == choose(shuffled, limits, objective)


def test_equals_are_told_apart_by_latency_then_macs_then_size_then_path() -> None:
    files = [file("b"), file("a"), file("c", bytes=99), file("d", macs=9, bytes=200), file("e", latency_ms=0.9, macs=20)]
    assert paths(choose(files, Limits()).fitting) == ["e", "d", "c", "a", "b"]


def test_what_has_no_figure_for_the_objective_comes_last_and_for_a_limit_is_left_out() -> None:
    files = [file("run"), file("built", latency_ms=None, lacks={"latency_ms": "built, not run: no GPU"}), file("new", top1=None)]
    assert paths(choose(files, Limits(), "latency").fitting)[-1] == "built"
    choice = choose(files, Limits(latency=5.0, top1=1.0))
    assert paths(choice.fitting) == ["run"]
    assert reasons(choice.left_out, Limits(latency=5.0, top1=1.0)) == {
        "no latency: built, not run: no GPU": 1, "no top-1: not measured": 1,
    }  # fmt: skip


def test_an_unknown_objective_has_a_suggestion() -> None:
    with pytest.raises(UnknownName) as wrong:
        choose([], Limits(), "latancy")
    assert wrong.value.suggestion == "latency"


# --- choose: nothing fits -----------------------------------------------------------------------------------------------


def test_the_nearest_miss_is_the_least_beyond_all_limits_together() -> None:
    # Shares beyond 1 ms and 100 bytes: 0.3; 0.1 + 0.1; 0.25.
    files = [file("slow", latency_ms=1.3), file("both", latency_ms=1.1, bytes=110), file("big", bytes=125)]
    with pytest.raises(NothingFits) as wrong:
        select(files, Limits(latency=1.0, size=100))
    assert wrong.value.exit_code == 7
    assert wrong.value.what == (
        "none of 3 is within --max-latency 1ms --max-size 100B; the nearest, both, has latency 1.1ms and size 110B"
    )
    assert wrong.value.hint == "relax: --max-latency 1.3ms lets in slow, or --max-size 125B lets in big"


def test_one_limit_is_relaxed_where_that_is_enough_and_else_those_of_the_nearest_together() -> None:
    limits, near = Limits(latency=1.0, size=100_000, macs=10), file("near", latency_ms=1.23456, bytes=123456)
    for far, hint in (
        (file("far", latency_ms=9.0, bytes=900), "relax: --max-latency 9ms lets in far"),
        (file("far", latency_ms=9.0, bytes=900_000), "relax: --max-latency 1.235ms --max-size 123.5KB lets in near"),
    ):
        with pytest.raises(NothingFits) as wrong:
            select([far, near], limits)
        assert "the nearest, near, " in wrong.value.what and wrong.value.hint == hint


# --- units --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantity", "read"),
    [
        (LATENCY, {"500us": 0.5, "250 µs": 0.25, "2ms": 2.0, "1.5S": 1500.0, ".5ms": 0.5}),
        (COUNT, {"472756": 472756.0, "100M": 1e8, "0.5m": 5e5, "500k": 5e5, "1.2G": 1.2e9}),
        (SIZE, {"7": 7.0, "12B": 12.0, "2M": 2e6, "2MB": 2e6, "900KB": 9e5, "2MiB": 2097152.0, "1kib": 1024.0, "1GiB": 2.0**30}),
        (ACCURACY, {"0.70": 70.0, "70%": 70.0, "70": 70.0, "1": 100.0, "1%": 1.0, "0.07": 7.0, "0": 0.0}),
    ],
    ids=["latency", "count", "size", "accuracy"],
)
def test_units_are_read_exactly(quantity: Quantity, read: dict[str, float]) -> None:
    assert {text: quantity.parse(text) for text in read} == read


@pytest.mark.parametrize(
    ("quantity", "refused"),
    [
        (LATENCY, ("2", "2m", "-2ms", "0ms", "")),
        (COUNT, ("many", "2MB", "1e6", "0")),
        (SIZE, ("2Mi", "0", "2 MB MB")),
        (ACCURACY, ("101", "101%", "nan", "7.0.1")),
    ],
    ids=["latency", "count", "size", "accuracy"],
)
def test_what_is_no_quantity_is_refused_with_examples(quantity: Quantity, refused: tuple[str, ...]) -> None:
    for text in refused:
        with pytest.raises(UsageError) as wrong:
            quantity.parse(text)
        assert wrong.value.hint == f"write it like {quantity.like}"


def test_a_written_limit_still_lets_in_what_it_was_written_for() -> None:
    draw = random.Random(6)
    for _ in range(2000):
        value = draw.choice([draw.uniform(0.0001, 100), round(draw.uniform(0.0001, 100), 2)])
        for quantity, scale in ((LATENCY, 1.0), (COUNT, 1e7), (SIZE, 1e5)):
            figure = value * scale
            assert figure <= quantity.parse(quantity.write(figure, ROUND_CEILING)) <= figure * 1.001
        assert value * 0.999 <= ACCURACY.parse(ACCURACY.write(value, ROUND_FLOOR)) <= value
