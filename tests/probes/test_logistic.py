"""Logistic regression against scikit-learn's second-order solver, and what the docstrings promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tightframe.errors import MeasureError
from tightframe.metrics.collapse import Head
from tightframe.probes import logistic
from tightframe.probes.logistic import logistic_path, softmax_regression, standardize

GRID = (1e-4, 1e-2, 0.1, 1.0)
CASES: dict[str, dict[str, Any]] = {
    "n > d": {"samples": 90, "dimension": 6},
    "n < d": {"samples": 30, "dimension": 50},
    "n = d": {"samples": 24, "dimension": 24},
    "many classes": {"samples": 60, "dimension": 8, "classes": 25},
    "separable": {"samples": 80, "dimension": 5, "gap": 8.0},
    "wrong labels": {"samples": 150, "dimension": 12, "gap": 8.0, "wrong": 0.1},
    "rare classes": {"samples": 300, "dimension": 6, "common": 0.95, "classes": 6},
    "two classes": {"samples": 80, "dimension": 9, "classes": 2},
    "two classes, n < d": {"samples": 20, "dimension": 40, "classes": 2},
}


def sample(
    samples: int = 90,
    dimension: int = 6,
    classes: int = 3,
    gap: float = 1.0,
    wrong: float = 0.0,
    common: float = 0.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Classes ``gap`` apart; ``common`` of the samples are of class 0, the share ``wrong`` has a random label."""
    generator = np.random.default_rng(seed)
    labels = np.where(generator.random(samples) < common, 0, np.arange(samples) % classes)
    features = gap * generator.normal(size=(classes, dimension))[labels] + generator.normal(size=(samples, dimension))
    labels = np.where(generator.random(samples) < wrong, generator.integers(0, classes, samples), labels)
    return features * np.geomspace(0.2, 30, dimension) + 10, labels


def objective(head: Head, features: np.ndarray, labels: np.ndarray, strength: float) -> float:
    """Log-losses and penalty of a head on raw features, both as defined, in float64."""
    weight, bias = head.weight.numpy(), head.bias.numpy()
    losses = -log_softmax(features @ weight.T + bias, axis=1)[np.arange(len(labels)), labels]
    squares = ((weight * features.std(0)) ** 2).sum()
    return float(losses.sum() + squares / (2 * strength / (2 if len(weight) == 2 else 1)))


def sklearns(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple[LogisticRegression, float]:
    """scikit-learn's model at its optimum, and the objective there as its documentation has it."""
    scaled = StandardScaler().fit_transform(features)
    model = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-9, max_iter=1000).fit(scaled, labels)
    logits = model.decision_function(scaled)
    logits = np.stack([-logits, logits], 1) / 2 if logits.ndim == 1 else logits
    losses = -log_softmax(logits, axis=1)[np.arange(len(labels)), np.searchsorted(model.classes_, labels)]
    return model, float(losses.sum() + (model.coef_**2).sum() / (2 * strength))


@pytest.mark.parametrize("case", CASES)
def test_the_optimum_is_sklearns(case: str) -> None:
    features, labels = sample(**CASES[case])
    for strength, head in zip(GRID, logistic_path(features, labels, CASES[case].get("classes", 3), GRID), strict=True):
        model, expected = sklearns(features, labels, strength)
        assert objective(head, features, labels, strength) == pytest.approx(expected, rel=1e-5)
        probabilities = head.logits(features).softmax(1).numpy()
        scaled = StandardScaler().fit_transform(features)
        np.testing.assert_allclose(probabilities, model.predict_proba(scaled), atol=2e-3)


def test_coefficients_are_sklearns_where_the_penalty_fixes_them() -> None:
    features, labels = sample(**CASES["n > d"])
    model, _ = sklearns(features, labels, 0.1)
    (head,) = logistic_path(features, labels, 3, (0.1,))
    scaler = StandardScaler().fit(features)
    np.testing.assert_allclose(head.weight.numpy() * scaler.scale_, model.coef_, atol=5e-3)
    np.testing.assert_allclose(head.logits(scaler.mean_[None])[0], model.intercept_, atol=5e-3)


