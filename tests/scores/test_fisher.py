"""SFDA and NCTI against their authors' rules, restated with SciPy's and scikit-learn's eigensolvers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.special import softmax
from scipy.stats import ortho_group
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from tightframe.errors import MeasureError
from tightframe.scores.fisher import NctiParts, ncti, ncti_parts, sfda

SHAPES = {
    "n > d": (120, 9, 3),
    "n < d": (40, 70, 3),
    "two classes": (60, 6, 2),
    "K > d": (90, 4, 7),
    "wide": (300, 80, 5),
}


def sample(shape: str, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, int]:
    """Imbalanced classes, correlated features, an offset; ``scale`` decides how much is shrunk."""
    samples, dimension, classes = SHAPES[shape]
    generator = np.random.default_rng(samples)
    labels = np.concatenate([np.arange(classes).repeat(3), generator.integers(0, classes, samples - 3 * classes)])
    labels[labels == 0] = np.where(np.arange((labels == 0).sum()) % 3, 1, 0)
    mixing = generator.normal(size=(dimension, dimension)) * np.linspace(1, 0.3, dimension) / dimension**0.5
    means = 2 * generator.normal(size=(classes, dimension)) / dimension**0.5
    return scale * (means[labels] + generator.normal(size=(samples, dimension)) @ mixing + 0.3), labels, classes


def shrunk(covariance: np.ndarray, shrinkage: float) -> np.ndarray:
    return (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


def largest(matrix: np.ndarray) -> float:
    return float(np.linalg.eigvalsh(matrix)[-1])


def by_powers(matrix: np.ndarray) -> float:
    """Largest eigenvalue as the authors' code approximates it."""
    right = matrix.sum(1)
    for _ in range(3):
        left = matrix @ right / np.linalg.norm(matrix @ right)
        right = matrix @ left / np.linalg.norm(matrix @ left)
    return float(right @ matrix @ left)


