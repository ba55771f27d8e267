"""Many penalties from one factorization are those of a factorization each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tightframe.metrics.folds import Folds
from tightframe.probes import solving
from tightframe.probes.linear import ridge_errors
from tightframe.probes.solving import solutions, solved

RIDGES = [1e-6, 1e-3, 0.1, 1.0, 50.0]


def covariance(size: int, samples: int = 200) -> torch.Tensor:
    rows = np.random.default_rng(size).standard_normal((samples, size)) * np.geomspace(1, 30, size)
    return torch.from_numpy(rows.T @ rows / samples)


@pytest.mark.parametrize(("size", "columns"), [(1, 2), (2, 1), (3, 4), (40, 5), (40, 130)])
def test_solutions_solve(size: int, columns: int) -> None:
    matrix = covariance(size)
    right = torch.from_numpy(np.random.default_rng(0).standard_normal((size, columns)))
    unit = torch.eye(size).double()
    expected = [torch.linalg.solve(matrix + ridge * unit, right) for ridge in RIDGES]
    for found, true in zip(solutions(matrix.clone(), RIDGES, right), expected, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-8, atol=1e-10)


def test_where_rounding_outweighs_a_ridge_what_it_left_is_left_out() -> None:
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    values = torch.tensor([3.0, 2, 1, 1e-17, -1e-17, -1e-9], dtype=torch.float64)
    matrix = (turn * values) @ turn.T
    matrix = (matrix + matrix.T) / 2
    for ridge, found in zip([1e-12, 1e-11, 0.5], solutions(matrix.clone(), [1e-12, 1e-11, 0.5], turn), strict=True):
        torch.testing.assert_close(found, solved(matrix.clone(), ridge, turn), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("classes", [3, 11])
def test_squared_errors_are_the_same_from_weights_and_from_quadratic_forms(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, 400)
    features = rng.standard_normal((classes, 30))[labels] + rng.standard_normal((400, 30)) + 5
    folds, penalties = Folds.of(features, labels, classes), np.logspace(-6, 3, 20)
    found = []
    for many in (0, 10**9):
        monkeypatch.setattr(solving, "MANY", many)
        found.append(ridge_errors(folds, tuple(penalties)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=0)
