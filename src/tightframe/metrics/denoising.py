"""The noise of few samples taken out of covariances and class means.

The covariance within classes is shrunk towards a multiple of the identity until tr Σ² is the unbiased one (compare
Ledoit, Wolf 2004). Class means are given the debiased Gram matrix, its eigenvalues drawn together by as much as noise
drove them apart, in directions with as much of Σ as the debiased spread along class means has. This makes a population
like the one at hand; what is best known of its NC1, CDNV and VCI is in ``correction``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.features.moments import ClassMoments, chunks
from tightframe.metrics.folds import Folds

TRUSTED = 2.0
"""Standard errors within which class means are taken to be unrelated to Σ."""
FLOOR = 1e-3
"""Least eigenvalue of class means' Gram matrix, as a share of its mean: noise can put them at 0 and below."""
HALVINGS = 30


@dataclass(frozen=True, eq=False)
class Spread:
    """What samples tell of Σ, the covariance within classes, beyond its sample value.

    Attributes:
        scales: covariance of each class in units of Σ, shape (K,); 1 for classes with one sample.
        traces: tr Σ, Σ², Σ³ and Σ⁴, without bias; with fewer samples than dimensions, the last as for log-normal
            eigenvalues.
        keep: share of the sample covariance in Σ, the rest being a multiple of the identity.
        freedom: degrees of freedom of the sample covariance, fewer where tails are heavy or classes differ.
        unevenness: variance of squared lengths around class means, in units of their squared mean.
    """

    scales: Float64[Tensor, " k"]
    traces: tuple[float, float, float, float]
    keep: float
    freedom: float
    unevenness: float

    @classmethod
    def of(cls, folds: Folds, moments: ClassMoments) -> Spread:
        """Of labeled features and their moments."""
        free = (moments.counts - 1).double()
        sample = moments.scatter / free.sum()
        first, square = float(sample.trace()), float(sample.square().sum())
        own = moments.class_variances * moments.counts / free.clamp(min=1) / first
        scales = torch.where(free > 0, own, 1.0)
        gaussian = freedom = float(free @ scales) ** 2 / float(free @ scales.square())
        unevenness = _unevenness(folds)
        least = first**2 / moments.dimension
        second = _second(first, square, freedom, least)
        if unevenness is None:
            unevenness = 2 * second / first**2
        for _ in range(5):  # kurtosis of elliptical classes: E‖x‖⁴ over its Gaussian value
            freedom = gaussian * (1 + 2 * second / first**2) / (1 + unevenness)
            second = _second(first, square, freedom, least)
        keep = max(0.0, (second - least) / (square - least)) ** 0.5 if square > least else 0.0
        traces = _higher(sample, first, second, freedom)
        return cls(scales, traces, min(keep, 1.0), freedom, unevenness)


def _second(first: float, square: float, freedom: float, least: float) -> float:
    """Unbiased tr Σ² from that of a Wishart matrix over its degrees of freedom."""
    few = max(freedom, 1.5)
    return min(max((square - first**2 / few) / (1 + 1 / few - 2 / few**2), least), square)


def _higher(sample: Float64[Tensor, "d d"], first: float, second: float, m: float) -> tuple[float, float, float, float]:
    """All four traces, given the first two and the Wishart matrix over its m degrees of freedom."""
    squared = sample @ sample
    cube, quartic = float((squared * sample).sum()), float(squared.square().sum())
    third = (m * m * cube - 3 * (m + 1) * first * second - first**3) / (m * m + 3 * m + 4)
    third = max(third, second**2 / first)
    if m <= len(sample):
        return first, second, third, max(first * (third / second) ** 3, third * (third / second))
    extra = (4 * first * third + 2 * second**2) / m + 6 * first**2 * second / m**2 + first**4 / m**3
    return first, second, third, max((quartic - extra) / (1 + 6 / m), third * (third / second))


def _unevenness(folds: Folds) -> float | None:
    """Variance of ‖h − μ_k‖² over its squared class mean; None where no class has four samples."""
    moments = folds.total
    told = (moments.counts >= 4) & (moments.class_variances > 0)
    if not bool(told.any()):
        return None
    usual = torch.where(told, moments.class_variances, 1.0)
    total = torch.zeros_like(usual)
    for rows, labels in chunks(folds.features, folds.labels):
        centerd = rows - moments.means.to(rows.dtype)[labels]
        length = torch.linalg.vecdot(centerd, centerd).double()
        total.index_add_(0, labels, (length / usual[labels] - 1).square())
    return max(float(total[told].sum() / (moments.counts[told] - 1).sum()), 1e-12)


