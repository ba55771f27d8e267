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
    averaged,
    bootstrap,
    correlation,
    correlations,
    crossed,
    differences,
    minus,
    over_units,
)


def evidence(low, high, least=0.3):
    return Evidence("it holds", "ρ", 0.1, low, high, "9 models", least)


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
    told = Evidence("it holds", "difference", 0.012, 0.004, 0.02, "3 sets", 0.005, share=True).told()
    assert (told["value"], told["low"], told["high"]) == pytest.approx((1.2, 0.4, 2.0))
    assert told["statistic"] == "difference (points)"
    assert told["units"] == "3 sets"


def rows_of(scores, truths, **labels):
    pairs = zip(scores, truths, strict=True)
    return [{"model": i, "score": s, "truth": t} | labels for i, (s, t) in enumerate(pairs)]


def test_correlation_is_scipys_averaged_over_groups():
    luck = np.random.default_rng(0)
    groups = {name: luck.normal(size=(2, 9)).round(1) for name in "ab"}  # rounded: with ties
    rows = [row for name, (s, t) in groups.items() for row in rows_of(s, t, data=name)]
    found = correlation("", rows, "score", "truth", within=["data"], over=["model"], unit="models")
    expected = np.mean([stats.spearmanr(s, t)[0] for s, t in groups.values()])
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    assert found.units == "9 models"
    turned = correlation("", rows, minus("score"), "truth", within=["data"], over=["model"], unit="models")
    assert turned.value == pytest.approx(-expected)


def test_a_bootstrap_resamples_units_in_all_groups_at_once():
    # The same models in ten sets are still six models: more sets that say the same make nothing more certain.
    scores, truths = [1, 2, 3, 4, 5, 6], [1, 3, 2, 5, 4, 6]
    once = rows_of(scores, truths, data=0)
    often = [row for data in range(10) for row in rows_of(scores, truths, data=data)]
    found = [
        correlation("", rows, "score", "truth", within=["data"], over=["model"], unit="models")
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
            "", rows_of(scores, truths, data=0), "score", "truth", within=["data"], over=["model"], unit="models"
        )
        covered += found.low <= 6 / np.pi * np.arcsin(rho / 2) <= found.high  # Spearman's ρ of normal pairs
    assert covered >= 40 * 0.85


def test_a_group_of_two_is_left_out_of_estimate_draws_and_count():
    rows = rows_of([1, 2, 3, 4, 5], [1, 2, 3, 5, 4], side=96)
    two = [row | {"model": 90 + row["model"], "side": 32} for row in rows_of([1, 2], [2, 1])]
    asked = {"within": ["side"], "over": ["model"], "unit": "models"}
    alone, both = (correlation("", given, "score", "truth", **asked) for given in (rows, [*rows, *two]))
    assert alone == both


def test_correlations_are_of_each_group():
    luck = np.random.default_rng(2)
    groups = luck.normal(size=(5, 2, 7))
    rows = [row for at, (s, t) in enumerate(groups) for row in rows_of(s, t, data=at)]
    found = correlations([*rows, {"data": 9, "score": 1, "truth": 1}], "score", "truth", ["data"])
    assert found == pytest.approx({(at,): stats.spearmanr(s, t)[0] for at, (s, t) in enumerate(groups)})


def test_units_are_averaged_with_students_t():
    values = [0.1, 0.4, -0.2, 0.3]
    found = over_units("", "difference", values, "seeds", 0.005)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((0.15, expected.low, expected.high))
    assert found.units == "4 seeds"
    assert over_units("", "difference", [0.1], "seeds", 0.005).units == "1 seed"


def test_a_crossing_takes_the_wider_interval_and_seeds_make_it_no_narrower():
    luck = np.random.default_rng(5)
    effect = luck.normal(size=4)  # of models, the same on all sets
    cells = {(n, d): effect[n] + 0.01 * luck.normal() for n in range(4) for d in range(6)}
    found = crossed("", "difference", cells, 0.005)
    by_model = [np.mean([cells[n, d] for d in range(6)]) for n in range(4)]
    expected = stats.ttest_1samp(by_model, 0).confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(by_model), expected.low, expected.high))
    assert found.units == "4 models, 6 datasets"
    often = {(*key, seed): value for key, value in cells.items() for seed in range(5)}
    again = crossed("", "difference", often, 0.005)
    assert (again.value, again.low, again.high) == pytest.approx((found.value, found.low, found.high))
    assert crossed("", "ρ", cells, 0.3, most=1.0).low >= -1


