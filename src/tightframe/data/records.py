"""Labeled images from a source that isn't a folder, one by one, and how they become training and test images.

A split is called train (training), val (valid, validation, dev) or test (testing, eval, evaluation). Where there are
all three, val joins the training images; where there are two, the other one is the test set; where there is one, a
share of it is held out. Classes and labels are text; images keep the order of their source.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tightframe.data.decoding import USUAL, Decoding
from tightframe.data.labeled import check_classes, printable
from tightframe.data.selection import hold_out
from tightframe.errors import DataError
from tightframe.images import Images, ImageSplits, Item, counted, undecodable
from tightframe.progress import Progress, silent

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; ``None`` where they are to be found."""

    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Reading:
    """How a source is to be read: the arguments of ``load_images`` of these names."""

    test_share: float = 0.25
    seed: int = 0
    skip_bad: bool = False
    progress: Progress = silent
    root: Path | None = None
    download: bool = False
    columns: Columns = field(default_factory=Columns)
    decoding: Decoding = USUAL
    min_classes: int = 2


@dataclass(frozen=True)
class Record:
    """One image with its class, its split (empty if its source has none) and its group (empty if it stands alone)."""

    item: Item
    label: str
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class Gathered:
    """What a source holds: images, class names in their order (the labels, sorted, if ``None``), what was left out."""

    name: str
    records: Sequence[Record]
    classes: Sequence[str] | None = None
    skipped: Sequence[str] = ()


def split_word(word: str) -> str:
    """``train``, ``val`` or ``test`` for what people call them; empty for any other word."""
    return _SPLITS.get(word.strip().casefold(), "")


def splits_of(found: Gathered, reading: Reading) -> ImageSplits:
    """Training and test images with the same classes.

    Raises:
        DataError: fewer than two classes, or, unless ``skip_bad`` drops them, classes without a training image.
    """
    records, skipped = list(found.records), list(found.skipped)
    if reading.skip_bad:
        reasons = undecodable([record.item for record in records], reading.progress)
        skipped += [f"{records[index].item.name}: {reason}" for index, reason in reasons.items()]
        records = [record for index, record in enumerate(records) if index not in reasons]
    records = [replace(record, label=unicodedata.normalize("NFC", record.label)) for record in records]
    if any(record.group for record in records):  # images without a group are groups of their own
        records = [replace(one, group=one.group or f"\0{index}") for index, one in enumerate(records)]
    train, test = _sides(records)
    classes = _classes(found, train, test, reading.skip_bad, skipped)
    kept = set(classes)
    train, test = ([one for one in side if one.label in kept] for side in (train, test))
    check_classes(found.name, classes, "Add images of another class.", reading.min_classes)
    groups = {group: number for number, group in enumerate(sorted({one.group for one in records if one.group}))}
    images = _images(f"{found.name}/train", train, classes, groups)
    if not test:
        return hold_out(found.name, images, reading.test_share, reading.seed, tuple(skipped))
    return ImageSplits(found.name, images, _images(f"{found.name}/test", test, classes, groups), tuple(skipped))


def _sides(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Training and test images."""
    present = {record.split for record in records}
    if present <= {"", "train"} or len(present) < 2:
        return list(records), []
    held = "test" if "test" in present else "val"
    return [one for one in records if one.split != held], [one for one in records if one.split == held]


def _classes(
    found: Gathered, train: Sequence[Record], test: Sequence[Record], skip_bad: bool, skipped: list[str]
) -> list[str]:
    """Class names that have training images; classes that have none are an error unless they may be skipped."""
    filled, tested = {record.label for record in train}, Counter(record.label for record in test)
    named = [unicodedata.normalize("NFC", name) for name in found.classes or sorted(filled)]
    empty = [name for name in named if name not in filled]
    empty += sorted(set(tested) - filled - set(named))
    if empty and not skip_bad:
        only = [name for name in empty if tested[name]]
        where = f" (of {', '.join(map(printable, only[:20]))} there are test images only)" if only else ""
        raise DataError(
            f"{printable(found.name)} has no training image of {', '.join(map(printable, empty[:20]))}"
            f"{' and others' if len(empty) > 20 else ''}{where}. Add some, or pass --skip-bad (skip_bad=True) to go on "
            "without these classes."
        )
    for name in empty:
        lost = f"; {counted(tested[name], 'test image')} left out with it" if tested[name] else ""
        skipped.append(f"class {printable(name)}: no training image{lost}")
    return [name for name in named if name in filled]


def _images(name: str, records: Sequence[Record], classes: Sequence[str], groups: dict[str, int]) -> Images:
    number = {cls: label for label, cls in enumerate(classes)}
    labels = np.array([number[record.label] for record in records], dtype=np.int64)
    numbers = np.array([groups[one.group] for one in records], dtype=np.int64) if groups else None
    return Images(name, tuple(classes), labels, tuple(record.item for record in records), numbers)
