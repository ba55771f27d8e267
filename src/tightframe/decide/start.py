"""The model that is tuned, and where its training starts: the skip connection's scale and the head's first weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from tightframe.backbone import Backbone
from tightframe.features.precision import likely_precision
from tightframe.features.workspace import Workspace
from tightframe.metrics.folds import Folds, can_hold_out
from tightframe.probes.logistic import cross_validated_logistic, logistic_path
from tightframe.tuning.config import TrainConfig
from tightframe.tuning.methods import Method
from tightframe.tuning.surgery import TunableModel

USUAL_STRENGTH = 1e-2
"""Strength (scikit-learn's ``C``) of a probe where too few images leave none to choose it by."""
UNSEEN = 10.0
"""By how much the bias of a class without images is below all others: it can still be learned."""


def model_of(
    backbone: Backbone, method: Method, block: str | None, classes: int, config: TrainConfig, workspace: Workspace
) -> TunableModel:
    """The model to be tuned, as the configuration asks for it."""
    return TunableModel(
        backbone, method, block, classes, workspace.pool, config.align, config.skip_scale, config.from_probe(method)
    )


def tuning_precision(model: TunableModel, workspace: Workspace) -> str:
    """The precision in which ``model`` is trained."""
    return likely_precision(model.base, workspace.device, workspace.precision)


def start_of(
    model: TunableModel, features: Mapping[str, np.ndarray], labels: np.ndarray, groups: np.ndarray | None = None
) -> Callable[[np.ndarray], None] | None:
    """Scale the skip connection by the features before tuning; what puts the head where training starts.

    Args:
        model: not yet trained.
        features: of the training images, (n, d) by layer.
        labels: of them, (n,).
        groups: of them, (n,), or ``None``: no fold by which a probe's strength is chosen parts one.

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
            among = None if groups is None else groups[training]
            heads[known] = _probe(seen[torch.from_numpy(training)], labels[training], model.head.out_features, among)
        with torch.no_grad():
            model.head.weight.copy_(heads[known][0])
            model.head.bias.copy_(heads[known][1])

    return fit_probe


def _probe(features: Tensor, labels: np.ndarray, classes: int, groups: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Weights and biases of a logistic regression, of usual strength where nothing can be held out to choose it by."""
    if can_hold_out(labels, groups):
        head = cross_validated_logistic(Folds.of(features, labels, classes, groups=groups)).result.head
    else:
        head = logistic_path(features, torch.from_numpy(labels), classes, (USUAL_STRENGTH,))[0]
    least = head.bias[head.bias.isfinite()].min() - UNSEEN
    return head.weight, head.bias.clamp(min=float(least))
