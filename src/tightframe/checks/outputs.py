"""What is written of what was found: a page, a table of findings, and a table of the images without them."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from tightframe.checks.finding import KINDS
from tightframe.data.items import ImageFile
from tightframe.errors import BadImage, DataError
from tightframe.files import write_text
from tightframe.images import Images
from tightframe.report.fields import TABLES
from tightframe.report.page import Findings, Grid, Section, write_report
from tightframe.report.result import Result
from tightframe.row import Row

SHOWN = 24
"""Most findings of a kind that are shown."""
COLUMNS, GROUP = ("filename", "label", "split"), "group"
"""Of the table without what was found."""


def write_page(path: Path, result: Result, images: Images) -> None:
    """Write the page of ``check`` to ``path``, with thumbnails of ``images``."""
    counts = result.tables["checks"]
    sections = [Section("All findings", "", [Grid(TABLES["checks"].columns, counts)])] if counts else []
    places = {name: index for index, name in enumerate(images.identifiers)}
    for kind in dict.fromkeys(row["finding"] for row in result.rows):
        rows = [row for row in result.rows if row["finding"] == kind]
        sections.append(_section(kind, rows, images, places))
    write_report(
        path,
        title=f"{result.settings['data']}: what is wrong before training",
        summary=result.notes,
        sections=sections,
        settings=result.settings,
        versions=result.versions,
    )


def _section(kind: str, rows: list[Row], images: Images, places: dict[str, int]) -> Section:
    text = KINDS[kind].advice
    if len(rows) > SHOWN:
        text += f" Shown are {SHOWN} of {len(rows):,}, the clearest first."
    shown = [
        row | {"image": _image(row["path"], images, places), "other_image": _image(row["other"], images, places)}
        for row in rows[:SHOWN]
    ]
    pictured = [row for row in shown if row["image"] is not None]
    plain = [row for row in rows[:SHOWN] if row["path"] not in {row["path"] for row in pictured}]
    columns = (
        ("path", "class", "likely", "words") if any(row["path"] for row in plain) else ("class", "likely", "words")
    )
    return Section(
        kind[0].upper() + kind[1:],
        text,
        [Findings(pictured) if pictured else None, Grid(columns, plain) if plain else None],
    )


def _image(name: str, images: Images, places: dict[str, int]) -> Image.Image | None:
    try:
        return images[places[name]] if name in places else None
    except BadImage:
        return None


def write_findings(path: Path, rows: list[Row]) -> None:
    """Write the ``rows`` of ``check`` to the CSV file ``path``."""
    lines = io.StringIO()
    table = csv.DictWriter(lines, [*TABLES["check"].columns, *TABLES["check"].others], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, lines.getvalue())


def check_clean(path: Path, images: Images) -> None:
    """Raise ``DataError`` where ``write_clean`` would: before the work, not after it."""
    folder = path.absolute().parent.resolve()
    for index in range(len(images)):
        _below(folder, images, index, path)


def write_clean(path: Path, images: Images, held_out: np.ndarray, left_out: Collection[int]) -> None:
    """List the ``images`` but those ``left_out`` (by index) in the CSV file ``path``, whole or not at all.

    Their groups are in a further column, if they have any.

    Raises:
        DataError: the images are no files, or don't lie beside the table or below it, where its readers look.
    """
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow([*COLUMNS, *([] if images.groups is None else [GROUP])])
    folder = path.absolute().parent.resolve()
    for index in np.setdiff1d(np.arange(len(images)), list(left_out)).tolist():
        name = _below(folder, images, index, path)
        group = [] if images.groups is None else [images.groups[index]]
        table.writerow([name, images.classes[images.labels[index]], "test" if held_out[index] else "train", *group])
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
