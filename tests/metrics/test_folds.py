"""Moments without a fold are those of the other samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tightframe.features.moments import ClassMoments
from tightframe.metrics.folds import Folds


def given(samples: int, dimension: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(samples)
    labels = rng.integers(0, classes, samples)
    return rng.standard_normal((classes, dimension))[labels] + rng.standard_normal((samples, dimension)) + 30, labels


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("samples", "dimension", "classes"), [(90, 7, 3), (40, 3, 12), (700, 300, 5)])
def test_the_rest_is_the_others(samples: int, dimension: int, classes: int, dtype: str) -> None:
    features, labels = given(samples, dimension, classes)
    features = features.astype(dtype)
    folds = Folds.of(features, labels, classes)
    tolerance = 1e-6 if dtype == "float32" and dimension > 256 else 1e-11
    for fold, held in enumerate(folds.held):
        others = np.setdiff1d(np.arange(samples), held.numpy())
        true = ClassMoments.from_features(features[others], labels[others], classes)
        found = folds.rest(fold)
        assert torch.equal(found.counts, true.counts)
        torch.testing.assert_close(found.means, true.means, rtol=1e-12, atol=1e-12)
        size = float(true.scatter.diagonal().mean())
        torch.testing.assert_close(found.scatter, true.scatter, rtol=0, atol=tolerance * size)
        own = ClassMoments.from_features(features[held.numpy()], labels[held.numpy()], classes)
        weights = torch.from_numpy(np.random.default_rng(fold).standard_normal((4, dimension)))
        spread = ((weights @ own.scatter) * weights).sum(1)
        torch.testing.assert_close(folds.parts[fold].spread(weights), spread, rtol=max(tolerance, 1e-12), atol=0)


def test_a_fold_with_nearly_all_of_the_spread_is_not_subtracted() -> None:
    features, labels = given(60, 4, 3)
    folds = Folds.of(features, labels, 3)
    features[folds.held[2].numpy()] *= 1e9
    folds = Folds.of(features, labels, 3)
    others = np.setdiff1d(np.arange(60), folds.held[2].numpy())
    true = ClassMoments.from_features(features[others], labels[others], 3)
    torch.testing.assert_close(folds.rest(2).scatter, true.scatter, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(folds.rest(2).means, true.means, rtol=1e-11, atol=1e-9)
