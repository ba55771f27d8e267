"""Quality of a ranking against formulas written out, and what its intervals do."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tightframe.scores.agreement import agreement, regret

TRUTH = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


def weighted_tau(scores: np.ndarray, truth: np.ndarray) -> float:
    """Vigna's definition without ties, weights 1/(rank + 1) by each order in turn."""
    found = []
    for by in (scores, truth):
        rank = np.argsort(np.argsort(-by))
        weight = total = 0.0
        for i, j in combinations(range(len(by)), 2):
            pair = 1 / (rank[i] + 1) + 1 / (rank[j] + 1)
            total += pair
            weight += pair * np.sign((scores[i] - scores[j]) * (truth[i] - truth[j]))
        found.append(weight / total)
    return float(np.mean(found))


def test_correlations_are_their_formulas() -> None:
    scores = np.array([3.0, 5.0, 2.0, 1.5, 0.3, 1.0])
    found, truth = agreement(scores, TRUTH), np.array(TRUTH)
    pairs = [np.sign((scores[i] - scores[j]) * (truth[i] - truth[j])) for i, j in combinations(range(6), 2)]
    ranks = [np.argsort(np.argsort(values)) for values in (scores, truth)]
    assert found["weighted_tau"].value == pytest.approx(weighted_tau(scores, truth))
    assert found["tau"].value == pytest.approx(np.mean(pairs))
    assert found["spearman"].value == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["pearson"].value == pytest.approx(np.corrcoef(scores, truth)[0, 1])
    assert found["regret"].value == pytest.approx(0.1)


def test_the_ends() -> None:
    best, worst = agreement(TRUTH, TRUTH), agreement([-t for t in TRUTH], TRUTH)
    for name in ("weighted_tau", "tau", "spearman", "pearson"):
        assert best[name].value == pytest.approx(1)
        assert worst[name].value == pytest.approx(-1)
    assert (best["regret"].value, worst["regret"].value) == (0, pytest.approx(0.5))


def test_scores_that_rank_nothing() -> None:
    found = agreement([1.0] * 6, TRUTH)
    assert np.isnan(found["weighted_tau"].value)
    assert found["regret"].value == pytest.approx(0.9 - np.mean(TRUTH))
    alone = agreement([1.0], [0.5])
    assert np.isnan(alone["tau"].value)
    assert alone["regret"].value == 0


def test_regret_of_shared_first_place_is_their_mean() -> None:
    assert regret(np.array([2.0, 2.0, 1.0]), np.array([0.5, 0.9, 0.7])) == pytest.approx(0.2)


@pytest.mark.slow
def test_intervals_hold_the_value_narrow_with_models_and_repeat() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for count in (8, 80):
        truth = generator.normal(size=count)
        found = agreement(truth + generator.normal(size=count), truth)
        assert found["spearman"].low < found["spearman"].value < found["spearman"].high
        widths.append(found["spearman"].high - found["spearman"].low)
    assert widths[1] < widths[0] / 2
    assert agreement([3.0, 1.0, 2.0], [1.0, 0.0, 2.0]) == agreement([3.0, 1.0, 2.0], [1.0, 0.0, 2.0])
