"""What features are worth, in three numbers."""

from __future__ import annotations

import numpy as np

from tightframe.metrics.collapse import nc1
from tightframe.metrics.folds import Folds
from tightframe.probes.linear import cross_validated_ridge
from tightframe.row import Row


def probed(
    features: np.ndarray, labels: np.ndarray, unseen: np.ndarray, unseen_labels: np.ndarray, classes: int
) -> Row:
    """``nc1`` and cross-validated ``probe_accuracy`` of features (n, d), and ``test_accuracy`` of the ridge probe.

    Args:
        features: of training images.
        labels: integers (n,) in 0 … ``classes`` − 1.
        unseen: features (m, d) of test images.
        unseen_labels: likewise (m,).
        classes: K.
    """
    folds = Folds.of(features, labels, classes)
    probe = cross_validated_ridge(folds)
    return {
        "nc1": nc1(folds.total),
        "probe_accuracy": probe.accuracy,
        "test_accuracy": probe.head.accuracy(unseen, unseen_labels),
    }
