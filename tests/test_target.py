"""What a user may write for `--branch`, and what it means."""

from __future__ import annotations

import pytest

from kdzoo.errors import UnknownName, UsageError
from kdzoo.zoo.target import Target

FOUR = {"num_branches": 4, "target_branch": 2, "fused": True}


@pytest.mark.parametrize(
    ("text", "canonical", "numbers"),
    [
        ("target", "target", (2,)),
        ("1", "1", (1,)),
        ("4", "4", (4,)),
        ("1+2", "1+2", (1, 2)),
        ("4+1+2", "1+2+4", (1, 2, 4)),
        ("ensemble", "ensemble", (1, 2, 3, 4)),
        ("fused", "fused", ()),
        ("all", "all", (1, 2, 3, 4)),
        ("cascade", "cascade", (1, 2)),
        (" Ensemble ", "ensemble", (1, 2, 3, 4)),
        (" 3\n", "3", (3,)),
    ],
)
def test_a_target_is_parsed_and_printed(text: str, canonical: str, numbers: tuple[int, ...]) -> None:
    target = Target.parse(text)
    assert str(target) == canonical and Target.parse(canonical) == target
    assert target.numbers(**FOUR) == numbers


@pytest.mark.parametrize("text", ["", "0", "-1", "01", "1+", "+1", "1++2", "1 + 2", "1,2", "1.5", "branch1", "None", "cascades"])
def test_anything_else_is_refused_with_the_known_words(text: str) -> None:
    with pytest.raises(UnknownName) as caught:
        Target.parse(text)
    assert caught.value.kind == "target" and {"target", "fused", "ensemble", "cascade", "all", "all-targets", "1", "1+2+3"} <= set(
        caught.value.known
    )


@pytest.mark.parametrize(("text", "suggestion"), [("fuse", "fused"), ("ensembel", "ensemble"), ("traget", "target"), ("xyz", None)])
def test_a_slip_gets_the_nearest_word(text: str, suggestion: str | None) -> None:
    with pytest.raises(UnknownName) as caught:
        Target.parse(text)
    assert caught.value.suggestion == suggestion


def test_a_branch_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'2\+1\+2' names a branch twice"):
        Target.parse("2+1+2")


@pytest.mark.parametrize("text", ["5", "1+5", "fused", "all-targets"])
def test_what_a_network_does_not_have_is_refused_with_what_it_has(text: str) -> None:
    with pytest.raises(UnknownName) as caught:
        Target.parse(text).numbers(num_branches=4, target_branch=1, fused=False)
    assert caught.value.known == ("1", "2", "3", "4", "all", "cascade", "ensemble", "target")
    assert bool(caught.value.hint) == (text == "all-targets"), "it is expanded by who selects"


def test_a_cascade_ends_at_the_target_or_goes_through_all_branches() -> None:
    cascade = Target.parse("cascade")
    assert cascade.numbers(num_branches=5, target_branch=4, fused=True) == (1, 2, 3, 4)
    assert cascade.numbers(num_branches=3, target_branch=1, fused=False) == (1, 2, 3)
    with pytest.raises(UnknownName) as caught:
        cascade.numbers(num_branches=1, target_branch=1, fused=False)
    assert "several branches" in caught.value.hint
