"""Whether an image is like those that a model was trained on: "none of these classes" at a stated rate of false alarms.

Two things tell: the model is unsure between its classes, or what its head sees lies far from all it was trained on,
where a linear classifier is sure of anything. Either may raise half of the false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tightframe.decide.evidence import Evidence
from tightframe.errors import SettingsError


class Familiar(NamedTuple):
    """Where the features (n, d) lie that a model was trained on, layer by layer in their own spread.

    Attributes:
        center: their mean, (d,).
        factor: (d,), the same for all values of a layer: with it the mean squared distance is 1 in each.
        distances: of the training images from the center, (n,).
    """

    center: Tensor
    factor: Tensor
    distances: Tensor

    @classmethod
    def of(cls, features: Tensor, widths: Sequence[int]) -> Familiar:
        """Of features (n, d) that are those of layers with ``widths`` side by side."""
        center = features.mean(0)
        spreads = [part.square().sum(1).mean().sqrt() for part in (features - center).split(list(widths), 1)]
        factors = [float(1 / spread) if spread > 0 else 0.0 for spread in spreads]
        factor = torch.cat([torch.full((width,), one) for width, one in zip(widths, factors, strict=True)])
        return cls(center, factor, _distances(features, center, factor))

    def distances_of(self, features: Tensor) -> Tensor:
        """Of features (m, d) from the center, (m,)."""
        return _distances(features, self.center, self.factor)


def _distances(features: Tensor, center: Tensor, factor: Tensor) -> Tensor:
    return torch.linalg.vector_norm((features - center) * factor, dim=1)


def rejected(
    probabilities: np.ndarray, features: Tensor, evidence: Evidence, familiar: Familiar, false_alarms: float
) -> np.ndarray:
    """Which images (m,) are taken for none of the classes.

    Args:
        probabilities: of each class, (m, K).
        features: that the head sees, (m, d).
        evidence: what was predicted of training images held out.
        familiar: where training images lie.
        false_alarms: the share of images like those trained on that may be rejected.

    Raises:
        SettingsError: that share does not lie between 0 and 1.
    """
    if not 0 < false_alarms < 1:
        raise SettingsError(f"the share of false alarms (--reject) is {false_alarms:g}; it must lie between 0 and 1")
    sure = np.exp(evidence.log_probabilities.max(1))
    unsure = probabilities.max(1) < np.quantile(sure, false_alarms / 2)
    farthest = np.quantile(familiar.distances.numpy(), 1 - false_alarms / 2)
    return unsure | (familiar.distances_of(features).numpy() > farthest)
