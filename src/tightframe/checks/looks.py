"""Every image seen once and small: its size, a gray thumbnail, or why it can't be decoded."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tightframe.data.decoding import FORMATS
from tightframe.data.items import ImageArray, ImageFile, OpenImage
from tightframe.errors import BadImage
from tightframe.features.pixels import AHEAD, THREADS
from tightframe.images import Images, Item
from tightframe.progress import Progress, silent

SIDE = 48
"""Pixels of a thumbnail's sides: enough to tell two photographs of one thing from one photograph, saved twice."""


@dataclass(frozen=True, eq=False)
class Looks:
    """What n images look like from afar.

    Attributes:
        thumbnails: gray, squeezed into a square, (n, SIDE, SIDE), uint8; black where an image can't be decoded.
        sizes: width and height in pixels, (n, 2); 0 where it can't be decoded.
        faults: by index, why an image can't be decoded.
    """

    thumbnails: np.ndarray
    sizes: np.ndarray
    faults: dict[int, str]

    @property
    def good(self) -> np.ndarray:
        """Indices of the images that were decoded."""
        return np.flatnonzero(self.sizes[:, 0] > 0)


def look_at(images: Images, progress: Progress = silent) -> Looks:
    """Decode every image once."""
    thumbnails = np.zeros((len(images), SIDE, SIDE), dtype=np.uint8)
    sizes, faults = np.zeros((len(images), 2), dtype=np.int64), dict[int, str]()
    with ThreadPoolExecutor(THREADS) as pool:
        ahead = AHEAD * 64
        for start in progress(range(0, len(images), ahead), f"looking at {images.name}", -(-len(images) // ahead)):
            for index, seen in enumerate(pool.map(_seen, images.items[start : start + ahead]), start):
                if isinstance(seen, str):
                    faults[index] = seen
                else:
                    thumbnails[index], sizes[index] = seen
    return Looks(thumbnails, sizes, faults)


def sizes_of(images: Images) -> np.ndarray:
    """Width and height (n, 2) of every image without decoding any; 0 where that can't be known."""
    with ThreadPoolExecutor(THREADS) as pool:
        return np.array(list(pool.map(_size, images.items)), dtype=np.int64).reshape(-1, 2)


def _size(item: object) -> tuple[int, int]:
    while hasattr(item, "item"):  # one that is kept in memory
        item = item.item
    if isinstance(item, ImageArray):
        return item.values.shape[1], item.values.shape[0]
    if isinstance(item, OpenImage):
        return item.image.size
    if not isinstance(item, ImageFile):
        return 0, 0
    try:
        with Image.open(item.root / item.name, formats=FORMATS) as image:
            return image.size
    except Exception:  # it was decoded before; whatever Pillow raises now
        return 0, 0


def thumbnails_of(batches: Iterable[np.ndarray]) -> np.ndarray:
    """Thumbnails (n, SIDE, SIDE) of images that are bytes (b, 3, height, width) already."""
    made = [thumbnail(Image.fromarray(np.moveaxis(one, 0, -1))) for batch in batches for one in batch]
    return np.stack(made) if made else np.zeros((0, SIDE, SIDE), dtype=np.uint8)


def thumbnail(image: Image.Image) -> np.ndarray:
    """Gray, squeezed into a square."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.HAMMING, reducing_gap=2.0)
    return np.asarray(small.convert("L"))


def _seen(item: Item) -> tuple[np.ndarray, tuple[int, int]] | str:
    try:
        image = item.open()
        return thumbnail(image), image.size
    except BadImage as error:
        return error.reason
