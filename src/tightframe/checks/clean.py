"""The table without what was found: a CSV file that every command takes as DATA."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from pathlib import Path

import numpy as np

from tightframe.data.items import ImageFile
from tightframe.errors import DataError
from tightframe.files import write_text
from tightframe.images import Images

COLUMNS = ("filename", "label", "split")


def write_clean(path: Path, images: Images, held_out: np.ndarray, left_out: Collection[int]) -> None:
    """List the ``images`` but those ``left_out`` (by index) in the CSV file ``path``, whole or not at all.

    Raises:
        DataError: the images are no files, or don't lie beside the table or below it, where its readers look.
    """
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(COLUMNS)
    folder = path.absolute().parent.resolve()
    for index in np.setdiff1d(np.arange(len(images)), list(left_out)).tolist():
        name = _below(folder, images, index, path)
        table.writerow((name, images.classes[images.labels[index]], "test" if held_out[index] else "train"))
    write_text(path, lines.getvalue())


def _below(folder: Path, images: Images, index: int, path: Path) -> str:
    item = getattr(images.items[index], "item", images.items[index])  # one that is kept in memory
    if not isinstance(item, ImageFile):
        raise DataError(f"{path}: {images.name} are not files, so no table can list them; leave out --write-clean")
    place = (item.root / item.name).absolute()
    resolved = place.resolve()
    if not resolved.is_relative_to(folder):
        raise DataError(
            f"{path}: {place} does not lie below {folder}, and a table lists what lies beside it. Write it into the "
            "folder of the images or into one above"
        )
    return resolved.relative_to(folder).as_posix()