class Fisher:
    """Their discriminant: generalized eigenvectors of shrunk Σ_T − Σ_W against shrunk Σ_W."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int, shrinkage: float | None, top=largest):
        groups = [features[labels == k] for k in range(classes)]
        shares, means = np.bincount(labels) / len(labels), np.stack([group.mean(0) for group in groups])
        within = sum(
            share * np.cov(group.T, bias=True).reshape(2 * features.shape[1:])
            for share, group in zip(shares, groups, strict=True)
        )
        self.shrinkage = max(np.exp(-5 * top(within)), 1e-10) if shrinkage is None else shrinkage
        within = shrunk(within, self.shrinkage)
        between = shrunk(np.cov(features.T, bias=True), self.shrinkage) - within
        vectors = eigh(between, within)[1]
        self.weight = means @ vectors @ vectors.T
        self.bias = -0.5 * np.diag(means @ self.weight.T) + np.log(shares)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        return softmax(features @ self.weight.T + self.bias, axis=1)


def published_sfda(features: np.ndarray, labels: np.ndarray, classes: int, top=largest) -> float:
    first = Fisher(features, labels, classes, None, top)
    trust = softmax(first.probabilities(features), axis=1)
    mixed = np.empty_like(features)
    means = np.stack([features[labels == k].mean(0) for k in range(classes)])
    for i, label in enumerate(labels):
        p = trust[i, label]
        mixed[i] = p * features[i] + (1 - p) * np.delete(means, label, axis=0).mean(0)
    second = Fisher(mixed, labels, classes, first.shrinkage)
    return float(second.probabilities(mixed)[np.arange(len(labels)), labels].mean())


SCALED = pytest.mark.parametrize("scale", [0.1, 0.3, 0.6, 1.0, 4.0])  # shrunk almost wholly … not at all
ON_SHAPES = pytest.mark.parametrize("shape", SHAPES)


@SCALED
@ON_SHAPES
def test_sfda_is_the_published_rule(shape: str, scale: float) -> None:
    data = sample(shape, scale)
    assert sfda(*data) == pytest.approx(published_sfda(*data), rel=1e-6)


@SCALED
def test_the_published_approximation_of_an_eigenvalue_moves_sfda_little(scale: float) -> None:
    data = sample("K > d", scale)
    approximate = published_sfda(*data, top=by_powers)
    assert sfda(*data) == pytest.approx(approximate, abs=0.02)
    if scale == 0.6:
        assert sfda(*data) != pytest.approx(approximate, abs=0.01)


def test_sfda_saturates_with_fewer_samples_than_dimensions_even_without_classes() -> None:
    features = 10 * np.random.default_rng(0).normal(size=(30, 60))
    assert sfda(features, np.arange(30) % 3, 3) == pytest.approx(1, abs=1e-6)


def test_sfda_of_features_without_spread_within_classes() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    assert sfda(np.eye(3)[labels], labels, 3) == pytest.approx(1)
    together = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])[labels]
    assert sfda(together, labels, 3) == pytest.approx(1)  # classes 0 and 1 are moved apart by their labels
    assert sfda(np.full((8, 2), 0.1), labels, 3) == pytest.approx((9 + 4 + 9) / 64)


def published_ncti(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[float, float, float]:
    pca = PCA(min(64, len(features) - 1, features.shape[1]), svd_solver="full")
    scores = pca.fit_transform(features)
    shrinkage = max(np.exp(-pca.explained_variance_[:32].sum()), 1e-10)
    rule = LinearDiscriminantAnalysis(solver="svd")
    if shrinkage > 1e-10:
        rule = LinearDiscriminantAnalysis(solver="eigen", shrinkage=float(shrinkage))
    projected = rule.fit_transform(scores, labels)
    probabilities = rule.predict_proba(scores)
    return (
        np.linalg.norm(projected - projected.mean(0), ord="nuc"),
        probabilities[np.arange(len(labels)), labels].mean(),
        np.log(sum(np.linalg.norm(probabilities[labels == k], ord="nuc") for k in range(classes))),
    )


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.6, 1.0, 4.0, 30.0])
@ON_SHAPES
def test_ncti_parts_are_the_published_ones(shape: str, scale: float) -> None:
    data = sample(shape, scale)
    assert tuple(ncti_parts(*data)) == pytest.approx(published_ncti(*data), rel=1e-7)


def test_both_branches_of_ncti_are_tested() -> None:
    spreads = [np.linalg.eigvalsh(np.cov(sample("wide", scale)[0].T))[-32:].sum() for scale in (0.6, 1.0)]
    assert spreads[0] < 23 < spreads[1]  # −ln 1e-10


def test_ncti_without_shrinkage_is_blind_where_classes_have_no_spread() -> None:
    """As published: 40 samples span 39 components, classes spread in 37 of them and differ in the other two."""
    nearness = [ncti_parts(*sample("n < d", scale)).nearness for scale in (0.6, 1.0)]
    assert nearness[0] > 0.99
    assert nearness[1] < 0.5


def test_ncti_parts_ignore_rotation_and_offset_but_not_scale() -> None:
    features, labels, classes = sample("wide", 0.3)
    expected = ncti_parts(features, labels, classes)
    turned = features @ ortho_group.rvs(80, random_state=2) + np.linspace(-9, 30, 80)
    assert tuple(ncti_parts(turned, labels, classes)) == pytest.approx(tuple(expected), rel=1e-8)
    assert ncti_parts(2 * features, labels, classes).spread != pytest.approx(expected.spread, rel=1e-3)


@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_ncti_of_features_without_spread_within_classes_is_refused(scale: float) -> None:
    labels = np.arange(12) % 3
    for collapsed in (scale * np.eye(3)[labels], np.full((12, 3), scale)):
        with pytest.raises(MeasureError, match="do not vary within classes"):
            ncti_parts(collapsed, labels, 3)


def test_ncti_is_scaled_over_the_pool_and_changes_with_it() -> None:
    parts = [(1.0, 0.5, 2.0), (3.0, 0.7, 1.0), (2.0, 0.9, 4.0)]
    scaled = [(0, 0, 1 / 3), (1, 0.5, 0), (0.5, 1, 1)]
    assert ncti(parts) == pytest.approx([a + b - c for a, b, c in scaled])
    assert ncti(parts[:2]) == pytest.approx([-1.0, 2.0])
    assert ncti([NctiParts(1.0, 0.5, 2.0), NctiParts(1.0, 0.7, 2.0)]) == [0.0, 1.0]  # alike in two components


def test_ncti_of_a_lone_model_is_zero_and_of_none_nothing() -> None:
    assert ncti([(1.0, 0.5, 2.0)]) == [0.0]
    assert ncti([]) == []


def test_ncti_refuses_what_is_not_finite() -> None:
    with pytest.raises(MeasureError, match="finite"):
        ncti([(1.0, 0.5, 2.0), (1.0, float("nan"), 2.0)])
