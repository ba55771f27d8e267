"""The path of logistic regressions against scikit-learn's second-order solver, and what the docstrings promise."""

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
from tightframe.probes.logistic import STRENGTHS, logistic_path, standardize

GRID = (1e-4, 1e-2, 1.0, 100.0, 1e4)
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
    classes = CASES[case].get("classes", 3)
    path = logistic_path(features, labels, classes, GRID)
    assert all(path.converged)
    for strength, head, loss, gap in zip(path.strengths, path.heads, path.losses, path.gaps, strict=True):
        model, expected = sklearns(features, labels, strength)
        close = 1e-4 if case == "rare classes" else 3e-5  # weakly penalized, its optimum is hundreds of steps away
        assert objective(head, features, labels, strength) == pytest.approx(expected, rel=close)
        assert loss == pytest.approx(expected, rel=close)
        assert loss - expected <= gap + 1e-5 * expected
        assert loss - expected >= -1e-5 * expected
        probabilities = head.logits(features).softmax(1).numpy()
        scaled = StandardScaler().fit_transform(features)
        np.testing.assert_allclose(probabilities, model.predict_proba(scaled), atol=0.02)


def test_coefficients_are_sklearns_where_the_penalty_fixes_them() -> None:
    features, labels = sample(**CASES["n > d"])
    model, _ = sklearns(features, labels, 0.1)
    (head,) = logistic_path(features, labels, 3, (0.1,)).heads
    scaler = StandardScaler().fit(features)
    np.testing.assert_allclose(head.weight.numpy() * scaler.scale_, model.coef_, atol=5e-3)
    np.testing.assert_allclose(head.logits(scaler.mean_[None])[0], model.intercept_, atol=5e-3)


def test_two_classes_get_half_of_sklearns_row_each() -> None:
    features, labels = sample(**CASES["two classes"])
    model, _ = sklearns(features, labels, 1.0)
    (head,) = logistic_path(features, labels, 2, (1.0,)).heads
    expected = np.vstack([-model.coef_, model.coef_]) / 2
    np.testing.assert_allclose(head.weight.numpy() * features.std(0), expected, atol=5e-3)


def test_unseen_samples_are_classified_as_sklearn_does() -> None:
    features, labels = sample(2400, 20, classes=5, gap=0.5)
    train, test = slice(0, 400), slice(400, None)
    path = logistic_path(features[train], labels[train], 5, GRID)
    scaler = StandardScaler().fit(features[train])
    for strength, head in zip(GRID, path.heads, strict=True):
        model, _ = sklearns(features[train], labels[train], strength)
        theirs = model.score(scaler.transform(features[test]), labels[test])
        assert head.accuracy(features[test], labels[test]) == pytest.approx(theirs, abs=0.002)


def test_a_class_without_samples_is_never_predicted_and_changes_nothing() -> None:
    features, labels = sample()
    spread = np.array([0, 2, 5])[labels]
    (head,) = logistic_path(features, spread, 7, (1.0,)).heads
    (dense,) = logistic_path(features, labels, 3, (1.0,)).heads
    assert head.bias[[1, 3, 4, 6]].tolist() == [-np.inf] * 4
    assert not head.weight[[1, 3, 4, 6]].any()
    torch.testing.assert_close(head.weight[[0, 2, 5]], dense.weight)
    assert set(head.predict(1e6 * features).tolist()) <= {0, 2, 5}


def test_two_classes_of_many_are_two_classes() -> None:
    features, labels = sample(**CASES["two classes"])
    spread = logistic_path(features, 3 * labels + 1, 6, (1.0,))
    assert spread.losses == pytest.approx(logistic_path(features, labels, 2, (1.0,)).losses)
    assert spread.losses[0] == pytest.approx(sklearns(features, labels, 1.0)[1], rel=2e-5)


@pytest.mark.parametrize(("dtype", "offset"), [(np.float64, 1e9), (np.float32, 1e3), (np.float16, 1e3)])
def test_the_origin_and_scale_of_features_do_not_matter(dtype: type, offset: float) -> None:
    features, labels = sample()
    moved = (features / np.abs(features).max() * 50 + offset).astype(dtype)
    again = (moved.astype(np.float64) - offset) * 1e-3  # what rounding to the type left, exactly, elsewhere
    one, other = logistic_path(moved, labels, 3, GRID), logistic_path(again, labels, 3, GRID)
    assert one.losses == pytest.approx(other.losses, rel=2e-5)
    for here, there in zip(one.heads, other.heads, strict=True):
        torch.testing.assert_close(here.logits(moved).softmax(1), there.logits(again).softmax(1), atol=2e-2, rtol=0)


