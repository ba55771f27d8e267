"""Ridge regression on one-hot targets: a whole grid of penalties from one eigendecomposition, cross-validated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from scipy.linalg import eigh_tridiagonal, lapack
from torch import Tensor

from tightframe.features.moments import STRIPE, ClassMoments
from tightframe.metrics.collapse import Head
from tightframe.metrics.factors import EPS, spectrum, symmetric_eigen
from tightframe.metrics.folds import Folds, total_scatter
from tightframe.probes.results import PENALTIES, ProbeResult, held_out, judged

_Products = tuple[Float64[Tensor, " l"], Float64[Tensor, " l"]]
"""Of weights at each penalty: with the fold's features and targets, and with its features twice."""
LEAST = 1e-12
"""Penalty, over the number of dimensions, below which the smallest eigenvalues are mostly rounding."""
DROWNED = 1e-6
"""Negative eigenvalues, over the smallest penalty, that change nothing."""

LAPACK_BLOCK = 64
"""Columns that LAPACK works on at a time."""


def ridge(moments: ClassMoments, penalties: Sequence[float] = PENALTIES) -> list[Head]:
    """Ridge regression of one-hot targets with an intercept, one head a penalty, from one eigendecomposition.

    Each penalty is a multiple of the mean eigenvalue tr Σ_T / d, so results don't change with the features' scale.
    """
    whole, center = spectrum(moments, "sample"), moments.global_mean
    share = moments.counts.double() / moments.samples
    target = (moments.means - center).T * share  # covariance of features and one-hot targets, (d, K)
    rotated = whole.vectors.T @ target
    unit = float(whole.values.mean()) or 1.0
    heads = []
    for penalty in penalties:
        shrunk = torch.where(whole.kept, 1 / (whole.values + penalty * unit), 0.0)
        weight = (whole.vectors @ (shrunk[:, None] * rotated)).T
        heads.append(Head(weight, share - weight @ center))
    return heads


def cross_validated_ridge(folds: Folds, penalties: Sequence[float] = PENALTIES) -> ProbeResult:
    """Ridge probe with its penalty and its honest accuracy.

    The penalty is chosen by held-out squared error, not by accuracy, so that choosing it hardly flatters the
    accuracy reported. With fewer samples than dimensions all of it happens in the span of the samples.
    """
    narrow, basis = folds.compacted()
    width = narrow.features.shape[1] / folds.features.shape[1]
    grid = [penalty * width for penalty in penalties]  # a penalty is a multiple of a mean over all d dimensions
    errors = ridge_errors(narrow, grid)
    best = int(errors.argmin())
    predicted = held_out(narrow, lambda fold: _Rest(narrow, fold).head(grid[best]))
    head = ridge(narrow.total, grid[best : best + 1])[0]
    if basis is not None:
        head = Head(head.weight @ basis.T, head.bias)
    return judged(folds, predicted, head, penalties[best], float(errors[best]))


def ridge_errors(folds: Folds, penalties: Sequence[float] = PENALTIES) -> Float64[Tensor, " l"]:
    """Cross-validated mean of ‖one-hot − prediction‖² at each penalty, from the moments of the folds alone."""
    summed = torch.stack([_Rest(folds, fold).errors(penalties) for fold in range(len(folds.parts))]).sum(0)
    return summed / sum(part.samples for part in folds.parts)


