"""Statistics of studies against SciPy, and the rule that makes verdicts of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tightframe.studies import evidence
from tightframe.studies.evidence import (
    DATASETS,
    DIFFERENCE,
    INCONCLUSIVE,
    MODELS,
    NOT_SUPPORTED,
    RHO,
    SEEDS,
    SUPPORTED,
    VALUE,
    Evidence,
    among,
    averaged,
    bootstrap,
    gains,
    if_known,
    mean,
    only,
    ranks,
    ranks_within,
)

CROSSED = (MODELS, DATASETS)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.9, SUPPORTED),
        (0.0, 0.9, INCONCLUSIVE),
        (-0.5, 0.29, NOT_SUPPORTED),
        (-0.5, 0.3, INCONCLUSIVE),
        (-0.9, -0.1, NOT_SUPPORTED),
        (None, None, INCONCLUSIVE),
    ],
)
def test_a_verdict_is_made_of_the_interval_alone(low, high, verdict):
    assert Evidence("it holds", RHO, 0.1, low, high, "9 models").verdict == verdict


def test_shares_are_shown_in_points():
    row = Evidence("it holds", DIFFERENCE, 0.012, 0.004, 0.02, "3 datasets").row()
    assert (row["value"], row["low"], row["high"]) == pytest.approx((1.2, 0.4, 2.0))
    assert row["statistic"] == "paired difference (points)"
    assert row["units"] == "3 datasets"


def rows_of(scores, truths, **labels):
    pairs = zip(scores, truths, strict=True)
    return [{"model": i, "score": s, "truth": t} | labels for i, (s, t) in enumerate(pairs)]


def ranked(rows, score="score", within=("data",), **how):
    return ranks("", score, "truth", within=within, over=MODELS, **how)(rows)


def test_rank_correlation_is_scipys_averaged_over_groups():
    luck = np.random.default_rng(0)
    groups = {name: luck.normal(size=(2, 9)).round(1) for name in "ab"}  # rounded: with ties
    rows = [row for name, (s, t) in groups.items() for row in rows_of(s, t, data=name)]
    found = ranked(rows)
    expected = np.mean([stats.spearmanr(s, t)[0] for s, t in groups.values()])
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    assert found.units == "9 models"
    assert ranked(rows, "-score").value == pytest.approx(-expected)


def test_a_bootstrap_resamples_units_in_all_groups_at_once():
    # The same models on ten datasets are still six models: more datasets that agree make nothing more certain.
    scores, truths = [1, 2, 3, 4, 5, 6], [1, 3, 2, 5, 4, 6]
    often = [row for data in range(10) for row in rows_of(scores, truths, data=data)]
    found = [ranked(rows) for rows in (rows_of(scores, truths, data=0), often)]
    assert (found[0].low, found[0].high) == pytest.approx((found[1].low, found[1].high))


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(evidence, "DRAWS", 300)
    luck = np.random.default_rng(1)
    rho, covered = 0.7, 0
    for _ in range(40):
        scores, noise = luck.normal(size=(2, 40))
        found = ranked(rows_of(scores, rho * scores + np.sqrt(1 - rho**2) * noise, data=0))
        covered += found.low <= 6 / np.pi * np.arcsin(rho / 2) <= found.high  # Spearman's ρ of normal pairs
    assert covered >= 40 * 0.85


def test_a_group_of_two_is_left_out_of_estimate_draws_and_count():
    rows = rows_of([1, 2, 3, 4, 5], [1, 2, 3, 5, 4], side=96)
    two = [row | {"model": 90 + row["model"], "side": 32} for row in rows_of([1, 2], [2, 1])]
    assert ranked(rows, within=["side"]) == ranked([*rows, *two], within=["side"])


def test_a_score_is_compared_with_another_on_the_rows_that_have_both():
    luck = np.random.default_rng(3)
    truth = luck.normal(size=12)
    rows = rows_of(truth, truth, data=0)
    for row, noise in zip(rows, luck.normal(size=12), strict=True):
        row["other"] = noise
    rows[3]["other"] = None
    found = ranked(rows, than="other")
    kept = [row for row in rows if row["other"] is not None]
    expected = 1 - stats.spearmanr([row["other"] for row in kept], [row["truth"] for row in kept])[0]
    assert found.value == pytest.approx(expected)
    assert found.units == "11 models"
    assert found.verdict == SUPPORTED
    missing = [row | {"other": None} for row in rows]
    assert if_known(ranks("", "score", "truth", within=["data"], over=MODELS, than="other"))(missing) is None


def test_few_units_say_nothing():
    found = ranked(rows_of([1, 2, 3], [1, 2, 3], data=0))
    assert (found.value, found.low, found.verdict) == (1.0, None, INCONCLUSIVE)
    assert found.row()["units"] == "3 models: too few for an interval"
    assert ranked([]).value is None
    assert ranked(rows_of([1, 1, 1, 1, 1], [1, 2, 3, 4, 5], data=0)).value is None


def test_a_bootstrap_is_of_any_statistic():
    rows = [{"model": index, "value": float(index)} for index in range(20)]
    values = np.arange(20.0)
    found = bootstrap("", RHO, rows, lambda drawn: float(values[drawn].mean()), MODELS)
    assert found.value == 9.5
    assert found.low == pytest.approx(9.5 - 1.96 * np.std(range(20)) / 20**0.5, abs=0.4)
    assert bootstrap("", RHO, rows, lambda drawn: float("nan"), MODELS).value is None


def cells(values):
    return [{"model": model, "data": data, "seed": seed, VALUE: v} for (model, data, seed), v in values.items()]


def test_a_mean_over_seeds_has_students_interval():
    values = [0.1, 0.4, -0.2, 0.3]
    found = mean("", DIFFERENCE, cells({(0, 0, seed): value for seed, value in enumerate(values)}), [SEEDS])
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((0.15, expected.low, expected.high))
    assert found.units == "4 seeds"
    assert mean("", DIFFERENCE, cells({(0, 0, 0): 0.1}), [SEEDS]).units == "1 seed"
    two = mean("", DIFFERENCE, cells({(0, 0, 0): 0.1, (0, 0, 1): 0.3}), [SEEDS])
    assert (two.value, two.low) == (pytest.approx(0.2), None)


def test_a_crossing_takes_the_wider_interval_and_seeds_make_it_no_narrower():
    luck = np.random.default_rng(5)
    effect = luck.normal(size=4)  # of models, the same on all datasets
    values = {(n, d, 0): effect[n] + 0.01 * luck.normal() for n in range(4) for d in range(6)}
    found = mean("", DIFFERENCE, cells(values), CROSSED)
    by_model = [np.mean([values[n, d, 0] for d in range(6)]) for n in range(4)]
    expected = stats.ttest_1samp(by_model, 0).confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(by_model), expected.low, expected.high))
    assert found.units == "4 models, 6 datasets"
    often = {(n, d, seed): value for (n, d, _), value in values.items() for seed in range(5)}
    again = mean("", DIFFERENCE, cells(often), CROSSED)
    assert (again.value, again.low, again.high) == pytest.approx((found.value, found.low, found.high))
    assert mean("", RHO, cells(values), CROSSED).low >= -1


def test_a_crossing_of_one_model_is_over_datasets_and_of_two_datasets_over_nothing():
    found = mean("", DIFFERENCE, cells({(0, d, 0): float(d) for d in range(3)}), CROSSED)
    expected = stats.ttest_1samp([0, 1, 2], 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.units == "1 model, 3 datasets"
    assert mean("", DIFFERENCE, cells({(0, 0, 0): 1.0, (0, 1, 0): 2.0}), CROSSED).verdict == INCONCLUSIVE
    assert mean("", DIFFERENCE, [], CROSSED).value is None


def test_crossings_seldom_find_what_is_not_there():
    luck, found = np.random.default_rng(6), 0
    for _ in range(300):
        effect, other = luck.normal(size=4), luck.normal(size=4)
        values = {(n, d, 0): effect[n] + other[d] + luck.normal() for n in range(4) for d in range(4)}
        found += mean("", DIFFERENCE, cells(values), CROSSED).verdict == SUPPORTED
    assert found <= 300 * 0.06


def test_rank_correlation_within_groups_is_averaged_over_models_and_datasets():
    luck = np.random.default_rng(2)
    groups = {(model, data): luck.normal(size=(2, 7)) for model in range(3) for data in range(2)}
    rows = [row | {"model": model, "data": data} for (model, data), (s, t) in groups.items() for row in rows_of(s, t)]
    small = {"model": 9, "data": 0, "score": 1, "truth": 1}  # a group of one
    found = ranks_within("", "score", "truth", within=["model", "data"])([*rows, small])
    rho = {key: stats.spearmanr(s, t)[0] for key, (s, t) in groups.items()}
    by_model = [np.mean([rho[model, data] for data in range(2)]) for model in range(3)]
    assert found.value == pytest.approx(np.mean(by_model))
    assert found.units == "3 models, 2 datasets"


def test_gains_are_paired():
    luck = np.random.default_rng(4)
    rows, means = [], []
    for data in range(4):
        gaps = luck.normal(size=3)
        for seed, gap in enumerate(gaps):
            base = luck.normal()
            rows += [{"data": data, "seed": seed, "method": "b", "value": base}]
            rows += [{"data": data, "seed": seed, "method": "a", "value": base + gap}]
        means.append(np.mean(gaps))
    rows += [{"data": 9, "seed": 0, "method": "a", "value": 100.0}]  # without a partner
    rows += [{"data": 0, "seed": 0, "method": "a", "value": None}]
    how = {"pairs": ["data", "seed"], "over": [DATASETS]}
    found = gains("", "value", "method", ["a"], ["b"], **how)(rows)
    expected = stats.ttest_1samp(means, 0).confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(means), expected.low, expected.high))
    assert found.units == "4 datasets"
    ahead = gains("", "value", "method", ["a"], ["b"], handicap=0.5, **how)(rows)
    assert ahead.value == pytest.approx(found.value + 0.5)


def test_claims_are_about_selected_rows():
    rows = [{"shots": shots, **row} for shots in (1, 5) for row in rows_of([1, 2, 3], [shots, 2, 3], data=0)]
    (found,) = among(only(shots=5), ranks("", "score", "truth", within=["data"], over=MODELS))
    assert found(rows) == ranked(rows[3:])


def test_rows_are_averaged_with_their_interval():
    rows = [{"method": "a", "value": value} for value in (0.1, 0.2, 0.6)] + [{"method": "b", "value": 1.0}]
    first, second = averaged([*rows, {"method": "b", "value": None}], ["method"], ["value"])
    expected = stats.ttest_1samp([0.1, 0.2, 0.6], 0).confidence_interval()
    assert (first["value"], first["value_low"], first["value_high"]) == pytest.approx(
        (0.3, expected.low, expected.high)
    )
    assert (second["value"], second["value_low"], second["times"]) == (1.0, None, 2)
