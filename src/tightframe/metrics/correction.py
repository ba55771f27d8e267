"""NC1, CDNV and VCI of the population, estimated from few samples a class.

A class mean of n samples is off by noise of covariance Σ/n. In d dimensions that adds tr Σ/n to its squared length, so
plug-in values are read off distances that are largely noise. Three steps take it out, on K × K matrices:

1. Unbiased moments. With A the contrasts of class means (d × (K−1)), D the noise that each sample mean carries and t_k
   debiased estimates of tr Σᵏ: G = AᵀA − t₁D for the Gram matrix and H = AᵀΣA − t₂D for the spread within classes
   along it (NC1 = tr G⁻²H). H is noisy: as far as its noise reaches, Σ is taken to be the same along class means as on
   average.
2. Inverting a noisy matrix. E[(G + E)⁻¹] is not G⁻¹, since eigenvalues of G + E repel each other. The deterministic
   equivalent of the resolvent of signal plus noise (Hachem, Loubaton, Najim 2007), to second order in the noise, is
   inverted: Q⁻¹ = G + Ξ[Q], Ξ[X] = E[E X E]. For G near a multiple of the identity it undoes the semicircle.
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
from math import isfinite, log2
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import cdnv, check_measurable, nc1, vci
from tightframe.metrics.factors import between_factor, contrasts_of

EDGE = 0.7
"""Share ρ/(1+ρ) of its largest possible value that noise may reach in an inverse that still counts as identifiable."""
TRUSTED = 2.0
"""Standard errors within which class means are taken to be unrelated to Σ."""
BACK = 2.5
"""Standard errors by which bounds step back."""
FAR = 2.0
"""Mean eigenvalues of G from which a chord may still be drawn to zero."""
HOPELESS = 50.0
"""A ρ from which it does not matter how large it is."""
ROUNDS = 2000
PRECISION = 1e-8
RIDGE = 0.1
"""Of the sample covariance, in units of tr Σ / (N − K): it falls to 0 as samples are added."""
NODES = 401
HUGE = 1e12
LARGEST = 60
"""Binary exponent of features, and its negative, within which they are taken as they are."""
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


def corrected(moments: ClassMoments) -> Corrected:
    """NC1, CDNV and VCI (class weighting) of the population that the samples were drawn from.

    Costs O(d³ + dK² + d²K): one product and one inverse of d × d matrices.

    Args:
        moments: of the samples at hand, K ≥ 2 classes; classes with one sample take part, their spread is the mean one.

    Returns:
        An ``Estimate`` for each metric. Where classes have no spread or their means coincide exactly, plug-in values.

    Raises:
        MeasureError: fewer than two classes, an empty class, no class with two samples, or squares that overflow.
    """
    check_measurable(moments)
    moments = _of_usual_size(moments)
    rank = between_factor(moments).rank
    if rank == 0 or not float(moments.scatter.trace()) > 0:
        exact = [Estimate(value, value, True) for value in (nc1(moments), cdnv(moments), vci(moments))]
        return Corrected(exact[0], exact[1], exact[2], ("no spread within classes, or none between: plug-in values",))
    parts = _parts(moments)
    within, pairs, share = _nc1(parts, rank), _cdnv(parts), _vci(parts, rank)
    return Corrected(within, pairs, share, tuple(_notes(parts, {"NC1": within, "CDNV": pairs, "VCI": share})))


def _of_usual_size(moments: ClassMoments) -> ClassMoments:
    """The same divided by a power of two where sixth powers of features would leave what float64 holds."""
    variance = float(moments.scatter.trace()) / moments.samples
    if not isfinite(variance):
        raise MeasureError("features are so large that their squares overflow; divide all of them by one number")
    exponent = round(log2(variance) / 2) if variance > 0 else 0
    if abs(exponent) <= LARGEST:
        return moments
    unit, nothing = 2.0**-exponent, moments.third + torch.nan  # higher moments are not looked at here
    return replace(
        moments,
        means=moments.means * unit,
        scatter=moments.scatter * unit * unit,
        variances=moments.variances * unit * unit,
        third=nothing,
        fourth=nothing.sum(),
    )


@dataclass(frozen=True, eq=False)
class _Noisy:
    """A symmetric matrix G known up to noise E with E[E X E] = ``energy(X)``."""

    gram: Float64[Tensor, "r r"]
    along: Float64[Tensor, "r r"]
    """H: covariance of the noise on the long side, seen from the signal."""
    across: Float64[Tensor, "r r"]
    """D: covariance of the noise on the short side."""
    second: float
    """t₂: squared norm of the noise's covariance on the long side."""

    def energy(self, x: Tensor) -> Tensor:
        """Ξ[x] = tr(Dx) H + (tr(Hx) + t₂ tr(Dx)) D + terms a factor 1/K smaller."""
        row, cross = (self.across * x).sum(), self.along @ x @ self.across
        large = row * self.along + ((self.along * x).sum() + self.second * row) * self.across
        return large + cross + cross.T + self.second * self.across @ x @ self.across

    def plus(self, ridge: float) -> _Noisy:
        """The same with ``ridge`` added to the eigenvalues of G."""
        return replace(self, gram=self.gram + ridge * torch.eye(len(self.gram)).to(self.gram))


