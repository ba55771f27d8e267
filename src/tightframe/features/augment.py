"""Views: an image and random changes of it, each known by a number.

View 0 is the image as it is. Any other depends on (seed, image, view) only, so that views can be kept and training that
is resumed sees the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from tightframe.errors import SettingsError

Augmentation = Literal["none", "flip", "crop", "randaugment"]
SMALLEST_CROP = 0.35
"""Smallest share of the area that a crop keeps."""


@dataclass(frozen=True)
class Augment:
    """Views for tuning: ``flip`` mirrors half of them, ``crop`` also keeps 35 to 100 % of the area, and ``randaugment``
    also makes two random changes of color or shape (Cubuk et al., NeurIPS 2020).
    """

    kind: str
    seed: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(Augmentation):
            raise SettingsError(f'no augmentation "{self.kind}"; choose {", ".join(get_args(Augmentation))}')

    def __call__(self, image: UInt8[Tensor, "3 h w"], index: int, view: int) -> UInt8[Tensor, "3 h w"]:
        """View ``view`` of image ``index``."""
        if view == 0 or self.kind == "none":
            return image
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(_random(self.seed, index, view).integers(2**62)))
            return _steps(self.kind, tuple(image.shape[1:]))(image)

    def of(self, images: UInt8[Tensor, "b 3 h w"], indices: Sequence[int], views: np.ndarray) -> Tensor:
        """The views of a batch, as ``Views.of``."""
        seen = zip(images, indices, views.tolist(), strict=True)
        return torch.stack([self(image, index, view) for image, index, view in seen])


def _random(seed: int, index: int, view: int) -> np.random.Generator:
    """The generator of all random choices of one view."""
    return np.random.default_rng((seed, index, view))


def _steps(kind: str, size: tuple[int, ...]) -> v2.Compose:
    steps: list[v2.Transform] = [v2.RandomHorizontalFlip()]
    if kind in ("crop", "randaugment"):
        steps.append(v2.RandomResizedCrop(size, scale=(SMALLEST_CROP, 1.0), antialias=True))
    if kind == "randaugment":
        steps.append(v2.RandAugment())
    return v2.Compose(steps)


@dataclass(frozen=True)
class Distort:
    """Crop, flip and color changed as contrastive learning does (Chen et al., ICML 2020), all scaled by one number.

    At ``strength`` 1 a crop keeps 8 to 100 % of the area at 3 : 4 to 4 : 3 of its shape, brightness, contrast and
    saturation change by up to 80 %, and a fifth of the images turn gray; at 0 nothing happens, at ½ half of that. A
    flip is one half of the time at any strength above 0. Whole batches are changed at once: for small images,
    ``torchvision.transforms``, image by image, takes 25 times as long.
    """

    strength: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise SettingsError(f"augmentation of strength {self.strength:g}: choose a number from 0 to 1")

    def of(self, images: UInt8[Tensor, "b 3 h w"], indices: Sequence[int], views: np.ndarray) -> Tensor:
        """The views of a batch, as ``Views.of``."""
        changed = views != 0
        if not self.strength or not changed.any():
            return images
        drawn = [_random(self.seed, *of).random(9) for of in zip(indices, views.tolist(), strict=True)]
        luck = torch.from_numpy(np.stack(drawn))
        seen = self._colored(self._cropped(images.float() / 255, luck[:, :5]), luck[:, 5:])
        seen = (seen * 255).round().clamp(0, 255).to(torch.uint8)
        return torch.where(torch.from_numpy(changed).to(seen.device).view(-1, 1, 1, 1), seen, images)

    def _cropped(self, images: Float[Tensor, "b 3 h w"], luck: Float64[Tensor, "b 5"]) -> Float[Tensor, "b 3 h w"]:
        """A part of each image at the size of the whole, flipped or not."""
        area = 1 - 0.92 * self.strength * luck[:, 0]
        aspect = torch.exp(math.log(4 / 3) * self.strength * (2 * luck[:, 1] - 1))
        height, width = (area / aspect).sqrt().clamp(max=1), (area * aspect).sqrt().clamp(max=1)
        flip = torch.where(luck[:, 4] < 0.5, -1.0, 1.0)
        down, right = ((1 - side) * (2 * where - 1) for side, where in ((height, luck[:, 2]), (width, luck[:, 3])))
        still = torch.zeros_like(area)
        maps = torch.stack([torch.stack([width * flip, still, right], 1), torch.stack([still, height, down], 1)], 1)
        grid = functional.affine_grid(maps.float().to(images.device), list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def _colored(self, images: Float[Tensor, "b 3 h w"], luck: Float64[Tensor, "b 4"]) -> Float[Tensor, "b 3 h w"]:
        luck = luck.float().to(images.device).view(-1, 4, 1, 1, 1)
        brightness, contrast, saturation = (1 + 0.8 * self.strength * (2 * luck[:, i] - 1) for i in range(3))
        saturation = torch.where(luck[:, 3] < 0.2 * self.strength, 0.0, saturation)
        images = (images * brightness).clamp(0, 1)
        gray = v2.functional.rgb_to_grayscale(images)
        images = (gray.mean((2, 3), keepdim=True).lerp(images, contrast)).clamp(0, 1)
        return v2.functional.rgb_to_grayscale(images).lerp(images, saturation).clamp(0, 1)
