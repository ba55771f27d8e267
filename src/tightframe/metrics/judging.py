"""Beyond accuracy: whether probabilities mean what they say, and how each class fares."""

from __future__ import annotations

from typing import Any

import torch

from tightframe.errors import MeasureError
from tightframe.features.moments import as_tensor

BINS = 15


def calibration_error(probabilities: Any, labels: Any, bins: int = BINS) -> float:
    """Expected calibration error: mean distance of confidence from accuracy over bins of equal width (Guo et al. 2017).

    Args:
        probabilities: of each class, shape (n, K), rows summing to 1.
        labels: integers, shape (n,).
        bins: of the largest probability, over 0 … 1; each counts by the samples in it.
    """
    probabilities, labels = as_tensor(probabilities).double(), as_tensor(labels)
    if probabilities.ndim != 2 or probabilities.shape[:1] != labels.shape or not len(labels):
        shapes = f"{tuple(probabilities.shape)} and {tuple(labels.shape)}"
        raise MeasureError(f"probabilities and labels have shapes {shapes}; give (n, K) and (n,), n above 0")
    if not bool(torch.isfinite(probabilities).all()) or bool(((probabilities.sum(1) - 1).abs() > 1e-3).any()):
        raise MeasureError("rows are not probabilities that sum to 1; take the softmax of logits first")
    confidence, said = probabilities.max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (0, 1/bins] is the first
    gap = confidence - (said == labels).double()
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, place.cpu(), gap.cpu()).abs().sum() / len(labels))


def per_class_accuracy(predicted: Any, labels: Any, classes: int) -> list[float | None]:
    """Share of each class's samples that were recognised, K of them; ``None`` for a class without samples."""
    predicted, labels = as_tensor(predicted), as_tensor(labels).long()
    right = torch.bincount(labels[predicted == labels], minlength=classes).tolist()
    counts = torch.bincount(labels, minlength=classes).tolist()
    return [hit / count if count else None for hit, count in zip(right, counts, strict=True)]