def test_two_classes_get_half_of_sklearns_row_each() -> None:
    features, labels = sample(**CASES["two classes"])
    model, _ = sklearns(features, labels, 1.0)
    (head,) = logistic_path(features, labels, 2, (1.0,))
    expected = np.vstack([-model.coef_, model.coef_]) / 2
    np.testing.assert_allclose(head.weight.numpy() * features.std(0), expected, atol=5e-3)


def test_unseen_samples_are_classified_as_sklearn_does() -> None:
    features, labels = sample(2400, 20, classes=5, gap=0.5)
    train, test = slice(0, 400), slice(400, None)
    heads = logistic_path(features[train], labels[train], 5, GRID)
    scaler = StandardScaler().fit(features[train])
    for strength, head in zip(GRID, heads, strict=True):
        model, _ = sklearns(features[train], labels[train], strength)
        theirs = model.score(scaler.transform(features[test]), labels[test])
        assert head.accuracy(features[test], labels[test]) == pytest.approx(theirs, abs=0.002)


def test_a_class_without_samples_is_never_predicted_and_changes_nothing() -> None:
    features, labels = sample()
    spread = np.array([0, 2, 5])[labels]
    (head,) = logistic_path(features, spread, 7, (1.0,))
    (dense,) = logistic_path(features, labels, 3, (1.0,))
    assert head.bias[[1, 3, 4, 6]].tolist() == [-np.inf] * 4
    assert not head.weight[[1, 3, 4, 6]].any()
    torch.testing.assert_close(head.weight[[0, 2, 5]], dense.weight)
    assert set(head.predict(1e6 * features).tolist()) <= {0, 2, 5}


def test_two_classes_of_many_are_two_classes() -> None:
    features, labels = sample(**CASES["two classes"])
    (spread,), (dense,) = logistic_path(features, 3 * labels + 1, 6, (1.0,)), logistic_path(features, labels, 2, (1.0,))
    torch.testing.assert_close(spread.weight[[1, 4]], dense.weight)
    assert objective(dense, features, labels, 1.0) == pytest.approx(sklearns(features, labels, 1.0)[1], rel=1e-5)


@pytest.mark.parametrize(("dtype", "offset"), [(np.float64, 1e9), (np.float32, 1e3), (np.float16, 1e3)])
def test_the_origin_and_scale_of_features_do_not_matter(dtype: type, offset: float) -> None:
    features, labels = sample()
    moved = (features / np.abs(features).max() * 50 + offset).astype(dtype)
    again = (moved.astype(np.float64) - offset) * 1e-3  # what rounding to the type left, exactly, elsewhere
    one, other = logistic_path(moved, labels, 3, GRID), logistic_path(again, labels, 3, GRID)
    for here, there in zip(one, other, strict=True):
        torch.testing.assert_close(here.logits(moved).softmax(1), there.logits(again).softmax(1), atol=2e-3, rtol=0)


def test_constant_columns_are_left_out() -> None:
    features, labels = sample()
    dead = np.full((len(features), 1), 0.1, dtype=np.float32)
    path = logistic_path(np.hstack([dead, features.astype(np.float32), 1e30 * dead]), labels, 3, GRID)
    plain = logistic_path(features.astype(np.float32), labels, 3, GRID)
    for head, expected in zip(path, plain, strict=True):
        assert not head.weight[:, [0, -1]].any()
        torch.testing.assert_close(head.weight[:, 1:-1], expected.weight, rtol=1e-3, atol=1e-4)


def test_features_that_say_nothing_leave_the_shares() -> None:
    (head,) = logistic_path(np.ones((4, 2)), np.array([0, 0, 0, 1]), 2, (1.0,))
    shares = head.logits(np.ones((1, 2))).softmax(1)[0]
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.25], dtype=torch.float64), atol=1e-5, rtol=0)