def test_a_crossing_of_one_model_is_over_sets_and_of_two_sets_over_nothing():
    found = crossed("", "difference", {("n", d): float(d) for d in range(3)}, 0.005)
    expected = stats.ttest_1samp([0, 1, 2], 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.units == "1 model, 3 datasets"
    assert crossed("", "difference", {("n", 0): 1.0, ("n", 1): 2.0}, 0.005).verdict == UNCLEAR
    assert crossed("", "difference", {}, 0.005).value is None


def test_crossings_seldom_find_what_is_not_there():
    luck, found = np.random.default_rng(6), 0
    for _ in range(300):
        effect, other = luck.normal(size=4), luck.normal(size=4)
        cells = {(n, d): effect[n] + other[d] + luck.normal() for n in range(4) for d in range(4)}
        found += crossed("", "difference", cells, 0.005).verdict == SUPPORTED
    assert found <= 300 * 0.06


def test_rows_are_averaged_with_their_interval():
    rows = [{"method": "a", "value": value} for value in (0.1, 0.2, 0.6)] + [{"method": "b", "value": 1.0}]
    first, second = averaged([*rows, {"method": "a", "error": "broken"}], ["method"], ["value"])
    expected = stats.ttest_1samp([0.1, 0.2, 0.6], 0).confidence_interval()
    assert (first["value"], first["value_low"], first["value_high"]) == pytest.approx(
        (0.3, expected.low, expected.high)
    )
    assert (second["value"], second["value_low"], second["times"]) == (1.0, None, 1)


def test_a_bootstrap_is_of_any_statistic():
    rows = [{"model": at, "value": float(at)} for at in range(20)]
    asked = {"over": ["model"], "unit": "models", "least": 0.3}
    found = bootstrap("", "mean", rows, lambda drawn: float(np.mean([row["value"] for row in drawn])), **asked)
    assert found.value == 9.5
    assert found.low == pytest.approx(9.5 - 1.96 * np.std(range(20)) / 20**0.5, abs=0.4)
    assert bootstrap("", "mean", rows, lambda drawn: float("nan"), **asked).value is None


def test_a_score_is_compared_with_another_on_the_rows_that_have_both():
    luck = np.random.default_rng(3)
    truth = luck.normal(size=12)
    rows = rows_of(truth, truth, data=0)
    for row, noise in zip(rows, luck.normal(size=12), strict=True):
        row["other"] = noise
    rows[3]["other"] = None
    found = correlation("", rows, "score", "truth", within=["data"], over=["model"], unit="models", than="other")
    kept = [row for row in rows if row["other"] is not None]
    expected = 1 - stats.spearmanr([row["other"] for row in kept], [row["truth"] for row in kept])[0]
    assert found.value == pytest.approx(expected)
    assert found.units == "11 models"
    assert found.verdict == SUPPORTED


def test_few_units_and_failed_rows_tell_nothing():
    rows = [*rows_of([1, 2, 3], [1, 2, 3], data=0), {"model": 9, "data": 0, "error": "broken"}]
    found = correlation("", rows, "score", "truth", within=["data"], over=["model"], unit="models")
    assert (found.value, found.low, found.verdict) == (1.0, None, UNCLEAR)
    assert correlation("", [], "score", "truth", within=["data"], over=["model"], unit="models").value is None
    flat = rows_of([1, 1, 1, 1, 1], [1, 2, 3, 4, 5], data=0)
    assert correlation("", flat, "score", "truth", within=["data"], over=["model"], unit="models").value is None


def test_differences_are_paired():
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
    found = differences(rows, "value", "method", ["a"], ["b"], ["data", "seed"])
    assert len(found) == 12
    by_set = [np.mean([found[data, seed] for seed in range(3)]) for data in range(4)]
    assert by_set == pytest.approx(means)


def test_two_values_have_a_mean_and_no_interval():
    found = over_units("", "difference", [0.1, 0.3], "sets", 0.005)
    assert (found.value, found.low) == (pytest.approx(0.2), None)
