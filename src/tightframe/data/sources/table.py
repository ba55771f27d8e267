"""Images listed in a table, a line each: with a class, and maybe a split and a group.

Paths are looked for in ``images/`` beside the table (as for miniImageNet's splits, Ravi & Larochelle, 2017), then
beside it; or below ``root``. They may be absolute, but whatever leads out of that folder is refused: a table is data,
and must not reach files that its reader didn't mean. Labels are text: ``01`` and ``1`` are two classes.

A folder without class folders, but with tables called train and test (or val), is these two splits.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tightframe.data.items import ImageFile
from tightframe.data.labeled import Faults, file_fault
from tightframe.data.records import Gathered, Reading, Record, split_word
from tightframe.data.sources.rows import TABLES, Table, found_columns, read_table, text
from tightframe.errors import DataError

FOLDER = "images"


class _Said(NamedTuple):
    label: str
    split: str
    group: str


def from_table(path: Path, reading: Reading) -> Gathered:
    """The images that the table file ``path`` lists, sorted by class and path.

    Raises:
        BadImage: images are missing, lie outside the folder, are listed with two labels, splits or groups, or can't be
            used, and ``skip_bad`` is off.
        DataError: the table can't be read, or it does not say which column is which.
    """
    here = path.absolute().parent.resolve()
    return listed_images(read_table(path), f"{here.name}/{path.stem}", reading.root or here, reading)


def from_split_tables(tables: Mapping[str, Path], reading: Reading) -> Gathered:
    """The images in a table of each split. Raises as ``from_table``."""
    parts = {split: from_table(path, reading) for split, path in tables.items()}
    records = [replace(record, split=split) for split, part in parts.items() for record in part.records]
    skipped = [line for part in parts.values() for line in part.skipped]
    return Gathered(next(iter(parts.values())).name.rpartition("/")[0], records, skipped=skipped)


def split_tables(folder: Path) -> dict[str, Path]:
    """The tables in ``folder`` that are called train and test (or val), where there are no class folders beside."""
    try:
        entries = sorted(one for one in folder.iterdir() if not one.name.startswith("."))
        if sum(one.is_dir() for one in entries) > 1:
            return {}
    except OSError:
        return {}
    found = {split_word(one.stem): one for one in reversed(entries) if one.suffix.lower() in TABLES and one.is_file()}
    held_out = next((split for split in ("test", "val") if split in found), "")
    return {split: found[split] for split in ("train", held_out)} if held_out and "train" in found else {}


def listed_images(table: Table, name: str, root: Path, reading: Reading) -> Gathered:
    """The image files below ``root`` that ``table`` lists. Raises as ``from_table``."""
    root, rows = root.absolute().resolve(), _rows(table, reading)
    faults, found = Faults(root, reading.skip_bad), dict[str, _Said]()
    for filename, said in reading.progress(rows, "finding images", len(rows)):
        path, reason = _find(root, filename)
        if not reason and (known := found.setdefault(path, said)) != said:
            one, other = next(pair for pair in zip(known, said, strict=True) if pair[0] != pair[1])
            reason = f"it is listed as {one or 'none'} and as {other or 'none'}"
        if reason:
            faults.add(root / filename, reason)
    faults.check()
    ordered = sorted(found.items(), key=lambda pair: (pair[1].label, pair[0]))
    records = [Record(ImageFile(path, root, reading.decoding), *said) for path, said in ordered]
    return Gathered(name, records, skipped=faults.skipped)


def image_names(path: Path, reading: Reading) -> list[str]:
    """What the table file ``path`` calls its images. Raises ``DataError``."""
    return [filename for filename, _ in _rows(read_table(path), reading)]


def _rows(table: Table, reading: Reading) -> Sequence[tuple[str, _Said]]:
    columns = found_columns(table, reading.columns)
    names = [columns.image, columns.label, columns.split, columns.group]
    rows, asked = list[tuple[str, _Said]](), [name for name in names if name is not None]
    for values in table.values(asked):
        said = dict(zip(asked, map(text, values), strict=True))
        filename, label, split, group = (said[name] if name is not None else "" for name in names)
        if not filename or not label:
            raise DataError(
                f"{table.name}, line {len(rows) + 2}: no file name or label in the columns {columns.image} and "
                f"{columns.label}; give each image both"
            )
        if split and not split_word(split):
            raise DataError(
                f"{table.name}: split {split!r} in {columns.split}; say train, val or test, or leave it empty"
            )
        rows.append((filename, _Said(unicodedata.normalize("NFC", label), split_word(split), group)))
    return rows


def _find(root: Path, filename: str) -> tuple[str, str]:
    """The path of an image below ``root``, or why it can't be used."""
    try:
        path = next((place for place in (root / FOLDER / filename, root / filename) if place.is_file()), None)
        path = path and path.resolve()
    except (OSError, ValueError) as error:
        return "", f"it can't be looked for ({error})"
    if path is None:
        return "", f"it is neither in {FOLDER}/ nor beside the table; name the folder that holds it with --root"
    if not path.is_relative_to(root):
        return "", "it leads out of the data folder; name the folder that holds all images with --root"
    return path.relative_to(root).as_posix(), file_fault(path)
