"""Views: the same picture changed as a photograph might be, the same way again for the same number.

View 0 is the picture as it is. Any other is drawn from (seed, picture, view), so that views can be kept, and training
that was stopped sees the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import v2

from tightframe.errors import SettingsError

Augmentation = Literal["none", "flip", "crop", "randaugment"]
SMALLEST_CROP = 0.35
"""Of the area."""


@dataclass(frozen=True)
class Augment:
    """Changes pictures of bytes: ``flip`` left and right; ``crop`` also 35 to 100 % of the area; ``randaugment`` also
    two changes of colour or shape at random (Cubuk et al., NeurIPS 2020).
    """

    kind: str
    seed: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(Augmentation):
            raise SettingsError(f'no augmentation "{self.kind}"; choose {", ".join(get_args(Augmentation))}')

    def __call__(self, picture: UInt8[Tensor, "3 h w"], index: int, view: int) -> UInt8[Tensor, "3 h w"]:
        """View ``view`` of picture ``index``."""
        if view == 0 or self.kind == "none":
            return picture
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng((self.seed, index, view)).integers(2**62)))
            return _steps(self.kind, tuple(picture.shape[1:]))(picture)


def _steps(kind: str, size: tuple[int, ...]) -> v2.Compose:
    steps: list[v2.Transform] = [v2.RandomHorizontalFlip()]
    if kind in ("crop", "randaugment"):
        steps.append(v2.RandomResizedCrop(size, scale=(SMALLEST_CROP, 1.0), antialias=True))
    if kind == "randaugment":
        steps.append(v2.RandAugment())
    return v2.Compose(steps)
