"""H-score against an explicit pseudo-inverse; LogME against the marginal likelihood itself, maximized by SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.scores.from_moments import gbc, h_score, h_score_shrunk, logme, shrinkage

SHAPES = {"n > d": (40, 6, 3), "n = d": (12, 12, 3), "n < d": (14, 25, 3), "two classes": (30, 4, 2)}


def sample(samples: int, dimension: int, classes: int, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(samples)
    labels = np.sort(np.concatenate([np.arange(classes), generator.integers(0, classes, samples - classes)]))
    labels[labels == 0] = np.where(np.arange((labels == 0).sum()) % 3, 1, 0)  # imbalanced
    means = apart * generator.normal(size=(classes, dimension))
    return means[labels] + generator.normal(size=(samples, dimension)) + 0.3, labels


def moments(features: np.ndarray, labels: np.ndarray) -> ClassMoments:
    return ClassMoments.from_features(features, labels, int(labels.max()) + 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_h_score_is_its_formula(shape: str) -> None:
    features, labels = sample(*SHAPES[shape])
    centered = features - features.mean(0)
    means = np.stack([centered[labels == k].mean(0) for k in range(labels.max() + 1)])[labels]
    total, between = centered.T @ centered / len(labels), means.T @ means / len(labels)
    expected = np.trace(np.linalg.pinv(total, rcond=1e-10) @ between)
    assert h_score(moments(features, labels)) == pytest.approx(expected, rel=1e-9)


def test_h_score_keeps_its_bounds_and_ignores_linear_maps() -> None:
    features, labels = sample(*SHAPES["n > d"])
    score = h_score(moments(features, labels))
    matrix = np.random.default_rng(0).normal(size=(6, 6)) + 2 * np.eye(6)
    assert 0 < score < 2
    assert h_score(moments(features @ matrix + 1e3, labels)) == pytest.approx(score, rel=1e-8)
    assert h_score(moments(*sample(*SHAPES["n < d"]))) == pytest.approx(2)  # K − 1: nothing left to explain
    assert h_score(moments(np.zeros((6, 2)), labels[:6] * 0 + np.arange(6) % 2)) == 0


def log_evidence(features: np.ndarray, target: np.ndarray, log_alpha: float, log_beta: float) -> float:
    """log N(y | 0, I/β + FFᵀ/α), densely."""
    covariance = np.exp(-log_beta) * np.eye(len(target)) + np.exp(-log_alpha) * features @ features.T
    _, logdet = np.linalg.slogdet(2 * np.pi * covariance)
    return float(-logdet / 2 - target @ np.linalg.solve(covariance, target) / 2)


def best_evidence(features: np.ndarray, labels: np.ndarray) -> float:
    found = []
    for label in range(int(labels.max()) + 1):
        target = (labels == label).astype(float)
        runs = [
            minimize(
                lambda x, target=target: -log_evidence(features, target, *x),
                start,
                bounds=[(-15, 25), (-10, 20)],
                method="L-BFGS-B",
                options={"ftol": 1e-13, "gtol": 1e-8},
            )
            for start in [(0.0, 0.0), (4.0, 2.0), (-2.0, 6.0), (8.0, 1.0)]
        ]
        found.append(-min(run.fun for run in runs))
    return float(np.mean(found)) / len(labels)


@pytest.mark.parametrize("apart", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_logme_is_the_highest_evidence(shape: str, apart: float) -> None:
    features, labels = sample(*SHAPES[shape], apart=apart)
    assert logme(moments(features, labels)) == pytest.approx(best_evidence(features, labels), abs=1e-6)


def test_logme_of_features_that_say_nothing_is_that_of_no_features() -> None:
    features, labels = np.array([1.0, -1, 2, -2, 3, -3]), np.array([0, 0, 1, 1, 1, 1])  # orthogonal to every target
    beta = 6 / np.array([2, 4])
    expected = np.mean(np.log(beta / (2 * np.pi)) / 2 - 1 / 2)
    for useless in (features[:, None], np.zeros((6, 2))):
        assert logme(moments(useless, labels)) == pytest.approx(expected, rel=1e-9)


def test_logme_takes_any_scale_but_not_any_offset() -> None:
    features, labels = sample(*SHAPES["n > d"])
    score = logme(moments(features, labels))
    assert logme(moments(1e3 * features, labels)) == pytest.approx(score, rel=1e-6)
    assert logme(moments(1e-3 * features, labels)) == pytest.approx(score, rel=1e-6)
    assert logme(moments(features + 3, labels)) != pytest.approx(score, rel=1e-3)


def test_logme_prefers_features_that_tell_classes_apart() -> None:
    scores = [logme(moments(*sample(60, 5, 3, apart))) for apart in (0.0, 1.0, 4.0)]
    assert scores == sorted(scores)
    assert scores[0] < scores[2] - 0.1


@pytest.mark.parametrize(
    "features",
    [np.eye(3), np.eye(3, 40), 1e4 * np.eye(3), np.hstack([np.eye(3)] * 5), np.zeros((3, 4)), np.ones((3, 1))],
    ids=["separable", "separable, d > n", "far apart", "repeated", "all zero", "constant"],
)
def test_logme_is_finite_where_the_fit_is_perfect_or_there_is_none(features: np.ndarray) -> None:
    labels = np.arange(12) % 3
    assert np.isfinite(logme(moments(features[labels], labels)))


@pytest.mark.parametrize("score", [h_score, logme])
@pytest.mark.parametrize(
    ("labels", "message"), [([0, 0, 0], "at least two"), ([0, 0, 2], "no samples"), ([0, 1, 2], "one sample a class")]
)
def test_scores_of_what_has_no_classes_to_compare(score: object, labels: list[int], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        score(moments(np.eye(3), np.array(labels)))  # type: ignore[operator]


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("shape", SHAPES)
def test_shrunk_h_score_is_that_of_ledoit_and_wolf(shape: str, offset: float) -> None:
    features, labels = sample(*SHAPES[shape])
    shrunk = LedoitWolf().fit(features)
    means = np.stack([features[labels == k].mean(0) for k in range(labels.max() + 1)])[labels] - features.mean(0)
    between = means.T @ means / len(labels) * (1 - shrunk.shrinkage_)
    found = moments(features + offset, labels)
    assert shrinkage(found) == pytest.approx(shrunk.shrinkage_, rel=1e-6)
    assert h_score_shrunk(found) == pytest.approx(np.trace(np.linalg.solve(shrunk.covariance_, between)), rel=1e-6)
    halves = moments(features[::2] + offset, labels[::2]), moments(features[1::2] + offset, labels[1::2])
    if halves[0].classes == halves[1].classes:
        assert h_score_shrunk(halves[0].merge(halves[1])) == pytest.approx(h_score_shrunk(found), rel=1e-6)


def test_shrunk_h_score_does_not_saturate() -> None:
    features, labels = sample(*SHAPES["n < d"])
    assert h_score(moments(features, labels)) == pytest.approx(2)
    assert 0 < h_score_shrunk(moments(features, labels)) < 1.7
    assert h_score_shrunk(moments(np.ones((6, 2)), np.arange(6) % 2)) == 0


def bhattacharyya(first: np.ndarray, second: np.ndarray) -> float:
    """Between spherical Gaussians fitted to two classes, by dense determinants."""
    covariances = [np.eye(rows.shape[1]) * rows.var(0).mean() for rows in (first, second)]
    pooled, gap = sum(covariances) / 2, first.mean(0) - second.mean(0)
    logs = [np.linalg.slogdet(matrix)[1] for matrix in (pooled, *covariances)]
    return float(gap @ np.linalg.solve(pooled, gap) / 8 + (logs[0] - (logs[1] + logs[2]) / 2) / 2)


def test_gbc_is_the_sum_of_bhattacharyya_coefficients() -> None:
    features, labels = sample(60, 5, 4, apart=0.8)
    groups = [features[labels == k] for k in range(4)]
    expected = -sum(np.exp(-bhattacharyya(a, b)) for i, a in enumerate(groups) for j, b in enumerate(groups) if i != j)
    assert gbc(moments(features, labels)) == pytest.approx(expected, rel=1e-9)
    assert gbc(moments(100 * features + 1e4, labels)) == pytest.approx(expected, rel=1e-6)


def test_gbc_of_a_class_of_one_and_of_perfect_collapse_is_defined() -> None:
    features, labels = sample(60, 5, 3)
    assert np.isfinite(gbc(moments(np.vstack([features, features[:1] + 9]), np.r_[labels, 3])))
    assert gbc(moments(np.eye(3)[labels], labels)) == 0
