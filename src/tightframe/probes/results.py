"""What comes of a cross-validated probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta as beta_distribution
from scipy.stats import t as student
from torch import Tensor

from tightframe.features.moments import CHUNK, work_type
from tightframe.metrics.collapse import Head
from tightframe.metrics.folds import Folds

PENALTIES = tuple(10.0**power for power in range(-6, 4))
"""Penalties of ridge regression and discriminant analysis, as multiples of the mean eigenvalue of the features'
covariance: no unit to choose."""


@dataclass(frozen=True)
class ProbeResult:
    """A cross-validated probe.

    Attributes:
        accuracy: share of samples classified right while held out.
        low, high: 95 % interval of ``accuracy`` (Clopper–Pearson: exact for independent samples).
        penalty: the penalty chosen, an entry of the grid.
        predicted: the class given to each sample while it was held out, shape (n,).
        correct: whether that was right, shape (n,).
        head: the probe fitted to all samples at that penalty.
        squared_error: mean over held-out samples of ‖one-hot − prediction‖², where the penalty was chosen by it.
    """

    accuracy: float
    low: float
    high: float
    penalty: float
    predicted: np.ndarray
    correct: np.ndarray
    head: Head
    squared_error: float | None = None


def held_out(folds: Folds, head_without: Callable[[int], Head]) -> Tensor:
    """The class (n,) given to each sample by the head that was fitted without its fold.

    Logits are made around the mean of all samples, so that features' own precision is enough wherever they lie.
    """
    predicted = torch.empty_like(folds.labels)
    origin = folds.total.global_mean.to(work_type(folds.features))
    for fold, held in enumerate(folds.held):
        head = head_without(fold)
        weight, bias = head.weight.T.to(origin.dtype), head.logits(origin[None]).to(origin.dtype)
        for rows in held.split(CHUNK):
            centered = folds.features[rows].to(origin.dtype).sub_(origin)
            predicted[rows] = torch.addmm(bias, centered, weight).argmax(1)
    return predicted


def judged(
    folds: Folds, predicted: Tensor, head: Head, penalty: float = 0.0, squared_error: float | None = None
) -> ProbeResult:
    """Held-out predictions (n,) with their accuracy and its interval.

    A ``head`` fitted to ``folds.compacted`` is brought back to the features' own d dimensions.
    """
    _, basis = folds.compacted
    if basis is not None and head.weight.shape[1] == basis.shape[1]:
        head = Head(head.weight @ basis.T, head.bias)
    correct = predicted == folds.labels
    low, high = interval(int(correct.sum()), len(correct))
    accuracy, right = float(correct.double().mean()), correct.cpu().numpy()
    return ProbeResult(accuracy, low, high, penalty, predicted.cpu().numpy(), right, head, squared_error)


def student_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean, infinite for one value."""
    if len(values) < 2:
        return -math.inf, math.inf
    middle = float(np.mean(values))
    half = float(student.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return middle - half, middle + half


def interval(right: int | float, total: int | float, level: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a proportion: ``right`` out of ``total``, which need not be whole numbers."""
    tail = (1 - level) / 2
    low = beta_distribution.ppf(tail, right, total - right + 1) if right else 0.0
    high = beta_distribution.isf(tail, right + 1, total - right) if right < total else 1.0
    return float(low), float(high)
