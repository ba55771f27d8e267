"""What gets lost on the way from a file to the pixels that a model sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from tightframe.backbone import Preprocessing
from tightframe.checks.duplicates import BLANK
from tightframe.checks.finding import Finding
from tightframe.checks.looks import Looks
from tightframe.data.decoding import FORMATS, MAX_PIXELS
from tightframe.data.items import ImageFile
from tightframe.features.pixels import THREADS
from tightframe.images import Images, Item

NARROW = 1 / 8
"""Share of 16-bit gray levels below which an image comes out nearly black or flat."""
LONG = 3.0
"""Longer by shorter side from which an image is extreme, where no model says what it crops."""
SEEN = 1 / 3
"""Share of an image that the model's crop leaves, below which its ends are said to be cut off."""
TINY = 32
"""Pixels of the shorter side below which an image is tiny, where no model says what it enlarges."""
ENLARGED = 4.0
"""Factor from which an image is tiny for a model."""
COMMON = 0.2
"""Share of all images from which what befalls them is said once, not image by image."""
FEW = 10
"""Findings that are always said one by one."""


def file_findings(images: Images, looks: Looks, preprocessing: Preprocessing | None = None) -> list[Finding]:
    """All that is wrong with, or lost of, single images; what befalls many is said once."""
    found = [
        Finding("unreadable file", f"it can't be decoded: {reason}", index, remove=True, strength=1.0)
        for index, reason in looks.faults.items()
    ]
    spread = looks.thumbnails.std((1, 2))
    for index in looks.good.tolist():
        if spread[index] < BLANK / 4:
            found.append(Finding("blank image", "it is all of one color, or nearly", index))
        found += shape_findings(index, int(looks.sizes[index, 0]), int(looks.sizes[index, 1]), preprocessing)
    with ThreadPoolExecutor(THREADS) as pool:
        lost = pool.map(_lost, (images.items[index] for index in looks.good))
        for index, told in zip(looks.good.tolist(), lost, strict=True):
            found += [Finding(kind, words, index) for kind, words in told]
    return list(_gathered(found, len(images)))


def shape_findings(index: int, width: int, height: int, preprocessing: Preprocessing | None = None) -> list[Finding]:
    """What is extreme about an image of that size for a model that expects images so."""
    found = []
    seen, enlarged = seen_share(width, height, preprocessing), 0.0
    if seen is None:
        if max(width, height) >= LONG * min(width, height):
            share = min(width, height) / max(width, height)
            words = f"{width} × {height} pixels: models that crop a square see {share:.0%} of it"
            found.append(Finding("cropped ends", words, index))
        tiny = min(width, height) < TINY
    else:
        if seen < SEEN:
            words = f"{width} × {height} pixels, of which this model's crop leaves {seen:.0%}"
            found.append(Finding("cropped ends", words, index, strength=1 - seen))
        enlarged = min(preprocessing.input_size) / preprocessing.crop_pct / min(width, height) if preprocessing else 0
        tiny = enlarged >= ENLARGED
    if tiny:
        words = f"{width} × {height} pixels" + (f", enlarged {enlarged:.0f} times for this model" if enlarged else "")
        found.append(Finding("tiny image", words, index))
    return found


def seen_share(width: int, height: int, preprocessing: Preprocessing | None) -> float | None:
    """Share of an image of that size that a model's crop leaves; ``None`` without a model."""
    if preprocessing is None:
        return None
    if preprocessing.crop_mode != "center":  # squashed, or padded: nothing is cut off
        return 1.0
    tall, wide = preprocessing.input_size
    scale = max(tall / height, wide / width) / preprocessing.crop_pct
    return min(1.0, wide / (scale * width)) * min(1.0, tall / (scale * height))


def _lost(item: Item) -> list[tuple[str, str]]:
    """Kinds and words for one file that could be decoded."""
    item = getattr(item, "item", item)  # one that is kept in memory
    if not isinstance(item, ImageFile):
        return []
    try:
        return list(lost_of(item.root / item.name))
    except Exception:  # it was decoded before; what odd metadata does to Pillow here is no finding
        return []


def lost_of(path: Path) -> Iterator[tuple[str, str]]:
    """Kinds and words for what is lost of the image in a file."""
    with path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            return
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # beside the image, MPO holds previews
            yield "animation", f"of {frames} frames or pages only the first is read"
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)
        if turned in range(2, 9):
            yield "turned", f"EXIF orientation {turned}: turned or mirrored to be upright"
        if image.mode == "CMYK":
            yield "CMYK", "converted from CMYK to RGB without its color profile"
        if image.mode == "I" or image.mode.startswith("I;16"):
            yield from _range(np.asarray(image))
        elif image.has_transparency_data:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
            if alpha.min() < 255:
                yield "transparency", f"{float((alpha < 255).mean()):.0%} of it is transparent and shown as white"


def _range(values: np.ndarray) -> Iterator[tuple[str, str]]:
    low, high = int(values.min()), int(values.max())
    if high - low < NARROW * 65535:
        levels = max(1, round((high - low) / 257))
        yield (
            "narrow range",
            f"grays from {low} to {high} of 65,535: about {levels} of 256 levels are left; save it with its "
            "range stretched to 8 bits",
        )


def _gathered(found: Sequence[Finding], count: int) -> Iterator[Finding]:
    """The same, but one finding for all images of a kind that befalls many."""
    kinds: dict[str, list[Finding]] = {}
    for one in found:
        kinds.setdefault(one.kind, []).append(one)
    for kind, alike in kinds.items():
        if len(alike) > max(FEW, COMMON * count) and not alike[0].remove:
            words = f"{len(alike):,} of {count:,} images; one of them: {alike[0].words}"
            yield Finding(kind, words, alike[0].image, strength=len(alike) / count)
        else:
            yield from alike
