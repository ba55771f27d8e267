"""Transferability scores read off ``ClassMoments``: one number for how well features would serve a linear classifier.

Higher is better. Scores are compared between models on the same images only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import pad

from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import ROUNDING, check_measurable, explained
from tightframe.metrics.factors import EPS, spectrum
from tightframe.metrics.registry import measure

LOGME_TOLERANCE = 1e-8
LOGME_ROUNDS = 1000
USELESS = 1e12
"""α/β over the largest eigenvalue of FᵀF from which on features no longer count; and, below its inverse, noise."""


@measure("score", reference="Bao et al., ICIP 2019")
def h_score(moments: ClassMoments) -> float:
    """How much of the spread of all features classes explain, tr(Σ_T⁺ Σ_B), between 0 and K − 1.

    Bao et al., ICIP 2019. With no more samples than dimensions it saturates at K − 1 and says nothing.
    """
    check_measurable(moments)
    return explained(moments, "sample")


@measure("score", reference="Ibrahim, Ponomareva, Mazumder, ECML 2022")
def h_score_shrunk(moments: ClassMoments) -> float:
    """H-score that few images don't saturate: covariances shrunk as Ledoit and Wolf (2004) do.

    tr(Σ_α⁻¹ (1 − α) Σ_B) with Σ_α = (1 − α) Σ_T + α tr(Σ_T)/d · I, and α from the fourth moment that
    ``ClassMoments`` keeps: the value that scikit-learn's ``LedoitWolf`` gives (Ibrahim et al., ECML 2022).
    """
    check_measurable(moments)
    whole, kept = spectrum(moments, "sample"), 1 - shrinkage(moments)
    unit = whole.values.sum() / moments.dimension
    if float(unit) == 0:
        return 0.0
    projected = (whole.vectors.T @ moments.between("sample")).square().sum(1)
    return float((kept * projected / (kept * whole.values + (1 - kept) * unit)).sum())


def shrinkage(moments: ClassMoments) -> float:
    """Ledoit–Wolf intensity α for the covariance of all features: 0 keeps it, 1 leaves a multiple of the identity."""
    values, samples = spectrum(moments, "sample").values, moments.samples
    squared = values.square().sum()  # ‖Σ_T‖²
    distance = squared - values.sum().square() / moments.dimension  # ‖Σ_T − tr(Σ_T)/d · I‖²
    noise = (moments.fourth / samples - squared) / samples
    return float((noise / distance).clamp(0, 1)) if float(distance) > EPS * float(squared) else 1.0


@measure("score", reference="Pándy et al., CVPR 2022")
def gbc(moments: ClassMoments) -> float:
    """How little Gaussians fitted to the classes overlap, minus the sum over pairs of exp(−Bhattacharyya distance).

    Pándy et al., CVPR 2022, in all d dimensions (the paper projects on 64 first: see ``gbc_of_features``). Classes
    have the variance tr(Σ_k)/d in every direction, and their log-determinants count d times; published code counts them
    once. Variances below 1e-12 of the mean one count as that.
    """
    check_measurable(moments)
    floor = max(float(moments.variances.mean()) * 1e-12, torch.finfo(torch.float64).tiny)
    return minus_overlaps(moments.means, moments.variances.mean(1).clamp(min=floor))


def minus_overlaps(means: Float64[Tensor, "k d"], variances: Float64[Tensor, " k"]) -> float:
    """−Σ_{i≠j} exp(−D_B(i, j)) of spherical Gaussians, a class at a time to spare memory."""
    dimension, logs, total = means.shape[1], variances.log(), 0.0
    for label in range(len(means) - 1):
        pooled = (variances[label] + variances[label + 1 :]) / 2
        apart = (means[label] - means[label + 1 :]).square().sum(1) / pooled / 8
        unlike = dimension * (pooled.log() - (logs[label] + logs[label + 1 :]) / 2) / 2
        total += float((-(apart + unlike)).exp().sum())
    return -2 * total  # both orders of a pair, as published


@measure("score", changed_by={"offset"}, reference="You et al., ICML 2021")
def logme(moments: ClassMoments) -> float:
    """Log evidence of Bayesian linear regression on each one-hot class, averaged, a sample.

    You et al., ICML 2021. Prior precision α and noise precision β are found anew for every class by MacKay's fixed
    point, run to convergence with no added ε; all classes at once. As published, features are not centered and there is
    no intercept, so the value changes with their offset (not with their scale, which α takes up).
    """
    check_measurable(moments)
    problem = _OneHotRegression.of(moments)
    return float(_evidence(problem).mean() / problem.samples)


def _evidence(problem: _OneHotRegression) -> Float64[Tensor, " k"]:
    """Log evidence of each class where it is stationary."""
    ratio = _fixed_point(problem)
    fit = problem.fit(ratio)
    beta = problem.samples / (fit.misfit + ratio * fit.size).clamp(min=problem.samples * EPS)  # a perfect fit: no noise
    alpha = ratio * beta
    samples, dimension = problem.samples, len(problem.values)
    return (
        dimension / 2 * alpha.log()
        + samples / 2 * beta.log()
        - (problem.logdet(ratio) + dimension * beta.log()) / 2
        - beta / 2 * fit.misfit
        - alpha / 2 * fit.size
        - samples / 2 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    )


class _Fit(NamedTuple):
    """What the posterior mean at one α/β leaves, for each class (K,)."""

    misfit: Tensor  # squared residual
    size: Tensor  # squared weight norm
    effective: Tensor  # effective number of parameters, γ
    free: Tensor  # N − γ, from a sum in which nothing cancels


class _OneHotRegression(NamedTuple):
    """Regression of K one-hot targets on features, in the eigenbasis of their covariance.

    FᵀF is N Σ_T and the square of the mean: a matrix that is diagonal here, and one of rank one (Sherman–Morrison).
    Targets are split the same way, into what is around their mean and their mean, so that nothing cancels however far
    from zero features are.
    """

    values: Tensor  # (d,) eigenvalues of N Σ_T
    mean: Tensor  # (d,) global mean
    cross: Tensor  # (K, d) centered features times targets
    outside: Tensor  # (K,) squared length of each centered target outside the span of centered features
    counts: Tensor  # (K,)
    samples: int

    @classmethod
    def of(cls, moments: ClassMoments) -> _OneHotRegression:
        whole, counts, samples = spectrum(moments, "sample"), moments.counts.double(), moments.samples
        values = torch.where(whole.kept, whole.values, 0.0) * samples
        cross = counts[:, None] * ((moments.means - moments.global_mean) @ whole.vectors)
        cross = torch.where(whole.kept, cross, 0.0)
        inside = torch.where(whole.kept, cross.square() / values.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        spread = counts * (1 - counts / samples)
        outside = spread - inside.sum(1)
        outside = torch.where(outside > ROUNDING * spread, outside, 0.0)
        seen = moments.global_mean @ whole.vectors
        beside = (moments.global_mean - whole.vectors @ seen).norm()  # one more direction, in which nothing varies
        values, mean, cross = pad(values, (1, 0)), torch.cat([beside[None], seen]), pad(cross, (1, 0))
        return cls(values, mean, cross, outside, counts, samples)

    @property
    def largest(self) -> float:
        """No eigenvalue of FᵀF is larger; 1 where all are 0."""
        return float(self.values[-1] + self.samples * (self.mean @ self.mean)) or 1.0

    def only(self, classes: Tensor) -> _OneHotRegression:
        """The problems of some classes (a mask)."""
        return self._replace(cross=self.cross[classes], outside=self.outside[classes], counts=self.counts[classes])

    def fit(self, ratio: Float64[Tensor, " k"]) -> _Fit:
        """The posterior mean of each class at its α/β."""
        kept = self.values > 0
        root = self.values.sqrt()
        inverse = (ratio[:, None] + self.values).reciprocal_()
        sums = inverse @ torch.stack([kept.double(), self.values, self.mean.square()], 1)
        spared, effective, first = sums.unbind(1)
        tilted, shrunk = inverse * self.mean, inverse * self.cross
        second, by_values = (tilted.square() @ torch.stack([torch.ones_like(root), self.values], 1)).unbind(1)
        grown = 1 + self.samples * first
        gain = (self.counts - self.samples * (shrunk @ self.mean)) / grown
        weights = torch.addcmul(shrunk, gain[:, None], tilted)
        missed = (shrunk * torch.where(kept, 1 / root, 0.0)).mul_(ratio[:, None])
        missed.addcmul_(tilted.mul_(root), gain[:, None], value=-1)
        rank_one = self.samples * ratio * second / grown
        by_mean = (1 + self.samples * by_values) / grown  # 1 − rank_one
        beside = self.samples - 1 - int(kept.sum())
        return _Fit(
            torch.linalg.vecdot(missed, missed) + gain.square() / self.samples + self.outside,
            torch.linalg.vecdot(weights, weights),
            effective + rank_one,
            beside + ratio * spared + by_mean,
        )

    def logdet(self, ratio: Float64[Tensor, " k"]) -> Float64[Tensor, " k"]:
        """Of FᵀF + α/β, for each class."""
        shifted = ratio[:, None] + self.values
        return shifted.log().sum(1) + (1 + self.samples * ((1 / shifted) @ self.mean.square())).log()


def _fixed_point(problem: _OneHotRegression) -> Float64[Tensor, " k"]:
    """α/β of each class at which the evidence is stationary (MacKay 1992); settled classes are left alone."""
    ratio, part = torch.ones_like(problem.outside), problem
    moving = torch.arange(len(ratio), device=ratio.device)
    for _ in range(LOGME_ROUNDS):
        before = ratio[moving]
        fit = part.fit(before)
        noise = fit.misfit / fit.free
        after = torch.where(fit.size > 0, noise * fit.effective / fit.size, torch.inf)
        after = after.clamp(problem.largest / USELESS, problem.largest * USELESS)  # perfect fits and useless features
        ratio[moving] = after
        unsettled = (after - before).abs() > LOGME_TOLERANCE * before
        if not bool(unsettled.all()):
            part, moving = part.only(unsettled), moving[unsettled]
        if not len(moving):
            break
    return ratio
