"""Ridge regression on one-hot targets: a whole grid of penalties from one eigendecomposition, cross-validated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import Head
from tightframe.metrics.factors import EPS, spectrum, symmetric_eigen
from tightframe.metrics.folds import Folds, total_scatter
from tightframe.metrics.probes import PENALTIES, ProbeResult, held_out, judged


def ridge(moments: ClassMoments, penalties: Sequence[float] = PENALTIES) -> list[Head]:
    """Ridge regression of one-hot targets with an intercept, one head a penalty, from one eigendecomposition.

    Each penalty is a multiple of the mean eigenvalue tr Σ_T / d, so results don't change with the features' scale.
    """
    whole, centre = spectrum(moments, "sample"), moments.global_mean
    share = moments.counts.double() / moments.samples
    target = (moments.means - centre).T * share  # covariance of features and one-hot targets, (d, K)
    rotated = whole.vectors.T @ target
    unit = float(whole.values.mean()) or 1.0
    heads = []
    for penalty in penalties:
        shrunk = torch.where(whole.kept, 1 / (whole.values + penalty * unit), 0.0)
        weight = (whole.vectors @ (shrunk[:, None] * rotated)).T
        heads.append(Head(weight, share - weight @ centre))
    return heads


def cross_validated_ridge(folds: Folds, penalties: Sequence[float] = PENALTIES) -> ProbeResult:
    """Ridge probe with its penalty and its honest accuracy.

    The penalty is chosen by held-out squared error, not by accuracy, so that choosing it hardly flatters the
    accuracy reported. With fewer samples than dimensions all of it happens in the span of the samples.
    """
    narrow, basis = folds.compacted()
    width = narrow.features.shape[1] / folds.features.shape[1]
    grid = [penalty * width for penalty in penalties]  # a penalty is a multiple of a mean over all d dimensions
    errors = ridge_errors(narrow, grid)
    best = int(errors.argmin())
    predicted = held_out(narrow, lambda fold: _Rest(narrow, fold).head(grid[best]))
    head = ridge(narrow.total, grid[best : best + 1])[0]
    if basis is not None:
        head = Head(head.weight @ basis.T, head.bias)
    return judged(folds, predicted, head, penalties[best], float(errors[best]))


def ridge_errors(folds: Folds, penalties: Sequence[float] = PENALTIES) -> Float64[Tensor, " l"]:
    """Cross-validated mean of ‖one-hot − prediction‖² at each penalty, from the moments of the folds alone."""
    summed = torch.stack([_Rest(folds, fold).errors(penalties) for fold in range(len(folds.parts))]).sum(0)
    return summed / sum(part.samples for part in folds.parts)


class _Rest:
    """All samples but one fold, and what ridge regression on them makes of that fold."""

    def __init__(self, folds: Folds, fold: int):
        total, part = folds.total, folds.parts[fold]
        origin = total.global_mean  # all is taken around it: it can't cancel
        self.counts = total.counts - part.counts
        self.samples, self.held = int(self.counts.sum()), part.samples
        self.share = self.counts.double() / self.samples
        self.held_counts = part.counts.double()
        away = part.global_mean - origin
        mean = -away * (self.held / self.samples)
        self.centre, self.gap = origin + mean, away - mean  # of the rest; from there to the fold's own mean
        self.held_scatter = total_scatter(part)
        lost = self.held_scatter + (self.held * self.samples / total.samples) * torch.outer(self.gap, self.gap)
        self.scatter = folds.total_scatter - lost
        sums = total.counts[:, None] * (total.means - origin) - part.counts[:, None] * (part.means - origin)
        self.cross = (sums - self.counts[:, None] * mean).T / self.samples  # of features and one-hot targets, (d, K)
        held_sums = part.counts[:, None] * (part.means - self.centre)
        self.held_cross = held_sums.T - self.held * torch.outer(self.gap, self.share)

    def head(self, penalty: float) -> Head:
        covariance = self.scatter / self.samples
        covariance.diagonal().add_(penalty * (float(covariance.diagonal().mean()) or 1.0))
        weight = torch.linalg.solve(covariance, self.cross).T
        return Head(weight, self.share - weight @ self.centre)

    def errors(self, penalties: Sequence[float]) -> Float64[Tensor, " l"]:
        """Sum over the fold of ‖one-hot − prediction‖² at each penalty.

        In the eigenbasis, weights at a penalty are the rows of ``cross`` shrunk each by its own factor g, so the error
        is a quadratic form in g whose matrix is made once.
        """
        values, vectors = symmetric_eigen(self.scatter / self.samples)
        values = values.clamp(min=0)
        values[: max(0, len(values) - (self.samples - 1))] = 0
        kept = values > values[-1] * len(values) * EPS
        rotated = vectors.T @ self.cross
        spread = vectors.T @ (torch.addmm(self.held_scatter, self.gap[:, None] * self.held, self.gap[None])) @ vectors
        quadratic = spread.mul_(rotated @ rotated.T)
        linear = (rotated * (vectors.T @ self.held_cross)).sum(1)
        constant = (self.held_counts * (1 - 2 * self.share)).sum() + self.held * self.share.square().sum()
        unit = float(values.mean()) or 1.0
        shrunk = torch.stack([torch.where(kept, 1 / (values + penalty * unit), 0.0) for penalty in penalties])
        return constant - 2 * shrunk @ linear + ((shrunk @ quadratic) * shrunk).sum(1)
