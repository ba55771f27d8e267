"""Who is likely the best: against counting by hand, and against draws of a known truth."""

from __future__ import annotations

import numpy as np
import pytest

from tightframe.decide import evidence, recommendation
from tightframe.decide.evidence import Evidence
from tightframe.decide.recommendation import Outcome, standings


def of(right: np.ndarray) -> Outcome:
    """A model that was sure of every image, right or wrong."""
    return Outcome(np.asarray(right, float), np.asarray(right, float))


def test_credit_is_half_for_being_right_and_half_for_how_probable_the_truth_was() -> None:
    found = Outcome(np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.3, 0.0])).credit
    np.testing.assert_allclose(found, [0.95, 0.7, 0.15, 0])
    said = np.log([[0.9, 0.1], [0.7, 0.3]])
    outcome = Outcome.of(Evidence(said, np.array([0, 1])))
    np.testing.assert_allclose(outcome.credit, [0.95, 0.15])


@pytest.mark.slow
def test_the_better_model_stands_first_and_the_more_images_the_surer() -> None:
    chances = []
    for images in (40, 400, 4000):
        right = np.arange(images) % 10 < 8
        wrong = np.arange(images) % 10 < 7
        good, bad = standings([of(right), of(wrong)], [7, 7])
        assert (good.expected, bad.expected) == (pytest.approx(0.8), pytest.approx(0.7))
        assert good.low < good.expected < good.high
        chances.append(good.p_best)
        assert good.p_best + bad.p_best == pytest.approx(1)
    assert chances == sorted(chances)
    assert not standings([of(right), of(wrong)], [7, 7])[1].tied


def test_equals_tie_and_share_the_chance() -> None:
    same = (np.random.default_rng(0).random(200) < 0.6).astype(float)
    first, second, third = standings([of(same), of(same), of(np.zeros(200))], [5, 5, 5])
    assert first.p_best == pytest.approx(0.5, abs=0.05)
    assert (first.tied, second.tied, third.tied) == (False, True, False)
    assert third.p_best == 0


def test_a_model_alone_is_the_best_of_its_list() -> None:
    alone = standings([of(np.ones(10))], [3])[0]
    assert (alone.p_best, alone.tied, alone.expected) == (1, False, 1)


def test_intervals_cover_the_accuracy_they_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommendation, "DRAWS", 500)
    generator = np.random.default_rng(1)
    covered = 0
    for draw in range(200):
        lucky = 0.7 + evidence.DOUBT * generator.standard_normal()
        found = standings([of(generator.random(150) < lucky)], [9], seed=draw)[0]
        covered += found.low <= 0.7 <= found.high
    assert 0.9 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_answer() -> None:
    rows = [of(np.random.default_rng(k).random(50) < 0.5) for k in range(3)]
    assert standings(rows, [1, 1, 1], 3) == standings(rows, [1, 1, 1], 3)
    assert standings(rows, [1, 1, 1], 3) != standings(rows, [1, 1, 1], 4)


def test_the_larger_of_equals_is_ahead_and_less_so_with_more_images() -> None:
    gaps = []
    for images in (50, 500):
        right = (np.arange(images) % 2).astype(float)
        small, large = standings([of(right), of(right)], [1_000_000, 2_000_000])
        gaps.append(large.merit - small.merit)
        assert small.merit + large.merit == pytest.approx(1)
        assert small.expected == large.expected == 0.5, "what to expect has no bonus"
    assert gaps[0] == pytest.approx(recommendation.SIZE * np.log(2) * 2 / 3)
    assert gaps[1] == pytest.approx(recommendation.SIZE * np.log(2) / 6)


def test_with_more_images_to_come_it_is_less_sure_who_will_be_the_best() -> None:
    right, wrong = np.arange(100) % 10 < 9, np.arange(100) % 10 < 6
    now = standings([of(right), of(wrong)], [7, 7])
    later = standings([of(right), of(wrong)], [7, 7], eventually=100_000)
    assert now[0].p_best > later[0].p_best > 0.9
    assert (later[0].low, later[0].high) == (now[0].low, now[0].high)
    assert standings([of(right), of(wrong)], [7, 7], eventually=50) == now
