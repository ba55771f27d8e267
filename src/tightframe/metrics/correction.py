"""NC1, CDNV and VCI of the population, estimated from few samples a class.

A class mean of n samples is off by noise of covariance Σ/n. In d dimensions that adds tr Σ/n to its squared length, so
plug-in values are read off distances that are largely noise. Three steps take it out, on K × K matrices:

1. Unbiased moments: the Gram matrix G of contrasts of class means and the spread H within classes along them (see
   ``debiasing``); NC1 = tr G⁻²H.
2. Inverting a noisy matrix. E[(G + E)⁻¹] is not G⁻¹, since eigenvalues of G + E repel each other. The deterministic
   equivalent of the resolvent of signal plus noise (Hachem, Loubaton, Najim 2007), to second order in the noise, is
   inverted: Q⁻¹ = G + Ξ[Q], Ξ[X] = E[E X E], by Newton's method. For G near a multiple of the identity it undoes the
   semicircle.
3. Identifiability. The estimate moves by 1 + ρ times what G moves by, ρ the norm of Ξ[Q·Q]. Where ρ / (1 + ρ) exceeds
   ``EDGE``, zero lies at the edge of the noise: class differences may be arbitrarily small there, and NC1 as large.
   What is identifiable always is F(c) = tr (G + c)⁻²H with c above the noise; F(c)^(−1/2) is concave, so a chord
   drawn on to c = 0 gives a bound, which is exact where class means are spread evenly.

VCI asks for Σ⁻¹ along class means. v(I + vΣ)⁻¹ is known from the resolvent of the sample covariance (Marčenko, Pastur
1967) up to a v that grows with N/d; from there to Σ⁻¹ eigenvalues are taken as log-normal. With N − K ≫ d nothing is
left to assume; with N − K < d the value is one of that model, which the notes say.

Formulas hold for Gaussian classes with covariances that differ by a factor at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isfinite, log2, nan
from typing import NamedTuple

import torch

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import cdnv, check_measurable, nc1, squared_distances, vci
from tightframe.metrics.debiasing import TRUSTED, Debiased, narrowed
from tightframe.metrics.factors import between_factor, inverse_of
from tightframe.metrics.inverse import HUGE, PRECISION, Inverse, Noisy, balanced, inverted, norm

BACK = 2.5
"""Standard errors by which bounds step back."""
FAR = 2.0
"""Mean eigenvalues of G from which a chord may still be drawn to zero."""
RIDGE = 0.1
"""Of the sample covariance, in units of tr Σ / (N − K): it falls to 0 as samples are added."""
NODES = 401
"""Points of a normal distribution by which means over log-normal eigenvalues are taken."""
WIDEST = 4.0
"""Largest width of log eigenvalues that is looked for: a factor of 3000 within one standard deviation either way."""
PLAUSIBLE = 0.9
"""Noise makes features look more collapsed than they are: an estimate below this share of what is seen went astray."""


class Estimate(NamedTuple):
    """A population value estimated from samples.

    ``value`` is None where the samples can't tell it; ``lower`` is a bound from below that they do give.
    """

    value: float | None
    lower: float
    identifiable: bool


@dataclass(frozen=True)
class Corrected:
    """Collapse of the population, and in ``notes`` what was assumed or could not be told."""

    nc1: Estimate
    cdnv: Estimate
    vci: Estimate
    notes: tuple[str, ...]

    @property
    def by_name(self) -> dict[str, Estimate]:
        """The estimates by the names of the metrics."""
        return {"nc1": self.nc1, "cdnv": self.cdnv, "vci": self.vci}


def corrected(moments: ClassMoments, dimension: int | None = None) -> Corrected:
    """NC1, CDNV and VCI (class weighting) of the population that the samples were drawn from.

    Costs O(p³ + K³ + d²p): products and an inverse of p × p matrices, p the smaller one of d and about N.

    Args:
        moments: of the samples at hand, K ≥ 2 classes; classes with one sample take part, their spread is the mean one.
        dimension: of the features, where the moments are in the span of the samples alone.

    Returns:
        An ``Estimate`` for each metric. Where classes have no spread or their means coincide exactly, plug-in values.

    Raises:
        MeasureError: fewer than two classes, an empty class, no class with two samples, or squares that overflow.
    """
    check_measurable(moments)
    dimension, moments = dimension or moments.dimension, _of_usual_size(narrowed(moments))
    rank = between_factor(moments).rank
    if rank == 0 or not float(moments.scatter.trace()) > 0:
        exact = [Estimate(value, value, True) for value in (nc1(moments), cdnv(moments), vci(moments))]
        return Corrected(exact[0], exact[1], exact[2], ("no spread within classes, or none between: plug-in values",))
    parts = Debiased.of(moments, dimension=dimension)
    gram = _gram(parts)
    within, pairs, share = _nc1(parts, gram, rank), _cdnv(parts, gram), _vci(parts, gram, rank)
    notes = _notes(parts, {"NC1": within, "CDNV": pairs, "VCI": share})
    return Corrected(within, pairs, share, tuple(notes))


def _of_usual_size(moments: ClassMoments) -> ClassMoments:
    """The same divided by a power of two, lest sixth powers of features leave what float64 holds."""
    variance = float(moments.scatter.trace()) / moments.samples
    if not isfinite(variance):
        raise MeasureError("features are so large that their squares overflow; divide all of them by one number")
    unit = 2.0 ** -round(log2(variance) / 2) if variance > 0 else 1.0
    if unit == 1:
        return moments
    scatter, variances, nothing = moments.scatter * unit**2, moments.variances * unit**2, moments.third + torch.nan
    return replace(  # higher moments are not looked at here
        moments, means=moments.means * unit, scatter=scatter, variances=variances, third=nothing, fourth=nothing.sum()
    )


def _gram(parts: Debiased) -> Noisy:
    """G, with H drawn towards (tr Σ/d) G as far as its noise reaches."""
    along = (1 - parts.share) * parts.along + parts.share * parts.usual * parts.gram
    return Noisy(parts.gram, along, parts.across, parts.traces[1])


def _slope(parts: Debiased, gram: Noisy) -> Noisy:
    """Change of ``gram`` per change of the metric I + tΣ in which class means are compared, drawn likewise."""
    first, second, third, _ = parts.traces
    once, raw = parts.spread, parts.between.T @ parts.spread
    squared = (once.T @ once - first / parts.freedom * raw) / (1 + 1 / parts.freedom)  # E[S²] = (1 + 1/m) Σ² + t₁Σ/m
    own, share = 2 * (squared - third * parts.across), parts.share
    along = (1 - share) * own + share * 2 * parts.usual * gram.along
    return Noisy(gram.along, along, parts.across, (1 - share) * 2 * third + share * 2 * parts.usual * second)


def _doubt(parts: Debiased, gram: Noisy) -> float:
    """Standard error of tr H that is left, as a share of tr H."""
    size = float(gram.along.trace())
    return (1 - parts.share) * parts.variance**0.5 / size if size > 0 else inf


def _falling(noisy: Noisy, slope: Noisy, inverse: Inverse) -> float:
    """−d tr Q / dt as G moves along ``slope``: tr G⁻²H, with the noise's own change accounted for."""
    q = inverse.matrix
    return float((q @ q * balanced(noisy, inverse.root, slope.gram + slope.energy(q))).sum())