def test_columns_that_are_all_alike_can_be_factored() -> None:
    features, labels = sample(400, 2)
    noise = np.random.default_rng(1).normal(size=(400, 300))
    alike = features[:, :1] + 1e-5 * noise
    for strength, head in zip(GRID, logistic_path(alike, labels, 3, GRID), strict=True):
        expected = sklearns(alike, labels, strength)[1]
        assert objective(head, alike, labels, strength) == pytest.approx(expected, rel=3e-5)


def test_answers_come_in_the_order_of_the_grid() -> None:
    features, labels = sample()
    mixed = (1.0, 1e-4, 0.1, 1.0)
    for strength, head in zip(mixed, logistic_path(features, labels, 3, mixed), strict=True):
        (alone,) = logistic_path(features, labels, 3, (strength,))
        torch.testing.assert_close(head.logits(features), alone.logits(features), atol=5e-3, rtol=0)


def test_arrays_and_tensors_agree_and_are_left_alone() -> None:
    features, labels = sample()
    before = features.copy()
    features.flags.writeable = False
    one = logistic_path(features, labels, 3, (1.0,))[0]
    other = logistic_path(torch.from_numpy(before), torch.from_numpy(labels), 3, (1.0,))[0]
    torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=0)
    assert (features == before).all()


def test_steps_that_run_out_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "ROUNDS", 2)
    with pytest.raises(MeasureError, match="no optimum in 2 steps; give a strength below 1"):
        logistic_path(*sample(**CASES["wrong labels"]), 3, (1.0,))


@pytest.mark.parametrize("strength", [100.0, 1e4])
def test_weak_penalties_are_solved_too(strength: float) -> None:
    features, labels = sample(**CASES["wrong labels"])
    (head,) = logistic_path(features, labels, 3, (strength,))
    assert objective(head, features, labels, strength) == pytest.approx(sklearns(features, labels, strength)[1], 1e-4)


def test_problems_at_once_are_problems_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 12, 4, generator=generator, dtype=torch.float64)
    rows[2] = 0  # says nothing: at its optimum from the start
    inputs = torch.cat([rows, torch.ones(3, 12, 1, dtype=torch.float64)], 2)
    targets = torch.eye(3, dtype=torch.float64).repeat(1, 4)
    start = inputs.new_zeros(3, 3, 5)
    weights, logits = softmax_regression(inputs, targets, 1.0, start, 1e-9)
    for at in range(3):
        alone, _ = softmax_regression(inputs[at], targets, 1.0, start[at], 1e-9)
        torch.testing.assert_close(weights[at], alone)
        torch.testing.assert_close(logits[at], alone @ inputs[at].T)


def test_standardized_columns_have_mean_zero_and_deviation_one() -> None:
    features = torch.from_numpy(sample(5000, 7)[0] + 1e6)
    scaled = standardize(features)
    np.testing.assert_allclose(scaled.values, StandardScaler().fit_transform(features.numpy()), atol=1e-6)
    torch.testing.assert_close(scaled.apply(features[:3]), scaled.values[:3])


BAD: dict[str, tuple[Any, ...]] = {
    "samples of two classes": (np.ones((3, 2)), np.zeros(3, dtype=int), 2, (1.0,)),
    "not 0": (np.ones((0, 2)), np.zeros(0, dtype=int), 2, (1.0,)),
    "NaN": (np.array([[np.nan], [1.0]]), np.array([0, 1]), 2, (1.0,)),
    "must be 0 to 1": (np.ones((2, 2)), np.array([0, 2]), 2, (1.0,)),
    "strengths must be positive": (np.eye(2), np.array([0, 1]), 2, (1.0, 0.0)),
    "strengths must be": (np.eye(2), np.array([0, 1]), 2, ()),
}


@pytest.mark.parametrize("message", BAD)
def test_what_can_not_be_fitted_is_refused(message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        logistic_path(*BAD[message])
