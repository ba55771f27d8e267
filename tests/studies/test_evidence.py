"""Statistics of studies against SciPy, and the rule that makes verdicts of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tightframe.studies.evidence import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNCLEAR,
    Evidence,
    correlation,
    difference,
    minus,
    over_units,
)


def evidence(low, high, least=0.3):
    return Evidence("it holds", "ρ", 0.1, low, high, 9, "networks", least)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.9, SUPPORTED),
        (0.0, 0.9, UNCLEAR),
        (-0.5, 0.29, NOT_SUPPORTED),
        (-0.5, 0.3, UNCLEAR),
        (-0.9, -0.1, NOT_SUPPORTED),
        (None, None, UNCLEAR),
    ],
)
def test_a_verdict_is_made_of_the_interval_alone(low, high, verdict):
    assert evidence(low, high).verdict == verdict


def test_shares_are_told_in_points():
    told = Evidence("it holds", "difference", 0.012, 0.004, 0.02, 3, "sets", 0.005, share=True).told()
    assert (told["value"], told["low"], told["high"]) == pytest.approx((1.2, 0.4, 2.0))
    assert told["statistic"] == "difference (points)"
    assert told["units"] == "3 sets"


def rows_of(scores, truths, **labels):
    pairs = zip(scores, truths, strict=True)
    return [{"network": i, "score": s, "truth": t} | labels for i, (s, t) in enumerate(pairs)]


def test_correlation_is_scipys_averaged_over_groups():
    luck = np.random.default_rng(0)
    groups = {name: luck.normal(size=(2, 9)).round(1) for name in "ab"}  # rounded: with ties
    rows = [row for name, (s, t) in groups.items() for row in rows_of(s, t, data=name)]
    found = correlation("", rows, "score", "truth", within=["data"], over=["network"], unit="networks")
    expected = np.mean([stats.spearmanr(s, t)[0] for s, t in groups.values()])
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    assert found.units == 9
    turned = correlation("", rows, minus("score"), "truth", within=["data"], over=["network"], unit="networks")
    assert turned.value == pytest.approx(-expected)


def test_a_bootstrap_resamples_units_in_all_groups_at_once():
    # The same networks in ten sets are still six networks: more sets that say the same make nothing more certain.
    scores, truths = [1, 2, 3, 4, 5, 6], [1, 3, 2, 5, 4, 6]
    once = rows_of(scores, truths, data=0)
    often = [row for data in range(10) for row in rows_of(scores, truths, data=data)]
    found = [
        correlation("", rows, "score", "truth", within=["data"], over=["network"], unit="networks")
        for rows in (once, often)
    ]
    assert (found[0].low, found[0].high) == pytest.approx((found[1].low, found[1].high))


def test_intervals_cover_as_often_as_they_say():
    luck = np.random.default_rng(1)
    rho, covered = 0.7, 0
    for _ in range(40):
        scores, noise = luck.normal(size=(2, 40))
        truths = rho * scores + np.sqrt(1 - rho**2) * noise
        found = correlation(
            "", rows_of(scores, truths, data=0), "score", "truth", within=["data"], over=["network"], unit="networks"
        )
        covered += found.low <= 6 / np.pi * np.arcsin(rho / 2) <= found.high  # Spearman's ρ of normal pairs
    assert covered >= 40 * 0.85


def test_groups_that_are_the_units_are_averaged_with_students_t():
    luck = np.random.default_rng(2)
    groups = luck.normal(size=(5, 2, 7))
    rows = [row for at, (s, t) in enumerate(groups) for row in rows_of(s, t, data=at)]
    found = correlation("", rows, "score", "truth", within=["data"], over=["data"], unit="sets")
    each = [stats.spearmanr(s, t)[0] for s, t in groups]
    expected = stats.ttest_1samp(each, 0).confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(each), expected.low, expected.high))


def test_an_interval_of_correlations_ends_at_one():
    rows = [row for at, flip in enumerate((1, 1, -1)) for row in rows_of([1, 2, 3], [1, 2, 3 * flip], data=at)]
    found = correlation("", rows, "score", "truth", within=["data"], over=["data"], unit="sets")
    assert -1 <= found.low <= found.high <= 1


def test_a_score_is_compared_with_another_on_the_rows_that_have_both():
    luck = np.random.default_rng(3)
    truth = luck.normal(size=12)
    rows = rows_of(truth, truth, data=0)
    for row, noise in zip(rows, luck.normal(size=12), strict=True):
        row["other"] = noise
    rows[3]["other"] = None
    found = correlation("", rows, "score", "truth", within=["data"], over=["network"], unit="networks", than="other")
    kept = [row for row in rows if row["other"] is not None]
    expected = 1 - stats.spearmanr([row["other"] for row in kept], [row["truth"] for row in kept])[0]
    assert found.value == pytest.approx(expected)
    assert found.units == 11
    assert found.verdict == SUPPORTED


def test_few_units_and_failed_rows_tell_nothing():
    rows = [*rows_of([1, 2, 3], [1, 2, 3], data=0), {"network": 9, "data": 0, "error": "broken"}]
    found = correlation("", rows, "score", "truth", within=["data"], over=["network"], unit="networks")
    assert (found.value, found.low, found.verdict) == (1.0, None, UNCLEAR)
    assert correlation("", [], "score", "truth", within=["data"], over=["network"], unit="networks").value is None
    flat = rows_of([1, 1, 1, 1, 1], [1, 2, 3, 4, 5], data=0)
    assert correlation("", flat, "score", "truth", within=["data"], over=["network"], unit="networks").value is None


def test_differences_are_paired_then_averaged_within_units():
    luck = np.random.default_rng(4)
    rows, means = [], []
    for data in range(4):
        gaps = []
        for seed in range(3):
            base, gap = luck.normal(), luck.normal()
            rows += [{"data": data, "seed": seed, "method": "b", "value": base}]
            rows += [{"data": data, "seed": seed, "method": "a", "value": base + gap}]
            gaps.append(gap)
        means.append(np.mean(gaps))
    rows += [{"data": 9, "seed": 0, "method": "a", "value": 100.0}]  # without a partner
    rows += [{"data": 0, "seed": 0, "method": "a", "error": "broken"}]
    found = difference(
        "", rows, "value", "method", ["a"], ["b"], pairs=["data", "seed"], over=["data"], unit="sets", share=False
    )
    expected = stats.ttest_1samp(means, 0).confidence_interval()
    assert found.units == 4
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(means), expected.low, expected.high))


def test_two_values_have_a_mean_and_no_interval():
    found = over_units("", "difference", [0.1, 0.3], "sets", 0.005)
    assert (found.value, found.low) == (pytest.approx(0.2), None)
