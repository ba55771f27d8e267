"""Probes of Gaussian classes, from ``ClassMoments`` alone: linear discriminant analysis and the nearest class mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import Head
from tightframe.metrics.factors import solved
from tightframe.metrics.folds import Folds
from tightframe.probes.results import PENALTIES, ProbeResult, held_out, judged


def lda(moments: ClassMoments, penalties: Sequence[float] = PENALTIES) -> list[Head]:
    """Linear discriminant analysis, one head a penalty.

    Gaussian classes of one covariance Σ_W + penalty · tr(Σ_T)/d · I, prior probabilities as in the sample.
    """
    unit = float(moments.total_trace) / (moments.samples * moments.dimension) or 1.0
    within = moments.scatter / moments.samples
    return [discriminant(moments, within, penalty * unit) for penalty in penalties]


def discriminant(moments: ClassMoments, within: torch.Tensor, ridge: float) -> Head:
    """The linear discriminant of Gaussian classes with covariance ``within`` + ``ridge`` · I, (d, d)."""
    center = moments.global_mean  # all is taken around it: far offsets would cancel
    means = moments.means - center
    weight = solved(within, ridge, means.T).T
    prior = (moments.counts.double() / moments.samples).log()  # −∞ for a class without samples
    return Head(weight, prior - (means * weight).sum(1) / 2 - weight @ center)


def nearest_center(moments: ClassMoments) -> Head:
    """The classifier that picks the nearest mean of a class that has samples, as a linear head."""
    center = moments.global_mean
    weight = moments.means - center
    bias = -weight.square().sum(1) / 2 - weight @ center
    return Head(weight, torch.where(moments.counts > 0, bias, -torch.inf))


def cross_validated_lda(folds: Folds, penalties: Sequence[float] = PENALTIES) -> ProbeResult:
    """Discriminant analysis with the penalty that classifies most held-out samples right; the larger one of equals."""
    narrow, _ = folds.compacted
    width = narrow.features.shape[1] / folds.features.shape[1]
    grid = [penalty * width for penalty in penalties]
    heads = [lda(narrow.rest(fold), grid) for fold in range(len(narrow.held))]
    tried = [held_out(narrow, lambda fold, at=at: heads[fold][at]) for at in range(len(grid))]  # type: ignore[misc]
    right = [int((predicted == folds.labels).sum()) for predicted in tried]
    best = max(range(len(grid)), key=lambda at: (right[at], penalties[at]))
    return judged(folds, tried[best], lda(narrow.total, grid[best : best + 1])[0], penalties[best])


def cross_validated_center(folds: Folds) -> ProbeResult:
    """The nearest class mean, means being taken without the fold that is held out."""
    narrow, _ = folds.compacted
    predicted = held_out(narrow, lambda fold: nearest_center(narrow.rest(fold)))
    return judged(folds, predicted, nearest_center(narrow.total))
