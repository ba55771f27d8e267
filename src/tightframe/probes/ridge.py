"""Ridge regression on one-hot targets, cross-validated over a grid of penalties.

Every penalty takes a Cholesky factorization of its own: ten of them are no slower than one eigendecomposition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import Head
from tightframe.metrics.factors import solved, total_covariance
from tightframe.metrics.folds import Folds
from tightframe.probes.results import PENALTIES, ProbeResult, held_out, judged


def ridge(moments: ClassMoments, penalties: Sequence[float] = PENALTIES) -> list[Head]:
    """Ridge regression of one-hot targets with an intercept, one head a penalty.

    Each penalty is a multiple of the mean eigenvalue tr Σ_T / d, so results don't change with the features' scale.
    """
    center, share = moments.global_mean, moments.counts.double() / moments.samples
    covariance = total_covariance(moments)
    cross = (moments.means - center).T * share  # covariance of features and one-hot targets, (d, K)
    unit = float(covariance.diagonal().mean()) or 1.0
    weights = [solved(covariance, penalty * unit, cross).T for penalty in penalties]
    return [Head(weight, share - weight @ center) for weight in weights]


def cross_validated_ridge(folds: Folds, penalties: Sequence[float] = PENALTIES) -> ProbeResult:
    """Ridge probe with its penalty and its held-out accuracy.

    The penalty is chosen by held-out squared error, not by accuracy, so that choosing it hardly flatters the
    accuracy reported. With fewer samples than dimensions all of it happens in the span of the samples.
    """
    narrow, _ = folds.compacted
    width = narrow.features.shape[1] / folds.features.shape[1]
    grid = [penalty * width for penalty in penalties]  # a penalty is a multiple of a mean over all d dimensions
    errors = ridge_errors(narrow, grid)
    best = int(errors.argmin())
    chosen = grid[best : best + 1]
    predicted = held_out(narrow, lambda fold: ridge(narrow.rest(fold), chosen)[0])
    return judged(folds, predicted, ridge(narrow.total, chosen)[0], penalties[best], float(errors[best]))


def ridge_errors(folds: Folds, penalties: Sequence[float] = PENALTIES) -> Float64[Tensor, " l"]:
    """Cross-validated mean of ‖one-hot − prediction‖² at each penalty, from the moments of the folds alone."""
    errors = [
        [_squared_error(head, part) for head in ridge(folds.rest(fold), penalties)]
        for fold, part in enumerate(folds.parts)
    ]
    return torch.tensor(errors, dtype=torch.float64).sum(0) / len(folds.labels)


def _squared_error(head: Head, moments: ClassMoments) -> float:
    """Sum over samples of ‖one-hot − prediction‖²: that of the class means, and the spread around them."""
    missed = torch.eye(moments.classes).to(head.weight) - head.logits(moments.means)
    spread = ((head.weight @ moments.scatter) * head.weight).sum()
    return float((moments.counts * missed.square().sum(1)).sum() + spread)
