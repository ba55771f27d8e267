"""A population that samples like the ones at hand could have come from, and moments of samples drawn from it.

What is drawn are moments, not samples: Gaussian class means and Wishart scatter (Bartlett 1933). Metrics that look at
class means, at the spread along them and at traces need that in the at most K directions of the means only, and VCI
in those of whitened means (Muirhead 1982, theorem 3.2.10): K × K matrices, of the same distribution.

What is taken for granted: features may be rotated, and classes share one covariance up to a factor each. Tails may be
heavy: how unequal the lengths of features are is counted, for traces and for the spread along class means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import pad

from tightframe.features.moments import ClassMoments, chunks
from tightframe.metrics.debiasing import Debiased, turned
from tightframe.metrics.factors import contrasts_of, spectrum
from tightframe.metrics.folds import Folds

JITTER = 1e-11
"""Of the mean eigenvalue of Σ, added to all of them, lest rounding stop the factorization."""
FLOOR = 1e-3
"""Least eigenvalue of class means' Gram matrix, as a share of its mean: noise can put them at 0 and below."""
HALVINGS = 30


@dataclass(frozen=True, eq=False)
class Population:
    """Elliptical classes. Draws take a generator of random numbers, so they can be repeated.

    Σ is the sample covariance shrunk towards a multiple of the identity until tr Σ² is the unbiased one (compare
    Ledoit, Wolf 2004). Class means are given the debiased Gram matrix, its eigenvalues drawn together by as much as
    noise drove them apart, in directions with as much of Σ as the debiased spread along class means has.

    Attributes:
        counts: samples of each class in a draw, shape (K,).
        means: class means, shape (K, p), in all p = d directions or, with few samples, in their span.
        whitened: class means in the metric Σ⁻¹, rotated into r = min(K, d) dimensions; None without Σ⁻¹.
        factor: lower triangular L with L Lᵀ = Σ, shape (p, p).
        beyond: variance of Σ in each of the d − p directions beside these.
        known: what else is known of Σ.
        doubt: standard error, as a share, of the spread along class means that draws don't show, since their direction
            is taken as usual where samples don't tell it.
    """

    counts: Float64[Tensor, " k"]
    means: Float64[Tensor, "k p"]
    whitened: Float64[Tensor, "k r"] | None
    factor: Float64[Tensor, "p p"]
    beyond: float
    known: Debiased
    doubt: float

    @classmethod
    def of(cls, folds: Folds) -> Population:
        """From labeled features with spread within classes, at least one sample a class."""
        moments = _alive(folds.total)
        known = Debiased.of(moments, _unevenness(folds))
        moments = known.moments
        sample = moments.scatter / (moments.samples - moments.classes)
        sigma, beyond = known.keep * sample, (1 - known.keep + JITTER) * known.usual
        sigma.diagonal().add_(beyond)
        factor = torch.linalg.cholesky(sigma)
        middle = moments.means.mean(0)
        seen = known.contrasts.T @ (moments.means - middle)
        along, doubt = _along(known)
        means = middle + known.contrasts @ _denoised(seen, sample, factor, known, along)
        return cls(moments.counts.double(), means, _whitened(seen, known), factor, beyond, known, doubt)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the pooled covariance, N − K."""
        return float(self.counts.sum()) - len(self.counts)

    def draw(self, rng: np.random.Generator) -> ClassMoments:
        """Moments of a draw in all dimensions, or in as many as it spans, for measures of any kind."""
        classes, size = self.means.shape
        half = _half(size, self.freedom, rng)
        aside = self._aside(classes + half.shape[1], rng)
        noise = torch.from_numpy(half).to(self.factor)
        product = torch.cat([self.factor @ noise, aside[classes:].T * (self.freedom / half.shape[1]) ** 0.5])
        scatter = product @ product.T
        variances = self._variances(rng)[:, None] * (scatter.diagonal() / scatter.trace())
        return self._moments(self._means(rng, aside[:classes]), scatter, variances)

    def draw_along(self, rng: np.random.Generator) -> ClassMoments:
        """Moments in the directions of class means, and in one more the spread that those miss."""
        classes, size = self.means.shape
        means, variances = self._means(rng, self._aside(classes, rng)), self._variances(rng)
        directions, seats = torch.linalg.qr((means - means.mean(0)).T)
        half = torch.cat([self.factor.T @ directions[:size], directions[size:] * self.beyond**0.5])
        freedom = self.known.freedom
        seen = wishart(_factored(half.T @ half, half.shape[1]), freedom, rng) * (self.freedom / freedom)
        scatter = pad(seen, (0, 1, 0, 1))
        scatter[-1, -1] = (self.counts @ variances - seen.trace()).clamp(min=0)
        return self._moments(pad(seats.T, (0, 1)), scatter, pad(variances[:, None], (len(seen), 0)))

    def draw_whitened(self, rng: np.random.Generator) -> ClassMoments:
        """Moments for VCI in the directions of whitened class means; needs ``whitened``."""
        assert self.whitened is not None
        classes, rank = self.whitened.shape
        error = (self.known.scales / self.counts).sqrt()
        means = self.whitened + error[:, None] * _normal((classes, rank), self.whitened, rng)
        gram = means @ means.T
        beyond = len(self.factor) - rank
        if beyond:  # noise in all other directions
            gram += wishart(torch.diag(error), float(beyond), rng)
        contrasts = contrasts_of(classes, gram)
        rank = min(classes - 1, len(self.factor))
        seats = contrasts @ _factored(contrasts.T @ gram @ contrasts, rank)
        identity = torch.eye(rank).to(gram)
        scatter = wishart(identity, self.freedom - len(self.factor) + rank, rng)
        return self._moments(seats, scatter, torch.zeros_like(seats))

    def rank_error(self) -> float:
        """Standard deviation of the logarithm of ``numerical_rank``, from moments of Wishart matrices."""
        m, size = self.known.freedom, self.known.traces[0]
        first, second, third, fourth = (trace / size**power for power, trace in enumerate(self.known.traces, 1))
        square = second * (1 + 1 / m) + first**2 / m  # mean of tr S²
        cross = 4 * third / m + 4 * first * second / m**2
        own = 8 * fourth / m + (4 * second**2 + 16 * first * third) / m**2 + 8 * first**2 * second / m**3
        return max(8 * second / m / first**2 - 4 * cross / first / square + own / square**2, 0.0) ** 0.5

    def _aside(self, count: int, rng: np.random.Generator) -> Float64[Tensor, "m q"]:
        """What ``count`` draws from Σ have in the d − p directions beside the span, in at most as many dimensions.

        Only their products count, as Σ is the same in all of these: a triangular matrix (Bartlett 1933).
        """
        dimension = self.known.dimension - self.means.shape[1]
        if dimension <= count:
            drawn = rng.standard_normal((count, dimension))
        else:
            drawn = _bartlett(count, float(dimension), rng)
        return torch.from_numpy(drawn).to(self.means) * self.beyond**0.5

    def _means(self, rng: np.random.Generator, aside: Float64[Tensor, "k q"]) -> Float64[Tensor, "k _"]:
        noise = torch.cat([_normal(self.means.shape, self.means, rng) @ self.factor.T, aside], 1)
        return pad(self.means, (0, aside.shape[1])) + noise * (self.known.scales / self.counts).sqrt()[:, None]

    def _variances(self, rng: np.random.Generator) -> Float64[Tensor, " k"]:
        """Traces of class covariances: means of squared lengths that are as unequal as those of the features."""
        counts = self.counts.cpu().numpy()
        shape = np.maximum(counts - 1, 1) / self.known.unevenness
        shares = torch.from_numpy(rng.gamma(shape) / shape * (counts - 1) / counts).to(self.means)
        return shares * self.known.scales * self.known.traces[0]

    def _moments(self, means: Tensor, scatter: Tensor, variances: Tensor) -> ClassMoments:
        """With the fourth moment that goes with them; the third is left out, so they can't be merged."""
        zero = ClassMoments.zero(means.shape[0], means.shape[1], means.device)
        around = means - self.counts @ means / self.counts.sum()
        own, length = variances.sum(1), around.square().sum(1)
        along = self.known.scales * ((around @ scatter) * around).sum(1) / self.counts.sum()
        squares = (length + own).square() + 4 * along + self.known.unevenness * own.square()
        return replace(
            zero,
            counts=self.counts.long(),
            means=means,
            scatter=scatter,
            variances=variances,
            third=zero.third + torch.nan,
            fourth=self.counts @ squares,
        )


