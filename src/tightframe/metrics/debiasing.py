"""Class means and their spread with the noise of few samples taken out: what estimates and intervals both start from.

A class mean of n samples is off by noise of covariance Σ/n. With A the contrasts of class means (d × (K−1)), D the
noise that each sample mean carries and t_k estimates of tr Σᵏ, the Gram matrix of contrasts without bias is
G = AᵀA − t₁D, and the spread within classes along them H = AᵀΣA − t₂D. H is noisy: as far as its noise reaches, Σ is
taken to be the same along class means as on average.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.features.moments import ClassMoments, add_gram, mirrored
from tightframe.metrics.factors import contrasts_of, span

TRUSTED = 2.0
"""Standard errors within which class means are taken to be unrelated to Σ."""

Traces = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Debiased:
    """Moments without bias; K classes, r = K − 1 contrasts, p directions: all d or, with few samples, their span.

    Attributes:
        moments: the sample's own, in these p directions.
        dimension: d.
        contrasts: orthonormal basis of what classes differ by, shape (K, r).
        between: A, class means in contrasts, shape (p, r).
        covariance: of samples within classes, divided by N − K, shape (p, p).
        spread: its product with A, shape (p, r).
        scales: covariance of each class in units of Σ, shape (K,); 1 for classes with one sample.
        traces: tr Σ, Σ², Σ³ and Σ⁴; the last as for log-normal eigenvalues where samples don't tell it.
        freedom: degrees of freedom of the covariance: N − K, fewer where classes differ or tails are heavy.
        unevenness: variance of squared lengths around class means, in units of their squared mean.
        keep: share of the sample covariance in a shrunk one whose tr Σ² is ``traces[1]``.
        across: D, shape (r, r).
        gram: G, shape (r, r).
        along: H, shape (r, r), not yet drawn towards the average.
        share: how far H is to be drawn towards tr Σ/d times G.
        variance: of tr H, from noise alone.
    """

    moments: ClassMoments
    dimension: int
    contrasts: Float64[Tensor, "k r"]
    between: Float64[Tensor, "p r"]
    covariance: Float64[Tensor, "p p"]
    spread: Float64[Tensor, "p r"]
    scales: Float64[Tensor, " k"]
    traces: Traces
    freedom: float
    unevenness: float
    keep: float
    across: Float64[Tensor, "r r"]
    gram: Float64[Tensor, "r r"]
    along: Float64[Tensor, "r r"]
    share: float
    variance: float

    @classmethod
    def of(cls, moments: ClassMoments, unevenness: float | None = None, dimension: int | None = None) -> Debiased:
        """Of classes with spread; as for Gaussian ones if their ``unevenness`` is not given.

        ``dimension`` is d, where the moments are in fewer directions already.
        """
        dimension, moments = dimension or moments.dimension, narrowed(moments)
        free = (moments.counts - 1).double()
        contrasts = contrasts_of(moments.classes, moments.means)
        between = (moments.means - moments.means.mean(0)).T @ contrasts
        covariance = moments.scatter / free.sum()
        own = moments.class_variances * moments.counts / free.clamp(min=1) / covariance.trace()
        scales = torch.where(free > 0, own, 1.0)
        across = contrasts.T @ ((scales / moments.counts)[:, None] * contrasts)
        freedom = float(free @ scales) ** 2 / float(free @ scales.square())
        traces, freedom, unevenness, keep = _traces(covariance, freedom, unevenness, dimension)
        gram = between.T @ between - traces[0] * across
        spread = covariance @ between
        raw = between.T @ spread
        along = raw - traces[1] * across
        variance = _variance(gram, across, raw, traces, freedom, dimension)
        gap = float(along.trace()) - traces[0] / dimension * float(gram.trace())
        share = min(1.0, TRUSTED**2 * variance / gap**2) if gap else 1.0
        known = (scales, traces, freedom, unevenness, keep, across, gram, along, share, variance)
        return cls(moments, dimension, contrasts, between, covariance, spread, *known)

    @property
    def usual(self) -> float:
        """Mean eigenvalue of Σ, tr Σ/d."""
        return self.traces[0] / self.dimension

    @property
    def length(self) -> float:
        """Tr G, not below 0."""
        return max(float(self.gram.trace()), 0.0)


def narrowed(moments: ClassMoments) -> ClassMoments:
    """Moments in the span of the samples, where these are fewer than half the dimensions; else as they are.

    Values keep their class variances in the sum only; higher moments are left out.
    """
    basis = span(moments) if 2 * moments.samples < moments.dimension else None
    return moments if basis is None else turned(moments, basis)


def turned(moments: ClassMoments, basis: Float64[Tensor, "d p"]) -> ClassMoments:
    """Moments in an orthonormal ``basis`` of all directions in which samples vary, without higher ones."""
    width = basis.shape[1]
    variances = (moments.class_variances / width)[:, None].expand(-1, width)
    scatter, nothing = basis.T @ moments.scatter @ basis, basis[0] + torch.nan
    means = moments.means @ basis
    return replace(moments, means=means, scatter=scatter, variances=variances, third=nothing, fourth=nothing.sum())


def _traces(
    covariance: Float64[Tensor, "p p"], m: float, unevenness: float | None, dimension: int
) -> tuple[Traces, float, float, float]:
    """Traces of powers of Σ without bias, from a Wishart matrix over its m degrees of freedom; m, unevenness, keep."""
    size = float(covariance.trace())  # powers of it would overflow or vanish
    covariance = covariance / size if size else covariance
    squared = mirrored(add_gram(torch.zeros_like(covariance), covariance))
    first, square = float(covariance.trace()), float(squared.trace())
    cube, quartic = float((squared * covariance).sum()), float(squared.square().sum())
    least = first**2 / dimension

    def second_of(m: float) -> float:
        unbiased = square / (1 + 2 / m) if m < 1.5 else (square - first**2 / m) / (1 + 1 / m - 2 / m**2)
        return max(unbiased, least)

    gaussian, second, heavy = m, second_of(m), unevenness is not None
    if unevenness is None:
        unevenness = 2 * second / first**2
    for _ in range(5 if heavy else 0):  # kurtosis of elliptical classes: E‖x‖⁴ over its Gaussian value
        m = gaussian * (1 + 2 * second / first**2) / (1 + unevenness)
        second = second_of(m)
    third = max((m * m * cube - 3 * (m + 1) * first * second - first**3) / (m * m + 3 * m + 4), second**2 / first)
    fourth, lowest = first * (third / second) ** 3, third**2 / second  # as for log-normal eigenvalues
    if heavy and m > dimension:
        extra = (4 * first * third + 2 * second**2) / m + 6 * first**2 * second / m**2 + first**4 / m**3
        fourth = (quartic - extra) / (1 + 6 / m)
    keep = max(0.0, (second - least) / (square - least)) ** 0.5 if square > least else 0.0
    traces = (first * size, second * size**2, third * size**3, max(fourth, lowest) * size**4)
    return traces, m, unevenness, min(keep, 1.0)


def _variance(gram: Tensor, across: Tensor, raw: Tensor, traces: Traces, freedom: float, dimension: int) -> float:
    """Of tr H around tr Σ/d times tr G, were class means unrelated to Σ."""
    first, second, third, fourth = traces
    usual, length = first / dimension, max(float(gram.trace()), 0.0)
    tilted = third - 2 * usual * second + usual**2 * first
    means = 4 * float(across.trace()) / len(gram) * length / dimension * tilted
    noise = 2 * float(across.square().sum()) * (fourth - 2 * usual * third + usual**2 * second)
    return means + noise + 2 / freedom * float(raw.square().sum())
