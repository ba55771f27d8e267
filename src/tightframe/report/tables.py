"""Terminal tables, and the columns and formats that terminal and HTML tables share.

A table is plain rows (dicts) read through columns::

    columns = [Column("model", "Model"), Column("nc1", "NC1", number), Column("test_accuracy", "Test", percent)]
    console.print(table("Models", columns, rows))

A format turns one value into what a person reads: ``percent``, ``number``, ``rough``, ``exact``, ``count``,
``millions``, ``seconds``, ``size``, ``text``. ``None`` and missing are "–"; infinities and NaN are shown as they are.
Columns with nothing in them are left out. A row with an ``error`` is shown as the row's name and its message instead
of as numbers. Names come from users' folders, so nothing in a row is ever read as markup.
"""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
Format = Callable[[Any], str]

MISSING = "–"
TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _spell(value: Any, finite: Callable[[float], str]) -> str:
    """Spell a number with ``finite``; what is missing or not finite is spelled the same way in every format."""
    if value is None:
        return MISSING
    amount = float(value)
    return finite(amount) if math.isfinite(amount) else str(amount)


def text(value: Any) -> str:
    """Any value on one line. Control characters are replaced: a file name must not be able to drive the terminal."""
    if value is None or value == "":
        return MISSING
    return printable(" ".join(str(value).split()))


