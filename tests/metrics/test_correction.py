"""The few-sample correction against populations whose NC1, CDNV and VCI are known."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from tightframe.features.moments import ClassMoments
from tightframe.metrics import inverse
from tightframe.metrics.collapse import cdnv, nc1, vci
from tightframe.metrics.correction import Corrected, corrected

POPULATIONS = [(512, 10, 0.5, 5, 7), (1024, 10, 0.5, 5, 3), (512, 20, 0.5, 10, 9), (2048, 100, 0.2, 20, 1)]


def truth(means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """NC1, CDNV, VCI by pseudo-inverses, in the basis of the class means."""
    classes = len(means)
    centered = (means - means.mean(0)) / classes**0.5
    _, singular, right = np.linalg.svd(centered, full_matrices=False)
    rank = min(classes - 1, means.shape[1])
    within, singular = (right[:rank] ** 2) @ variances, singular[:rank]
    small = centered / variances @ centered.T  # non-zero eigenvalues of Σ_W⁻¹ Σ_B
    values = np.linalg.eigvalsh(small)[-rank:]
    return np.array(
        [
            (within / singular**2).sum() / classes,
            (variances.sum() / pdist(means, "sqeuclidean")).mean(),
            1 - (values / (1 + values)).mean(),
        ]
    )


def population(dimension: int, classes: int, signal: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return signal * rng.standard_normal((classes, dimension)), np.exp(rng.standard_normal(dimension))


def decaying(dimension: int, classes: int, collapse: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Class means with between-class variances 1, 1/2, 1/3, …, scaled to a population NC1 of ``collapse``."""
    means, variances = population(dimension, classes, 1.0, rng)
    left, _, right = np.linalg.svd(means - means.mean(0), full_matrices=False)
    means = left[:, :-1] / np.arange(1, classes) ** 0.5 @ right[:-1]
    return means * (truth(means, variances)[0] / collapse) ** 0.5, variances


def samples(
    means: np.ndarray, variances: np.ndarray, counts: list[int], rng: np.random.Generator, scales: object = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(means)), counts)
    noise = rng.standard_normal((len(labels), means.shape[1])) * np.broadcast_to(scales, len(means))[labels, None]
    return means[labels] + variances**0.5 * noise, labels


def read(features: np.ndarray, labels: np.ndarray) -> tuple[ClassMoments, Corrected]:
    moments = ClassMoments.from_features(features, labels, int(labels.max()) + 1)
    return moments, corrected(moments)


def values(result: Corrected) -> np.ndarray:
    return np.array([np.nan if e.value is None else e.value for e in (result.nc1, result.cdnv, result.vci)])


def lowers(result: Corrected) -> np.ndarray:
    return np.array([e.lower for e in (result.nc1, result.cdnv, result.vci)])


@pytest.mark.slow
@pytest.mark.parametrize(("dimension", "classes", "signal", "each", "draws"), POPULATIONS)
def test_few_samples_tell_the_population(dimension, classes, signal, each, draws):
    rng = np.random.default_rng(dimension + classes)
    ours, plain, bounds = [], [], []
    for _ in range(draws):
        means, variances = population(dimension, classes, signal, rng)
        true = truth(means, variances)
        moments, result = read(*samples(means, variances, [each] * classes, rng))
        ours.append(values(result) / true - 1)
        plain.append(np.array([nc1(moments), cdnv(moments)]) / true[:2] - 1)
        bounds.append(lowers(result) <= true)
    error, uncorrected = np.median(np.abs(ours), axis=0), np.median(np.abs(plain), axis=0)
    assert (error <= 0.15).all()
    assert (uncorrected > 2 * error[:2]).all(), "a population that plug-in values tell proves nothing"
    assert uncorrected[1] > 0.4
    assert np.mean(bounds) >= 0.9