def wishart(factor: Float64[Tensor, "p p"], freedom: float, rng: np.random.Generator) -> Float64[Tensor, "p p"]:
    """Wishart matrix of covariance ``factor factorᵀ``: Bartlett's decomposition, or a sum of few outer products."""
    product = factor @ torch.from_numpy(_half(len(factor), freedom, rng)).to(factor)
    return product @ product.T


def _half(size: int, freedom: float, rng: np.random.Generator) -> np.ndarray:
    """A factor (size, _) of a standard Wishart matrix: triangular, or of as many columns as there is freedom."""
    if freedom > size - 1:
        return _bartlett(size, freedom, rng)
    columns = max(1, round(freedom))
    return rng.standard_normal((size, columns)) * (freedom / columns) ** 0.5


def _bartlett(size: int, freedom: float, rng: np.random.Generator) -> np.ndarray:
    """The lower triangular factor (size, size) of a standard Wishart matrix of ``freedom`` > size − 1."""
    half = np.tril(rng.standard_normal((size, size)), -1)
    half[np.diag_indices(size)] = np.sqrt(rng.chisquare(freedom - np.arange(size)))
    return half


def _normal(shape: tuple[int, ...], like: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape))).to(like)


def _factored(matrix: Float64[Tensor, "p p"], rank: int) -> Float64[Tensor, "p r"]:
    """A factor of a matrix of this rank, which rounding may make less."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if rank == len(matrix) and not int(failed):
        return factor
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt())[:, -rank:]


def _alive(moments: ClassMoments) -> ClassMoments:
    """Moments without the directions in which features are constant, as far as samples are enough to tell."""
    if moments.samples - moments.classes <= moments.dimension:
        return moments
    whole = spectrum(moments, "sample")
    if bool(whole.kept.all()):
        return moments
    return turned(moments, whole.vectors[:, whole.kept])


def _unevenness(folds: Folds) -> float | None:
    """Variance of ‖h − μ_k‖² over its squared class mean; None where no class has four samples."""
    moments = folds.total
    told = (moments.counts >= 4) & (moments.class_variances > 0)
    if not bool(told.any()):
        return None
    usual = torch.where(told, moments.class_variances, 1.0)
    total = torch.zeros_like(usual)
    for rows, labels in chunks(folds.features, folds.labels):
        centered = rows - moments.means.to(rows.dtype)[labels]
        length = torch.linalg.vecdot(centered, centered).double()
        total.index_add_(0, labels, (length / usual[labels] - 1).square())
    return max(float(total[told].sum() / (moments.counts[told] - 1).sum()), 1e-12)


def _along(known: Debiased) -> tuple[float, float]:
    """Spread along class means, tr H; as far as its noise reaches, that of means which have nothing to do with Σ.

    The second number is the standard error that remains of taking them so, as a share: no more than directions drawn
    at random give, and no more than the noise.
    """
    first, second, *_ = known.traces
    dimension, expected = known.dimension, known.usual * known.length
    gap = float(known.along.trace()) - expected
    chance = 2 * max(dimension * second / first**2 - 1, 0.0) / dimension / min(len(known.gram), dimension)
    error = known.variance / expected**2 if expected else inf
    left = known.share * chance / (1 + chance / error) if error else 0.0
    return max(expected + (1 - known.share) * gap, 0.0), left**0.5


def _denoised(
    seen: Float64[Tensor, "r d"],
    sample: Float64[Tensor, "d d"],
    factor: Float64[Tensor, "d d"],
    known: Debiased,
    along: float,
) -> Float64[Tensor, "r d"]:
    """Contrasts of class means with their noise taken out: in length, in how lengths differ, in direction."""
    second, usual = known.traces[1], known.usual
    energy = _energy(known, along, second)
    if len(seen) > seen.shape[1]:
        gram = seen.T @ seen - float(known.across.trace()) * sample
        return _aligned(seen) @ _root(_steadied(gram, energy))
    straight = torch.cholesky_solve(seen.T, factor).T * usual
    target = along / known.length if known.length else usual
    tilt = _tilt(seen, straight, float((seen @ factor).square().sum()), usual, target)
    return _root(_steadied(known.gram, energy)) @ _aligned((1 - tilt) * seen + tilt * straight)


def _tilt(seen: Tensor, straight: Tensor, spread: float, usual: float, target: float) -> float:
    """How far from ``seen`` to ``straight`` (Σ⁻¹ times it) the spread in units of length is the ``target``."""
    own, cross, other = (float((a * b).sum()) for a, b in ((seen, seen), (seen, straight), (straight, straight)))
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        keep = 1 - middle
        along = keep**2 * spread + usual * (2 * keep * middle * own + middle**2 * cross)
        above = along > target * (keep**2 * own + 2 * keep * middle * cross + middle**2 * other)
        low, high = (middle, high) if above else (low, middle)
    return low


def _whitened(seen: Float64[Tensor, "r d"], known: Debiased) -> Float64[Tensor, "k _"] | None:
    """Class means in the metric Σ⁻¹ with their noise taken out; None with too few samples for Σ⁻¹."""
    moments, dimension = known.moments, known.dimension
    freedom = moments.samples - moments.classes - dimension - 1
    if freedom <= 0:
        return None
    inverse = torch.linalg.solve(moments.scatter / freedom, seen.T)  # E of it, inverted, is Σ⁻¹
    gram = seen @ inverse - dimension * known.across
    energy = _energy(known, max(float(gram.trace()), 0.0), float(dimension))
    values, vectors = torch.linalg.eigh(_steadied(gram, energy))
    return known.contrasts @ (vectors * values.clamp(min=0).sqrt())[:, -min(len(seen), dimension) :]


def _energy(known: Debiased, along: float, second: float) -> float:
    """E tr E² of the noise E of a Gram matrix of class means, given tr H and tr Σ²."""
    count, rank = float(known.across.trace()), len(known.across)
    return 2 * (count + count / rank) * along + second * (count**2 + float(known.across.square().sum()))


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
