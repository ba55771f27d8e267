"""Beyond accuracy: whether probabilities mean what they say, and how each class fares."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float64, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from tightframe.errors import MeasureError
from tightframe.features.samples import as_tensor, check_samples

BINS = 15
LEAST_LOG = -27.6
"""log 1e-12: the least log-probability that a held-out class counts with."""
NEVER = -1e4
"""Logit of a class that can't be: one without images."""
SPREADS = (0.05, 50.0)
"""Standard deviations of logits over classes between which factors of scores are looked for: with less, which class is
ahead would be lost in rounding."""
SUM_TOLERANCE = 1e-3


def calibration_error(probabilities: Any, labels: Any, bins: int = BINS) -> float:
    """Expected calibration error: mean distance of confidence from accuracy over bins of equal width (Guo et al. 2017).

    Args:
        probabilities: of each class, shape (n, K), rows summing to 1.
        labels: integers, shape (n,).
        bins: of the largest probability, over 0 … 1; each counts by the samples in it.

    Raises:
        MeasureError: rows are no probabilities, labels no integers 0 … K − 1, or there is no bin.
    """
    probabilities, labels = as_tensor(probabilities).double(), as_tensor(labels)
    if probabilities.ndim != 2 or probabilities.shape[:1] != labels.shape or not len(labels):
        shapes = f"{tuple(probabilities.shape)} and {tuple(labels.shape)}"
        raise MeasureError(f"probabilities and labels have shapes {shapes}; give (n, K) and (n,), n above 0")
    wrong = (probabilities < 0).any() | ((probabilities.sum(1) - 1).abs() > SUM_TOLERANCE).any()
    if not bool(torch.isfinite(probabilities).all()) or bool(wrong):
        raise MeasureError("rows are not probabilities that sum to 1; take the softmax of logits first")
    check_samples(probabilities, labels, probabilities.shape[1])
    if bins < 1:
        raise MeasureError(f"{bins} bins hold no samples; give one or more, {BINS} are usual")
    labels = labels.to(probabilities.device)
    confidence, said = probabilities.max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (0, 1/bins] is the first
    gap = confidence - (said == labels).double()
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, place.cpu(), gap.cpu()).abs().sum() / len(labels))


def temperature(
    scores: Float64[Tensor, "n k"], labels: Int64[Tensor, " n"], prior: Float64[Tensor, " k"] | None = None
) -> float:
    """The factor of ``scores`` with the least log loss: temperature scaling (Guo et al. 2017), as its inverse.

    One more image, of no class, is counted in: images that are all told apart would else be told apart beyond doubt.

    Args:
        scores: of held-out samples, (n, K); logits are ``factor * scores + prior``.
        labels: integers (n,).
        prior: log-probabilities (K,) of the classes, ``NEVER`` for one that can't be; 0 by default.
    """
    before = torch.zeros(scores.shape[1], dtype=torch.float64) if prior is None else prior
    spread = float(scores[:, before > NEVER].std(1).mean())
    if not spread > 0:
        return 1.0

    def loss(power: float) -> float:
        said = (math.exp(power) * scores + before).log_softmax(1)
        return float(functional.nll_loss(said, labels) - said[:, before > NEVER].mean() / len(labels))

    bounds = tuple(math.log(wanted / spread) for wanted in SPREADS)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3})
    return math.exp(found.x)


def per_class_accuracy(predicted: Any, labels: Any, classes: int) -> list[float | None]:
    """Share of each class's samples that were recognized, K of them; ``None`` for a class without samples.

    Raises:
        MeasureError: predictions (n,) and labels (n,) are not integers 0 … classes − 1, as many of each.
    """
    predicted, labels = as_tensor(predicted), as_tensor(labels)
    for given in (predicted, labels):
        check_samples(torch.zeros(()).expand(len(labels), 0), given, classes)
    labels = labels.long()
    right = torch.bincount(labels[predicted == labels], minlength=classes).tolist()
    counts = torch.bincount(labels, minlength=classes).tolist()
    return [hit / count if count else None for hit, count in zip(right, counts, strict=True)]
