"""Probes against scikit-learn and SciPy, and cross-validation against a loop over its folds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.folds import Folds, fold_of
from tightframe.probes.linear import (
    cross_validated_center,
    cross_validated_lda,
    cross_validated_ridge,
    lda,
    nearest_center,
    ridge,
    ridge_errors,
)
from tightframe.probes.results import PENALTIES, interval
from tightframe.probes.solving import solved

SHAPES = {"n > d": (60, 7), "n < d": (30, 50), "n = d": (24, 24)}


def sample(samples: int, dimension: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes of unequal size, features of unequal spread, far from zero."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.minimum(np.arange(samples) % (classes + 1), classes - 1))
    means = generator.normal(size=(classes, dimension))
    noise = generator.normal(size=(samples, dimension))
    return (0.7 * means[labels] + noise) * np.geomspace(0.2, 3, dimension) + 10, labels


def sklearn_ridge(features: np.ndarray, labels: np.ndarray, penalty: float, dimension: int) -> Ridge:
    """At the penalty's own scale: a multiple of the covariance's mean eigenvalue, of a squared error summed."""
    unit = features.var(0).sum() / dimension
    return Ridge(alpha=penalty * unit * len(features), fit_intercept=True, solver="svd").fit(
        features, np.eye(3)[labels]
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_is_sklearns(shape: str) -> None:
    features, labels = sample(*SHAPES[shape])
    heads = ridge(ClassMoments.from_features(features, labels, 3))
    unseen, _ = sample(*SHAPES[shape], seed=1)
    assert len(heads) == len(PENALTIES)
    for penalty, head in zip(PENALTIES, heads, strict=True):
        model = sklearn_ridge(features, labels, penalty, features.shape[1])
        np.testing.assert_allclose(head.logits(features), model.predict(features), rtol=0, atol=1e-7)
        np.testing.assert_allclose(head.logits(unseen), model.predict(unseen), rtol=0, atol=1e-6)
        np.testing.assert_allclose(head.weight, model.coef_, rtol=1e-6, atol=1e-9)


def test_ridge_does_not_see_the_scale_or_place_of_features() -> None:
    features, labels = sample(60, 7)
    moved = 1e3 * features - 5e4
    for one, other in zip(
        ridge(ClassMoments.from_features(features, labels, 3)),
        ridge(ClassMoments.from_features(moved, labels, 3)),
        strict=True,
    ):
        torch.testing.assert_close(one.logits(features), other.logits(moved), rtol=1e-7, atol=1e-9)


def test_ridge_of_features_that_say_nothing_answers_with_shares() -> None:
    for head in ridge(ClassMoments.from_features(np.ones((4, 2)), np.array([0, 0, 0, 1]), 3)):
        torch.testing.assert_close(head.logits(np.ones((1, 2)))[0], torch.tensor([0.75, 0.25, 0], dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("folds", "seed"), [(5, 0), (3, 7)])
def test_cross_validation_is_a_loop_over_folds(shape: str, folds: int, seed: int) -> None:
    features, labels = sample(*SHAPES[shape])
    found = cross_validated_ridge(Folds.of(features, labels, 3, folds, seed))
    assigned = fold_of(labels, folds, seed)
    held_out = np.zeros((len(PENALTIES), len(labels), 3))
    for fold in range(folds):
        seen = assigned != fold
        for index, penalty in enumerate(PENALTIES):
            model = sklearn_ridge(features[seen], labels[seen], penalty, features.shape[1])
            held_out[index, ~seen] = model.predict(features[~seen])
    errors = ((held_out - np.eye(3)[labels]) ** 2).sum(2).mean(1)
    best = int(errors.argmin())
    assert 0 < best < len(PENALTIES) - 1, "a sample on which the penalty matters"
    assert found.penalty == PENALTIES[best]
    assert found.squared_error == pytest.approx(errors[best], rel=1e-7)
    np.testing.assert_array_equal(found.correct, held_out[best].argmax(1) == labels)
    assert found.accuracy == found.correct.mean()
    assert (found.low, found.high) == interval(int(found.correct.sum()), len(labels))
    whole = sklearn_ridge(features, labels, found.penalty, features.shape[1])
    np.testing.assert_allclose(found.head.logits(features), whole.predict(features), rtol=0, atol=1e-7)
    assert found.head.weight.shape == (3, features.shape[1])


@pytest.mark.parametrize("penalties", [(1e-14, 1e-2, 1.0), PENALTIES])
def test_no_penalty_drowns_in_rounding(penalties: tuple[float, ...]) -> None:
    """Scatter of float32 features of low rank and far from zero has eigenvalues below zero, below −penalty too."""
    features, labels = sample(900, 20)
    flat = (features @ np.random.default_rng(2).normal(size=(20, 300)) * np.geomspace(1, 100, 300)).astype("float32")
    single, double = (ridge_errors(Folds.of(given, labels, 3), penalties) for given in (flat, flat.astype(float)))
    assert (single > 0).all()
    torch.testing.assert_close(single[-2:], double[-2:], rtol=1e-4, atol=0)


def test_a_covariance_that_rounding_made_indefinite_is_solved_without_what_it_left() -> None:
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    values = torch.tensor([3.0, 2, 1, 1e-17, -1e-17, -1e-9], dtype=torch.float64)
    found = solved((turn * values) @ turn.T, 1e-12, turn)
    torch.testing.assert_close(found[:, :3], turn[:, :3] / values[:3], rtol=1e-9, atol=1e-12)
    assert found[:, 3:].abs().max() < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predictions_do_not_see_how_far_from_zero_features_are(dtype: str) -> None:
    features, labels = sample(900, 300)
    features = np.round(features * 64) / 64  # exact in float32 after the move, too
    near, far = (
        cross_validated_center(Folds.of(rows.astype(dtype), labels, 3)) for rows in (features, features + 4096)
    )
    np.testing.assert_array_equal(near.predicted, far.predicted)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_head_of_a_result_is_ridge_at_the_penalty_it_names(shape: str) -> None:
    features, labels = sample(*SHAPES[shape])
    found = cross_validated_ridge(Folds.of(features, labels, 3))
    head = ridge(ClassMoments.from_features(features, labels, 3), (found.penalty,))[0]
    torch.testing.assert_close(found.head.weight, head.weight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.head.bias, head.bias, rtol=1e-6, atol=1e-6)


def test_accuracy_on_noise_is_chance() -> None:
    """Held-out means held out: with d ≫ n any leak would show as a high accuracy."""
    generator = np.random.default_rng(3)
    labels = np.arange(120) % 3
    found = cross_validated_ridge(Folds.of(generator.normal(size=(120, 300)), labels, 3))
    assert found.accuracy < 0.5
    assert found.low < 1 / 3
    assert found.squared_error > 0.6  # 2/3 for those who answer with the shares


@pytest.mark.parametrize("penalties", [(1e-3,), (1.0, 1e-3, 1e2)])
def test_the_penalty_comes_from_the_grid_given(penalties: tuple[float, ...]) -> None:
    assert cross_validated_ridge(Folds.of(*sample(30, 50), 3), penalties).penalty in penalties


def test_a_class_without_samples_is_never_right_nor_in_the_way() -> None:
    features, labels = sample(60, 7)
    without = cross_validated_ridge(Folds.of(features, labels, 3))
    beside = cross_validated_ridge(Folds.of(features, labels + (labels > 0), 5))
    assert (beside.accuracy, beside.penalty) == (without.accuracy, without.penalty)
    assert beside.squared_error == pytest.approx(without.squared_error)


@pytest.mark.parametrize("dimension", [3, 30])
@pytest.mark.parametrize(
    ("labels", "broken", "message"),
    [
        ([0, 1] * 4, None, "10 features need as many labels"),
        ([0, 1] * 6, None, "10 features need as many labels"),
        ([0, 2] * 5, None, "must be 0 to 1"),
        ([0, -1] * 5, None, "must be 0 to 1"),
        ([0.0, 1.0] * 5, None, "integers"),
        ([0, 1] * 5, np.nan, r"1 of 10 feature rows hold NaN or infinity \(first: row 4\)"),
    ],
)
def test_what_folds_refuse(dimension: int, labels: list[Any], broken: float | None, message: str) -> None:
    features = np.random.default_rng(4).normal(size=(10, dimension))
    if broken:
        features[4, 1] = broken
    with pytest.raises(MeasureError, match=message):
        Folds.of(features, np.array(labels), 2)


@pytest.mark.parametrize("labels", [[], [0], [0, 1]])
def test_too_few_samples_for_two_folds(labels: list[int]) -> None:
    with pytest.raises(MeasureError, match="needs two training images of a class"):
        Folds.of(np.zeros((len(labels), 2)), np.array(labels, dtype=int), 2)


def test_the_only_sample_of_a_class_stops_nothing_and_is_never_right() -> None:
    features, labels = sample(40, 5)
    labels = np.where(np.arange(40) == 7, 3, labels)
    folds = Folds.of(features, labels, 4)
    assert len(folds.parts) == 5
    for probe in (cross_validated_ridge, cross_validated_lda, cross_validated_center):
        assert not probe(folds).correct[7]


@pytest.mark.parametrize("shape", [(4, 9), (9, 9), (9, 4)])
def test_compacted_folds_keep_every_inner_product(shape: tuple[int, int]) -> None:
    features = torch.from_numpy(np.random.default_rng(5).normal(size=shape)) + 100
    folds = Folds.of(features, torch.arange(shape[0]) % 2, 2, 2)
    narrow, basis = folds.compacted
    if shape[0] >= shape[1]:
        assert narrow is folds
        assert basis is None
        return
    assert narrow.features.shape == (shape[0], min(shape))
    torch.testing.assert_close(narrow.features @ basis.T, features, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(basis.T @ basis, torch.eye(min(shape), dtype=torch.float64), rtol=0, atol=1e-12)


def test_nearest_center_is_sklearns() -> None:
    features, labels = sample(60, 7)
    unseen, _ = sample(200, 7, seed=1)
    head = nearest_center(ClassMoments.from_features(features + 1e4, labels, 3))
    expected = NearestCentroid().fit(features, labels).predict(unseen)
    np.testing.assert_array_equal(head.logits(unseen + 1e4).argmax(1), expected)
    distances = np.stack([((unseen - features[labels == k].mean(0)) ** 2).sum(1) for k in range(3)], axis=1)
    logits = head.logits(unseen + 1e4).numpy()
    np.testing.assert_allclose(
        logits - logits[:, :1], (distances[:, :1] - distances) / 2, rtol=1e-6, atol=1e-5
    )  # how much nearer, not only which


def test_nearest_center_never_picks_a_class_without_samples() -> None:
    head = nearest_center(ClassMoments.from_features(np.array([[1.0, 0], [3, 0]]), np.array([0, 2]), 3))
    assert head.logits(np.array([[0.0, 0], [4, 0]])).argmax(1).tolist() == [0, 2]


def scaled(features: np.ndarray) -> np.ndarray:
    return (features - features.mean(0)) / features.std(0).mean()


@pytest.mark.parametrize("level", [0.95, 0.8])
@pytest.mark.parametrize(("right", "total"), [(1, 10), (5, 10), (9, 10), (970, 1000)])
def test_interval_ends_where_the_tails_are_spent(right: int, total: int, level: float) -> None:
    low, high = interval(right, total, level)
    assert 0 < low < right / total < high < 1
    assert binom.sf(right - 1, total, low) == pytest.approx((1 - level) / 2, rel=1e-6)
    assert binom.cdf(right, total, high) == pytest.approx((1 - level) / 2, rel=1e-6)


def test_interval_at_the_ends() -> None:
    assert interval(0, 20) == (0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert interval(20, 20) == (pytest.approx(0.025 ** (1 / 20)), 1)


@pytest.mark.parametrize("chance", [0.02, 0.3, 0.5, 0.97])
def test_interval_covers_the_truth_as_often_as_it_says(chance: float) -> None:
    outcomes = np.arange(31)
    ends = np.array([interval(int(right), 30) for right in outcomes])
    covers = (ends[:, 0] <= chance) & (chance <= ends[:, 1])
    assert 0.95 <= binom.pmf(outcomes, 30, chance)[covers].sum() <= 1


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


@settings(deadline=None)
@given(LABELS, st.integers(2, 6), st.integers(0, 2**32))
def test_folds_are_stratified_and_even(labels: np.ndarray, folds: int, seed: int) -> None:
    counts = np.unique(labels, return_counts=True)[1]
    if counts.max(initial=0) < 2:
        with pytest.raises(MeasureError, match="two training images of a class"):
            fold_of(labels, folds, seed)
        return
    assigned = fold_of(labels, folds, seed)
    expected = min(folds, counts[counts > 1].min())
    sizes = np.bincount(assigned)
    assert len(sizes) == expected
    assert sizes.max() - sizes.min() <= 1
    for label in np.unique(labels):
        share = np.bincount(assigned[labels == label], minlength=expected)
        assert share.min() >= min(1, (labels == label).sum() // expected)
        assert share.max() - share.min() <= 1
    np.testing.assert_array_equal(assigned, fold_of(labels.copy(), folds, seed))


def test_folds_depend_on_the_seed_alone() -> None:
    labels = np.arange(40) % 2
    assert len({fold_of(labels, 5, seed).tobytes() for seed in range(5)}) == 5
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    fold_of(labels, 5, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # type: ignore[index]


@pytest.mark.parametrize("folds", [1, 0])
def test_one_fold_leaves_nothing_to_learn_from(folds: int) -> None:
    with pytest.raises(MeasureError, match="folds"):
        fold_of(np.arange(10) % 2, folds, 0)


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_lda_is_bayes_rule_for_gaussians_of_one_shrunk_covariance(shape: str, penalty: float) -> None:
    features, labels = sample(*SHAPES[shape])
    unseen, _ = sample(*SHAPES[shape], seed=1)
    means = np.stack([features[labels == k].mean(0) for k in range(3)])
    spread = features - means[labels]
    unit = features.var(0).sum() / features.shape[1]
    covariance = spread.T @ spread / len(labels) + penalty * unit * np.eye(features.shape[1])
    weight = np.linalg.solve(covariance, (means - features.mean(0)).T)
    bias = np.log(np.bincount(labels) / len(labels)) - ((means + features.mean(0)) * weight.T).sum(1) / 2
    expected = unseen @ weight + bias
    head = lda(ClassMoments.from_features(features, labels, 3), (penalty,))[0]
    found = head.logits(unseen).numpy()
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], rtol=1e-5, atol=1e-5)


def test_lda_almost_without_shrinking_is_sklearns() -> None:
    features, labels = sample(60, 7)
    unseen, _ = sample(200, 7, seed=1)
    expected = LinearDiscriminantAnalysis(solver="lsqr").fit(features, labels).predict_proba(unseen)
    head = lda(ClassMoments.from_features(features, labels, 3), (1e-12,))[0]
    np.testing.assert_allclose(head.logits(unseen).softmax(1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_lda_and_centers_are_cross_validated_as_a_loop_would(shape: str) -> None:
    features, labels = sample(*SHAPES[shape])
    folds, penalties = Folds.of(features, labels, 3, 4, 1), (1e-3, 1e-1, 10.0)
    assigned = fold_of(labels, 4, 1)
    lda_right, center_right = np.zeros((3, len(labels)), bool), np.zeros(len(labels), bool)
    for fold in range(4):
        out = assigned == fold
        rest = ClassMoments.from_features(features[~out], labels[~out], 3)
        for at, head in enumerate(lda(rest, penalties)):
            lda_right[at, out] = head.predict(features[out]).numpy() == labels[out]
        center_right[out] = nearest_center(rest).predict(features[out]).numpy() == labels[out]
    found = cross_validated_lda(folds, penalties)
    assert found.accuracy == lda_right.mean(1).max()
    np.testing.assert_array_equal(found.correct, lda_right[penalties.index(found.penalty)])
    np.testing.assert_array_equal(cross_validated_center(folds).correct, center_right)
