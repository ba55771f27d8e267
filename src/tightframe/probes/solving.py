"""Ridge regression and discriminants at many penalties from one factorization: (C + λ I) W = X for many λ.

C is brought to tridiagonal form once, Qᵀ C Q = T (LAPACK's ``sytrd``), in which any λ takes O(d k) operations for k
columns; turning back takes 2 d² k. Where there are so many columns that these outweigh an eigendecomposition, squared
errors are read off its basis as quadratic forms, in d² operations a penalty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from scipy.linalg import lapack
from torch import Tensor

from tightframe.metrics.factors import EPS, symmetric_eigen

FEW = 2
"""Penalties up to which a Cholesky factorization each is fastest."""
COLUMNS = 256
"""Of several penalties, turned back at a time."""
MANY = 4
"""Columns, of all penalties together and in units of d, from which on an eigendecomposition is faster."""


def solutions(
    matrix: Float64[Tensor, "d d"], ridges: Sequence[float], right: Float64[Tensor, "d k"]
) -> Iterator[Float64[Tensor, "d k"]]:
    """(``matrix`` + ``ridge`` · I)⁻¹ ``right`` of a covariance for each of the ``ridges``: see ``solved``.

    The matrix is overwritten.
    """
    if len(ridges) <= FEW or not matrix.is_cpu or len(matrix) < 2:
        for ridge in ridges[:-1]:
            yield solved(matrix.clone(), ridge, right)
        yield from (solved(matrix, ridge, right) for ridge in ridges[-1:])
        return
    reduced, columns = _Tridiagonal.of(matrix), max(right.shape[1], 1)
    turned, together = reduced.turn(right.numpy(), "T"), max(1, COLUMNS // columns)
    for start in range(0, len(ridges), together):
        some = ridges[start : start + together]
        found = [reduced.solve(ridge, turned) for ridge in some]
        back = reduced.turn(np.concatenate([turned if one is None else one for one in found], 1), "N")
        for place, (ridge, one) in enumerate(zip(some, found, strict=True)):
            mine = back[:, place * columns : (place + 1) * columns]
            yield solved(reduced.whole(), ridge, right) if one is None else torch.from_numpy(mine)


def solved(matrix: Float64[Tensor, "d d"], ridge: float, right: Float64[Tensor, "d k"]) -> Float64[Tensor, "d k"]:
    """(``matrix`` + ``ridge`` · I)⁻¹ ``right``, for a covariance, which is overwritten.

    Where rounding outweighs the ridge, directions in which there is nothing but rounding are left out.
    """
    diagonal = matrix.diagonal().clone()
    matrix.diagonal().add_(ridge)
    if matrix.is_cpu and matrix.numel() and right.numel():  # half the time of PyTorch's, and in place
        lower, failed = lapack.dpotrf(matrix.numpy().T, lower=0, overwrite_a=1, clean=0)
        if not failed:
            return torch.from_numpy(lapack.dpotrs(lower, right.numpy(), lower=0)[0])
    else:
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return torch.cholesky_solve(right, lower)
    above = matrix.triu(1)  # which is as it was
    matrix = above + above.T + diagonal.diag()
    values, vectors = symmetric_eigen(matrix)
    kept = values > values[-1] * len(values) * EPS
    inverse = torch.where(kept, 1 / (values.clamp(min=0) + ridge), 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ right))


class _Tridiagonal(NamedTuple):
    """C = Q T Qᵀ: the diagonals of T, (d,) and (d − 1,), and the reflections of which Q is made, as LAPACK has them."""

    reflections: np.ndarray
    scales: np.ndarray
    diagonal: np.ndarray
    beside: np.ndarray

    @classmethod
    def of(cls, matrix: Float64[Tensor, "d d"]) -> _Tridiagonal:
        """Of a matrix whose memory it takes."""
        size = len(matrix)
        packed = matrix.contiguous().numpy().T
        room = int(lapack.dsytrd_lwork(size, lower=1)[0])
        packed, diagonal, beside, scales, _ = lapack.dsytrd(packed, lower=1, lwork=room, overwrite_a=1)
        # reflections start below the diagonal: seen from there, without a copy, they are those of a QR decomposition
        return cls(packed.T.reshape(-1)[1 : 1 + size * (size - 1)].reshape(size - 1, size).T, scales, diagonal, beside)

    def turn(self, columns: np.ndarray, how: str) -> np.ndarray:
        """Q times ``columns`` (d, k), or with ``how`` = "T" its transpose; Q leaves the first row alone."""
        given = np.array(columns, order="F")
        room = int(lapack.dormqr("L", how, self.reflections, self.scales, given[1:], -1)[1][0])
        given[1:] = lapack.dormqr("L", how, self.reflections, self.scales, given[1:], room)[0]
        return given

    def whole(self) -> Float64[Tensor, "d d"]:
        """C."""
        three = np.diag(self.diagonal) + np.diag(self.beside, 1) + np.diag(self.beside, -1)
        found = self.turn(self.turn(three, "N").T, "N")
        return torch.from_numpy((found + found.T) / 2)

    def solve(self, ridge: float, columns: np.ndarray) -> np.ndarray | None:
        """(T + ``ridge`` · I)⁻¹ ``columns`` (d, k); ``None`` where rounding outweighs the ridge."""
        diagonal, beside, failed = lapack.dpttrf(self.diagonal + ridge, self.beside)
        found: Any = None if failed else lapack.dpttrs(diagonal, beside, columns)[0]
        return None if found is None else np.asarray(found)


class Quadratic(NamedTuple):
    """Ridge regression in the eigenbasis V of the covariance C: values λ_j (d,), and Vᵀ X (d, k) of the targets."""

    values: Float64[Tensor, " d"]
    vectors: Float64[Tensor, "d d"]
    targets: Float64[Tensor, "d k"]

    @staticmethod
    def pays(classes: int, dimension: int, penalties: int) -> bool:
        """Whether weights (d, k) at every penalty cost more than the eigenbasis."""
        return classes * penalties > MANY * dimension

    @classmethod
    def of(cls, covariance: Float64[Tensor, "d d"], cross: Float64[Tensor, "d k"]) -> Quadratic:
        """Of covariances of features, which are overwritten, and of features with targets."""
        values, vectors = symmetric_eigen(covariance, overwrite=True)
        return cls(values.clamp(min=0), vectors, vectors.T @ cross)

    def at(
        self, ridges: Sequence[float], around: Float64[Tensor, "d d"], missed: Float64[Tensor, "d k"]
    ) -> list[float]:
        """Tr Wᵀ ``around`` W − 2 tr Wᵀ ``missed`` at each ridge: W weighs features by 1 / (λ_j + ridge) here."""
        forms = self.vectors.T @ around @ self.vectors
        forms *= self.targets @ self.targets.T
        straight = (self.targets * (self.vectors.T @ missed)).sum(1)
        least, found = float(self.values[-1]) * len(self.values) * EPS, []
        for ridge in ridges:
            inverse = torch.where(self.values + ridge > least, 1 / (self.values + ridge), 0.0)  # rounding is left out
            found.append(float(inverse @ forms @ inverse - 2 * (straight @ inverse)))
        return found
