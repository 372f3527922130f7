"""When a cascade stops: the bound holds, the price is paid, and no image leaves where it must not."""

from __future__ import annotations

import numpy as np
import pytest

from kdzoo.errors import GateFailed
from kdzoo.export.thresholds import Answers, confidence_of, exits_of, find_thresholds, judge, path, share_of, so_far
from kdzoo.tests.small_cascade import NEVER

MACS = np.array([30.0, 60.0, 100.0])


def draw(n: int, seed: int = 0) -> Answers:
    """Three exits, each more often right than the one before; confidence is the chance of being right."""
    random = np.random.default_rng(seed)
    ease = random.uniform(0, 1, n)
    confidence = np.clip(np.stack([ease, ease**0.7, ease**0.5], axis=1), 0, 1)
    right = random.uniform(0, 1, (n, 1)) < confidence
    return Answers(confidence, right, right[:, -1], MACS)


def test_an_image_leaves_at_the_first_exit_that_is_sure_enough() -> None:
    confidence = np.array([[0.9, 0.1, 0.1], [0.5, 0.8, 0.1], [0.1, 0.1, 0.0], [0.7, 0.9, 0.9]])
    assert exits_of(confidence, (0.7, 0.8)).tolist() == [0, 1, 2, 0]
    assert exits_of(confidence, (NEVER, NEVER)).tolist() == [2, 2, 2, 2]


def test_confidence_is_the_largest_softmax_probability() -> None:
    logits = np.array([[1000.0, 0.0], [0.0, 0.0]], np.float32)
    assert confidence_of(logits).tolist() == [1.0, 0.5]


def test_an_exit_answers_with_all_that_is_known_so_far_the_last_branch_weighing_most() -> None:
    logits = [np.full((1, 2), value, np.float32) for value in (1.0, 2.0, 4.0)]
    assert [mean[0, 0] for mean in so_far(logits)] == pytest.approx([1, (1 + 2 * 2) / 3, (1 + 2 * 2 + 4 * 4) / 7])
    assert share_of(0) == 1.0


def test_the_found_thresholds_keep_the_limit_and_save_work() -> None:
    found = find_thresholds(draw(20_000), 1.0)
    assert found.loss <= found.bound <= 1.0 and found.macs < 0.9 * MACS[-1]
    assert sum(found.shares) == pytest.approx(1, abs=1e-5) and found.n == 16_000
    again = judge(draw(200_000, seed=1), found.values, 1.0)
    assert again.loss <= 1.0  # on images that had no part in it


def test_the_bound_fails_in_at_most_one_set_of_images_in_twenty() -> None:
    failed, truth = 0, draw(400_000, seed=99)
    for seed in range(100):
        try:
            found = find_thresholds(draw(3_000, seed), 1.0)
        except GateFailed:
            continue
        failed += judge(truth, found.values, 1.0).loss > 1.0
    assert failed <= 10  # 5 are expected at most; more than 10 happen once in a hundred times


def test_a_larger_loss_costs_fewer_multiply_adds() -> None:
    answers = draw(20_000)
    macs = [find_thresholds(answers, limit).macs for limit in (0.5, 1.0, 3.0)]
    assert macs == sorted(macs, reverse=True) and macs[0] > macs[-1]


def test_the_path_goes_from_careful_to_bold() -> None:
    answers = draw(5_000)
    macs = [judge(answers, values, 1.0).macs for values in path(answers, 1.0)]
    assert macs[0] > macs[-1] and len(macs) > 5


def test_exits_that_are_sure_and_wrong_are_refused_with_what_would_do() -> None:
    n = 2_000
    random = np.random.default_rng(0)
    right = np.stack([random.uniform(0, 1, n) < 0.3, np.ones(n, bool)], axis=1)
    answers = Answers(random.uniform(0.5, 1, (n, 2)), right, right[:, -1], MACS[:2])
    with pytest.raises(GateFailed, match="no early exit") as caught:
        find_thresholds(answers, 0.0)
    assert "--cascade-loss" in caught.value.hint
