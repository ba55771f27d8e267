"""Linear probes from ``ClassMoments`` alone, cross-validated: ridge regression, discriminant analysis, class means.

All penalties share one factorization of a covariance: see ``solving``. With fewer samples than dimensions all of it
happens in the span of the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.features.moments import ClassMoments, mirrored
from tightframe.metrics.collapse import Head
from tightframe.metrics.factors import total_covariance
from tightframe.metrics.folds import Folds, Part
from tightframe.probes.results import PENALTIES, ProbeResult, held_out, judged
from tightframe.probes.solving import COLUMNS, Quadratic, solutions, solved


def ridge(moments: ClassMoments, penalties: Sequence[float] = PENALTIES) -> list[Head]:
    """Ridge regression of one-hot targets with an intercept, one head a penalty.

    Each penalty is a multiple of the mean eigenvalue tr Σ_T / d, so results don't change with the features' scale.
    """
    return list(_Regression.of(moments).heads(penalties))


class _Regression(NamedTuple):
    """Covariance of all features, theirs with one-hot targets, the mean of these and of features; to be read once.

    ``unit`` is the mean eigenvalue of the covariance, which is overwritten when heads or errors are made of it.
    """

    covariance: Float64[Tensor, "d d"]
    cross: Float64[Tensor, "d k"]
    share: Float64[Tensor, " k"]
    center: Float64[Tensor, " d"]
    unit: float

    @classmethod
    def of(cls, moments: ClassMoments, overwrite: bool = False) -> _Regression:
        share, center = moments.counts.double() / moments.samples, moments.global_mean
        covariance = total_covariance(moments, overwrite=overwrite)
        unit = float(covariance.diagonal().mean()) or 1.0
        return cls(covariance, (moments.means - center).T * share, share, center, unit)

    def heads(self, penalties: Sequence[float]) -> Iterator[Head]:
        """One for each penalty."""
        for found in solutions(self.covariance, self.ridges(penalties), self.cross):
            yield Head(found.T, self.share - self.center @ found)

    def ridges(self, penalties: Sequence[float]) -> list[float]:
        """Penalties in units of the features."""
        return [float(penalty) * self.unit for penalty in penalties]

    def squared_errors(self, part: Part, penalties: Sequence[float]) -> list[float]:
        """Sum over samples of ``part`` of ‖one-hot − prediction‖², at each penalty."""
        classes, dimension = part.means.shape
        if not Quadratic.pays(classes, dimension, len(penalties)):
            return [error for heads in _some(self.heads(penalties), classes) for error in _squared_errors(heads, part)]
        missed = torch.eye(classes).to(self.share) - self.share  # by the mean of targets alone, (K, K)
        means = part.means - self.center
        weighted = means.T * part.counts
        around = weighted @ means  # second moments of the part around the center of the rest
        part.add_to(around)
        found = Quadratic.of(self.covariance, self.cross).at(
            self.ridges(penalties), mirrored(around), weighted @ missed
        )
        fixed = float((part.counts * missed.square().sum(1)).sum())
        return [fixed + one for one in found]


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
    predicted = held_out(narrow, lambda fold: next(_Regression.of(narrow.rest(fold), overwrite=True).heads(chosen)))
    return judged(folds, predicted, ridge(narrow.total, chosen)[0], penalties[best], float(errors[best]))


def ridge_errors(folds: Folds, penalties: Sequence[float] = PENALTIES) -> Float64[Tensor, " l"]:
    """Cross-validated mean of ‖one-hot − prediction‖² at each penalty, from the moments of the folds alone."""
    errors = [
        _Regression.of(folds.rest(fold), overwrite=True).squared_errors(part, penalties)
        for fold, part in enumerate(folds.parts)
    ]
    return torch.tensor(errors, dtype=torch.float64).sum(0) / len(folds.labels)


def _some(heads: Iterator[Head], classes: int) -> Iterator[list[Head]]:
    while some := list(islice(heads, max(1, COLUMNS // classes))):
        yield some


def _squared_errors(heads: list[Head], part: Part) -> list[float]:
    """Sum over samples of ‖one-hot − prediction‖² by each head: that of the class means, and the spread around them."""
    spreads = part.spread(torch.cat([head.weight for head in heads])).view(len(heads), -1).sum(1).tolist()
    unit = torch.eye(len(part.counts)).to(part.means)
    missed = [(unit - head.logits(part.means)).square().sum(1) for head in heads]
    return [float(part.counts.double() @ one) + spread for one, spread in zip(missed, spreads, strict=True)]


def lda(moments: ClassMoments, penalties: Sequence[float] = PENALTIES) -> list[Head]:
    """Linear discriminant analysis, one head a penalty.

    Gaussian classes of one covariance Σ_W + penalty · tr(Σ_T)/d · I, prior probabilities as in the sample.
    """
    unit = float(moments.total_trace) / (moments.samples * moments.dimension) or 1.0
    ridges, means = [penalty * unit for penalty in penalties], moments.means - moments.global_mean
    found = solutions(moments.scatter / moments.samples, ridges, means.T)
    return [_discriminant(moments, weight.T) for weight in found]


def discriminant(moments: ClassMoments, within: Float64[Tensor, "d d"], ridge: float) -> Head:
    """The linear discriminant of Gaussian classes with covariance ``within`` + ``ridge`` · I, (d, d)."""
    return _discriminant(moments, solved(within, ridge, (moments.means - moments.global_mean).T).T)


def _discriminant(moments: ClassMoments, weight: Float64[Tensor, "k d"]) -> Head:
    center = moments.global_mean  # all is taken around it: far offsets would cancel
    means = moments.means - center
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
