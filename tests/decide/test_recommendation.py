"""Who is likely the best: against counting by hand, and against draws of a known truth."""

from __future__ import annotations

import numpy as np
import pytest

from tightframe.decide import recommendation
from tightframe.decide.recommendation import WEIGHTS, credit, standings


def test_credit_is_the_weighted_share_of_probes_that_were_right() -> None:
    found = credit({"ridge": [1, 1, 0, 0], "lda": [1, 0, 1, 0], "knn": np.array([True, False, False, False])})
    total = sum(WEIGHTS.values())
    np.testing.assert_allclose(found, [1, WEIGHTS["ridge"] / total, WEIGHTS["lda"] / total, 0])


@pytest.mark.slow
def test_the_better_model_stands_first_and_the_more_images_the_surer() -> None:
    chances = []
    for images in (40, 400, 4000):
        right = np.arange(images) % 10 < 8
        wrong = np.arange(images) % 10 < 7
        good, bad = standings([right.astype(float), wrong.astype(float)], [7, 7])
        assert (good.expected, bad.expected) == (pytest.approx(0.8), pytest.approx(0.7))
        assert good.low < good.expected < good.high
        chances.append(good.p_best)
        assert good.p_best + bad.p_best == pytest.approx(1)
    assert chances == sorted(chances)
    assert not standings([right.astype(float), wrong.astype(float)], [7, 7])[1].tied


def test_equals_tie_and_share_the_chance() -> None:
    same = (np.random.default_rng(0).random(200) < 0.6).astype(float)
    first, second, third = standings([same, same, np.zeros(200)], [5, 5, 5])
    assert first.p_best == pytest.approx(0.5, abs=0.05)
    assert (first.tied, second.tied, third.tied) == (False, True, False)
    assert third.p_best == 0


def test_a_model_alone_is_the_best_of_its_list() -> None:
    alone = standings([np.ones(10)], [3])[0]
    assert (alone.p_best, alone.tied, alone.expected) == (1, False, 1)


def test_intervals_cover_the_accuracy_they_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommendation, "DRAWS", 500)
    generator = np.random.default_rng(1)
    covered = 0
    for draw in range(200):
        lucky = 0.7 + recommendation.DOUBT * generator.standard_normal()
        found = standings([(generator.random(150) < lucky).astype(float)], [9], seed=draw)[0]
        covered += found.low <= 0.7 <= found.high
    assert 0.9 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_answer() -> None:
    rows = [(np.random.default_rng(k).random(50) < 0.5).astype(float) for k in range(3)]
    assert standings(rows, [1, 1, 1], 3) == standings(rows, [1, 1, 1], 3)
    assert standings(rows, [1, 1, 1], 3) != standings(rows, [1, 1, 1], 4)


def test_the_larger_of_equals_is_ahead_and_less_so_with_more_images() -> None:
    gaps = []
    for images in (50, 500):
        right = (np.arange(images) % 2).astype(float)
        small, large = standings([right, right], [1_000_000, 2_000_000])
        gaps.append(large.expected - small.expected)
        assert small.expected + large.expected == pytest.approx(1)
    assert gaps[0] == pytest.approx(recommendation.SIZE * np.log(2) * 2 / 3)
    assert gaps[1] == pytest.approx(recommendation.SIZE * np.log(2) / 6)


def test_with_more_images_to_come_it_is_less_sure_who_will_be_the_best() -> None:
    right, wrong = np.arange(100) % 10 < 9, np.arange(100) % 10 < 6
    now = standings([right.astype(float), wrong.astype(float)], [7, 7])
    later = standings([right.astype(float), wrong.astype(float)], [7, 7], eventually=100_000)
    assert now[0].p_best > later[0].p_best > 0.9
    assert later[0].high - later[0].low > now[0].high - now[0].low
    assert standings([right.astype(float), wrong.astype(float)], [7, 7], eventually=50) == now
