"""Pictures listed in a table with a header ``filename,label``, as miniImageNet's splits are (Ravi & Larochelle, 2017).

``ROOT/test.csv`` names pictures in ``ROOT/images`` or beside it. A table is one split: ``ROOT/train.csv`` has other
classes, and is a data set of its own.
"""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import numpy as np

from tightframe.errors import BadPicture, DataError
from tightframe.protocols import ImageSplits, Progress, silent
from tightframe.sources.folder import FolderImages
from tightframe.sources.pictures import PICTURE_SUFFIXES, open_picture
from tightframe.sources.selection import Subset, check_share, stratified

COLUMNS, FOLDER = ("filename", "label"), "images"


def load_listed(
    table: Path,
    *,
    test_share: float = 0.25,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> ImageSplits:
    """The pictures that ``table`` lists, a share of every class held out.

    Nothing is decoded here, unless ``skip_bad``: then every picture is, once, and those that fail are left out.

    Args:
        table: a CSV file in UTF-8.
        test_share: share of every class held out, in [0, 1).
        seed: which pictures are held out.
        skip_bad: leave out what can't be used and list it in ``skipped`` as "path: reason".
        progress: called as tqdm is, around the pictures.

    Raises:
        BadPicture: a picture is not there, leads out of the folder, or can't be used, and ``skip_bad`` is off.
        DataError: the table can't be read, lacks a column, or lists fewer than two classes.
        SettingsError: ``test_share`` or ``seed`` is out of range.

    """
    check_share(test_share)
    rows, skipped = _rows(table), list[str]()
    kept = list[tuple[str, str]]()
    for filename, label in progress(rows, f"pictures of {table.name}", len(rows)):
        found, reason = _found(table.parent, filename, decode=skip_bad)
        if not reason:
            kept.append((label, found))
        elif not skip_bad:
            raise BadPicture(table.parent / filename, reason)
        else:
            skipped.append(f"{filename}: {reason}")
    kept.sort()
    classes = tuple(sorted({label for label, _ in kept}))
    if len(classes) < 2:
        raise DataError(f"{table} lists pictures of {len(classes)} classes; two or more can be told apart")
    labels = np.searchsorted(np.array(classes), [label for label, _ in kept]).astype(np.int64)
    labels.flags.writeable = False
    name = f"{table.parent.name}/{table.stem}"
    everything = FolderImages(name, table.parent, classes, labels, tuple(picture for _, picture in kept))
    train, test = stratified(labels, test_share, seed)
    if not len(test):
        return ImageSplits(name, everything, None, tuple(skipped))
    return ImageSplits(name, Subset(everything, train), Subset(everything, test, f"{name}/test"), tuple(skipped))


def _rows(table: Path) -> list[tuple[str, str]]:
    """File names and classes (NFC), each file once."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise DataError(f'{table} must begin with a line "{",".join(COLUMNS)}" and have a line a picture')
            rows = [(row[COLUMNS[0]] or "", unicodedata.normalize("NFC", row[COLUMNS[1]] or "")) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} can't be read as a table of pictures ({error})") from error
    if any(not label for _, label in rows):
        raise DataError(f"{table} has lines without a label; give each picture one")
    return list(dict.fromkeys(rows))


def _found(root: Path, filename: str, decode: bool) -> tuple[str, str]:
    """Where a picture is, relative to ``root``, and why it can't be used; empty if nothing speaks against it."""
    path = next((place for place in (root / FOLDER / filename, root / filename) if place.is_file()), None)
    if path is None:
        return "", f"it is neither in {FOLDER}/ nor beside the table"
    if not path.resolve().is_relative_to(root.resolve()):
        return "", "it leads out of the data folder"
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        return "", f"not a picture: its suffix is not one of {' '.join(sorted(PICTURE_SUFFIXES))}"
    if not path.stat().st_size:
        return "", "the file is empty (0 bytes)"
    if decode:
        try:
            open_picture(path)
        except BadPicture as error:
            return "", error.reason
    return path.relative_to(root).as_posix(), ""