def _nc1(parts: Debiased, gram: Noisy, rank: int) -> Estimate:
    if rank < len(gram.gram):
        return _nc1_of_many(parts, gram)
    inverse, slope = inverted(gram), _slope(parts, gram)
    value = _falling(gram, slope, inverse) if inverse.known else nan
    seen, doubt = nc1(parts.moments), _doubt(parts, gram)

    def damped(ridge: float) -> float:
        noisy = gram.plus(ridge)
        return _falling(noisy, slope, inverted(noisy))

    margin = _margin(parts, gram)
    lower = max(_bound(damped, gram, 2) * margin, _even(parts, gram), seen * margin)
    plausible = value >= PLAUSIBLE * seen
    return _estimate(value, lower, plausible and inverse.known and doubt < 1 / TRUSTED)


def _even(parts: Debiased, gram: Noisy) -> float:
    """NC1 were class means spread evenly, at the largest tr G, and Σ no larger along them than on average.

    Uneven spread makes it larger (Jensen), and so does Σ in the directions of class means, where it usually is large.
    """
    spread = (2 * parts.traces[1] / parts.freedom) ** 0.5
    usual = max(parts.traces[0] - BACK * spread, 0.0) / parts.dimension
    return usual * len(gram.gram) ** 2 / _farthest(gram, parts.freedom)


