"""A population that samples like the ones at hand could have come from, and moments of samples drawn from it.

What is drawn are moments, not samples: Gaussian class means and Wishart scatter (Bartlett 1933). Metrics that look at
class means, at the spread along them and at traces need that in the at most K directions of the means only, and VCI
in those of whitened means (Muirhead 1982, theorem 3.2.10): K × K matrices, of the same distribution.

What is taken for granted: features may be rotated, and classes share one covariance up to a factor each. Tails may be
heavy: how unequal the lengths of features are is counted, for traces and for the spread along class means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import pad

from tightframe.features.moments import ClassMoments
from tightframe.metrics.denoising import Spread, denoised, whitened
from tightframe.metrics.factors import contrasts_of, spectrum
from tightframe.metrics.folds import Folds

JITTER = 1e-11
"""Of the mean eigenvalue of Σ, added to all of them, lest rounding stop the factorization."""


@dataclass(frozen=True, eq=False)
class Population:
    """Elliptical classes. Draws take a generator of random numbers, so they can be repeated.

    Attributes:
        counts: samples of each class in a draw, shape (K,).
        means: class means, shape (K, d).
        whitened: class means in the metric Σ⁻¹, rotated into r = min(K, d) dimensions; None without Σ⁻¹.
        factor: lower triangular L with L Lᵀ = Σ, shape (d, d).
        spread: what else is known of Σ.
        doubt: standard error of the spread along class means, as a share, that draws don't show: see ``denoised``.
    """

    counts: Float64[Tensor, " k"]
    means: Float64[Tensor, "k d"]
    whitened: Float64[Tensor, "k r"] | None
    factor: Float64[Tensor, "d d"]
    spread: Spread
    doubt: float

    @classmethod
    def of(cls, folds: Folds) -> Population:
        """From labeled features with spread within classes, at least one sample a class."""
        moments = _alive(folds.total)
        spread, counts = Spread.of(folds, moments), moments.counts.double()
        sample = moments.scatter / (moments.samples - moments.classes)
        usual = spread.traces[0] / moments.dimension
        sigma = spread.keep * sample
        sigma.diagonal().add_((1 - spread.keep + JITTER) * usual)
        factor = torch.linalg.cholesky(sigma)
        middle = moments.means.mean(0)
        contrasts = contrasts_of(moments.classes, middle)
        seen = contrasts.T @ (moments.means - middle)
        noise = contrasts.T @ ((spread.scales / counts)[:, None] * contrasts)
        clean, doubt = denoised(seen, sample, factor, noise, spread)
        means = middle + contrasts @ clean
        return cls(counts, means, whitened(seen, moments, noise, contrasts), factor, spread, doubt)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the pooled covariance, N − K."""
        return float(self.counts.sum()) - len(self.counts)

    def draw(self, rng: np.random.Generator) -> ClassMoments:
        """Moments of a draw in all dimensions, for measures of any kind."""
        scatter = wishart(self.factor, self.freedom, rng)
        variances = self._variances(rng)[:, None] * (scatter.diagonal() / scatter.trace())
        return self._moments(self._means(rng), scatter, variances)

    def draw_along(self, rng: np.random.Generator) -> ClassMoments:
        """Moments in the directions of class means, and in one more the spread that those miss."""
        means, variances = self._means(rng), self._variances(rng)
        directions, seats = torch.linalg.qr((means - means.mean(0)).T)
        half, freedom = self.factor.T @ directions, self.spread.freedom
        seen = wishart(_factored(half.T @ half, half.shape[1]), freedom, rng) * (self.freedom / freedom)
        scatter = pad(seen, (0, 1, 0, 1))
        scatter[-1, -1] = (self.counts @ variances - seen.trace()).clamp(min=0)
        return self._moments(pad(seats.T, (0, 1)), scatter, pad(variances[:, None], (len(seen), 0)))

    def draw_whitened(self, rng: np.random.Generator) -> ClassMoments:
        """Moments for VCI in the directions of whitened class means; needs ``whitened``."""
        assert self.whitened is not None
        classes, rank = self.whitened.shape
        error = (self.spread.scales / self.counts).sqrt()
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
        (first, second, third, fourth), m = self.spread.traces, self.spread.freedom
        square = second * (1 + 1 / m) + first**2 / m  # mean of tr S²
        cross = 4 * third / m + 4 * first * second / m**2
        own = 8 * fourth / m + (4 * second**2 + 16 * first * third) / m**2 + 8 * first**2 * second / m**3
        return max(8 * second / m / first**2 - 4 * cross / first / square + own / square**2, 0.0) ** 0.5

    def _means(self, rng: np.random.Generator) -> Float64[Tensor, "k d"]:
        noise = _normal(self.means.shape, self.means, rng) @ self.factor.T
        return self.means + noise * (self.spread.scales / self.counts).sqrt()[:, None]

    def _variances(self, rng: np.random.Generator) -> Float64[Tensor, " k"]:
        """Traces of class covariances: means of squared lengths that are as unequal as those of the features."""
        counts = self.counts.cpu().numpy()
        shape = np.maximum(counts - 1, 1) / self.spread.unevenness
        shares = torch.from_numpy(rng.gamma(shape) / shape * (counts - 1) / counts).to(self.means)
        return shares * self.spread.scales * self.spread.traces[0]

    def _moments(self, means: Tensor, scatter: Tensor, variances: Tensor) -> ClassMoments:
        """With the fourth moment that goes with them; the third is left out, so they can't be merged."""
        zero = ClassMoments.zero(means.shape[0], means.shape[1], means.device)
        around = means - self.counts @ means / self.counts.sum()
        own, length = variances.sum(1), around.square().sum(1)
        along = self.spread.scales * ((around @ scatter) * around).sum(1) / self.counts.sum()
        squares = (length + own).square() + 4 * along + self.spread.unevenness * own.square()
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
    size = len(factor)
    if freedom > size - 1:
        half = np.tril(rng.standard_normal((size, size)), -1)
        half[np.diag_indices(size)] = np.sqrt(rng.chisquare(freedom - np.arange(size)))
    else:
        columns = max(1, round(freedom))
        half = rng.standard_normal((size, columns)) * (freedom / columns) ** 0.5
    product = factor @ torch.from_numpy(half).to(factor)
    return product @ product.T


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
    basis = whole.vectors[:, whole.kept]
    width = basis.shape[1]
    variances = (moments.class_variances / width)[:, None].expand(-1, width)
    scatter = basis.T @ moments.scatter @ basis
    return replace(moments, means=moments.means @ basis, scatter=scatter, variances=variances, third=basis[0])
