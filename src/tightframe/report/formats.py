"""How values are spelled for people, the same in the terminal, on the page and in a notebook.

A format turns one value into text: ``percent``, ``number``, ``rough``, ``exact``, ``count``, ``millions``, ``seconds``,
``size``, ``flag``, ``listed``, ``text``. Missing values are "–"; infinities and NaN are shown as they are.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Format = Callable[[Any], str]

MISSING = "–"
TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
ASCII = {"–": "-", "…": "...", "•": "*", "✗": "x", "≥": ">=", "±": "+/-", "×": "x", "τ": "tau", "\ufffd": "?"}


def text(value: Any) -> str:
    """Any value on one line. Control characters are replaced: a file name must not be able to drive the terminal."""
    return MISSING if value is None or value == "" else printable(" ".join(str(value).split()))


def printable(line: str) -> str:
    """``line`` with control characters, and those that change the direction of writing, replaced by "\ufffd"."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in TURNING else c for c in line)


def flag(value: Any) -> str:
    """True as "yes", False as "no"."""
    return MISSING if value is None else "yes" if value else "no"


def listed(value: Any) -> str:
    """The entries of a list, or the pairs of a mapping, separated by commas."""
    if isinstance(value, Mapping):
        value = [f"{key}: {listed(entry)}" for key, entry in value.items()]
    several = isinstance(value, (list, tuple, set, frozenset))
    return (", ".join(map(listed, value)) or MISSING) if several else text(value)


def apart(names: Iterable[str]) -> list[str]:
    """The same names, numbered where one comes twice: "a", "a #2"."""
    different: list[str] = []
    for name in names:
        candidates = (name if turn == 1 else f"{name} #{turn}" for turn in itertools.count(1))
        different.append(next(candidate for candidate in candidates if candidate not in different))
    return different


def _numeric(spell: Callable[[float], str]) -> Format:
    """A format for finite numbers, extended to missing and non-finite ones."""

    @functools.wraps(spell)
    def spelled(value: Any) -> str:
        if value is None:
            return MISSING
        amount = float(value)
        return spell(amount) if math.isfinite(amount) else str(amount)

    return spelled


@_numeric
def percent(share: float) -> str:
    """0.873 as "87.3 %"; shares below 0.1 % keep two significant digits instead of becoming zero."""
    return f"{100 * share:.2g} %" if 0 < abs(share) < 0.001 else f"{100 * share:.1f} %"


@_numeric
def number(amount: float) -> str:
    """Four significant digits: "0.1235", "12.35", "12,346", "1.235e-05"."""
    if amount != 0 and not 1e-4 <= abs(amount) < 1e6:
        return f"{amount:.3e}"
    return f"{amount:,.0f}" if amount == 0 or abs(amount) >= 999.95 else f"{amount:#.4g}"


@_numeric
def rough(amount: float) -> str:
    """Three significant digits, for the ends of intervals: "0.124", "12.3", "12,300"."""
    if amount == 0 or not 1e-4 <= abs(amount) < 1e6:
        return f"{amount:.2g}"
    return f"{float(f'{amount:.3g}'):,.0f}" if abs(amount) >= 99.95 else f"{amount:#.3g}"


def interval(low: Any, high: Any, spell: Format) -> str:
    """An interval of numbers that ``spell`` spells: "59.7–85.4 %", or "≥ 0.123" without an upper end."""
    spell = rough if spell is number else spell
    if high is None or math.isinf(high):
        return f"≥ {spell(low)}"
    return f"{spell(low).removesuffix(' %')}–{spell(high)}"


@_numeric
def count(amount: float) -> str:
    """1234567 as "1,234,567"."""
    return f"{amount:,.0f}"


@_numeric
def millions(amount: float) -> str:
    """1234567 as "1.235", under a title that says millions."""
    return number(amount / 1e6)


@_numeric
def exact(amount: float) -> str:
    """A number that someone chose, as it was chosen: "0.05", "0.0001"."""
    return f"{amount:g}"


@_numeric
def seconds(duration: float) -> str:
    """A duration: "12 ms", "3.2 s", "4 min 10 s", "2 h 5 min"."""
    if round(duration, 1) < 0.1:
        return f"{1000 * duration:.0f} ms"
    if round(duration, 1) < 60:
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@_numeric
def size(amount: float) -> str:
    """A number of bytes: "512 B", "3.4 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" or abs(amount) >= 99.95 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def _respelled(error: UnicodeError) -> tuple[str, int]:
    """What an encoding lacks, in characters that every encoding has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(ASCII.get(character) or ascii(character)[1:-1] for character in lacking), error.end


RESPELLED = "tightframe.respelled"
"""Name of an error handler for streams: writes "≥" as ">=" where the encoding has no "≥", instead of failing."""
codecs.register_error(RESPELLED, _respelled)