@dataclass(frozen=True, eq=False)
class _Parts:
    """Debiased moments; K classes, r = K − 1 contrasts."""

    moments: ClassMoments
    contrasts: Float64[Tensor, "k r"]
    between: Float64[Tensor, "d r"]
    covariance: Float64[Tensor, "d d"]
    noise: Float64[Tensor, " k"]
    """Of each class mean, in units of Σ: 1/n_k times the class's own scale."""
    traces: tuple[float, float, float]
    gram: _Noisy
    slope: _Noisy
    """Change of ``gram`` per change of the metric I + tΣ in which class means are compared."""
    doubt: float
    """Standard error of tr H that is left, as a share of tr H."""
    freedom: float
    """Degrees of freedom of the covariance: N − K, less where some classes spread more than others."""


def _parts(moments: ClassMoments) -> _Parts:
    covariance = moments.scatter / (moments.samples - moments.classes)
    scales = _scales(moments)
    own = (moments.counts - 1).double()
    freedom = float(own @ scales) ** 2 / float(own @ scales.square())
    contrasts = contrasts_of(moments.classes, moments.means)
    between = (moments.means - moments.means.mean(0)).T @ contrasts
    once = covariance @ between
    traces = _traces(covariance, freedom)
    noise = scales / moments.counts
    across = contrasts.T @ (noise[:, None] * contrasts)
    raw = between.T @ once
    second = (once.T @ once - traces[0] / freedom * raw) / (1 + 1 / freedom)  # E[S²] = (1 + 1/m) Σ² + t₁Σ/m
    gram = _Noisy(between.T @ between - traces[0] * across, raw - traces[1] * across, across, traces[1])
    slope = _Noisy(gram.along, 2 * (second - traces[2] * across), across, 2 * traces[2])
    gram, slope, doubt = _steadied(gram, slope, traces, freedom, moments.dimension)
    return _Parts(moments, contrasts, between, covariance, noise, traces, gram, slope, doubt, freedom)


def _scales(moments: ClassMoments) -> Float64[Tensor, " k"]:
    """Each class's covariance in units of the pooled one; 1 for classes with one sample."""
    freedom = (moments.counts - 1).clamp(min=1)
    own = moments.class_variances * moments.counts / freedom
    pooled = moments.scatter.trace() / (moments.samples - moments.classes)
    return torch.where(moments.counts > 1, own / pooled, 1.0)


def _traces(covariance: Float64[Tensor, "d d"], m: float) -> tuple[float, float, float]:
    """Unbiased tr Σ and tr Σ², nearly unbiased tr Σ³, from a Wishart matrix over its m degrees of freedom."""
    first, square = float(covariance.trace()), float(covariance.square().sum())
    cube = float(((covariance @ covariance) * covariance).sum())
    least = first**2 / len(covariance)
    second = square / (1 + 2 / m) if m < 1.5 else (square - first**2 / m) / (1 + 1 / m - 2 / m**2)
    second = max(second, least)
    third = (m * m * cube - 3 * (m + 1) * first * second - first**3) / (m * m + 3 * m + 4)
    return first, second, max(third, second**2 / first)


