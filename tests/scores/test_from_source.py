"""LEEP against a loop over images; NCE against scikit-learn's mutual information."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from tightframe.errors import MeasureError
from tightframe.metrics.registry import MEASURES
from tightframe.scores.from_source import leep, nce

SCORES = pytest.mark.parametrize("score", [leep, nce])
Score = Callable[..., float]


def sample(samples: int = 200, source: int = 12, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, samples - classes)])
    logits = 2 * generator.normal(size=(samples, source)) + 2 * generator.normal(size=(classes, source))[labels]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True), labels


def leep_by_loops(source: np.ndarray, labels: np.ndarray, classes: int) -> float:
    joint = np.zeros((classes, source.shape[1]))
    for probabilities, label in zip(source, labels, strict=True):
        joint[label] += probabilities / len(labels)
    total = 0.0
    for probabilities, label in zip(source, labels, strict=True):
        marginal = joint.sum(0)
        total += np.log(sum(joint[label, z] / marginal[z] * p for z, p in enumerate(probabilities) if marginal[z] > 0))
    return total / len(labels)


def entropy(labels: np.ndarray) -> float:
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())


SHAPES = [(200, 12, 4), (60, 3, 2), (50, 2, 7), (9000, 5, 3), (8, 30, 4)]  # K = 2, K > Z, several chunks, few images


@pytest.mark.parametrize("shape", SHAPES)
def test_leep_is_its_formula(shape: tuple[int, int, int]) -> None:
    source, labels = sample(*shape)
    assert leep(source, labels, shape[2]) == pytest.approx(leep_by_loops(source, labels, shape[2]), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_nce_is_mutual_information_less_the_entropy_of_labels(shape: tuple[int, int, int]) -> None:
    source, labels = sample(*shape)
    expected = mutual_info_score(labels, source.argmax(1)) - entropy(labels)
    assert nce(source, labels, shape[2]) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@SCORES
def test_scores_run_from_minus_the_entropy_of_labels_to_zero(score: Score) -> None:
    _, labels = sample()
    assert score(np.full((200, 5), 0.2), labels, 4) == pytest.approx(-entropy(labels), rel=1e-12)
    assert score(np.eye(6)[labels + 1], labels, 4) == pytest.approx(0, abs=1e-15)
    assert -entropy(labels) < score(*sample(), 4) < 0


@SCORES
def test_a_sure_head_gets_the_same_from_both(score: Score) -> None:
    source, labels = sample()
    sure = np.eye(12)[source.argmax(1)]
    assert score(sure, labels, 4) == pytest.approx(nce(source, labels, 4), rel=1e-12)


@SCORES
def test_order_of_samples_and_of_source_classes_does_not_matter(score: Score) -> None:
    source, labels = sample()
    generator = np.random.default_rng(1)
    order, columns = generator.permutation(200), generator.permutation(12)
    expected = score(source, labels, 4)
    assert score(source[order], labels[order], 4) == pytest.approx(expected, rel=1e-12)
    assert score(source[:, columns], labels, 4) == pytest.approx(expected, rel=1e-12)


@SCORES
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_and_tensors_of_any_precision_are_read_and_left_alone(score: Score, dtype: type) -> None:
    source, labels = sample(source=600)
    source = source.astype(dtype)
    before, value = source.copy(), score(source, labels, 4)
    assert value == score(torch.from_numpy(source), torch.from_numpy(labels), 4)
    assert value == pytest.approx(score(before.astype(np.float64), labels, 4), rel=1e-12)
    np.testing.assert_array_equal(source, before)


@SCORES
def test_empty_classes_and_classes_of_one_sample(score: Score) -> None:
    source, labels = sample()
    expected = score(source, labels, 4)
    assert score(source, labels, 9) == expected
    assert score(source, labels + (labels > 1), 5) == pytest.approx(expected, rel=1e-12)  # class 2 has none
    single = np.where(np.arange(200) == 7, 4, labels)
    assert np.isfinite(score(source, single, 5))
    assert leep(source, single, 5) == pytest.approx(leep_by_loops(source, single, 5), rel=1e-12)


@SCORES
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(score: Score, broken: float) -> None:
    source, labels = sample()
    source[13, 2] = broken
    with pytest.raises(MeasureError, match="row 13"):
        score(source, labels, 4)


@SCORES
def test_logits_are_refused_with_advice(score: Score) -> None:
    source, labels = sample()
    negative = source + np.where(np.arange(12) == source.argmin(1)[:, None], -1, 1 / 11)  # rows still sum to 1
    for wrong in (np.log(source), 2 * source, np.vstack([source[:-1], source[-1:] * 0.99]), negative):
        with pytest.raises(MeasureError, match=r"torch\.softmax"):
            score(wrong, labels, 4)
    score(source * 1.0005, labels, 4)  # rounding


@SCORES
@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((3,), [0, 1, 1], "source probabilities have shape"),
        ((0, 3), [], "source probabilities have shape"),
        ((3, 2), [0, 1], "as many labels"),
        ((3, 2), [0, 1, 2], "0 to 1"),
        ((3, 2), [0.0, 1.0, 1.0], "integers"),
    ],
)
def test_misfits_are_refused(score: Score, shape: tuple[int, ...], labels: list[float], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        score(np.full(shape, 0.5), np.array(labels), 2)


def test_both_are_registered_with_what_they_need() -> None:
    for name in ("leep", "nce"):
        entry = MEASURES[name]
        assert entry.needs == ("source", "labels", "classes")
        assert entry.higher_is_better
        assert entry.unchanged_by == {"rotation", "scale", "offset"}  # they never look at features
        assert entry.of({"labels": np.zeros(3), "classes": 2}) is None
