"""Linear probes on frozen features: how well could a linear head do, and how sure is that.

Ridge regression and the nearest class mean come from ``ClassMoments`` alone. Training on all folds but one is a merge
of the other folds' moments, and one eigendecomposition serves the whole grid of penalties, so k-fold
cross-validation costs k small factorisations and one product with the held-out features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from scipy.stats import beta as beta_distribution
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments, as_tensor, check_samples
from tightframe.metrics.collapse import Head

PENALTIES = tuple(10.0**power for power in range(-6, 4))
"""Ridge penalties, as multiples of the mean eigenvalue of the features' covariance: no unit to choose."""


@dataclass(frozen=True)
class ProbeResult:
    """A cross-validated probe.

    Attributes:
        accuracy: share of samples classified right while held out.
        low, high: 95 % interval of ``accuracy`` (Clopper–Pearson: exact for independent samples).
        squared_error: mean over held-out samples of ‖one-hot − prediction‖², by which the penalty was chosen.
        penalty: the penalty chosen, an entry of the grid.
        correct: which samples were classified right while held out, shape (n,).
        head: the probe fitted to all samples at that penalty.
    """

    accuracy: float
    low: float
    high: float
    squared_error: float
    penalty: float
    correct: np.ndarray
    head: Head


def ridge(moments: ClassMoments, penalties: tuple[float, ...] = PENALTIES) -> list[Head]:
    """Ridge regression of one-hot targets with an intercept, one head a penalty, from one eigendecomposition.

    Each penalty is a multiple of the mean eigenvalue tr Σ_T / d, so results don't change with the features' scale.
    """
    spectrum, centre = moments.spectrum, moments.global_mean
    share = moments.counts.double() / moments.samples
    target = (moments.means - centre).T * share  # covariance of features and one-hot targets, (d, K)
    rotated = spectrum.vectors.T @ target
    unit = float(spectrum.values.mean()) or 1.0
    heads = []
    for penalty in penalties:
        shrunk = torch.where(spectrum.kept, 1 / (spectrum.values + penalty * unit), 0.0)
        weight = (spectrum.vectors @ (shrunk[:, None] * rotated)).T
        heads.append(Head(weight, share - weight @ centre))
    return heads


def nearest_centre(moments: ClassMoments) -> Head:
    """The classifier that picks the nearest mean of a class that has samples, as a linear head."""
    centre = moments.global_mean  # squared norms are taken around it: far offsets would cancel
    weight = moments.means - centre
    bias = -weight.square().sum(1) / 2 - weight @ centre
    return Head(weight, torch.where(moments.counts > 0, bias, -torch.inf))