def _steadied(
    gram: _Noisy, slope: _Noisy, traces: tuple[float, float, float], freedom: float, dimension: int
) -> tuple[_Noisy, _Noisy, float]:
    """H drawn towards (tr Σ/d) G as far as its noise reaches, and the standard error that is left."""
    first, second, third = traces
    fourth = max(first * (third / second) ** 3, third**2 / second)  # as for log-normal eigenvalues
    usual = first / dimension
    length, rank = max(float(gram.gram.trace()), 0.0), len(gram.gram)
    raw = gram.along + second * gram.across
    variance = 4 * float(gram.across.trace()) / rank * length / dimension * (
        third - 2 * usual * second + usual**2 * first
    ) + 2 * float(gram.across.square().sum()) * (fourth - 2 * usual * third + usual**2 * second)
    variance += 2 / freedom * float(raw.square().sum())
    gap = float(gram.along.trace()) - usual * float(gram.gram.trace())
    share = min(1.0, TRUSTED**2 * variance / gap**2) if gap else 1.0
    along = (1 - share) * gram.along + share * usual * gram.gram
    other = _Noisy(along, 2 * usual * along, slope.across, 2 * usual * second)
    blend = _Noisy(
        along,
        (1 - share) * slope.along + share * other.along,
        slope.across,
        (1 - share) * slope.second + share * other.second,
    )
    size = float(along.trace())
    left = (1 - share) * variance**0.5 / size if size > 0 else float("inf")
    return replace(gram, along=along), blend, left


class _Inverse(NamedTuple):
    """Q, the estimate of G⁻¹, and ρ, by how much noise in G is enlarged."""

    matrix: Float64[Tensor, "r r"]
    gain: float

    @property
    def known(self) -> bool:
        return self.gain / (1 + self.gain) <= EDGE


def _inverted(noisy: _Noisy) -> _Inverse:
    """Solve Q⁻¹ = G + Ξ[Q] from above, each step as long as Ξ allows and Q stays positive definite."""
    unit = torch.eye(len(noisy.gram)).to(noisy.gram)
    size = _norm(noisy.gram) + _norm(noisy.energy(unit)) ** 0.5
    current = size * unit
    for _ in range(ROUNDS):
        inverse = torch.linalg.inv(current)
        gain = _norm(noisy.energy(inverse @ inverse))
        step = (noisy.gram + noisy.energy(inverse) - current) / (1 + gain)
        while int(torch.linalg.cholesky_ex(current + step).info):
            step = step / 2
        current = current + step
        if gain > HOPELESS or float(step.norm()) <= PRECISION * size:
            break
    return _Inverse(torch.linalg.inv(current), gain)


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix).abs().max())


def _falling(noisy: _Noisy, slope: _Noisy, inverse: _Inverse) -> float:
    """−d tr Q / dt as G moves along ``slope``: tr G⁻²H, with the noise's own change accounted for."""
    q, step = inverse.matrix, 1 / (1 + inverse.gain)
    moved = slope.gram + slope.energy(q)
    change = moved.clone()
    for _ in range(ROUNDS):
        gap = moved - noisy.energy(q @ change @ q) - change
        change = change + step * gap
        if float(gap.norm()) <= PRECISION * float(moved.norm()):
            break
    return float((q @ q * change).sum())


def _nc1(parts: _Parts, rank: int) -> Estimate:
    if rank < len(parts.gram.gram):
        return _nc1_of_many(parts, rank)
    inverse = _inverted(parts.gram)
    value = _falling(parts.gram, parts.slope, inverse)

    def damped(ridge: float) -> float:
        noisy = parts.gram.plus(ridge)
        return _falling(noisy, parts.slope, _inverted(noisy))

    lower = _bound(damped, parts.gram, 2) * _margin(parts)
    seen = nc1(parts.moments)
    lower = max(lower, _even(parts), seen * _margin(parts))
    if value < PLAUSIBLE * seen:
        return Estimate(None, lower, False)
    return _estimate(value, lower, inverse.known and parts.doubt < 1 / TRUSTED)


