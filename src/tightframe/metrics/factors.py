"""The two factorizations that everything is read off, each made once for the moments it belongs to.

With n ≤ d samples all variance lies in n − 1 directions: nothing here decomposes a d × d matrix then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float64
from scipy.linalg import eigh as scipy_eigh
from scipy.linalg import lapack
from torch import Tensor

from tightframe.features.moments import ClassMoments, Weighting

EPS = torch.finfo(torch.float64).eps
SPARE = 8
"""Directions beside those that samples can span: see ``span``."""
LARGE = 1024
"""Rows from which on the memory that an eigendecomposition takes counts."""
Made = TypeVar("Made")


def once(function: Callable[..., Made]) -> Callable[..., Made]:
    """Remember what ``function(moments, *further)`` gave for as long as the moments live."""
    kept: WeakKeyDictionary[ClassMoments, dict[Any, Made]] = WeakKeyDictionary()

    @wraps(function)
    def remembered(moments: ClassMoments, *further: Any) -> Made:
        made = kept.setdefault(moments, {})
        if further not in made:
            made[further] = function(moments, *further)
        return made[further]

    return remembered


class BetweenFactor(NamedTuple):
    """Thin SVD of the centered, weighted class means: Σ_B = U S² Uᵀ with U (d, rank) and S (rank,)."""

    directions: Float64[Tensor, "d r"]
    singular: Float64[Tensor, " r"]
    cutoff: float

    @property
    def rank(self) -> int:
        """Rank of Σ_B."""
        return len(self.singular)


@once
def between_factor(moments: ClassMoments, weighting: Weighting = "class") -> BetweenFactor:
    """Σ_B factored, keeping at most K − 1 directions and those above rounding.

    Centering K means leaves rank K − 1 by construction. The tolerance is scaled by the means *before* centering, since
    that is where their rounding error comes from: relative to the centered means alone, a large common offset would
    let noise through.
    """
    directions, singular, _ = torch.linalg.svd(moments.between(weighting), full_matrices=False)
    cutoff = rounding(moments)
    rank = min(int((singular > cutoff).sum()), moments.classes - 1)
    return BetweenFactor(directions[:, :rank], singular[:rank], cutoff)


@once
def rounding(moments: ClassMoments) -> float:
    """How far apart rounding can put class means that coincide."""
    return rounding_of(moments.means)


def rounding_of(means: Float64[Tensor, "k d"]) -> float:
    """How far apart rounding can put class means (k, d) that coincide."""
    return max(means.shape) * EPS * _spectral_norm(means) / len(means) ** 0.5


def _spectral_norm(matrix: Float64[Tensor, "k d"]) -> float:
    """The largest singular value, from the smaller Gram matrix: only small ones would lose digits there."""
    unit = float(matrix.abs().max()) or 1.0  # no square overflows, nor vanishes
    scaled = matrix / unit
    gram = scaled @ scaled.T if len(matrix) <= matrix.shape[1] else scaled.T @ scaled
    return unit * float(torch.linalg.eigvalsh(gram)[-1]) ** 0.5


def contrasts_of(classes: int, like: Tensor) -> Float64[Tensor, "k r"]:
    """Orthonormal basis of what is left of K values without their mean, r = K − 1, on the device of ``like``."""
    unit = torch.eye(classes).to(like)
    return torch.linalg.qr(torch.cat([torch.ones_like(unit[:, :1]), unit[:, 1:]], 1))[0][:, 1:]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues (r,), ascending and not negative, and eigenvectors (d, r), in columns, of a covariance.

    r is d or, with fewer samples, as many directions as hold all variance, and a few more.
    """

    values: Float64[Tensor, " r"]
    vectors: Float64[Tensor, "d r"]
    cutoff: float
    """Eigenvalues at or below it count as zero; there are at most N − 1 above it, by construction."""

    @cached_property
    def kept(self) -> Tensor:
        """Mask (r,) of the directions in which there is variance at all."""
        return self.values > self.cutoff


@once
def spectrum(moments: ClassMoments, weighting: Weighting = "sample") -> Spectrum:
    """Eigendecomposition of Σ_W + Σ_B: with weighting ``"sample"``, of the covariance of all features."""
    if weighting == "class" and moments.balanced:
        return spectrum(moments, "sample")  # the two agree then: one decomposition serves both
    covariance, basis = total_covariance(moments, weighting), span(moments)
    values, vectors = symmetric_eigen(covariance if basis is None else basis.T @ covariance @ basis, overwrite=True)
    values = values.clamp(min=0)
    values[: max(0, len(values) - (moments.samples - 1))] = 0  # rank ≤ N − 1, whatever rounding says
    cutoff = float(values[-1]) * moments.dimension * EPS
    return Spectrum(values, vectors if basis is None else basis @ vectors, cutoff)


def total_covariance(
    moments: ClassMoments, weighting: Weighting = "sample", overwrite: bool = False
) -> Float64[Tensor, "d d"]:
    """Σ_W + Σ_B: with weighting ``"sample"``, the covariance of all features; with ``overwrite``, in their scatter."""
    between = moments.between(weighting)
    within = moments.scatter if overwrite else moments.scatter.clone()
    return within.div_(max(moments.samples, 1)).addmm_(between, between.T)


@once
def span(moments: ClassMoments) -> Float64[Tensor, "d r"] | None:
    """Orthonormal basis of the directions in which samples differ, with N ≤ d; else None: that is all of them.

    The covariance times as many random vectors as its rank spans its range (Halko, Martinsson, Tropp 2011); ``SPARE``
    more of them keep small eigenvalues from getting lost.
    """
    rank = moments.samples - 1
    if rank >= moments.dimension:
        return None
    width = min(rank + SPARE, moments.dimension)
    random = np.random.default_rng(0).standard_normal((moments.dimension, width))
    return torch.linalg.qr(total_covariance(moments) @ torch.from_numpy(random).to(moments.means)).Q


def symmetric_eigen(
    matrix: Float64[Tensor, "d d"], overwrite: bool = False
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
    """Ascending eigenvalues (d,) and eigenvectors, in columns; with ``overwrite``, what it is given may be destroyed.

    On a CPU another LAPACK is up to twice as fast as PyTorch's; for ``LARGE`` matrices its MRRR algorithm, which takes
    half the memory of divide and conquer and no more time.
    """
    if not matrix.is_cpu:
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    if len(matrix) >= LARGE:
        found = scipy_eigh(matrix.numpy().T, driver="evr", overwrite_a=overwrite)
    else:
        found = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def inverse_of(matrix: Float64[Tensor, "d d"], ridge: float) -> Float64[Tensor, "d d"]:
    """(``matrix`` + ``ridge`` · I)⁻¹ of a covariance and a ridge that is well above its rounding."""
    shifted = matrix.clone()
    shifted.diagonal().add_(ridge)
    if not matrix.is_cpu:
        return torch.cholesky_inverse(torch.linalg.cholesky(shifted))
    lower, _ = lapack.dpotrf(shifted.numpy().T, lower=0, overwrite_a=1, clean=0)
    found = torch.from_numpy(lapack.dpotri(lower, lower=0, overwrite_c=1)[0].T).tril_()
    return found.add_(found.tril(-1).T)