def logistic(features: Any, labels: Any, classes: int, strength: float = 1.0) -> Head:
    """Multinomial logistic regression by scikit-learn, features scaled by one number to unit mean deviation.

    Args:
        features: shape (n, d).
        labels: integers, shape (n,).
        classes: K; a class without samples gets weight 0 and is never predicted.
        strength: scikit-learn's ``C``, the inverse of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression

    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    check_samples(as_tensor(features), as_tensor(labels), classes)
    present = np.unique(labels)
    if len(present) < 2:
        raise MeasureError(f"logistic regression needs samples of two classes or more, not {len(present)}")
    centre, scale = features.mean(0), float(features.std(0).mean()) or 1.0
    model = LogisticRegression(C=strength, max_iter=2000).fit((features - centre) / scale, labels)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(present) == 2:  # scikit-learn keeps one row for two classes
        coefficients, intercepts = np.vstack([-coefficients, coefficients]) / 2, np.r_[-intercepts, intercepts] / 2
    weight = np.zeros((classes, features.shape[1]))
    bias = np.full(classes, -np.inf if len(present) < classes else 0.0)
    weight[present] = coefficients / scale
    bias[present] = intercepts - weight[present] @ centre
    return Head(torch.from_numpy(weight), torch.from_numpy(bias))


def cross_validated_ridge(
    features: Any,
    labels: Any,
    classes: int,
    *,
    folds: int = 5,
    seed: int = 0,
    penalties: tuple[float, ...] = PENALTIES,
) -> ProbeResult:
    """Ridge probe with its penalty and its honest accuracy from stratified k-fold cross-validation.

    The penalty is chosen by held-out squared error, not by accuracy, so that choosing it hardly flatters the
    accuracy reported.

    Args:
        features: shape (n, d).
        labels: integers 0 … classes − 1, shape (n,).
        classes: K.
        folds: parts to hold out in turn; fewer when the smallest class has fewer samples (at least 2 are needed).
        seed: of the split into folds.
        penalties: the grid, see ``ridge``.
    """
    features, labels = as_tensor(features, dtype=torch.float64), as_tensor(labels)
    check_samples(features, labels, classes)
    rows, basis = compact(features)
    grid = tuple(penalty * rows.shape[1] / features.shape[1] for penalty in penalties)  # the mean is over d, not r
    labels = labels.long()
    assigned = fold_of(labels.numpy(), folds, seed)
    in_fold = [torch.from_numpy(np.flatnonzero(assigned == fold)) for fold in np.unique(assigned)]
    parts = [ClassMoments.from_features(rows[held], labels[held], classes) for held in in_fold]
    errors = torch.zeros(len(penalties), dtype=torch.float64)
    correct = torch.zeros(len(penalties), len(rows), dtype=torch.bool)
    targets = torch.eye(classes, dtype=torch.float64)[labels]
    for fold, held in enumerate(in_fold):
        rest = _merged([part for other, part in enumerate(parts) if other != fold])
        for index, head in enumerate(ridge(rest, grid)):
            predicted = head.logits(rows[held])
            errors[index] += (targets[held] - predicted).square().sum()
            correct[index, held] = predicted.argmax(1) == labels[held]
    best = int(errors.argmin())
    head = ridge(_merged(parts), (grid[best],))[0]
    right = int(correct[best].sum())
    return ProbeResult(
        right / len(rows),
        *interval(right, len(rows)),
        float(errors[best]) / len(rows),
        penalties[best],
        correct[best].numpy(),
        Head(head.weight @ basis.T, head.bias),
    )


def interval(right: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a proportion: ``right`` out of ``total``."""
    tail = (1 - level) / 2
    low = beta_distribution.ppf(tail, right, total - right + 1) if right else 0.0
    high = beta_distribution.isf(tail, right + 1, total - right) if right < total else 1.0
    return float(low), float(high)


def fold_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold (n,) of each sample: every class is dealt out in turn, after shuffling, so folds are stratified."""
    if folds < 2:
        raise MeasureError(f"cross-validation needs two folds or more, not {folds}")
    smallest = int(np.unique(labels, return_counts=True)[1].min(initial=len(labels)))
    folds = min(folds, smallest)
    if folds < 2:
        raise MeasureError("cross-validation needs at least two samples of every class; give more pictures")
    generator = np.random.default_rng(seed)
    assigned = np.empty(len(labels), dtype=np.int64)
    dealt = 0  # where one class stops the next goes on: sizes of folds differ by one at most
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        assigned[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return assigned


def compact(features: Float64[Tensor, "n d"]) -> tuple[Float64[Tensor, "n r"], Float64[Tensor, "d r"]]:
    """Features (n, r) in an orthonormal basis (d, r) of the span of the rows, r = min(n, d).

    Ridge predictions depend on inner products only, so for n < d they are the same in n dimensions, at a fraction of
    the cost.
    """
    samples, dimension = features.shape
    if samples >= dimension:
        return features, torch.eye(dimension, dtype=torch.float64)
    basis, _ = torch.linalg.qr(features.T)
    return features @ basis, basis


def _merged(parts: list[ClassMoments]) -> ClassMoments:
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total