def _even(parts: _Parts) -> float:
    """NC1 were class means spread evenly, at the largest tr G, and Σ no larger along them than on average.

    Uneven spread makes it larger (Jensen), and so does Σ in the directions of class means, where it usually is large.
    """
    reach, error = _reach(parts.gram, parts.freedom)
    spread = (2 * parts.traces[1] / parts.freedom) ** 0.5
    usual = max(parts.traces[0] - BACK * spread, 0.0) / parts.moments.dimension
    return usual * len(parts.gram.gram) ** 2 / (reach + BACK * error)


def _margin(parts: _Parts) -> float:
    """What a bound on NC1 keeps of its value after stepping back by the standard errors of tr G, tr H and tr Σ."""
    reach, error = _reach(parts.gram, parts.freedom)
    spread = 2 * parts.traces[1] / parts.freedom / parts.traces[0] ** 2
    return 1 / (1 + BACK * ((error / max(reach, error)) ** 2 + parts.doubt**2 + spread) ** 0.5)


def _nc1_of_many(parts: _Parts, rank: int) -> Estimate:
    """NC1 where class means fill all ``rank`` directions: the two sides of the noise change places."""
    directions = between_factor(parts.moments).directions
    between, covariance = directions.T @ parts.between, directions.T @ parts.covariance @ directions
    across = parts.gram.across
    total, second = float(across.trace()), float(across.square().sum())
    noisy = _Noisy(
        between @ between.T - total * covariance, between @ across @ between.T - second * covariance, covariance, second
    )
    inverse = _inverted(noisy)

    def damped(ridge: float) -> float:
        return float((_inverted(noisy.plus(ridge)).matrix * covariance).sum())

    lower = max(_bound(damped, noisy, 1), nc1(parts.moments)) * _margin(parts)
    return _estimate(float((inverse.matrix * covariance).sum()), lower, inverse.known)


def _bound(damped: Callable[[float], float], noisy: _Noisy, power: int) -> float:
    """Chord of the concave F(c)^(−1/power), drawn from where noise is half of what can be inverted to c = 0."""
    ridge = (2 * _norm(noisy.energy(torch.eye(len(noisy.gram)).to(noisy.gram)))) ** 0.5
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


def _cdnv(parts: _Parts) -> Estimate:
    """Mean over pairs of the spread over shrunken squared distances, whose spread is that of the true ones."""
    first, second = torch.triu_indices(parts.moments.classes, parts.moments.classes, offset=1)
    noise, total = parts.noise[first] + parts.noise[second], parts.traces[0]
    seen = (parts.moments.means[first] - parts.moments.means[second]).square().sum(1) - total * noise
    along = parts.contrasts @ parts.gram.along @ parts.contrasts.T
    diagonal = along.diagonal()
    across = (diagonal[first] + diagonal[second] - 2 * along[first, second]).clamp(min=0)
    variance = 4 * noise * across + 2 * parts.traces[1] * noise.square()
    scattered = float(seen.var(correction=0))
    keep = max(0.0, 1 - float(variance.mean()) / scattered) ** 0.5 if scattered else 1.0
    mean = float(seen.mean())
    apart = mean + keep * (seen - mean)
    counts = parts.moments.counts
    own = parts.noise * counts * total
    spread = (own[first] + own[second]) / 2
    value = float((spread / torch.maximum(apart, variance.sqrt())).mean())
    reach, error = _reach(parts.gram, parts.freedom)
    farthest = 2 * (reach + BACK * error) / len(parts.gram.gram)
    known = bool((apart > variance.sqrt()).double().mean() >= 0.99)
    return _estimate(value, float(spread.sqrt().mean()) ** 2 / farthest, known)


def _vci(parts: _Parts, rank: int) -> Estimate:
    """1 − tr(Σ_T⁻¹ Σ_B)/rank from AᵀΣ⁻¹A, the resolvent of which is needed at −K only: seldom at the noise."""
    classes, contrasts = parts.moments.classes, len(parts.gram.gram)
    noisy = _whitened(parts)
    inverse = _inverted(noisy.plus(float(classes)))
    value = 1 - (contrasts - classes * float(inverse.matrix.trace())) / rank
    lower = 0.0
    if parts.freedom > parts.moments.dimension:
        reach, error = _reach(noisy, parts.freedom)
        lower = 1 / (1 + (reach + BACK * error) / classes / rank)
    return _estimate(min(max(value, 0.0), 1.0), lower, inverse.known)


