"""Which training images are most like an image in what the model's head sees: examples that a prediction rests on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tightframe.deploy.novelty import Familiar

VALUES = 128
"""Of each image's sketch: distances between sketches are those between features to about 6 %, whatever their number
(Achlioptas 2003)."""


class Neighbors(NamedTuple):
    """The n training images by name, and what the head sees of each, in fewer values.

    Attributes:
        names: n of them.
        sketches: (n, VALUES), float16: random sums and differences of the features, each layer in its own spread.
    """

    names: tuple[str, ...]
    sketches: Tensor

    @classmethod
    def of(cls, features: Tensor, familiar: Familiar, names: Sequence[str]) -> Neighbors:
        """Of features (n, d), whose place and spread ``familiar`` knows."""
        return cls(tuple(names), _sketched(features, familiar).half())

    def nearest(self, features: Tensor, familiar: Familiar, count: int) -> list[list[str]]:
        """Names of the ``count`` nearest of each of the features (m, d), the nearest first."""
        apart = torch.cdist(_sketched(features, familiar), self.sketches.float())
        order = apart.argsort(dim=1, stable=True)[:, :count]
        return [[self.names[index] for index in row] for row in order.tolist()]

    def packed(self) -> dict[str, Tensor]:
        """As tensors, to be saved."""
        text = json.dumps(self.names).encode()
        return {"names": torch.tensor(np.frombuffer(text, np.uint8)), "sketches": self.sketches}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor]) -> Neighbors:
        """What ``packed`` gave. Raises ``ValueError`` where it is damaged."""
        names = json.loads(tensors["names"].numpy().tobytes())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("names are no texts")
        if len(names) != len(tensors["sketches"]):
            raise ValueError(f"there are {len(names)} names")
        return cls(tuple(names), tensors["sketches"])


def _sketched(features: Tensor, familiar: Familiar) -> Tensor:
    signs = np.random.default_rng(0).random((features.shape[1], VALUES)) < 0.5
    directions = torch.from_numpy(np.where(signs, 1.0, -1.0).astype(np.float32)) / VALUES**0.5
    return (features - familiar.center) * familiar.factor @ directions
