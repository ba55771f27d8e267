"""Scikit-learn's 1,797 handwritten digits, 8 × 8 pixels: data that needs no download.

``digits`` is all ten classes; ``digits:0-4`` and ``digits:1,3,8`` choose some, so that one half can stand for the data
a model was pretrained on and the other half for new data. Digits are white on black; grays 0 to 16 become 0 to 255.
"""

from __future__ import annotations

import re

import numpy as np
from sklearn.datasets import load_digits

from tightframe.data.items import ImageArray
from tightframe.data.selection import hold_out
from tightframe.errors import DataError
from tightframe.images import Images, ImageSplits

_ACCEPTED = "accepted are digits (all ten), a range as in digits:0-4, or a list as in digits:1,3,8"


def load_digit_images(selection: str | None = None, *, test_share: float = 0.25, seed: int = 0) -> ImageSplits:
    """Load the digits ``selection`` (``"0-4"``, ``"1,3,8"``; ``None`` for all ten), with ``test_share`` held out.

    Raises:
        DataError: ``selection`` is malformed, or leaves fewer than two classes.
        SettingsError: ``test_share`` or ``seed`` is out of range.
    """
    chosen = tuple(range(10)) if selection is None else _parse(selection)
    name = "digits" if selection is None else f"digits:{selection}"
    source = load_digits()
    rows = np.flatnonzero(np.isin(source.target, chosen))
    pixels = np.rint(source.images[rows] * (255 / 16)).astype(np.uint8)
    items = tuple(ImageArray(f"digit-{row:04d}", image) for row, image in zip(rows, pixels, strict=True))
    labels = np.searchsorted(chosen, source.target[rows])
    return hold_out(name, Images(f"{name}/train", tuple(map(str, chosen)), labels, items), test_share, seed)


def _parse(selection: str) -> tuple[int, ...]:
    chosen: set[int] = set()
    for part in selection.split(","):
        bounds = re.fullmatch(r"\s*([0-9])\s*(?:-\s*([0-9])\s*)?", part)
        if bounds is None:
            raise DataError(
                f"digits:{selection}: {part.strip() or 'nothing'!r} is not a digit or a range; {_ACCEPTED}."
            )
        first, last = int(bounds[1]), int(bounds[2] or bounds[1])
        if last < first:
            raise DataError(f"digits:{selection}: the range {part.strip()} runs backwards; {_ACCEPTED}.")
        chosen.update(range(first, last + 1))
    if len(chosen) < 2:
        raise DataError(f"digits:{selection}: at least two classes are needed; {_ACCEPTED}.")
    return tuple(sorted(chosen))
