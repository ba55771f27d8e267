"""What is tuned, and where that starts: how strong the skip connection is, and what the head says before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from tightframe.backbone import Backbone
from tightframe.features.taps import Pool
from tightframe.jobs.plan import Plan
from tightframe.metrics.folds import Folds
from tightframe.probes.logistic import cross_validated_logistic, logistic_path
from tightframe.tuning.methods import Method
from tightframe.tuning.surgery import TunableModel

USUAL = 1e-2
"""Strength (scikit-learn's ``C``) of a probe that none can be chosen for."""
UNSEEN = 10.0
"""By how much the bias of a class without images is below all others: it can still be learned."""


def model_of(
    backbone: Backbone, method: Method, block: str | None, classes: int, plan: Plan, pool: Pool
) -> TunableModel:
    """The model to be tuned, as the plan has it."""
    return TunableModel(backbone, method, block, classes, pool, plan.align, plan.scale, plan.warm(method))


def start_of(
    model: TunableModel, features: Mapping[str, np.ndarray], labels: np.ndarray
) -> Callable[[np.ndarray], None] | None:
    """Scale the skip connection by what features are before tuning; what puts the head where training starts.

    Args:
        model: not yet trained.
        features: of the training images, (n, d) by the name of the layer.
        labels: of them, (n,).

    Returns:
        What fits a probe to the images whose indices it is given; ``None`` where heads start from zeros.
    """
    parts = [torch.tensor(features[name]) for name in model.read]
    model.neck.rescale(parts)
    if not model.warm:
        return None
    with torch.no_grad():
        seen = model.neck(parts)
    heads: dict[bytes, tuple[Tensor, Tensor]] = {}

    def fit_probe(training: np.ndarray) -> None:
        known = training.tobytes()
        if known not in heads:
            heads[known] = _probe(seen[torch.from_numpy(training)], labels[training], model.head.out_features)
        with torch.no_grad():
            model.head.weight.copy_(heads[known][0])
            model.head.bias.copy_(heads[known][1])

    return fit_probe


def _probe(features: Tensor, labels: np.ndarray, classes: int) -> tuple[Tensor, Tensor]:
    """Weights and biases of a logistic regression, of usual strength where no class has two images to choose by."""
    if np.bincount(labels).max() > 1:
        head = cross_validated_logistic(Folds.of(features, labels, classes)).result.head
    else:
        head = logistic_path(features, torch.from_numpy(labels), classes, (USUAL,))[0]
    least = head.bias[head.bias.isfinite()].min() - UNSEEN
    return head.weight, head.bias.clamp(min=float(least))
