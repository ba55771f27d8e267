"""The images of ``Images``, one by one: in a file or a part of one, as an array of bytes, or open already."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b, file_digest
from pathlib import Path

import numpy as np
from PIL import Image

from tightframe.data.decoding import IMAGE_SUFFIXES, USUAL, Decoding, as_opened, decode, open_image
from tightframe.errors import BadImage, DataError
from tightframe.images import Images, Item


@dataclass(frozen=True)
class ImageFile:
    """The image in a file: ``name`` is its path, in full or below ``root``; ``how`` it is decoded."""

    name: str
    root: Path = Path()
    how: Decoding = USUAL

    def digest(self) -> str:
        """A hash of the file's bytes, read once. Raises ``BadImage`` when they can't be."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        path = self.root / self.name
        try:
            with path.open("rb") as stream:
                return file_digest(stream, lambda: blake2b(digest_size=16, key=self.how.mark)).hexdigest()
        except OSError as error:
            raise BadImage(path, f"it can't be read ({error.strerror})") from error

    def open(self) -> Image.Image:
        """The image, decoded."""
        return open_image(self.root / self.name, self.how)


class EncodedImage(ABC):
    """An image whose file is known by its bytes, wherever these are."""

    name: str
    how: Decoding

    def digest(self) -> str:
        """A hash of the image file's bytes, read once: the same as for the file by itself."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return blake2b(self.content(), digest_size=16, key=self.how.mark).hexdigest()

    def open(self) -> Image.Image:
        """The image, decoded."""
        return decode(self.content(), self.name, self.how)

    @abstractmethod
    def content(self) -> bytes:
        """The image file's bytes. Raises ``BadImage`` when they can't be read."""


@dataclass(frozen=True)
class FilePart(EncodedImage):
    """The image file in a part of another file, such as an archive, which stays where it is.

    Attributes:
        name: what to call it.
        path: the file that it is in.
        start: its first byte there.
        size: its bytes there.
        inflated: its bytes once inflated, where it is deflated; ``None`` where it is as it is.
        how: it is decoded.
    """

    name: str
    path: Path
    start: int
    size: int
    inflated: int | None = None
    how: Decoding = USUAL

    def content(self) -> bytes:
        """The image file's bytes. Raises ``BadImage`` when they can't be read."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.start)
                content = stream.read(self.size)
        except OSError as error:
            raise BadImage(self.name, f"{self.path} can't be read ({error.strerror})") from error
        if len(content) < self.size:
            raise BadImage(self.name, f"it is cut short: {self.path} ends before it does")
        return content if self.inflated is None else self._inflate(content, self.inflated)

    def _inflate(self, content: bytes, size: int) -> bytes:
        try:
            found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        except zlib.error as error:
            raise BadImage(self.name, f"it is damaged in {self.path} ({error})") from error
        if len(found) != size:
            raise BadImage(self.name, f"it is not of the {size:,} bytes that {self.path} declares")
        return found


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


ImageLike = str | Path | np.ndarray | Image.Image
"""A file, a folder, bytes (height, width[, 3]), several such (n, height, width, 3), or an image of Pillow's."""


def unlabeled(images: object, classes: Sequence[str] = (), how: Decoding = USUAL) -> Images:
    """Images without labels: all labels are 0.

    Args:
        images: one ``ImageLike`` or several; a folder stands for the images in it and in the folders below, by name.
        classes: class names that the images are given.
        how: files are decoded.

    Raises:
        DataError: a folder without images, an array of another type or shape, or something else altogether.
    """
    several = list(images) if isinstance(images, Iterable) and not _is_one(images) else [images]
    found = (item for index, image in enumerate(several) for item in _items(image, f"image {index}"))
    items = tuple(replace(item, how=how) if isinstance(item, ImageFile) else item for item in found)
    return Images("images", tuple(classes), np.zeros(len(items), dtype=np.int64), items)


def item_of(image: object, name: str) -> Item:
    """One image as an item: a file is called by its path, any other ``name``.

    Raises:
        DataError: it is a folder, an array of another type or shape, or something else altogether.
    """
    if isinstance(image, str | Path) and Path(image).is_dir():
        raise DataError(f"{image} is a folder; name its images one by one, or give the folder itself")
    items = _items(image, name)
    if len(items) != 1:
        raise DataError(f"{name} is {len(items)} images in one array; give them one by one")
    return items[0]


def _is_one(images: object) -> bool:
    return images.ndim != 1 if isinstance(images, np.ndarray) else isinstance(images, ImageLike)


def _items(image: object, name: str) -> Sequence[Item]:
    if isinstance(image, Image.Image):
        return [OpenImage(name, image)]
    if isinstance(image, np.ndarray):
        return _arrays(image, name)
    if isinstance(image, str | Path):
        return _files(Path(image)) if Path(image).is_dir() else [ImageFile(str(image))]
    raise DataError(
        f"{name} is a {type(image).__name__} ({image!r:.60}); give paths, bytes (uint8) of shape (height, width, 3), "
        "or images of Pillow's"
    )


def _arrays(values: np.ndarray, name: str) -> list[Item]:
    if values.dtype == np.uint8 and values.ndim == 4:
        return [array for index, one in enumerate(values) for array in _arrays(one, f"image {index}")]
    if values.dtype != np.uint8 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 3)):
        raise DataError(
            f"{name} is an array of {values.dtype} and shape {values.shape}; give paths, or bytes (uint8) of shape "
            "(height, width, 3), (height, width) or (n, height, width, 3)"
        )
    return [ImageArray(name, np.ascontiguousarray(values))]


def _files(folder: Path) -> Sequence[Item]:
    """The images in ``folder`` and below; hidden ones, and links that lead out of it, are left out."""
    inside = folder.resolve()
    files = [
        ImageFile(str(path))
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and path.resolve().is_relative_to(inside)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise DataError(f"{folder} holds no images: no file in it ends in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files
