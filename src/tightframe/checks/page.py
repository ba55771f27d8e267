"""The page of what was found: counts, then each kind with the images that it is about."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tightframe.checks.finding import KINDS
from tightframe.errors import BadImage
from tightframe.images import Images
from tightframe.report.fields import TABLES
from tightframe.report.page import Findings, Grid, Section, write_report
from tightframe.report.result import Result
from tightframe.row import Row

SHOWN = 24
"""Most findings of a kind that are shown."""


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
