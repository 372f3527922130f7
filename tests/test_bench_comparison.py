"""The arithmetic of comparisons, with times that are given."""

from __future__ import annotations

import pytest

from kdzoo.export.comparison import compare_times, interleave
from kdzoo.export.measure_latency import percentile


def test_ratios_are_of_medians_with_the_quartiles_of_the_rounds() -> None:
    first, second = compare_times({"a": [1.0, 2.0, 4.0, 2.0, 2.0], "b": [2.0, 2.0, 2.0, 6.0, 3.0]})
    assert (first.name, first.median_ms, first.ratio, first.low_quartile, first.high_quartile) == ("a", 2.0, 1.0, 1.0, 1.0)
    # Round by round 2, 1, 0.5, 3, 1.5; sorted 0.5, 1, 1.5, 2, 3: the quartiles are the second and the fourth.
    assert (second.name, second.rounds, second.median_ms, second.ratio) == ("b", 5, 2.0, 1.0)
    assert (second.low_quartile, second.high_quartile) == (1.0, 2.0)


def test_every_round_has_a_row_of_calls_of_each_after_a_warm_up_and_the_seed_is_the_order() -> None:
    def order(seed: int) -> list[str]:
        calls: list[str] = []
        named = {n: (lambda n=n: calls.append(n)) for n in "abc"}  # type: ignore[misc]
        times = interleave(named, seconds=0, min_rounds=7, in_a_row=2, warm_up=2, seed=seed)
        assert {name: len(own) for name, own in times.items()} == dict.fromkeys("abc", 7)
        assert calls[:6] == list("abcabc") and len(calls) == 6 + 7 * 6
        rows = [calls[i : i + 6] for i in range(6, len(calls), 6)]
        assert all(sorted(row[::2]) == list("abc") and row[::2] == row[1::2] for row in rows)
        return calls

    assert order(0) == order(0) != order(1)


@pytest.mark.parametrize(("share", "value"), [(0.5, 6.0), (0.9, 10.0), (0.99, 10.0), (0.0, 1.0)])
def test_percentiles_are_values_that_were_measured(share: float, value: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], share) == value