class _Rest:
    """All samples but one fold, and what ridge regression on them makes of that fold."""

    def __init__(self, folds: Folds, fold: int):
        total, part = folds.total, folds.parts[fold]
        origin = total.global_mean  # all is taken around it: it can't cancel
        self.counts = total.counts - part.counts
        self.samples, self.held = int(self.counts.sum()), part.samples
        self.share = self.counts.double() / self.samples
        self.held_counts = part.counts.double()
        away = part.global_mean - origin
        mean = -away * (self.held / self.samples)
        self.center, self.gap = origin + mean, away - mean  # of the rest; from there to the fold's own mean
        self.held_scatter = total_scatter(part)
        lost = self.held * self.samples / total.samples * self.gap
        self.scatter = (folds.total_scatter - self.held_scatter).addr_(lost, self.gap, alpha=-1)
        sums = total.counts[:, None] * (total.means - origin) - part.counts[:, None] * (part.means - origin)
        self.cross = (sums - self.counts[:, None] * mean).T / self.samples  # of features and one-hot targets, (d, K)
        held_sums = part.counts[:, None] * (part.means - self.center)
        self.held_cross = held_sums.T - self.held * torch.outer(self.gap, self.share)

    def head(self, penalty: float) -> Head:
        covariance = self.scatter / self.samples
        covariance.diagonal().add_(penalty * (float(covariance.diagonal().mean()) or 1.0))
        lower, failed = torch.linalg.cholesky_ex(covariance)
        solved = torch.linalg.solve(covariance, self.cross) if failed else torch.cholesky_solve(self.cross, lower)
        weight = solved.T  # it fails where rounding outweighs the penalty
        return Head(weight, self.share - weight @ self.center)

    def errors(self, penalties: Sequence[float]) -> Float64[Tensor, " l"]:
        """Sum over the fold of ‖one-hot − prediction‖² at each penalty."""
        spread = self.held_scatter.addr(self.held * self.gap, self.gap)
        dimension, classes = self.cross.shape
        few = dimension > 1 and len(penalties) * classes <= 2 * dimension and self.scatter.is_cpu
        products = self._by_tridiagonal(spread, penalties) if few else None
        linear, quadratic = products or self._by_eigenvectors(spread, penalties)
        constant = (self.held_counts * (1 - 2 * self.share)).sum() + self.held * self.share.square().sum()
        return constant - 2 * linear + quadratic

    def _by_tridiagonal(self, spread: Float64[Tensor, "d d"], penalties: Sequence[float]) -> _Products | None:
        """From weights at each penalty, which cost little once the covariance is tridiagonal.

        None where a penalty drowns in rounding: below zero eigenvalues have to be cut off.
        """
        covariance, least = self.scatter / self.samples, min(penalties)
        unit = float(covariance.diagonal().mean()) or 1.0
        narrow = _Tridiagonal.of(covariance.numpy())
        if least < LEAST * len(covariance) or narrow.lowest < -DROWNED * least * unit:
            return None
        cross, held_cross = (narrow.turned(columns.numpy()) for columns in (self.cross, self.held_cross))
        linear, quadratic = [], []
        for penalty in penalties:
            weights = narrow.solved(penalty * unit, cross)
            linear.append(float((weights * held_cross).sum()))
            weight = torch.from_numpy(narrow.turned(weights, back=True))
            quadratic.append(float((spread @ weight).mul_(weight).sum()))
        return torch.tensor(linear, dtype=torch.float64), torch.tensor(quadratic, dtype=torch.float64)

    def _by_eigenvectors(self, spread: Float64[Tensor, "d d"], penalties: Sequence[float]) -> _Products:
        """From the eigenbasis, where weights at a penalty are the rows of ``cross`` shrunk each by its own factor g.

        So the error is a quadratic form in g whose matrix is made once for all penalties.
        """
        values, vectors = symmetric_eigen(self.scatter / self.samples)
        values = values.clamp(min=0)
        values[: max(0, len(values) - (self.samples - 1))] = 0
        kept = values > values[-1] * len(values) * EPS
        rotated = vectors.T @ self.cross
        linear = (rotated * (vectors.T @ self.held_cross)).sum(1)
        unit = float(values.mean()) or 1.0
        shrunk = torch.stack([torch.where(kept, 1 / (values + penalty * unit), 0.0) for penalty in penalties])
        return shrunk @ linear, _quadratic_form(shrunk, vectors, spread @ vectors, rotated)


def _quadratic_form(
    shrunk: Float64[Tensor, "l d"],
    vectors: Float64[Tensor, "d d"],
    spread: Float64[Tensor, "d d"],
    rotated: Float64[Tensor, "d k"],
) -> Float64[Tensor, " l"]:
    """gᵀ (VᵀHV ∘ RRᵀ) g for every g: of the symmetric matrix only what lies on and below its diagonal stripes is made.

    ``spread`` is HV.
    """
    found = shrunk.new_zeros(len(shrunk))
    for start in range(0, len(vectors), STRIPE):
        stop = start + STRIPE
        stripe = vectors[:, start:].T @ spread[:, start:stop] * (rotated[start:] @ rotated[start:stop].T)
        stripe[STRIPE:] *= 2  # stands for what is above the diagonal, too
        found += ((shrunk[:, start:] @ stripe) * shrunk[:, start:stop]).sum(1)
    return found


class _Tridiagonal(NamedTuple):
    """A = Q T Qᵀ with T tridiagonal and Q a product of reflections: a third of the cost of eigenvectors."""

    diagonal: np.ndarray
    beside: np.ndarray
    reflectors: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> _Tridiagonal:
        """Of a symmetric matrix (d, d), d ≥ 2, which is overwritten."""
        packed, diagonal, beside, scales, _ = lapack.dsytrd(
            matrix.T, lower=1, lwork=LAPACK_BLOCK * len(matrix), overwrite_a=1
        )
        return cls(diagonal, beside, np.asfortranarray(packed[1:, :-1]), scales)

    @property
    def lowest(self) -> float:
        """Smallest eigenvalue."""
        found = eigh_tridiagonal(self.diagonal, self.beside, eigvals_only=True, select="i", select_range=(0, 0))
        return float(found[0])

    def turned(self, columns: np.ndarray, back: bool = False) -> np.ndarray:
        """Qᵀ times columns (d, k); or Q times them, ``back``."""
        turned = np.array(columns, order="F")
        turned[1:] = lapack.dormqr(
            "L", "N" if back else "T", self.reflectors, self.scales, turned[1:], LAPACK_BLOCK * max(turned.shape[1], 1)
        )[0]
        return turned

    def solved(self, shift: float, columns: np.ndarray) -> np.ndarray:
        """(T + shift · I)⁻¹ times columns (d, k), for a positive definite sum."""
        return np.asarray(lapack.dptsv(self.diagonal + shift, self.beside, columns)[2])