def denoised(
    seen: Float64[Tensor, "r d"],
    sample: Float64[Tensor, "d d"],
    factor: Float64[Tensor, "d d"],
    noise: Float64[Tensor, "r r"],
    spread: Spread,
) -> tuple[Float64[Tensor, "r d"], float]:
    """Contrasts of class means with their noise taken out: in length, in how lengths differ, in direction.

    And the standard error, as a share, of the spread along them that is due to their direction being taken as usual.
    """
    first, second = spread.traces[:2]
    usual, count = first / seen.shape[1], float(noise.trace())
    length = max(float(seen.square().sum()) - first * count, 0.0)
    along, doubt = _along(seen, sample, noise, spread, length)
    energy = 2 * (count + count / len(noise)) * along + second * (count**2 + float(noise.square().sum()))
    if len(seen) > seen.shape[1]:
        gram = _steadied(seen.T @ seen - count * sample, energy)
        return _aligned(seen) @ _root(gram), doubt
    gram = _root(_steadied(seen @ seen.T - first * noise, energy))
    straight = torch.cholesky_solve(seen.T, factor).T * usual
    tilt = _tilt(seen, straight, float((seen @ factor).square().sum()), usual, along / length if length else usual)
    return gram @ _aligned((1 - tilt) * seen + tilt * straight), doubt


def _tilt(seen: Tensor, straight: Tensor, spread: float, usual: float, target: float) -> float:
    """How far from ``seen`` to ``straight`` (Σ⁻¹ times it) the spread in units of length is the ``target``."""
    own, cross, other = (float((a * b).sum()) for a, b in ((seen, seen), (seen, straight), (straight, straight)))

    def above(tilt: float) -> bool:
        keep = 1 - tilt
        along = keep**2 * spread + usual * (2 * keep * tilt * own + tilt**2 * cross)
        return along > target * (keep**2 * own + 2 * keep * tilt * cross + tilt**2 * other)

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return low


def _along(
    seen: Float64[Tensor, "r d"], sample: Float64[Tensor, "d d"], noise: Tensor, spread: Spread, length: float
) -> tuple[float, float]:
    """Spread along class means, tr AᵀΣA; as far as its noise reaches, that of means which have nothing to do with Σ.

    The second number is the standard error that remains of taking them so: no more than directions drawn at random
    give, and no more than the noise.
    """
    first, second, third, fourth = spread.traces
    rank, dimension = seen.shape
    usual = first / dimension
    raw = seen @ sample @ seen.T
    tilted = third - 2 * usual * second + usual**2 * first
    variance = 4 * float(noise.trace()) / rank * length / dimension * tilted
    variance += 2 * float(noise.square().sum()) * (fourth - 2 * usual * third + usual**2 * second)
    variance += 2 / spread.freedom * float(raw.square().sum())
    expected = usual * length
    gap = float(raw.trace()) - second * float(noise.trace()) - expected
    share = min(1.0, TRUSTED**2 * variance / gap**2) if gap else 1.0
    chance = 2 * max(dimension * second / first**2 - 1, 0.0) / dimension / min(rank, dimension)
    error = variance / expected**2 if expected else inf
    left = share * chance / (1 + chance / error) if error else 0.0
    return max(expected + (1 - share) * gap, 0.0), left**0.5


def whitened(
    seen: Float64[Tensor, "r d"], moments: ClassMoments, noise: Tensor, contrasts: Tensor
) -> Float64[Tensor, "k _"] | None:
    """Class means in the metric Σ⁻¹ with their noise taken out; None with too few samples for Σ⁻¹."""
    dimension, freedom = moments.dimension, moments.samples - moments.classes
    if freedom - dimension - 1 <= 0:
        return None
    inverse = torch.linalg.solve(moments.scatter / (freedom - dimension - 1), seen.T)  # E of it, inverted, is Σ⁻¹
    count, rank = float(noise.trace()), min(len(seen), dimension)
    gram = seen @ inverse - dimension * noise
    length = max(float(gram.trace()), 0.0)
    energy = 2 * (count + count / len(noise)) * length + dimension * (count**2 + float(noise.square().sum()))
    values, vectors = torch.linalg.eigh(_steadied(gram, energy))
    return contrasts @ (vectors * values.clamp(min=0).sqrt())[:, -rank:]


def _steadied(gram: Float64[Tensor, "p p"], energy: float) -> Float64[Tensor, "p p"]:
    """With eigenvalues drawn together by as much as noise of E tr E² = ``energy`` drove them apart, and positive."""
    usual = max(float(gram.diagonal().mean()), 0.0)
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    apart = values - usual
    scattered = float(apart.square().sum())
    keep = max(0.0, 1 - energy / scattered) ** 0.5 if scattered else 0.0
    return (vectors * (usual + keep * apart).clamp(min=FLOOR * usual)) @ vectors.T


def _root(matrix: Float64[Tensor, "p p"]) -> Float64[Tensor, "p p"]:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _aligned(rows: Float64[Tensor, "r d"]) -> Float64[Tensor, "r d"]:
    """The orthonormal rows (or columns, if there are more rows) nearest to those given."""
    left, _, right = torch.linalg.svd(rows, full_matrices=False)
    return left @ right