def _whitened(parts: _Parts) -> _Noisy:
    """AᵀΣ⁻¹A, from AᵀBA with B = v(I + vΣ)⁻¹ as known from the resolvent of the sample covariance."""
    d, across = parts.moments.dimension, parts.gram.across
    ridge = RIDGE * parts.traces[0] / parts.freedom
    unit = torch.eye(d).to(parts.covariance)
    resolvent = torch.cholesky_inverse(torch.linalg.cholesky(parts.covariance + ridge * unit))
    trace, square = float(resolvent.trace()), float(resolvent.square().sum())
    v, once = _companion(parts, ridge, trace), d - ridge * trace  # tr ΣB
    up, down = (_companion(parts, ridge * step, trace - (step - 1) * ridge * square) for step in (1.001, 0.999))
    twice = once - v * (trace - ridge * square) * 0.002 * ridge / (down - up)  # tr (ΣB)²
    stretch = _stretch(parts, v, ridge * trace / d)
    raw = v * ridge * parts.between.T @ resolvent @ parts.between
    gram = stretch * (raw - once * across)
    return _Noisy(gram, stretch * twice / once * gram, across, stretch**2 * twice)


def _companion(parts: _Parts, ridge: float, trace: float) -> float:
    """The v for which (S + ridge)⁻¹ stands for (I + vΣ)⁻¹ / ridge (Marčenko, Pastur 1967), given the former's trace."""
    weights = (parts.noise * parts.moments.counts).double()
    freedom = (parts.moments.counts - 1).double()
    explained, total = parts.moments.dimension - ridge * trace, float(freedom.sum())
    low, high = 0.0, 1.0
    while _fitted(freedom, weights, high) < explained and high < HUGE:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _fitted(freedom, weights, middle) < explained else (low, middle)
    return explained / (ridge * total * high)


def _fitted(freedom: Tensor, weights: Tensor, level: float) -> float:
    return float((freedom * weights * level / (1 + weights * level)).sum())


def _stretch(parts: _Parts, v: float, remaining: float) -> float:
    """What E[1/λ] is over E[v/(1 + vλ)] along class means, for λ log-normal; 1 for large v.

    The width is that of all eigenvalues, for which tr Σ and tr (I + vΣ)⁻¹ = d · ``remaining`` are known.
    """
    usual = parts.traces[0] / parts.moments.dimension
    length = float(parts.gram.gram.trace())
    along = float(parts.gram.along.trace()) / length if length > 0 else usual
    normal = torch.special.ndtri((torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES)

    def left(mean: float, width: float) -> float:
        return float((1 / (1 + v * mean * torch.exp(width * normal - width**2 / 2))).mean())

    low, high = 0.0, WIDEST
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if left(usual, middle) < remaining else (low, middle)
    mean = along if along > 0 else usual
    inverse = float(torch.exp(-low * normal + low**2 / 2).mean()) / mean
    return inverse / (v * left(mean, low))


def _reach(noisy: _Noisy, freedom: float) -> tuple[float, float]:
    """Trace of G, not below 0, and its standard error: from the means' noise, and from tr Σ of ``freedom`` samples."""
    row = float(noisy.across.trace())
    variance = 4 * float((noisy.along * noisy.across).sum()) + 2 * noisy.second * float(noisy.across.square().sum())
    variance += 2 * noisy.second * row**2 / freedom
    return max(float(noisy.gram.trace()), 0.0), max(variance, 0.0) ** 0.5


def _notes(parts: _Parts, estimates: dict[str, Estimate]) -> list[str]:
    counts = parts.moments.counts
    notes = [f"corrected for {int(counts.min())} to {int(counts.max())} samples a class, as for Gaussian classes"]
    notes += [
        f"{name} is not identifiable from these samples: it is at least {estimate.lower:.3g}; give more a class"
        for name, estimate in estimates.items()
        if not estimate.identifiable
    ]
    if parts.freedom <= parts.moments.dimension + 1:
        notes.append("fewer samples than dimensions: VCI takes the eigenvalues within classes to be log-normal")
    if bool((counts == 1).any()):
        notes.append("classes with one sample: their spread is taken to be that of the others")
    return notes
