"""Pieces of the page: tables, galleries and text, as HTML in which everything that users wrote is escaped."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from tightframe.report.tables import Column, Row, failed, percent, shown, text

THUMBNAIL = 256
COARSE = 64


def escape(value: Any) -> str:
    """``value`` as text that is safe between tags and in quoted attributes; missing is empty."""
    return html.escape("" if value is None or value == "" else text(value), quote=True)


def breakable(value: Any) -> str:
    """``value`` escaped, with places to break lines after its own punctuation."""
    return re.sub(r"([._/-])", r"\1<wbr>", escape(value))


def paragraphs(words: str) -> str:
    """One paragraph for each block of text between blank lines."""
    return "".join(f"<p>{escape(block)}</p>" for block in words.split("\n\n") if block.strip())


def grid(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table; a failed row is its name and, across the other columns, its message."""
    columns = shown(columns, rows)
    heads = "".join(f'<th scope="col"{_aligned(column)}>{escape(column.header)}</th>' for column in columns)
    body = "".join(_error(columns, row) if failed(row) else _measured(columns, row) for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _aligned(column: Column) -> str:
    return f' class="{"number" if column.right else "words"}"'


def _measured(columns: Sequence[Column], row: Row) -> str:
    first, *rest = columns
    cells = "".join(f"<td{_aligned(column)}>{_cell(column, row)}</td>" for column in rest)
    return f'<tr><th scope="row"{_aligned(first)}>{_cell(first, row)}</th>{cells}</tr>'


def _cell(column: Column, row: Row) -> str:
    return escape(column.cell(row)) if column.right else breakable(column.cell(row))


def _error(columns: Sequence[Column], row: Row) -> str:
    who, message = _cell(columns[0], row), f"✗ {escape(row['error'])}"
    if len(columns) == 1:
        return f'<tr class="error"><th scope="row">{who}<br>{message}</th></tr>'
    return f'<tr class="error"><th scope="row">{who}</th><td colspan="{len(columns) - 1}">{message}</td></tr>'


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = "".join(
        f'<tr><th scope="row">{breakable(key)}</th><td>{escape(_listed(of))}</td></tr>' for key, of in values.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _listed(value: Any) -> str:
    return ", ".join(map(text, value)) if isinstance(value, (list, tuple, set, frozenset)) else text(value)


def gallery(rows: Sequence[Row]) -> str:
    """Thumbnails; right and wrong differ by symbol, border and words as well as by color."""
    return f'<ul class="samples">{"".join(map(_sample, rows))}</ul>' if rows else ""


def _sample(row: Row) -> str:
    actual, predicted, path = row.get("actual"), breakable(row.get("predicted")), row.get("path")
    verdict, mark, says = _verdict(row)
    coarse = ' class="coarse"' if max(row["image"].size) <= COARSE else ""
    image = f'<img{coarse} src="{_data_uri(row["image"])}" alt="{escape(path)}">'
    frame = f'<div class="frame">{image}<span class="mark" role="img" aria-label="{says}">{mark}</span></div>'
    truth = f'<br><span class="muted">is</span> <b>{breakable(actual)}</b>' if verdict == "wrong" else ""
    words = f'<b>{predicted}</b> <span class="share">{percent(row.get("probability"))}</span>{truth}'
    return f'<li class="{verdict}">{frame}{words}<span class="path">{breakable(path)}</span></li>'


def _verdict(row: Row) -> tuple[str, str, str]:
    if row.get("actual") is None:
        return "unknown", "?", "actual class unknown"
    return ("right", "✓", "right") if row["actual"] == row.get("predicted") else ("wrong", "✗", "wrong")


def _data_uri(image: Image.Image) -> str:
    """A thumbnail on white as a data: URI; lossless where it is so small that it is shown enlarged."""
    small = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    form, options = ("PNG", {"optimize": True}) if max(small.size) <= COARSE else ("JPEG", {"quality": 82})
    stream = io.BytesIO()
    small.save(stream, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
