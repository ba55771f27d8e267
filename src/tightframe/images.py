"""Labeled images, as everything that runs a model over them sees them; ``data`` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image


@runtime_checkable
class ImageData(Protocol):
    """Labeled images of one split. Labels, classes and names are known without decoding an image."""

    @property
    def name(self) -> str:
        """What to call it in a table, such as ``flowers5/train``."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; ``labels`` indexes them."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """Integer labels, shape (n,), int64."""
        ...

    @property
    def identifiers(self) -> tuple[str, ...]:
        """A name for each of the n images (its path below the data folder, say)."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash over the images' contents, order and labels: equal only if the data is."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image:
        """Image ``index``, upright, in mode RGB. Raises ``BadImage`` when it can't be decoded."""
        ...


@dataclass(frozen=True)
class ImageSplits:
    """Training images, held-out test images with the same ``classes``, and what was left out on the way."""

    name: str
    train: ImageData
    test: ImageData | None
    skipped: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same for both splits."""
        return self.train.classes

    @property
    def notes(self) -> list[str]:
        """What a reader should know of how the data came about, in plain words."""
        if not self.skipped:
            return []
        files = "1 file was" if len(self.skipped) == 1 else f"{len(self.skipped)} files were"
        return [f"{files} left out; the first: {self.skipped[0]}"]