def test_classes_may_differ_in_scale():
    rng, errors = np.random.default_rng(4), []
    for _ in range(7):
        means, variances = population(512, 10, 0.5, rng)
        scales = np.exp(0.15 * rng.standard_normal(10))
        usual = (scales**2).mean()
        true = truth(means, variances * usual)
        own = variances.sum() * scales**2
        pairs = (own[:, None] + own)[np.triu_indices(10, 1)] / 2
        true[1] = (pairs / pdist(means, "sqeuclidean")).mean()
        errors.append(values(read(*samples(means, variances, [5] * 10, rng, scales))[1]) / true - 1)
    assert (np.median(np.abs(errors), axis=0) <= 0.15).all()


@pytest.mark.parametrize("seed", range(2))
def test_what_samples_cannot_tell_is_not_told(seed):
    rng = np.random.default_rng(seed)
    means, variances = decaying(768, 60, 14.1, rng)
    moments, result = read(*samples(means, variances, [5] * 60, rng))
    assert result.nc1.value is None
    assert not result.nc1.identifiable
    assert 2 * nc1(moments) < result.nc1.lower <= 14.1
    assert any("NC1 is not identifiable" in note for note in result.notes)
    assert lowers(result)[1] <= truth(means, variances)[1]


@pytest.mark.parametrize("shape", ["decaying", "K > d"])
def test_many_samples_leave_nothing_to_correct(shape):
    rng = np.random.default_rng(2)
    means, variances = decaying(40, 8, 3.0, rng) if shape == "decaying" else population(12, 30, 1.0, rng)
    moments, result = read(*samples(means, variances, [4000] * len(means), rng))
    np.testing.assert_allclose(values(result), truth(means, variances), rtol=0.04)
    np.testing.assert_allclose(values(result), [nc1(moments), cdnv(moments), vci(moments)], rtol=0.02)


def test_rotation_offset_and_scale_change_nothing():
    rng = np.random.default_rng(3)
    means, variances = population(60, 6, 0.7, rng)
    features, labels = samples(means, variances, [8] * 6, rng)
    rotation, _ = np.linalg.qr(rng.standard_normal((60, 60)))
    expected = read(features, labels)[1]
    for moved in (features @ rotation, features + 100.0, features * 1e3, features * 1e-3, features[:, ::-1].copy()):
        result = read(moved, labels)[1]
        np.testing.assert_allclose(values(result), values(expected), rtol=1e-6)
        np.testing.assert_allclose(lowers(result), lowers(expected), rtol=1e-6)


def test_imbalance_and_classes_of_one():
    rng, errors = np.random.default_rng(6), []
    for _ in range(5):
        means, variances = population(512, 12, 0.6, rng)
        features, labels = samples(means, variances, [1, 1, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60], rng)
        result = read(features, labels)[1]
        errors.append(values(result) / truth(means, variances) - 1)
    assert (np.median(np.abs(errors), axis=0) <= 0.25).all()
    assert any("one sample" in note for note in result.notes)


def test_more_classes_than_dimensions():
    rng = np.random.default_rng(7)
    means, variances = population(16, 40, 1.0, rng)
    moments, result = read(*samples(means, variances, [15] * 40, rng))
    true = truth(means, variances)
    assert (np.abs(values(result) / true - 1) < 0.15).all()
    assert abs(nc1(moments) / true[0] - 1) > abs(values(result)[0] / true[0] - 1)


def test_perfect_collapse_is_exact():
    means = np.random.default_rng(8).standard_normal((5, 20)).round(2)
    result = read(np.repeat(means, 4, axis=0), np.repeat(np.arange(5), 4))[1]
    assert values(result).tolist() == [0.0, 0.0, 0.0]


def test_equal_class_means_are_not_identifiable():
    rng = np.random.default_rng(9)
    result = read(*samples(np.zeros((10, 200)), np.ones(200), [5] * 10, rng))[1]
    assert result.nc1.value is None
    assert result.cdnv.value is None
    assert np.isfinite(lowers(result)).all()


