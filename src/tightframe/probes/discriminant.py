"""Probes of Gaussian classes, from ``ClassMoments`` alone: linear discriminant analysis and the nearest class mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import Head
from tightframe.metrics.factors import spectrum
from tightframe.metrics.folds import Folds
from tightframe.probes.results import PENALTIES, ProbeResult, held_out, judged


def lda(moments: ClassMoments, penalties: Sequence[float] = PENALTIES) -> list[Head]:
    """Linear discriminant analysis, one head a penalty, from the same eigendecomposition as ``ridge``.

    Gaussian classes of one covariance Σ_W + penalty · tr(Σ_T)/d · I, prior chances as in the sample. That matrix
    differs from the shrunk Σ_T by the K class means only, and is inverted through them (Woodbury).
    """
    whole, center = spectrum(moments, "sample"), moments.global_mean
    unit = float(whole.values.mean()) or 1.0
    means = whole.vectors.T @ (moments.means - center).T
    root = (moments.counts.double() / moments.samples).sqrt()
    heads = []
    for penalty in penalties:
        inverse = (1 / (whole.values + penalty * unit))[:, None]
        inner = root[:, None] * (means.T @ (inverse * means))
        towards = root[:, None] * _solved(torch.eye(len(inner)).to(inner) - inner * root, inner)
        weight = (whole.vectors @ (inverse * torch.addmm(means, means, towards))).T
        prior = (moments.counts.double() / moments.samples).log()  # −∞ for a class without samples
        bias = prior - ((moments.means - center) * weight).sum(1) / 2
        heads.append(Head(weight, bias - weight @ center))
    return heads


def _solved(core: Float64[Tensor, "k k"], wanted: Float64[Tensor, "k k"]) -> Float64[Tensor, "k k"]:
    """X of ``core`` X = ``wanted``, least squares where ``core`` is singular: classes have no spread at all then."""
    lower, failed = torch.linalg.cholesky_ex(core)
    pivots = lower.diagonal()
    if not failed and pivots.min() > 1e-4 * pivots.max():
        return torch.cholesky_solve(wanted, lower)
    return torch.linalg.lstsq(core, wanted, driver="gelsd" if core.is_cpu else None).solution


def nearest_center(moments: ClassMoments) -> Head:
    """The classifier that picks the nearest mean of a class that has samples, as a linear head."""
    center = moments.global_mean  # squared norms are taken around it: far offsets would cancel
    weight = moments.means - center
    bias = -weight.square().sum(1) / 2 - weight @ center
    return Head(weight, torch.where(moments.counts > 0, bias, -torch.inf))


def cross_validated_lda(folds: Folds, penalties: Sequence[float] = PENALTIES) -> ProbeResult:
    """Discriminant analysis with the penalty that classifies most held-out samples right; the larger one of equals."""
    heads = [lda(folds.rest(fold), penalties) for fold in range(len(folds.held))]
    tried = [held_out(folds, lambda fold, at=at: heads[fold][at]) for at in range(len(penalties))]  # type: ignore[misc]
    right = [int((predicted == folds.labels).sum()) for predicted in tried]
    best = max(range(len(penalties)), key=lambda at: (right[at], penalties[at]))
    return judged(folds, tried[best], lda(folds.total, penalties[best : best + 1])[0], penalties[best])


def cross_validated_center(folds: Folds) -> ProbeResult:
    """The nearest class mean, means being taken without the fold that is held out."""
    predicted = held_out(folds, lambda fold: nearest_center(folds.rest(fold)))
    return judged(folds, predicted, nearest_center(folds.total))
