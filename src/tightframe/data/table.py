"""Images listed in a table with a header ``filename,label``, as miniImageNet's splits are (Ravi & Larochelle, 2017).

``ROOT/test.csv`` names images in ``ROOT/images`` or beside it. A table is one split: ``ROOT/train.csv`` has other
classes, and is a data set of its own.
"""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import numpy as np

from tightframe.data.decoding import IMAGE_SUFFIXES, open_image
from tightframe.data.items import ImageFile
from tightframe.data.selection import check_share, hold_out
from tightframe.errors import BadImage, DataError
from tightframe.images import Images, ImageSplits
from tightframe.progress import Progress, silent

COLUMNS, FOLDER = ("filename", "label"), "images"


def load_listed(
    table: Path,
    *,
    test_share: float = 0.25,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> ImageSplits:
    """The images that ``table`` lists, a share of every class held out.

    Nothing is decoded here, unless ``skip_bad``: then every image is, once, and those that fail are left out.

    Args:
        table: a CSV file in UTF-8.
        test_share: share of every class held out, in [0, 1).
        seed: which images are held out.
        skip_bad: leave out what can't be used and list it in ``skipped`` as "path: reason".
        progress: called as tqdm is, around the images.

    Raises:
        BadImage: an image is missing, leads out of the folder, has two labels or can't be used, and ``skip_bad`` is
            off.
        DataError: the table can't be read, lacks a column, or lists fewer than two classes.
        SettingsError: ``test_share`` or ``seed`` is out of range.

    """
    check_share(test_share)
    root, rows, skipped = table.absolute().parent.resolve(), _rows(table), list[str]()
    labeled = dict[str, str]()
    for filename, label in progress(rows, f"images of {table.name}", len(rows)):
        found, reason = _found(root, filename, decode=skip_bad)
        if not reason and labeled.setdefault(found, label) != label:
            reason = f"it is listed as {labeled[found]} and as {label}"
        if reason and not skip_bad:
            raise BadImage(root / filename, reason)
        if reason:
            skipped.append(f"{filename}: {reason}")
    kept = sorted((label, found) for found, label in labeled.items())
    classes = tuple(sorted({label for label, _ in kept}))
    if len(classes) < 2:
        raise DataError(f"{table} lists images of {len(classes)} classes; two or more can be told apart")
    labels = np.searchsorted(np.array(classes), [label for label, _ in kept]).astype(np.int64)
    name = f"{root.name}/{table.stem}"
    everything = Images(name, classes, labels, tuple(ImageFile(image, root) for _, image in kept))
    return hold_out(name, everything, test_share, seed, tuple(skipped))


def _rows(table: Path) -> list[tuple[str, str]]:
    """File names and classes (NFC)."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise DataError(f'{table} must begin with a line "{",".join(COLUMNS)}" and have a line an image')
            rows = [(row[COLUMNS[0]] or "", unicodedata.normalize("NFC", row[COLUMNS[1]] or "")) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} can't be read as a table of images ({error})") from error
    if any(not filename or not label for filename, label in rows):
        raise DataError(f"{table} has lines without a file name or a label; give each image both")
    return rows


def _found(root: Path, filename: str, decode: bool) -> tuple[str, str]:
    """Where an image is, relative to ``root``, and why it can't be used; empty if nothing speaks against it."""
    try:
        path = next((place for place in (root / FOLDER / filename, root / filename) if place.is_file()), None)
        path = path and path.resolve()
    except (OSError, ValueError) as error:
        return "", f"it can't be looked for ({error})"
    if path is None:
        return "", f"it is neither in {FOLDER}/ nor beside the table"
    if not path.is_relative_to(root):
        return "", "it leads out of the data folder"
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return "", f"not an image: its suffix is not one of {' '.join(sorted(IMAGE_SUFFIXES))}"
    if not path.stat().st_size:
        return "", "the file is empty (0 bytes)"
    if decode:
        try:
            open_image(path)
        except BadImage as error:
            return "", error.reason
    return path.relative_to(root).as_posix(), ""
