"""Images listed in a table with a header ``filename,label``, as miniImageNet's splits are (Ravi & Larochelle, 2017).

``ROOT/test.csv`` names images in ``ROOT/images`` or beside the table. Each table is a dataset of its own:
``ROOT/train.csv`` has other classes.
"""

from __future__ import annotations

import csv
import unicodedata
from collections import defaultdict
from pathlib import Path

from tightframe.data.labeled import Faults, check_classes, file_fault, labeled_files
from tightframe.data.selection import check_share, hold_out
from tightframe.errors import DataError
from tightframe.images import ImageSplits
from tightframe.progress import Progress, silent

COLUMNS, FOLDER = ("filename", "label"), "images"


def load_table(
    table: Path,
    *,
    test_share: float = 0.25,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> ImageSplits:
    """Load the images that the CSV file ``table`` lists, with ``test_share`` of each class held out.

    Arguments are those of ``load_images``. With ``skip_bad`` every image is decoded once, to leave out those that fail.

    Raises:
        BadImage: images are missing, lie outside the folder, have two labels or can't be used, and ``skip_bad`` is off.
        DataError: the table can't be read, lacks a column, or lists fewer than two classes.
        SettingsError: ``test_share`` or ``seed`` is out of range.
    """
    check_share(test_share)
    root, rows = table.absolute().parent.resolve(), _rows(table)
    faults, labels = Faults(root, skip_bad), dict[str, str]()
    for filename, label in progress(rows, "finding images", len(rows)):
        path, reason = _find(root, filename)
        if not reason and labels.setdefault(path, label) != label:
            reason = f"it is listed as {labels[path]} and as {label}"
        if reason:
            faults.add(root / filename, reason)
    faults.check()
    if skip_bad:
        kept = faults.decodable(labels, progress)
        labels = {path: label for path, label in labels.items() if path in kept}
    found = defaultdict[str, list[str]](list)
    for path, label in labels.items():
        found[label].append(path)
    check_classes(table, found, "List images of another class.")
    name = f"{root.name}/{table.stem}"
    return hold_out(name, labeled_files(name, root, sorted(found), found), test_share, seed, tuple(faults.skipped))


def _rows(table: Path) -> list[tuple[str, str]]:
    """File names and classes (NFC)."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise DataError(
                    f'{table} must begin with a line "{",".join(COLUMNS)}", and then have one line per image'
                )
            rows = [(row[COLUMNS[0]] or "", unicodedata.normalize("NFC", row[COLUMNS[1]] or "")) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} can't be read as a table of images ({error}); give a CSV file in UTF-8") from error
    if any(not filename or not label for filename, label in rows):
        raise DataError(f"{table} has lines without a file name or a label; give each image both")
    return rows


def _find(root: Path, filename: str) -> tuple[str, str]:
    """The path of an image below ``root``, or why it can't be used."""
    try:
        path = next((place for place in (root / FOLDER / filename, root / filename) if place.is_file()), None)
        path = path and path.resolve()
    except (OSError, ValueError) as error:
        return "", f"it can't be looked for ({error})"
    if path is None:
        return "", f"it is neither in {FOLDER}/ nor beside the table"
    if not path.is_relative_to(root):
        return "", "it leads out of the data folder"
    return path.relative_to(root).as_posix(), file_fault(path)