def _margin(parts: Debiased, gram: Noisy) -> float:
    """What a bound on NC1 keeps of its value after stepping back by the standard errors of tr G, tr H and tr Σ."""
    reach, error = _reach(gram, parts.freedom)
    spread = 2 * parts.traces[1] / parts.freedom / parts.traces[0] ** 2
    return 1 / (1 + BACK * ((error / max(reach, error)) ** 2 + _doubt(parts, gram) ** 2 + spread) ** 0.5)


def _nc1_of_many(parts: Debiased, gram: Noisy) -> Estimate:
    """NC1 where class means fill fewer than K − 1 directions: the two sides of the noise change places."""
    moments, across = parts.moments, parts.across
    directions = between_factor(moments).directions
    between = directions.T @ (moments.means - moments.means.mean(0)).T @ parts.contrasts
    covariance = directions.T @ moments.scatter @ directions / (moments.samples - moments.classes)
    total, second = float(across.trace()), float(across.square().sum())
    signal, along = between @ between.T, between @ across @ between.T
    noisy = Noisy(signal - total * covariance, along - second * covariance, covariance, second)
    inverse = inverted(noisy)

    def damped(ridge: float) -> float:
        return float((inverted(noisy.plus(ridge)).matrix * covariance).sum())

    lower = max(_bound(damped, noisy, 1), nc1(moments)) * _margin(parts, gram)
    return _estimate(float((inverse.matrix * covariance).sum()), lower, inverse.known)


def _bound(damped: Callable[[float], float], noisy: Noisy, power: int) -> float:
    """Chord of the concave F(c)^(−1/power), drawn from where noise is half of what can be inverted to c = 0."""
    ridge = (2 * norm(noisy.energy(torch.eye(len(noisy.gram)).to(noisy.gram)))) ** 0.5
    size = float(noisy.gram.trace()) / len(noisy.gram)
    if ridge > FAR * size:
        return 0.0
    ridge = max(ridge, PRECISION**0.5 * size)
    near, far = damped(ridge), damped(1.1 * ridge)
    if min(near, far) <= 0:
        return 0.0
    intercept = near ** (-1 / power) - (far ** (-1 / power) - near ** (-1 / power)) / 0.1
    return intercept**-power if intercept > 0 else near


def _estimate(value: float, lower: float, known: bool) -> Estimate:
    known = known and value >= 0
    return Estimate(value, min(lower, value), True) if known else Estimate(None, lower, False)


def _cdnv(parts: Debiased, gram: Noisy) -> Estimate:
    """Mean over pairs of the spread over shrunken squared distances, whose spread is that of the true ones."""
    moments, total = parts.moments, parts.traces[0]
    first, second = torch.triu_indices(moments.classes, moments.classes, offset=1)
    own, each = parts.scales * total, parts.scales / moments.counts
    noise = each[first] + each[second]
    seen = squared_distances(moments.means)[first, second] - total * noise
    along = parts.contrasts @ gram.along @ parts.contrasts.T
    diagonal = along.diagonal()
    across = (diagonal[first] + diagonal[second] - 2 * along[first, second]).clamp(min=0)
    variance = 4 * noise * across + 2 * parts.traces[1] * noise.square()
    scattered, mean = float(seen.var(correction=0)), float(seen.mean())
    keep = max(0.0, 1 - float(variance.mean()) / scattered) ** 0.5 if scattered else 1.0
    apart, spread = mean + keep * (seen - mean), (own[first] + own[second]) / 2
    value = float((spread / torch.maximum(apart, variance.sqrt())).mean())
    known = bool((apart > variance.sqrt()).double().mean() >= 0.99)
    farthest = 2 * _farthest(gram, parts.freedom) / len(gram.gram)
    return _estimate(value, float(spread.sqrt().mean()) ** 2 / farthest, known)


def _vci(parts: Debiased, gram: Noisy, rank: int) -> Estimate:
    """1 − tr(Σ_T⁻¹ Σ_B)/rank from AᵀΣ⁻¹A, the resolvent of which is needed at −K only: seldom at the noise."""
    classes, noisy = parts.moments.classes, _whitened(parts, gram)
    inverse = inverted(noisy.plus(float(classes)))
    value = 1 - (len(gram.gram) - classes * float(inverse.matrix.trace())) / rank
    lower = 0.0
    if parts.freedom > parts.dimension:
        lower = 1 / (1 + _farthest(noisy, parts.freedom) / classes / rank)
    return _estimate(min(max(value, 0.0), 1.0), lower, inverse.known)


