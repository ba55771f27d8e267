"""Scores of features against the published rules, restated with NumPy, SciPy and scikit-learn; and hard inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm, ortho_group, spearmanr
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

from tightframe.errors import MeasureError
from tightframe.metrics.registry import MEASURES
from tightframe.scores.fisher import ncti_parts, sfda
from tightframe.scores.from_features import gbc_of_features, nleep, parc, transrate

Score = Callable[..., Any]
EVERY = [transrate, nleep, parc, gbc_of_features, sfda, ncti_parts]
SCORES = pytest.mark.parametrize("score", EVERY, ids=lambda score: score.__name__)
SHAPES = {
    "n > d": (120, 9, 3),
    "n < d": (40, 70, 3),
    "two classes": (60, 6, 2),
    "K > d": (90, 4, 7),
    "wide": (300, 80, 5),
}
ON_SHAPES = pytest.mark.parametrize("shape", SHAPES)


def sample(samples: int, dimension: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Imbalanced classes, correlated features, an offset."""
    generator = np.random.default_rng(seed + samples)
    labels = np.concatenate([np.arange(classes).repeat(3), generator.integers(0, classes, samples - 3 * classes)])
    labels[labels == 0] = np.where(np.arange((labels == 0).sum()) % 3, 1, 0)
    mixing = generator.normal(size=(dimension, dimension)) * np.linspace(1, 0.3, dimension) / dimension**0.5
    means = 2 * generator.normal(size=(classes, dimension)) / dimension**0.5
    features = means[labels] + generator.normal(size=(samples, dimension)) @ mixing + 0.3
    order = generator.permutation(samples)
    return features[order], labels[order]


def close(value: Any, rel: float = 1e-9) -> Any:
    return pytest.approx(value, rel=rel, abs=1e-12)


def coding_rate(rows: np.ndarray, epsilon: float) -> float:
    return 0.5 * np.linalg.slogdet(np.eye(rows.shape[1]) + rows.T @ rows / (len(rows) * epsilon))[1]


@pytest.mark.parametrize("epsilon", [1e-4, 0.3])
@ON_SHAPES
def test_transrate_is_the_listing_in_the_paper(shape: str, epsilon: float) -> None:
    features, labels = sample(*SHAPES[shape])
    classes, centered = SHAPES[shape][2], features - features.mean(0)
    rates = [coding_rate(centered[labels == k], epsilon) for k in range(classes)]
    whole = coding_rate(centered, epsilon)
    assert transrate(features, labels, classes, epsilon) == close(whole - np.mean(rates))


def test_transrate_of_constant_features_is_zero_and_epsilon_is_checked() -> None:
    features, labels = np.full((6, 4), 0.1), np.arange(6) % 2
    assert transrate(features, labels, 2) == pytest.approx(0, abs=1e-12)
    with pytest.raises(MeasureError, match="epsilon"):
        transrate(features, labels, 2, epsilon=0.0)


def leep_of(posteriors: np.ndarray, labels: np.ndarray, classes: int) -> float:
    joint = np.eye(classes)[labels].T @ posteriors
    given = joint / joint.sum(0)
    return float(np.log((posteriors @ given.T)[np.arange(len(labels)), labels]).mean())