def printable(line: str) -> str:
    """``line`` with control characters, and those that turn the direction of writing, made visible."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in TURNING else c for c in line)


def percent(value: Any) -> str:
    """0.873 as "87.3 %"; shares below 0.1 % keep two significant digits instead of becoming zero."""

    def spell(share: float) -> str:
        hundredths = 100 * share
        return f"{hundredths:.2g} %" if 0 < abs(hundredths) < 0.1 else f"{hundredths:.1f} %"

    return _spell(value, spell)


def number(value: Any) -> str:
    """Four significant digits: "0.1235", "12.35", "12,346", "1.235e-05"."""

    def spell(amount: float) -> str:
        if amount != 0 and not 1e-4 <= abs(amount) < 1e6:
            return f"{amount:.3e}"
        return f"{amount:,.0f}" if amount == 0 or abs(amount) >= 999.95 else f"{amount:#.4g}"

    return _spell(value, spell)


def rough(value: Any) -> str:
    """Three significant digits, for the ends of intervals: "0.124", "12.3", "12,300"."""

    def spell(amount: float) -> str:
        if amount == 0 or not 1e-4 <= abs(amount) < 1e6:
            return f"{amount:.2g}"
        return f"{float(f'{amount:.3g}'):,.0f}" if abs(amount) >= 99.95 else f"{amount:#.3g}"

    return _spell(value, spell)


def count(value: Any) -> str:
    """1234567 as "1,234,567"."""
    return _spell(value, lambda amount: f"{amount:,.0f}")


def millions(value: Any) -> str:
    """1234567 as "1.235", under a header that says millions."""
    return _spell(value, lambda amount: number(amount / 1e6))


def exact(value: Any) -> str:
    """A number that someone chose, as it was chosen: "0.05", "0.0001"."""
    return _spell(value, lambda amount: f"{amount:g}")


def seconds(value: Any) -> str:
    """A duration: "12 ms", "3.2 s", "4 min 10 s", "2 h 5 min"."""

    def spell(duration: float) -> str:
        if round(duration, 1) < 0.1:
            return f"{1000 * duration:.0f} ms"
        if round(duration, 1) < 60:
            return f"{duration:.1f} s"
        minutes, rest = divmod(round(duration), 60)
        return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

    return _spell(value, spell)


def size(value: Any) -> str:
    """A number of bytes: "512 B", "3.4 MB"."""

    def spell(amount: float) -> str:
        for unit in ("B", "kB", "MB", "GB"):
            if abs(amount) < 999.5:
                return f"{amount:.0f} {unit}" if unit == "B" or abs(amount) >= 99.95 else f"{amount:.1f} {unit}"
            amount /= 1000
        return f"{amount:,.1f} TB"

    return _spell(value, spell)


@dataclass(frozen=True)
class Column:
    """One column: the key in a row, the words above it, and how a value is spelled.

    With ``interval`` it shows the ends of an interval, which rows hold under ``KEY_low`` and ``KEY_high``.
    """

    key: str
    header: str
    format: Format = text
    interval: bool = False

    @property
    def right(self) -> bool:
        """Whether values align right, as all but text do."""
        return self.format is not text

    def cell(self, row: Row) -> str:
        """What a person reads in this column of ``row``."""
        if not self.interval:
            return self.format(row.get(self.key))
        low, high = row.get(f"{self.key}_low"), row.get(f"{self.key}_high")
        if low is None:
            return MISSING
        if high is None or math.isinf(high):
            return f"≥ {self.format(low)}"
        return f"{self.format(low).removesuffix(' %')}–{self.format(high)}"

    def told_in(self, row: Row) -> bool:
        """Whether ``row`` has something to show in this column."""
        return row.get(f"{self.key}_low" if self.interval else self.key) not in (None, "")


def failed(row: Row) -> bool:
    """Whether ``row`` says what went wrong instead of what was measured."""
    return bool(row.get("error"))


def shown(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """Columns with something in at least one row that succeeded. The first always stays: it names the rows."""
    measured = [row for row in rows if not failed(row)]
    return [
        column for index, column in enumerate(columns) if index == 0 or any(column.told_in(row) for row in measured)
    ]


def table(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """A table for the terminal, with failed rows below the others where a message has the whole width."""
    measured, errors = [row for row in rows if not failed(row)], [row for row in rows if failed(row)]
    whole = Table.grid()
    whole.add_column(overflow="fold")
    whole.add_row(Text(text(title), style="bold"))
    if measured or not errors:
        whole.add_row(_Fitted(shown(columns, rows), measured))
    for row in errors:
        whole.add_row("")
        whole.add_row(_error(columns[0].cell(row), text(row["error"])))
    return whole


def _error(name: str, message: str) -> Table:
    inner = Table.grid(padding=(0, 1, 0, 0))
    inner.add_column(style="red")
    inner.add_column(style="red", overflow="fold")
    inner.add_row("✗", Text.assemble((name, "bold"), "\n", message, overflow="fold"))
    return inner


NARROWEST_NAME = 12
NARROWEST_TEXT = 10


@dataclass(frozen=True)
class _Fitted:
    """Rows laid out for the width there is: numbers stay whole, names fold, what is too many goes in a second table.

    Rich would shrink the column that may fold to nothing before it touches the others; so the widths are settled here.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(options.max_width, 40), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | str]:
        gap = next((gap for gap in (3, 2) if self._needs(self.columns, gap) <= options.max_width), 1)
        for index, part in enumerate(self._parts(options.max_width, gap)):
            if index:
                yield ""
            yield self._table(part, self._widths(part, options.max_width, gap), gap)

    def _parts(self, width: int, gap: int) -> Iterator[list[Column]]:
        part = [self.columns[0]]
        for column in self.columns[1:]:
            if len(part) > 1 and self._needs([*part, column], gap) > width:
                yield part
                part = [self.columns[0]]
            part.append(column)
        yield part

    def _needs(self, part: Sequence[Column], gap: int) -> int:
        return sum(self._least(column) for column in part) + gap * (len(part) - 1)

    def _full(self, column: Column) -> int:
        header = text(column.header)
        if column.right:
            header = max(header.split(), key=cell_len)
        return max(cell_len(header), *(cell_len(column.cell(row)) for row in self.rows), 1)

    def _least(self, column: Column) -> int:
        least = NARROWEST_NAME if column is self.columns[0] else NARROWEST_TEXT
        return self._full(column) if column.right else min(self._full(column), least)

    def _widths(self, part: Sequence[Column], width: int, gap: int) -> list[int]:
        """What is left over goes to the names, from left to right."""
        left, widths = max(0, width - self._needs(part, gap)), []
        for column in part:
            extra = min(left, self._full(column) - self._least(column))
            widths.append(self._least(column) + extra)
            left -= extra
        return widths

    def _table(self, part: Sequence[Column], widths: Sequence[int], gap: int) -> Table:
        inner = Table(
            box=box.SIMPLE_HEAD, header_style="bold", padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False
        )
        for column, width in zip(part, widths, strict=True):
            lines = textwrap.wrap(text(column.header), max(width, 1), break_long_words=False)
            inner.add_column(
                Text("\n".join(lines)), width=width, no_wrap=True, justify="right" if column.right else "left"
            )
        for row in self.rows:
            inner.add_row(*(Text(_fold(c.cell(row), width)) for c, width in zip(part, widths, strict=True)))
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
