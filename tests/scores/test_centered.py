"""Principal components and Gram matrices against NumPy's and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from tightframe.scores.centered import CenteredFeatures, leading, principal_components


@pytest.mark.parametrize("shape", [(50, 6), (20, 40), (30, 1)])
@pytest.mark.parametrize("at_most", [None, 1, 4])
def test_principal_components_are_those_of_a_decomposition_of_the_features(
    shape: tuple[int, int], at_most: int | None
) -> None:
    features, labels = 1e3 + np.random.default_rng(0).normal(size=shape), np.arange(shape[0]) % 2
    keep = min(shape[1], shape[0] - 1, at_most or 100)
    found, pca = principal_components(CenteredFeatures.of(features, labels, 2), at_most), PCA(keep, svd_solver="full")
    expected = pca.fit_transform(features)
    np.testing.assert_allclose(found.variances.numpy(), pca.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(np.abs(found.scores.numpy()), np.abs(expected), atol=1e-8)
    assert (found.scores.max(0).values >= -found.scores.min(0).values).all()  # the farthest is positive


def test_rounding_is_no_principal_component() -> None:
    constant = np.tile(np.linspace(0.1, 7.7, 5), (997, 1))  # their mean is rounded
    labels, spread = np.arange(997) % 3, np.random.default_rng(0).normal(size=997)
    assert len(principal_components(CenteredFeatures.of(constant, labels, 3)).variances) == 0
    one = constant + np.outer(spread, [1, 0, 2, 0, -1])
    assert principal_components(CenteredFeatures.of(one, labels, 3)).variances.numpy() == pytest.approx(
        6 * spread.var(ddof=1)
    )


@pytest.mark.parametrize("chunk_bytes", [8, 2**25])
def test_gram_matrices_are_the_smaller_ones_of_centered_rows(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tightframe.scores.centered.CHUNK_BYTES", chunk_bytes)
    features, labels = 5 + np.random.default_rng(0).normal(size=(30, 7)), np.arange(30) % 3
    samples, rows = CenteredFeatures.of(features, labels, 3), features - features.mean(0)
    np.testing.assert_allclose(samples.gram(), rows.T @ rows, rtol=1e-9, atol=1e-12)
    chosen = torch.tensor([3, 1, 8])
    np.testing.assert_allclose(samples.gram(chosen), rows[[3, 1, 8]] @ rows[[3, 1, 8]].T, rtol=1e-9, atol=1e-12)


def test_leading_eigenvalues_fall_and_are_never_negative() -> None:
    values, vectors = leading(torch.diag(torch.tensor([3.0, -1e-18, 5.0], dtype=torch.float64)), 3)
    assert values.tolist() == [5.0, 3.0, 0.0]
    assert vectors.abs().argmax(0).tolist() == [2, 0, 1]