def _whitened(parts: Debiased, gram: Noisy) -> Noisy:
    """AᵀΣ⁻¹A, from AᵀBA with B = v(I + vΣ)⁻¹ as known from the resolvent of the sample covariance."""
    d, ridge = parts.dimension, RIDGE * parts.traces[0] / parts.freedom
    resolvent = inverse_of(parts.covariance, ridge)
    beyond = d - len(resolvent)  # directions in which no sample varies
    trace, square = float(resolvent.trace()) + beyond / ridge, float(resolvent.square().sum()) + beyond / ridge**2
    v, once = _companion(parts, ridge, trace), d - ridge * trace  # tr ΣB
    up, down = (_companion(parts, ridge * step, trace - (step - 1) * ridge * square) for step in (1.001, 0.999))
    twice = once - v * (trace - ridge * square) * 0.002 * ridge / (down - up)  # tr (ΣB)²
    stretch = _stretch(parts, gram, v, ridge * trace / d)
    raw = v * ridge * parts.between.T @ resolvent @ parts.between
    whitened = stretch * (raw - once * parts.across)
    return Noisy(whitened, stretch * twice / once * whitened, parts.across, stretch**2 * twice)


def _companion(parts: Debiased, ridge: float, trace: float) -> float:
    """The v for which (S + ridge)⁻¹ stands for (I + vΣ)⁻¹ / ridge (Marčenko, Pastur 1967), given the former's trace."""
    freedom = (parts.moments.counts - 1).double()
    explained, total = parts.dimension - ridge * trace, float(freedom.sum())

    def falls_short(level: float) -> bool:
        return float((freedom * parts.scales * level / (1 + parts.scales * level)).sum()) < explained

    high = 1.0
    while falls_short(high) and high < HUGE:
        high *= 2
    return explained / (ridge * total * _last(falls_short, 0.0, high))


def _last(holds: Callable[[float], bool], low: float, high: float, halvings: int = 100) -> float:
    """The largest number for which something holds that holds for small ones only, by bisection."""
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _stretch(parts: Debiased, gram: Noisy, v: float, remaining: float) -> float:
    """What E[1/λ] is over E[v/(1 + vλ)] along class means, for λ log-normal; 1 for large v.

    The width is that of all eigenvalues, for which tr Σ and tr (I + vΣ)⁻¹ = d · ``remaining`` are known.
    """
    normal = torch.special.ndtri((torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES)

    def left(mean: float, width: float) -> float:
        return float((1 / (1 + v * mean * torch.exp(width * normal - width**2 / 2))).mean())

    width = _last(lambda width: left(parts.usual, width) < remaining, 0.0, WIDEST, 22)
    along = float(gram.along.trace()) / float(gram.gram.trace()) if parts.length > 0 else parts.usual
    mean = along if along > 0 else parts.usual
    inverse = float(torch.exp(-width * normal + width**2 / 2).mean()) / mean
    return inverse / (v * left(mean, width))


def _reach(noisy: Noisy, freedom: float) -> tuple[float, float]:
    """Trace of G, not below 0, and its standard error: from the means' noise, and from tr Σ of ``freedom`` samples."""
    row = float(noisy.across.trace())
    noise = 2 * noisy.second * (float(noisy.across.square().sum()) + row**2 / freedom)
    variance = 4 * float((noisy.along * noisy.across).sum()) + noise
    return max(float(noisy.gram.trace()), 0.0), (variance if variance > 0 else noise) ** 0.5  # H can be below 0


def _farthest(noisy: Noisy, freedom: float) -> float:
    """The largest trace of G that samples allow."""
    reach, error = _reach(noisy, freedom)
    return reach + BACK * error


def _notes(parts: Debiased, estimates: dict[str, Estimate]) -> list[str]:
    counts = parts.moments.counts
    notes = [f"corrected for {int(counts.min())} to {int(counts.max())} samples a class, as for Gaussian classes"]
    notes += [
        f"{name} is not identifiable from these samples: it is at least {estimate.lower:.3g}; give more a class"
        for name, estimate in estimates.items()
        if not estimate.identifiable
    ]
    if parts.freedom <= parts.dimension + 1:
        notes.append("fewer samples than dimensions: VCI takes the eigenvalues within classes to be log-normal")
    if bool((counts == 1).any()):
        notes.append("classes with one sample: their spread is taken to be that of the others")
    return notes
