"""Terminal tables: rows (dicts) read through their fields, laid out for the width there is. ::

    console.print(table("Models", TABLES["rank"].columns, rows))

Numbers stay whole, names fold, and columns that don't fit go into a second table below. Fields with nothing in them are
left out. A row with an ``error`` is shown as its name and its message instead of as numbers. Names come from users'
folders, so nothing in a row is ever read as markup.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from tightframe.report.fields import FIELDS, Field, Row, failed, shown
from tightframe.report.formats import MISSING, text

NARROWEST_NAME = 12
NARROWEST_TEXT = 10


class Column(NamedTuple):
    """One column, spelled."""

    title: str
    cells: list[str]
    right: bool

    @property
    def full(self) -> int:
        """Width at which nothing folds but the titles of numbers."""
        words = [max(self.title.split(), key=cell_len)] if self.right else [self.title]
        return max(1, *map(cell_len, words + self.cells))

    def least(self, narrowest: int) -> int:
        """Width that it needs: numbers in whole, words folded to ``narrowest``."""
        return self.full if self.right else min(self.full, narrowest)


def columns(keys: Sequence[str], rows: Sequence[Row]) -> list[Column]:
    """The columns with something in them; a 95 % interval stands right of its value, aligned with the others."""
    return [_column(field, rows) for field in shown(keys, rows)]


def _column(field: Field, rows: Sequence[Row]) -> Column:
    values, intervals = [field.cell(row) for row in rows], [field.interval(row) for row in rows]
    if not any(intervals):
        return Column(field.title, values, field.right)
    values = ["" if interval and value == MISSING else value for value, interval in zip(values, intervals, strict=True)]
    wide, long = (max(map(len, cells)) for cells in (values, intervals))
    cells = [f"{value:>{wide}} {interval:>{long}}" for value, interval in zip(values, intervals, strict=True)]
    return Column(f"{field.title}\n95 % interval", cells, field.right)


def table(title: str, keys: Sequence[str], rows: Sequence[Row]) -> Group:
    """A table for the terminal, with failed rows below the others where a message has the whole width."""
    measured, errors = [row for row in rows if not failed(row)], [row for row in rows if failed(row)]
    parts: list[RenderableType] = [Text(text(title), style="bold")]
    if measured or not errors:
        parts.append(_Fitted(columns(keys, measured)))
    for row in errors:
        parts += ["", _error(FIELDS[keys[0]].cell(row), text(row["error"]))]
    return Group(*parts)


def _error(name: str, message: str) -> RichTable:
    inner = RichTable.grid(padding=(0, 1, 0, 0))
    inner.add_column(style="red")
    inner.add_column(style="red", overflow="fold")
    inner.add_row("✗", Text.assemble((name, "bold"), "\n", message, overflow="fold"))
    return inner


@dataclass(frozen=True)
class _Fitted:
    """Columns laid out for the width there is; those that don't fit follow in a second table.

    Rich would shrink the column that may fold to nothing before it touches the others, so widths are settled here.
    """

    columns: Sequence[Column]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable | str]:
        width = options.max_width
        gap = next((gap for gap in (3, 2) if _needs(self.columns, gap) <= width), 1)
        for index, part in enumerate(self._parts(width, gap)):
            if index:
                yield ""
            yield _laid_out(part, _widths(part, width, gap), gap)

    def _parts(self, width: int, gap: int) -> Iterator[list[Column]]:
        """Each part begins with the names and fits into ``width``."""
        names, *rest = self.columns
        part = [names]
        for column in rest:
            if len(part) > 1 and _needs([*part, column], gap) > width:
                yield part
                part = [names]
            part.append(column)
        yield part


def _least(part: Sequence[Column]) -> list[int]:
    return [column.least(NARROWEST_TEXT if index else NARROWEST_NAME) for index, column in enumerate(part)]


def _needs(part: Sequence[Column], gap: int) -> int:
    return sum(_least(part)) + gap * (len(part) - 1)


def _widths(part: Sequence[Column], width: int, gap: int) -> list[int]:
    """What is left over goes to words, from left to right."""
    left, widths = max(0, width - _needs(part, gap)), []
    for column, least in zip(part, _least(part), strict=True):
        extra = min(left, column.full - least)
        widths.append(least + extra)
        left -= extra
    return widths


def _laid_out(part: Sequence[Column], widths: Sequence[int], gap: int) -> RichTable:
    inner = RichTable(
        box=box.SIMPLE_HEAD, header_style="bold", padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False
    )
    for column, width in zip(part, widths, strict=True):
        parts = [textwrap.fill(part, max(width, 1), break_long_words=False) for part in column.title.split("\n")]
        title = "\n".join(parts)
        inner.add_column(Text(title), width=width, no_wrap=True, justify="right" if column.right else "left")
    for cells in zip(*(column.cells for column in part), strict=True):
        inner.add_row(*(Text(_fold(cell, width)) for cell, width in zip(cells, widths, strict=True)))
    return inner


def _fold(words: str, width: int) -> str:
    """Fold a name after its own punctuation where it has some: "vit_small_", "patch16", not "vit_small_p"."""
    lines = [""]
    for token in re.findall(r"[^\s._/-]*[\s._/-]?", words):
        for piece in chop_cells(token, width) if cell_len(token) > width else [token]:
            if cell_len(lines[-1]) + cell_len(piece.rstrip()) <= width:
                lines[-1] += piece
            else:
                lines.append(piece)
    return "\n".join(line.rstrip() for line in lines)
