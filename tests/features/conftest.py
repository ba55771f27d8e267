"""A model of two blocks that counts its passes, and images that count how often they are decoded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import cloudpickle
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tightframe.backbone import PENULTIMATE, Backbone, Layer, Preprocessing
from tightframe.errors import BadImage
from tightframe.images import Images

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tests are not installed where workers could find them


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.second = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 5)
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.head(torch.relu(self.second(torch.relu(self.first(images)))).mean((2, 3)))


@dataclass(frozen=True)
class Noise:
    """An image of noise; a bad one can't be decoded. Attempts are noted down in ``decoded``, by index."""

    index: int
    seed: int
    bad: bool
    decoded: list[int]

    @property
    def name(self) -> str:
        return f"noise{self.index}.png"

    def digest(self) -> str:
        return f"{self.index} {self.seed}"

    def open(self) -> Image.Image:
        self.decoded.append(self.index)
        if self.bad:
            raise BadImage(self.name, "it is noise")
        generator = np.random.default_rng((self.seed, self.index))
        return Image.fromarray(generator.integers(0, 256, (14, 12, 3), dtype=np.uint8))


@pytest.fixture
def noise() -> Callable[..., Images]:
    def make(count: int = 11, seed: int = 0, bad: tuple[int, ...] = ()) -> Images:
        decoded: list[int] = []
        items = tuple(Noise(index, seed, index in bad, decoded) for index in range(count))
        return Images("noise/train", ("a", "b", "c"), np.arange(count) % 3, items)

    return make


@pytest.fixture
def model() -> Callable[..., Backbone]:
    def make(seed: int = 0, crop_pct: float = 1.0, layers: tuple[Layer, ...] = ()) -> Backbone:
        torch.manual_seed(seed)
        return Backbone(
            name="net",
            module=Net().eval().requires_grad_(False),
            preprocessing=Preprocessing((10, 10), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct),
            layers=layers or (Layer("first", "map", 4, 112), Layer("second", "map", 6, 222)),
            penultimate=Layer(PENULTIMATE, "vector", 6, 0),
            head="head",
        )

    return make
