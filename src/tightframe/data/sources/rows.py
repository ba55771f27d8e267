"""The rows of a table file, with values as text, and which of its columns say what.

CSV with any of the delimiters , ; tab | (told by the header), quotes and a byte-order mark; one JSON object a line; and
parquet. Of parquet only the columns that are needed are read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tightframe.data.records import Columns, split_word
from tightframe.errors import DataError, needed_by

_DELIMITERS = ",;\t|"
_USUAL = {
    "image": (
        *("filename", "file_name", "filepath", "file_path", "file", "path"),
        *("image", "image_path", "image_file", "image_name", "img", "img_path"),
    ),
    "label": ("label", "labels", "class", "class_name", "classname", "category", "target"),
    "split": ("split",),
}


@dataclass(frozen=True)
class Table:
    """A table: its columns, and a function from some of them to their values, row by row."""

    name: str
    columns: tuple[str, ...]
    values: Callable[[Sequence[str]], Iterator[tuple[Any, ...]]]


def read_table(path: Path) -> Table:
    """The table in the file ``path``, by its suffix. Raises ``DataError`` where it can't be read."""
    suffix = path.suffix.lower()
    read = _parquet if suffix in (".parquet", ".pq") else _jsonl if suffix in (".jsonl", ".ndjson") else _csv
    try:
        return read(path)
    except (OSError, UnicodeError, csv.Error, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} can't be read as a table of images ({error}); give CSV in UTF-8, JSON lines, or parquet"
        ) from error


TABLES = frozenset({".csv", ".tsv", ".psv", ".jsonl", ".ndjson", ".parquet", ".pq"})
"""Suffixes, in lower case, of table files."""


def found_columns(table: Table, asked: Columns) -> Columns:
    """The columns to read: those ``asked`` for, or the one column with a usual name.

    No column of groups is guessed; one called split is taken only if all it says are names of splits.

    Raises:
        DataError: a column is missing, or several may be meant.
    """
    for option in ("image", "label", "split", "group"):
        name = getattr(asked, option)
        if name is not None and table.columns.count(name) != 1:
            problem = "has no column" if name not in table.columns else "has more than one column"
            raise DataError(f"{table.name} {problem} {name!r}; {_listed(table.columns, option)}")
    image, label = (
        asked.image or usual_column(table.name, table.columns, "image"),
        asked.label or usual_column(table.name, table.columns, "label"),
    )
    found = replace(asked, image=image, label=label)
    if found.split is None and table.columns.count("split") == 1:
        words = {text(value) for (value,) in table.values(["split"])}
        if words and all(map(split_word, words)):
            return replace(found, split="split")
    return found


def usual_column(name: str, columns: Sequence[str], what: str) -> str:
    """The one of ``columns`` that is usually called as an ``"image"`` or a ``"label"`` is.

    Raises:
        DataError: none or several are, in the table ``name``.
    """
    plain = {column: column.strip().casefold().replace(" ", "_").replace("-", "_") for column in columns}
    found = [column for column in columns if plain[column] in _USUAL[what]]
    if len(found) == 1:
        return found[0]
    problem = f"more than one column that may be the {what} ({', '.join(found)})" if found else f"no column of {what}s"
    usual = "" if found else f" (usual names are {', '.join(_USUAL[what])})"
    raise DataError(f"{name} has {problem}{usual}; {_listed(columns, what)}")


def text(value: object) -> str:
    """A value of a table as text; empty where there is none."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return str(value).strip()


def sorted_labels(labels: Collection[str]) -> list[str]:
    """Labels in order: by value where all are whole numbers written plainly, else by name."""
    plain = all(label.isdecimal() and str(int(label)) == label for label in labels)
    return sorted(labels, key=int) if plain else sorted(labels)


def _listed(columns: Sequence[str], option: str) -> str:
    return f"name it with --{option}-column ({option}_column=…). Its columns are: {', '.join(columns) or 'none'}"


def _csv(path: Path) -> Table:
    content = path.read_bytes()
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # as spreadsheets save "Unicode text"
    lines = content.decode("utf-16" if wide else "utf-8-sig")
    first = lines.lstrip("\r\n").partition("\n")[0]
    parsed = partial(csv.reader, skipinitialspace=True)
    widths = {mark: len(next(parsed([first], delimiter=mark), [])) for mark in _DELIMITERS}
    delimiter = max(_DELIMITERS, key=lambda mark: widths[mark])
    rows = [row for row in parsed(io.StringIO(lines, newline=""), delimiter=delimiter) if any(row)]
    header = tuple(name.strip() for name in rows[0]) if rows else ()

    def values(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        places = [header.index(column) for column in columns]
        for row in rows[1:]:
            yield tuple(row[place] if place < len(row) else None for place in places)

    return Table(str(path), header, values)


def _jsonl(path: Path) -> Table:
    with path.open(encoding="utf-8-sig") as file:
        rows = [json.loads(line, parse_int=str, parse_float=str) for line in file if line.strip()]  # "1.0" stays "1.0"
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not a JSON object")
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(str(path), columns, lambda names: (tuple(row.get(name) for name in names) for row in rows))


def _parquet(path: Path) -> Table:
    with needed_by("parquet", "datasets"):
        import pyarrow.parquet as parquet

    file = parquet.ParquetFile(path)
    schema = file.schema_arrow

    def values(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        if embedded := [
            one for one in columns if str(schema.field(one).type).startswith(("struct", "binary", "large_b"))
        ]:
            raise DataError(f"{path} holds whole images in {embedded[0]}, not their paths; give hf/{path}")
        for batch in file.iter_batches(columns=list(columns)):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)

    return Table(str(path), tuple(schema.names), values)
