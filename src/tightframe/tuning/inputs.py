"""Where training batches come from: pictures, normalised as they are needed, or features already computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tightframe.features.pixels import Pixels


@dataclass(frozen=True)
class PixelInputs:
    """Pictures as normalised float inputs (b, 3, height, width)."""

    pixels: Pixels

    def batches(self, order: np.ndarray | Sequence[int], size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Indices and inputs in the order given."""
        for indices, batch in self.pixels.batches(order, size):
            inputs = self.pixels.preprocessing.normalise(batch)
            yield indices, inputs.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class FeatureInputs:
    """Features (n, d) that the head sees, computed before.

    A tensor and not an array: PyTorch aligns its memory, on which the last bits of a product depend.
    """

    features: Tensor

    def batches(self, order: np.ndarray | Sequence[int], size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Indices and features (b, d) in the order given."""
        for start in range(0, len(order), size):
            indices = [int(i) for i in order[start : start + size]]
            yield indices, self.features[indices]