def test_constant_columns_are_left_out() -> None:
    features, labels = sample()
    dead = np.full((len(features), 1), 0.1, dtype=np.float32)
    path = logistic_path(np.hstack([dead, features.astype(np.float32), 1e30 * dead]), labels, 3, GRID)
    plain = logistic_path(features.astype(np.float32), labels, 3, GRID)
    for head, expected in zip(path.heads, plain.heads, strict=True):
        assert not head.weight[:, [0, -1]].any()
        torch.testing.assert_close(head.weight[:, 1:-1], expected.weight, rtol=1e-3, atol=1e-4)


def test_features_that_say_nothing_leave_the_shares() -> None:
    (head,) = logistic_path(np.ones((4, 2)), np.array([0, 0, 0, 1]), 2, (1.0,)).heads
    shares = head.logits(np.ones((1, 2))).softmax(1)[0]
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.25], dtype=torch.float64), atol=1e-5, rtol=0)


def test_columns_that_are_all_alike_can_be_factored() -> None:
    features, labels = sample(400, 2)
    noise = np.random.default_rng(1).normal(size=(400, 300))
    alike = features[:, :1] + 1e-5 * noise
    path = logistic_path(alike, labels, 3, GRID)
    assert all(path.converged)
    for strength, loss in zip(GRID[:3], path.losses, strict=False):
        assert loss == pytest.approx(sklearns(alike, labels, strength)[1], rel=3e-5)


def test_answers_come_in_the_order_of_the_grid() -> None:
    features, labels = sample()
    mixed = (1.0, 1e-4, 100.0, 1.0)
    path = logistic_path(features, labels, 3, mixed)
    assert path.strengths == mixed
    for strength, loss in zip(mixed, path.losses, strict=True):
        assert loss == pytest.approx(logistic_path(features, labels, 3, (strength,)).losses[0], rel=2e-5)


def test_the_default_grid_is_that_of_sklearns_cross_validation() -> None:
    np.testing.assert_allclose(STRENGTHS, np.logspace(-4, 4, 10))


def test_arrays_and_tensors_agree_and_are_left_alone() -> None:
    features, labels = sample()
    before = features.copy()
    features.flags.writeable = False
    one = logistic_path(features, labels, 3, (1.0,)).heads[0]
    other = logistic_path(torch.from_numpy(before), torch.from_numpy(labels), 3, (1.0,)).heads[0]
    torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=0)
    assert (features == before).all()


def test_rounds_that_run_out_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "ROUNDS", 2)
    features, labels = sample(**CASES["wrong labels"])
    path = logistic_path(features, labels, 3, (100.0,))
    assert path.converged == (False,)
    assert path.gaps[0] > 1e-5 * path.losses[0]


def test_float64_goes_on_where_float32_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = sample(**CASES["wrong labels"])
    monkeypatch.setattr(logistic, "TOLERANCE", 1e-11)
    path = logistic_path(features.astype(np.float32), labels, 3, (1.0,))
    assert path.converged == (True,)
    scaled = standardize(torch.from_numpy(features.astype(np.float32))).values.double()  # float32, rounded once
    (head,) = path.heads
    expected = sklearns(scaled.numpy(), labels, 1.0)[1]
    assert objective(head, features.astype(np.float32).astype(float), labels, 1.0) == pytest.approx(expected, rel=1e-6)
    assert path.losses[0] == pytest.approx(expected, rel=2e-8)


def test_standardised_columns_have_mean_zero_and_deviation_one() -> None:
    features = torch.from_numpy(sample(5000, 7)[0] + 1e6)
    scaled = standardize(features, torch.float64)
    np.testing.assert_allclose(scaled.values, StandardScaler().fit_transform(features.numpy()), atol=1e-8)
    torch.testing.assert_close(scaled.apply(features[:3]), scaled.values[:3])


BAD: dict[str, tuple[Any, ...]] = {
    "two classes or more": (np.ones((3, 2)), np.zeros(3, dtype=int), 2, (1.0,)),
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
