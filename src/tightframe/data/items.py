"""The images of ``Images``, one by one: in a file, as an array of bytes, or open already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b, file_digest
from pathlib import Path

import numpy as np
from PIL import Image

from tightframe.data.decoding import as_opened, open_image
from tightframe.errors import BadImage
from tightframe.images import Images, Item


@dataclass(frozen=True)
class ImageFile:
    """The image in a file: ``name`` is its path, in full or below ``root``."""

    name: str
    root: Path = Path()

    def digest(self) -> str:
        """A hash of the file's bytes, read once. Raises ``BadImage`` when they can't be."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        path = self.root / self.name
        try:
            with path.open("rb") as stream:
                return file_digest(stream, lambda: blake2b(digest_size=16)).hexdigest()
        except OSError as error:
            raise BadImage(path, f"it can't be read ({error.strerror})") from error

    def open(self) -> Image.Image:
        """The image, decoded."""
        return open_image(self.root / self.name)


@dataclass(frozen=True, eq=False)
class ImageArray:
    """An image as bytes: gray (height, width) or color (height, width, 3), uint8."""

    name: str
    values: np.ndarray

    def digest(self) -> str:
        """A hash of shape and bytes."""
        return blake2b(repr(self.values.shape).encode() + self.values.tobytes(), digest_size=16).hexdigest()

    def open(self) -> Image.Image:
        """The image, in RGB."""
        return Image.fromarray(self.values).convert("RGB")


@dataclass(frozen=True, eq=False)
class OpenImage:
    """An image of Pillow's that is open already, in any mode."""

    name: str
    image: Image.Image

    def digest(self) -> str:
        """A hash of size and colors."""
        return ImageArray(self.name, np.asarray(self.open())).digest()

    def open(self) -> Image.Image:
        """A copy, upright and in RGB."""
        return as_opened(self.image, self.name)


def unlabeled(images: Iterable[str | Path | np.ndarray | Image.Image], classes: Sequence[str] = ()) -> Images:
    """Images without labels (all are 0): paths, arrays of bytes (height, width[, 3]), or images of Pillow's."""
    items = tuple(_item(image, index) for index, image in enumerate(images))
    return Images("images", tuple(classes), np.zeros(len(items), dtype=np.int64), items)


def _item(image: str | Path | np.ndarray | Image.Image, index: int) -> Item:
    if isinstance(image, Image.Image):
        return OpenImage(f"image {index}", image)
    if isinstance(image, np.ndarray):
        return ImageArray(f"image {index}", image)
    return ImageFile(str(image))
