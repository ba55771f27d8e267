"""Where training starts: how strong the skip connection is, and what the head says before anything is tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from tightframe.metrics.folds import Folds
from tightframe.metrics.logistic_probe import cross_validated_logistic
from tightframe.tuning.surgery import TunableNetwork


def start_of(
    network: TunableNetwork, features: Mapping[str, np.ndarray], labels: np.ndarray
) -> Callable[[np.ndarray], None] | None:
    """Scale the skip connection by what features are before tuning; what puts the head where training starts.

    Args:
        network: not yet trained.
        features: of the training pictures, (n, d) by the name of the layer.
        labels: of them, (n,).

    Returns:
        What fits a probe to the pictures whose indices it is given; ``None`` where heads start from zeros.
    """
    parts = [torch.tensor(features[name]) for name in network.read]
    network.neck.rescale(parts)
    if not network.warm:
        return None
    with torch.no_grad():
        seen = network.neck(parts)
    heads: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}

    def fit_probe(training: np.ndarray) -> None:
        known = training.tobytes()
        if known not in heads:
            folds = Folds.of(seen[torch.from_numpy(training)], labels[training], network.head.out_features)
            head = cross_validated_logistic(folds).result.head
            heads[known] = head.weight, head.bias
        with torch.no_grad():
            network.head.weight.copy_(heads[known][0])
            network.head.bias.copy_(heads[known][1])

    return fit_probe
