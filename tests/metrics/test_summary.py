"""The quick metrics against those of all moments."""

from __future__ import annotations

import numpy as np
import pytest

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import nc1_ratio
from tightframe.metrics.summary import collapse_metrics, moments_along_means, quick_collapse


def sample(count: int, classes: int, dimension: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, count - classes)])
    means = generator.normal(size=(classes, dimension))
    return means[labels] + generator.normal(size=(count, dimension)) * np.geomspace(0.1, 2, dimension), labels


@pytest.mark.parametrize("weighting", ["class", "sample"])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize(("kind", "near"), [(np.float64, 1e-9), (np.float32, 1e-4)])
@pytest.mark.parametrize(("classes", "dimension"), [(2, 30), (10, 40), (20, 15)])
def test_quick_is_the_same(
    classes: int, dimension: int, kind: type, near: float, offset: float, weighting: str
) -> None:
    features, labels = sample(5000, classes, dimension)
    features = (features + offset).astype(kind)
    whole = collapse_metrics(ClassMoments.from_features(features, labels, classes), weighting=weighting)
    for name, value in quick_collapse(features, labels, classes, weighting).items():
        assert value == pytest.approx(whole[name], rel=near), name


def test_traces_are_those_of_all_dimensions() -> None:
    features, labels = sample(400, 5, 30)
    narrow = moments_along_means(*map(np_tensor, (features, labels)), 5)
    assert narrow.dimension == 6
    assert nc1_ratio(narrow) == pytest.approx(nc1_ratio(ClassMoments.from_features(features, labels, 5)), rel=1e-9)


def np_tensor(array: np.ndarray):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(array)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_classes_that_coincide_are_seen_to(kind: type) -> None:
    cloud = np.random.default_rng(5).normal(size=(300, 9)) + 100
    rows = np.concatenate([np.random.default_rng(k).permutation(cloud) for k in range(3)]).astype(kind)
    found = quick_collapse(rows, np.repeat(np.arange(3), 300), 3)
    assert found["nc1"] == found["cdnv"] == np.inf
    assert np.isnan(found["nc2_etf"])


def test_an_empty_class_is_refused() -> None:
    features, labels = sample(50, 3, 30)
    with pytest.raises(MeasureError, match="no samples for class 3"):
        quick_collapse(features, labels, 4)
