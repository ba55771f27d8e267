"""Eigenvalues of all features against NumPy's, and what is remembered for how long."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from scipy.linalg import eigh as scipy_eigh

from tightframe.features.moments import ClassMoments
from tightframe.metrics.factors import SPARE, between_factor, once, spectrum, total_covariance
from tightframe.metrics.folds import Folds
from tightframe.metrics.intervals import collapse_intervals, corrected_intervals
from tightframe.metrics.summary import collapse_metrics
from tightframe.probes.linear import cross_validated_center, cross_validated_lda, cross_validated_ridge
from tightframe.probes.logistic import cross_validated_logistic
from tightframe.scores import centered
from tightframe.scores.transferability import transferability

PROMISE = 1e-9
KINDS = ("plain", "far from zero", "collapsed")


def sample(seed: int, count: int, classes: int, dimension: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    means, noise = generator.normal(size=(classes, dimension)), generator.normal(size=(count, dimension))
    features = {"plain": means[labels] + noise, "far from zero": 1e3 + means[labels] + noise}
    return features.get(kind, means[labels] + 1e-6 * noise), labels


@pytest.mark.parametrize("kind", KINDS)
def test_spectrum_is_that_of_the_covariance_of_all_features(kind: str) -> None:
    features, labels = sample(9, 60, 3, 5, kind)
    found = spectrum(ClassMoments.from_features(features, labels, 3))
    covariance = np.cov(features.astype(np.float64).T, bias=True)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(covariance), rtol=1e-6, atol=1e-9 * covariance.max())
    rebuilt = (found.vectors * found.values) @ found.vectors.T
    np.testing.assert_allclose(rebuilt, covariance, rtol=0, atol=PROMISE * np.abs(covariance).max())
    assert found.kept.sum() == 5


@pytest.mark.parametrize("offset", [0.0, 1e5, 1e9])
@pytest.mark.parametrize(("count", "dimension"), [(2, 9), (6, 9), (9, 9), (10, 9), (30, 9)])
def test_spectrum_has_no_more_directions_than_samples_span(count: int, dimension: int, offset: float) -> None:
    features, labels = sample(10, count, 2, dimension, "plain")
    found = spectrum(ClassMoments.from_features(features + offset, labels, 2))
    assert found.kept.sum() == min(count - 1, dimension)
    assert (found.values >= 0).all()


def test_spectrum_of_features_without_any_spread() -> None:
    found = spectrum(ClassMoments.from_features(np.full((6, 3), 0.1), np.arange(6) % 2, 2))
    assert found.values.max() < 1e-30


def test_factors_are_made_once_and_forgotten_with_their_moments() -> None:
    moments = ClassMoments.from_features(*sample(0, 30, 3, 4, "plain"), 3)
    assert spectrum(moments, "sample") is spectrum(moments, "sample")
    assert between_factor(moments, "class") is between_factor(moments, "class")
    assert between_factor(moments, "class") is not between_factor(moments, "sample")
    seen = weakref.ref(moments)
    del moments
    gc.collect()
    assert seen() is None


def test_what_is_remembered_belongs_to_one_object() -> None:
    calls = []
    remembered = once(lambda moments, further: calls.append(further) or further)
    one, other = ClassMoments.zero(2, 2), ClassMoments.zero(2, 2)
    assert [remembered(m, f) for m in (one, other, one) for f in (1, 2)] == [1, 2, 1, 2, 1, 2]
    assert calls == [1, 2, 1, 2]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all symmetric matrices whose eigenvectors are looked for."""
    found: list[int] = []
    for module, name in ((torch.linalg, "eigh"), (np.linalg, "eigh"), (torch.linalg, "eigvalsh")):
        solve = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda a, *r, solve=solve, **k: found.append(a.shape[-1]) or solve(a, *r, **k)
        )
    monkeypatch.setattr(centered, "eigh", lambda a, **k: found.append(len(a)) or scipy_eigh(a, **k))
    return found


def test_with_fewer_samples_than_dimensions_no_decomposition_is_larger_than_the_samples(sizes: list[int]) -> None:
    features, labels = sample(11, 24, 3, 400, "plain")
    labels[:6] = np.arange(6) % 3
    folds = Folds.of(features, labels, 3)
    collapse_metrics(folds.total, correct=True)
    collapse_intervals(folds, draws=2)
    corrected_intervals(folds, draws=2)
    transferability(features, labels)
    for probe in (cross_validated_ridge, cross_validated_lda, cross_validated_center):
        assert 0 <= probe(folds).accuracy <= 1
    cross_validated_logistic(folds)
    assert sizes
    assert max(sizes) <= 24 + SPARE


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_the_spectrum_in_the_span_of_samples_is_that_of_the_whole_covariance(weighting: str) -> None:
    features, labels = sample(12, 20, 3, 50, "far from zero")
    moments = ClassMoments.from_features(features, labels, 3)
    found = spectrum(moments, weighting)  # type: ignore[arg-type]
    covariance = total_covariance(moments, weighting).numpy()  # type: ignore[arg-type]
    np.testing.assert_allclose(found.values[found.kept], np.linalg.eigvalsh(covariance)[-19:], rtol=1e-9)
    rebuilt = (found.vectors * found.values) @ found.vectors.T
    np.testing.assert_allclose(rebuilt, covariance, rtol=0, atol=1e-11 * np.abs(covariance).max())
