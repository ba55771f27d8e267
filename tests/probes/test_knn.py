"""Neighbors against scikit-learn and against a loop in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

from tightframe.errors import MeasureError
from tightframe.probes import knn as neighbors
from tightframe.probes.knn import TEMPERATURE, neighbors_accuracy, neighbors_predict

SHAPES = {"n > d": (150, 6), "n < d": (30, 50), "n < k": (12, 4)}


def sample(samples: int, dimension: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes of unequal size, features of very unequal spread, far from zero."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.minimum(np.arange(samples) % (classes + 1), classes - 1))
    means = generator.normal(size=(classes, dimension))
    noise = generator.normal(size=(samples, dimension))
    return (0.7 * means[labels] + noise) * np.geomspace(0.2, 30, dimension) + 10, labels


def by_loop(rows: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int, classes: int) -> int:
    """One vote, as the docstring has it; rows and query standardized."""
    similarity = normalize(rows) @ normalize(query[None])[0]
    near = np.argsort(-similarity, kind="stable")[:k]
    votes = np.bincount(labels[near], np.exp(similarity[near] / TEMPERATURE), minlength=classes)
    return int(votes.argmax())


@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_leaving_one_out_is_a_loop_over_samples(shape: str, k: int) -> None:
    features, labels = sample(*SHAPES[shape])
    rows = StandardScaler().fit_transform(features)
    found = neighbors_accuracy(features, labels, 3, k)
    expected = [
        by_loop(np.delete(rows, i, 0), np.delete(labels, i), rows[i], min(k, len(rows) - 1), 3)
        for i in range(len(rows))
    ]
    np.testing.assert_array_equal(found.predicted, expected)
    np.testing.assert_array_equal(found.correct, np.array(expected) == labels)
    assert found.accuracy == pytest.approx((np.array(expected) == labels).mean())
    assert found.low <= found.accuracy <= found.high
    assert found.k == min(k, len(rows) - 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_predictions_are_a_loop_over_queries(shape: str) -> None:
    features, labels = sample(*SHAPES[shape])
    unseen, _ = sample(40, SHAPES[shape][1], seed=1)
    scaler = StandardScaler().fit(features)
    rows, queries = scaler.transform(features), scaler.transform(unseen)
    expected = [by_loop(rows, labels, query, min(7, len(rows)), 3) for query in queries]
    np.testing.assert_array_equal(neighbors_predict(features, labels, unseen, 3, 7), expected)


def test_weighted_votes_are_sklearns() -> None:
    features, labels = sample(300, 12)
    unseen, _ = sample(500, 12, seed=1)
    scaler = StandardScaler().fit(features)
    model = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    model.fit(scaler.transform(features), labels)
    found = neighbors_predict(features, labels, unseen, 3)
    np.testing.assert_array_equal(found, model.predict(scaler.transform(unseen)))


@pytest.mark.parametrize("block", [1, 8000, 40_000])
def test_the_size_of_blocks_does_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = sample(150, 6)
    expected = neighbors_accuracy(features, labels, 3).predicted
    monkeypatch.setattr(neighbors, "BLOCK_BYTES", block)
    np.testing.assert_array_equal(neighbors_accuracy(features, labels, 3).predicted, expected)


@pytest.mark.parametrize(("dtype", "offset"), [(np.float64, 1e8), (np.float32, 1e3), (np.float16, 1e3)])
def test_the_origin_and_scale_of_features_do_not_matter(dtype: type, offset: float) -> None:
    features, labels = sample(150, 6)
    moved = ((features - 10) + offset).astype(dtype)
    again = (moved.astype(np.float64) - offset) / 1024  # what rounding to the type left, exactly, elsewhere
    one, other = (neighbors_accuracy(given, labels, 3, 5).predicted for given in (moved, again))
    np.testing.assert_array_equal(one, other)


def test_order_is_exact_where_float32_products_are_not() -> None:
    """Directions so close that cosines differ in their tenth digit: float32 takes any of them for the nearest."""
    generator = np.random.default_rng(0)
    near = np.repeat([[1.0, 0, 0, 1], [-1, 0, 0, -1], [0, 1, -1, 0], [0, -1, 1, 0]], 6, 0)
    features = near + 1e-4 * generator.normal(size=(24, 4))
    rows = normalize(StandardScaler().fit_transform(features).astype(np.float32).astype(float))
    rows = rows.astype(np.float32)
    exact, rough = rows.astype(float) @ rows.astype(float).T, rows @ rows.T
    for similarity in (exact, rough):
        np.fill_diagonal(similarity, -np.inf)
    assert (rough.argmax(1) != exact.argmax(1)).any()
    found = neighbors_accuracy(features, np.arange(24), 24, 1)
    assert (found.predicted == exact.argmax(1)).mean() > (rough.argmax(1) == exact.argmax(1)).mean()


def test_a_copy_votes_but_a_sample_does_not_vote_on_itself() -> None:
    features, _ = sample(40, 5)
    labels = np.arange(40) % 2
    alone = neighbors_accuracy(features, np.arange(40), 40, 1)
    assert alone.accuracy == 0
    doubled = neighbors_accuracy(np.vstack([features, features]), np.r_[labels, labels], 2, 1)
    assert doubled.accuracy == 1
    contradicted = neighbors_accuracy(np.vstack([features, features]), np.r_[labels, 1 - labels], 2, 1)
    assert contradicted.accuracy == 0


def test_of_equally_near_neighbors_the_earlier_counts() -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, -1.0]])
    assert neighbors_predict(features, np.array([2, 0, 1, 3, 4]), features[[0, 2]], 5, 1).tolist() == [2, 1]


def test_of_equal_votes_the_lower_class_wins() -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.5]])
    assert neighbors_predict(features, np.array([1, 0, 2]), features[:1], 3, 2).tolist() == [0]


def test_features_that_say_nothing_give_the_earliest_neighbors() -> None:
    labels = np.array([1, 1, 0, 0, 0])
    assert neighbors_predict(np.ones((5, 3)), labels, np.ones((1, 3)), 2, 3).tolist() == [1]


def test_arrays_and_tensors_agree_and_are_left_alone() -> None:
    features, labels = sample(50, 4)
    before = features.copy()
    features.flags.writeable = False
    one = neighbors_accuracy(features, labels, 3)
    other = neighbors_accuracy(torch.from_numpy(before), torch.from_numpy(labels).int(), 3)
    np.testing.assert_array_equal(one.predicted, other.predicted)
    assert (features == before).all()


GOOD = {"features": np.eye(3), "labels": np.array([0, 1, 1]), "classes": 2}
BAD: dict[str, dict[str, Any]] = {
    "0 neighbors": {"k": 0},
    "no neighbors": {"features": np.eye(1), "labels": np.array([0])},
    "NaN": {"features": np.full((3, 3), np.nan)},
    "must be 0 to 1": {"labels": np.array([0, 1, 2])},
}


@pytest.mark.parametrize("message", BAD)
def test_what_can_not_vote_is_refused(message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        neighbors_accuracy(**{**GOOD, **BAD[message]})


def test_queries_must_fit() -> None:
    with pytest.raises(MeasureError, match="expected"):
        neighbors_predict(np.eye(3), np.array([0, 1, 1]), np.eye(2), 2)