@ON_SHAPES
def test_nleep_is_leep_of_a_mixture_on_principal_components(shape: str) -> None:
    features, labels = sample(*SHAPES[shape])
    pca = PCA(0.8, svd_solver="full").fit(features)
    scores = pca.transform(features) / pca.explained_variance_.mean() ** 0.5
    first = scores[:, 0] * np.sign(scores[np.abs(scores[:, 0]).argmax(), 0])
    order = np.argsort(first)
    components = min(5 * SHAPES[shape][2], len(labels) // 2)
    mixture = GaussianMixture(components, random_state=3, max_iter=100).fit(scores[order])
    expected = leep_of(mixture.predict_proba(scores[order]), labels[order], SHAPES[shape][2])
    assert nleep(features, labels, SHAPES[shape][2], seed=3) == close(expected, 1e-6)


def test_nleep_depends_on_its_seed_alone_and_prefers_clusters_that_are_classes() -> None:
    features, labels = sample(*SHAPES["wide"])
    assert nleep(features, labels, 5) == nleep(features, labels, 5)
    assert nleep(features, labels, 5) != nleep(features, labels, 5, seed=1)
    apart = features + 30 * np.eye(80)[labels]
    assert nleep(features, labels, 5) < nleep(apart, labels, 5) == pytest.approx(0, abs=1e-6)


def test_nleep_of_constant_features_is_minus_the_entropy_of_labels() -> None:
    shares = np.array([0.25, 0.75])
    assert nleep(np.full((8, 3), 0.1), np.array([0, 1, 1, 1] * 2), 2) == pytest.approx((shares * np.log(shares)).sum())


def parc_scores(features: np.ndarray, dimensions: int) -> np.ndarray:
    keep = min(dimensions, len(features) - 1, features.shape[1])
    scores = PCA(keep, svd_solver="full").fit_transform(features)
    farthest = np.abs(scores).argmax(0)
    scores = scores * np.sign(scores[farthest, np.arange(keep)])  # as scikit-learn's signs were in 2021
    return StandardScaler().fit_transform(scores)


def published_parc(features: np.ndarray, labels: np.ndarray, dimensions: int) -> float:
    upper = np.triu_indices(len(features), 1)
    apart = (1 - np.corrcoef(parc_scores(features, dimensions)))[upper]
    one_hot = np.eye(labels.max() + 1)[labels]
    return spearmanr(apart, (1 - np.corrcoef(one_hot))[upper].round(9)).statistic


@pytest.mark.parametrize("dimensions", [32, 3])
@ON_SHAPES
def test_parc_is_the_published_rule(shape: str, dimensions: int) -> None:
    features, labels = sample(*SHAPES[shape])
    value = parc(features, labels, SHAPES[shape][2], dimensions=dimensions)
    assert value == close(published_parc(features, labels, dimensions), 1e-7)


def test_parc_keeps_ties_that_rounding_would_break() -> None:
    features, labels = sample(60, 2, 3)  # Pearson's r of two values is −1 or 1
    signs = np.sign(parc_scores(features, 2) @ [1, -1])
    upper = np.triu_indices(60, 1)
    expected = spearmanr((signs[:, None] != signs)[upper], (labels[:, None] != labels)[upper]).statistic
    assert parc(features, labels, 3) == close(expected)


def test_parc_draws_from_many_images_whatever_their_order() -> None:
    features, labels = sample(*SHAPES["wide"])
    order = np.random.default_rng(5).permutation(300)
    drawn = parc(features, labels, 5, images=100)
    assert drawn == close(parc(features[order], labels[order], 5, images=100))
    assert drawn != parc(features, labels, 5, images=100, seed=1)
    assert drawn == pytest.approx(parc(features, labels, 5), abs=0.1)
    assert parc(features, labels, 5, images=300) == parc(features, labels, 5)


def test_parc_needs_two_directions() -> None:
    labels = np.arange(12) % 3
    for narrow in (np.arange(12.0)[:, None], np.full((12, 5), 0.1), np.outer(np.arange(12.0), [1, 2])):
        with pytest.raises(MeasureError, match="PARC"):
            parc(narrow, labels, 3)


def bhattacharyya(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Between Gaussians with any covariances, from determinants and an inverse."""
    middle, apart = (first[1] + second[1]) / 2, first[0] - second[0]
    logs = [np.linalg.slogdet(matrix)[1] for matrix in (middle, first[1], second[1])]
    return apart @ np.linalg.solve(middle, apart) / 8 + 0.5 * (logs[0] - (logs[1] + logs[2]) / 2)


@pytest.mark.parametrize("dimensions", [64, 3])
@ON_SHAPES
def test_gbc_is_its_formula(shape: str, dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tightframe.scores.from_features.COMPONENTS", dimensions)
    monkeypatch.setattr("tightframe.scores.from_features.FLOOR", 0.3)
    features, labels = sample(*SHAPES[shape])
    pca = PCA(min(dimensions, len(features) - 1, features.shape[1]), svd_solver="full")
    scores = pca.fit_transform(features)
    floor, gaussians = 0.3 * pca.explained_variance_.mean(), []
    for k in range(SHAPES[shape][2]):
        variance = np.maximum(scores[labels == k].var(0), floor).mean()
        gaussians.append((scores[labels == k].mean(0), variance * np.eye(scores.shape[1])))
    pairs = [(i, j) for i in range(len(gaussians)) for j in range(len(gaussians)) if i != j]
    expected = -sum(np.exp(-bhattacharyya(gaussians[i], gaussians[j])) for i, j in pairs)
    assert gbc_of_features(features, labels, SHAPES[shape][2]) == close(expected, 1e-7)


def test_gbc_of_two_classes_in_one_dimension_is_twice_the_overlap_of_their_densities() -> None:
    features, labels = np.array([0.0, 1, 2, 2, 3, 7, 8])[:, None], np.array([0, 0, 0, 1, 1, 1, 1])
    low, high = (norm(features[labels == k].mean(), features[labels == k].std()) for k in (0, 1))
    overlap = quad(lambda x: np.sqrt(low.pdf(x) * high.pdf(x)), -20, 30)[0]
    assert gbc_of_features(features, labels, 2) == close(-2 * overlap, 1e-8)


def test_gbc_of_classes_that_coincide_or_have_no_spread() -> None:
    labels = np.arange(12) % 3
    assert gbc_of_features(np.full((12, 4), 0.1), labels, 3) == -6
    assert gbc_of_features(np.eye(3)[labels], labels, 3) == pytest.approx(0, abs=1e-9)  # the floor keeps it finite


@SCORES
@ON_SHAPES
def test_samples_may_come_in_any_order(score: Score, shape: str) -> None:
    features, labels = sample(*SHAPES[shape])
    order = np.random.default_rng(9).permutation(len(labels))
    expected = score(features, labels, SHAPES[shape][2])
    assert score(features[order], labels[order], SHAPES[shape][2]) == close(expected, 1e-6)


@SCORES
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_and_tensors_of_any_precision_are_read_and_left_alone(score: Score, dtype: type) -> None:
    features, labels = sample(*SHAPES["n > d"])
    features = features.astype(dtype)
    before, value = features.copy(), score(features, labels, 3)
    assert value == score(torch.from_numpy(features), torch.from_numpy(labels), 3)
    assert value == close(score(before.astype(np.float64), labels, 3))
    np.testing.assert_array_equal(features, before)


@SCORES
@pytest.mark.parametrize("chunk_bytes", [8, 1000])
def test_the_size_of_chunks_does_not_matter(score: Score, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = sample(*SHAPES["n > d"])
    expected = score(features, labels, 3)
    monkeypatch.setattr("tightframe.scores.centered.CHUNK_BYTES", chunk_bytes)
    assert score(features, labels, 3) == close(expected, 1e-6)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rotation": lambda features: features @ ortho_group.rvs(features.shape[1], random_state=1),
    "scale": lambda features: features * 3.7,
    "offset": lambda features: features + np.linspace(-20, 30, features.shape[1]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["transrate", "nleep", "parc", "gbc_of_features", "sfda"])
@pytest.mark.parametrize("shape", ["n > d", "n < d", "wide"])
def test_scores_are_unchanged_by_what_they_say_and_by_nothing_else(name: str, change: str, shape: str) -> None:
    features, labels = sample(*SHAPES[shape])
    entry = MEASURES[name]
    expected = entry.compute(features, labels, SHAPES[shape][2])
    value = entry.compute(CHANGES[change](features), labels, SHAPES[shape][2])
    if change in entry.unchanged_by:
        assert value == close(expected, 1e-6)
    else:
        assert abs(value - expected) > 1e-3 * abs(expected) or expected > 1 - 1e-6  # SFDA saturated at 1


def test_registered_scores_say_what_they_need() -> None:
    for name in ("transrate", "nleep", "parc", "gbc_of_features", "sfda"):
        assert MEASURES[name].needs == ("features", "labels", "classes")
        assert MEASURES[name].higher_is_better
        assert MEASURES[name].meaning.endswith(".")


@SCORES
def test_a_class_with_a_single_sample_is_fine(score: Score) -> None:
    features, labels = sample(*SHAPES["n > d"])
    assert np.isfinite(score(features, np.where(np.arange(120) == 3, 3, labels), 4)).all()


@SCORES
@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 0, 0, 0], 1, "at least two"),
        ([0, 0, 2, 2], 3, "no samples for class 1"),
        ([0, 1, 2, 3], 4, "one sample a class"),
        ([], 2, "no samples for class 0, 1"),
        ([0, 1, 1, 2], 2, "0 to 1"),
    ],
)
def test_what_has_no_classes_to_compare_is_refused(score: Score, labels: list[int], classes: int, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        score(np.eye(4)[: len(labels)], np.array(labels, dtype=np.int64), classes)


@SCORES
@pytest.mark.parametrize("broken", [np.nan, -np.inf])
def test_what_is_not_finite_is_refused(score: Score, broken: float) -> None:
    features, labels = sample(*SHAPES["n > d"])
    features[7, 2] = broken
    with pytest.raises(MeasureError, match="row 7"):
        score(features, labels, 3)


@SCORES
def test_features_of_no_values_are_refused(score: Score) -> None:
    with pytest.raises(MeasureError, match="no values"):
        score(np.zeros((4, 0)), np.array([0, 0, 1, 1]), 2)


@SCORES
def test_far_from_zero_and_dead_values_do_no_harm(score: Score) -> None:
    features, labels = sample(*SHAPES["n > d"])
    expected = score(features, labels, 3)
    dead = np.hstack([features + 1e5, np.zeros((120, 2)), np.full((120, 1), 0.1)])
    if score is sfda or score is ncti_parts:
        assert np.isfinite(score(dead, labels, 3)).all()  # they shrink by the mean over all values, dead ones as well
    else:
        assert score(dead, labels, 3) == close(expected, 1e-6)