def test_model_behind_vci_is_said_where_it_is_used():
    rng = np.random.default_rng(10)
    few = read(*samples(*population(50, 4, 1.0, rng), [5] * 4, rng))[1]
    many = read(*samples(*population(50, 4, 1.0, rng), [50] * 4, rng))[1]
    assert any("log-normal" in note for note in few.notes)
    assert not any("log-normal" in note for note in many.notes)
    assert few.vci.lower == 0.0 < many.vci.lower


@pytest.mark.parametrize("counts", [[1, 2], [2, 2], [1, 1, 2], [2, 50, 3]])
def test_hardly_any_samples_give_defined_results(counts):
    rng = np.random.default_rng(11)
    result = read(*samples(*population(30, len(counts), 1.0, rng), counts, rng))[1]
    for estimate in astuple(result)[:3]:
        assert estimate.identifiable == (estimate.value is not None)
        assert np.isfinite(estimate.lower)
        assert estimate.lower >= 0
        assert estimate.value is None or (np.isfinite(estimate.value) and estimate.value >= estimate.lower)


@pytest.mark.parametrize(("count", "dimension", "classes"), [(100, 8, 5), (20, 32, 2), (80, 4, 4)])
def test_features_without_class_structure_are_not_identifiable_and_break_nothing(count, dimension, classes):
    mistaken = []
    for seed in range(40):
        features = np.random.default_rng(seed).standard_normal((count, dimension))
        _, result = read(features, np.arange(count) % classes)
        for estimate in result.by_name.values():
            assert np.isfinite(estimate.lower)
            assert estimate.lower > 0 or estimate is result.vci
        if result.nc1.value is not None and result.nc1.value < 1:  # infinite is the truth
            mistaken.append(seed)
        assert result.nc1.value is not None or any("NC1 is not identifiable" in note for note in result.notes)


@pytest.mark.parametrize("signal", [0.02, 0.05, 0.1])
def test_weak_class_structure_takes_no_longer(signal, monkeypatch):
    """Of a fixed point that converges slowly, Newton's method takes a few steps: 1024 values, 50 classes of 20."""
    steps = []
    balanced = inverse.balanced
    monkeypatch.setattr(inverse, "balanced", lambda *given: steps.append(1) or balanced(*given))
    rng = np.random.default_rng(0)
    means, variances = population(1024, 50, signal, rng)
    result = read(*samples(means, variances, [20] * 50, rng))[1]
    assert result.nc1.value is None
    assert nc1_bound_holds(result, truth(means, variances)[0])
    assert len(steps) < 120


def nc1_bound_holds(result: Corrected, true: float) -> bool:
    return 0 < result.nc1.lower <= true


def test_an_inverse_is_where_its_equation_holds():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((6, 9)))
    across = torch.diag(torch.from_numpy(rng.uniform(0.05, 0.2, 6)))
    noisy = inverse.Noisy(rows @ rows.T, 0.5 * rows @ rows.T, across, 9.0)
    q = inverse.inverted(noisy).matrix
    torch.testing.assert_close(torch.linalg.inv(q), noisy.gram + noisy.energy(q), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("stuck", ["ROUNDS"])
def test_an_inverse_that_is_not_found_is_not_identifiable(stuck, monkeypatch):
    monkeypatch.setattr(inverse, stuck, 1)
    rng = np.random.default_rng(0)
    result = read(*samples(*population(30, 5, 1.0, rng), [20] * 5, rng))[1]
    assert not result.nc1.identifiable
    assert any("NC1 is not identifiable" in note for note in result.notes)


@pytest.mark.parametrize("counts", [[4] * 5, [2, 3, 9, 1]])
def test_few_samples_in_many_dimensions_are_read_in_their_span(counts, monkeypatch):
    rng = np.random.default_rng(12)
    features, labels = samples(*population(90, len(counts), 1.0, rng), counts, rng)
    expected = read(features, labels)[1]
    monkeypatch.setattr("tightframe.metrics.debiasing.span", lambda moments: None)
    whole = read(features, labels)[1]
    np.testing.assert_allclose(values(expected), values(whole), rtol=1e-9)
    np.testing.assert_allclose(lowers(expected), lowers(whole), rtol=1e-9)
