"""Where training batches come from: images, made ready as they are needed, or what was computed from them before.

Either way a batch is asked for by indices of images and, for each, which view of it; view 0 is the image as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from tightframe.features.pixels import Pixels
from tightframe.features.precision import CPU, sent

ANY_NUMBER = 2**31
"""Of views, where they are made as they are needed."""


@runtime_checkable
class Views(Protocol):
    """What makes views of images."""

    def of(self, images: Tensor, indices: Sequence[int], views: np.ndarray, /) -> Tensor:
        """Of images (b, 3, h, w) in bytes, known by their ``indices``, the views (b,) asked for."""
        ...


@dataclass(frozen=True)
class PixelInputs:
    """Images as normalized float inputs (b, 3, height, width), made of their bytes where the model runs."""

    pixels: Pixels
    augment: Views | None = None
    device: torch.device = CPU

    @property
    def views(self) -> int:
        """How many there are of each image."""
        return ANY_NUMBER if self.augment else 1

    def batches(
        self, order: np.ndarray | Sequence[int], size: int, views: np.ndarray | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Indices and inputs in the order given, of the views given for each."""
        at = 0
        for indices, images in self.pixels.batches(order, size):
            batch = sent(images, self.device)
            if self.augment is not None and views is not None:
                batch = self.augment.of(batch, indices, views[at : at + len(indices)])
            at += len(indices)
            inputs = self.pixels.preprocessing.normalize(batch)
            yield indices, inputs.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class KeptInputs:
    """What goes into a part of the model for each of n images in each of its views: batches to train that part on.

    Attributes:
        values: shape (views · n, …), view by view, with channels last for maps.
        maps: whether they are maps, which the model wants as (b, d, height, width).
        views: of each image.
    """

    values: Tensor
    maps: bool = False
    views: int = 1

    @property
    def bytes(self) -> int:
        """That they take."""
        return self.values.numel() * self.values.element_size()

    def batches(
        self, order: np.ndarray | Sequence[int], size: int, views: np.ndarray | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Indices and float32 inputs in the order given, of the views given for each."""
        count = len(self.values) // self.views
        for start in range(0, len(order), size):
            indices = [int(i) for i in order[start : start + size]]
            rows = np.asarray(indices) + (0 if views is None else count * views[start : start + size])
            batch = self.values[torch.from_numpy(rows)].float()
            yield indices, batch.permute(0, 3, 1, 2) if self.maps else batch
