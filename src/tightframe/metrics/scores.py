"""Transferability scores: one number for how well features would serve a linear classifier. Higher is better.

Each is read off ``ClassMoments`` alone, and is compared between networks on the same pictures only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import check_measurable, explained

LOGME_TOLERANCE = 1e-8
LOGME_ROUNDS = 1000
USELESS = 1e12
"""α/β over the largest eigenvalue of FᵀF from which on features no longer count."""


def h_score(moments: ClassMoments) -> float:
    """tr(Σ_T⁺ Σ_B), between 0 and K − 1 (Bao et al., ICIP 2019), with Σ_T the covariance of all features.

    With fewer samples than dimensions it saturates at K − 1 and says nothing: see ``collapse_metrics(...).notes``.
    """
    check_measurable(moments)
    return explained(moments, "sample")


def logme(moments: ClassMoments) -> float:
    """Log evidence of Bayesian linear regression on each one-hot class, averaged, a sample (You et al., ICML 2021).

    Prior precision α and noise precision β are found anew for every class by MacKay's fixed point, run to
    convergence with no added ε; all classes at once. As published, features are not centred and there is no
    intercept, so the value changes with their offset (not with their scale, which α takes up).
    """
    check_measurable(moments)
    problem = _one_hot_regression(moments)
    alpha, beta = _evidence_fixed_point(problem)
    misfit, size = _solution(problem, alpha, beta)
    samples, values = problem.samples, problem.values
    logdet = (alpha[:, None] + beta[:, None] * values).log().sum(1)
    evidence = (
        len(values) / 2 * alpha.log()
        + samples / 2 * beta.log()
        - logdet / 2
        - beta / 2 * misfit
        - alpha / 2 * size
        - samples / 2 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    )
    return float(evidence.mean() / samples)


class _Regression(NamedTuple):
    """Regression of K one-hot targets on features, in the eigenbasis of FᵀF."""

    values: Tensor  # (d,) eigenvalues of FᵀF
    projections: Tensor  # (K, d) squared length of each target along each left singular vector of F
    outside: Tensor  # (K,) squared length of each target outside the span of F
    samples: int


def _one_hot_regression(moments: ClassMoments) -> _Regression:
    counts, samples = moments.counts.double(), moments.samples
    sums = moments.means * counts[:, None]  # Fᵀy of each class
    values, vectors = torch.linalg.eigh(moments.scatter + moments.means.T @ sums)
    values = values.clamp(min=0)
    values[: max(0, moments.dimension - samples)] = 0  # rank ≤ N
    kept = values > values[-1] * moments.dimension * torch.finfo(torch.float64).eps
    values = torch.where(kept, values, 0.0)
    projections = torch.where(kept, (sums @ vectors).square() / values.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return _Regression(values, projections, (counts - projections.sum(1)).clamp(min=0), samples)


def _solution(problem: _Regression, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Squared residual and squared weight norm of each class at its posterior mean."""
    ratio = (alpha / beta)[:, None]
    misfit = (problem.projections * (ratio / (ratio + problem.values)).square()).sum(1) + problem.outside
    size = (problem.projections * problem.values / (ratio + problem.values).square()).sum(1)
    return misfit, size


def _evidence_fixed_point(problem: _Regression) -> tuple[Tensor, Tensor]:
    """α and β, each (K,), from the effective number of parameters γ of each class (MacKay 1992)."""
    largest = float(problem.values[-1]) or 1.0
    alpha = torch.ones_like(problem.outside)
    beta = torch.ones_like(problem.outside)
    floor = problem.samples * torch.finfo(torch.float64).eps  # a perfect fit has no noise: keep β finite
    for _ in range(LOGME_ROUNDS):
        before = alpha / beta
        effective = (problem.values / (before[:, None] + problem.values)).sum(1)
        misfit, size = _solution(problem, alpha, beta)
        beta = (problem.samples - effective).clamp(min=floor) / misfit.clamp(min=floor)
        alpha = torch.where(size > 0, effective / size, torch.inf)
        alpha = alpha.minimum(USELESS * largest * beta)  # features that say nothing want an infinite α
        if bool(((alpha / beta - before).abs() <= LOGME_TOLERANCE * before).all()):
            break
    return alpha, beta
