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

from tightframe.features.moments import CHUNK_BYTES, work_type
from tightframe.features.samples import group_numbers
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
        low, high: 95 % interval of ``accuracy`` (Clopper–Pearson: exact for independent samples; over groups where
            samples have any: see ``accuracy_interval``).
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
        for rows in held.split(max(1, CHUNK_BYTES // (4 * folds.features.shape[1] + 1))):
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
    accuracy, right = float(correct.double().mean()), correct.cpu().numpy()
    low, high = accuracy_interval(right, folds.groups)
    return ProbeResult(accuracy, low, high, penalty, predicted.cpu().numpy(), right, head, squared_error)


def student_interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95, groups: np.ndarray | None = None
) -> tuple[float, float]:
    """Student's t interval of a mean, infinite for one value; see ``standard_error``."""
    error, freedom = standard_error(values, groups)
    if not freedom:
        return -math.inf, math.inf
    middle, half = float(np.mean(values)), float(student.ppf((1 + level) / 2, freedom) * error)
    return middle - half, middle + half


def standard_error(values: Sequence[float] | np.ndarray, groups: np.ndarray | None = None) -> tuple[float, int]:
    """Standard error of a mean, and its degrees of freedom; infinite and 0 for one value.

    Where values belong to ``groups`` (n,), only these count as independent: the variance is the jackknife's over
    groups (CR3 of Bell, McCaffrey 2002), and there are as many degrees of freedom as groups but one.
    """
    numbers = group_numbers(groups, len(values))
    if len(values) < 2 or (numbers is not None and numbers.max() < 1):
        return math.inf, 0
    if numbers is None:
        return float(np.std(values, ddof=1) / math.sqrt(len(values))), len(values) - 1
    sums, freedom = np.bincount(numbers, np.asarray(values) - float(np.mean(values))), int(numbers.max())
    moved = sums / (len(values) - np.bincount(numbers))  # by how much the mean falls without each group
    return math.sqrt(freedom / (freedom + 1) * float(np.square(moved).sum())), freedom


def accuracy_interval(correct: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of an accuracy, by what was right, (n,): Clopper–Pearson, of as many samples as say so much alone.

    These are n, or, where samples belong to ``groups`` (n,), fewer: see ``independent``.
    """
    right, total = int(correct.sum()), independent(correct, groups)
    return interval(right if total == len(correct) else right / len(correct) * total, total)


def independent(correct: np.ndarray, groups: np.ndarray | None = None) -> int | float:
    """How many independent samples would tell as much of an accuracy as these (n,), which belong to ``groups`` (n,).

    It is n over the design effect (Kish 1965): the variance of the accuracy over groups, in units of what it would be
    without groups. Where few samples are wrong, nothing tells whether those of a group are wrong together. So two
    groups of mean size, one right and one wrong, are added to find it (Agresti, Coull 1998): with few mistakes or
    groups a group counts as little more than one sample, and intervals hold the truth in 94 to 100 % of cases.
    """
    numbers = group_numbers(groups, len(correct))
    if numbers is None:
        return len(correct)
    sizes, right = np.bincount(numbers).astype(float), np.bincount(numbers, np.asarray(correct, float))
    mean = float(sizes.mean())
    sizes, right = np.append(sizes, [mean, mean]), np.append(right, [mean, 0.0])
    accuracy = right.sum() / sizes.sum()
    count, squares = len(sizes), float(np.square(right - accuracy * sizes).sum())
    effect = count / (count - 1) * squares / (sizes.sum() * accuracy * (1 - accuracy))
    return len(correct) / max(float(effect), 1.0)


def interval(right: int | float, total: int | float, level: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a proportion: ``right`` out of ``total``, which need not be whole numbers."""
    tail = (1 - level) / 2
    low = beta_distribution.ppf(tail, right, total - right + 1) if right else 0.0
    high = beta_distribution.isf(tail, right + 1, total - right) if right < total else 1.0
    return float(low), float(high)
