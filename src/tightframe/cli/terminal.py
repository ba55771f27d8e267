"""What the command line shows: tables, notes, progress and failures."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from tightframe.processes import is_first
from tightframe.report.fields import TABLES
from tightframe.report.formats import RESPELLED, printable
from tightframe.report.tables import table

if TYPE_CHECKING:
    from tightframe.report.result import Result
    from tightframe.row import Row


class _Console(Console):
    """A console that leaves it to the command what becomes of a reader that is gone (``| head``)."""

    def on_broken_pipe(self) -> None:
        """Raise it as any other error: rich would end the process here."""
        raise BrokenPipeError


out = _Console(quiet=not is_first())
err = _Console(stderr=True, quiet=not is_first())
SHOWN = 10
"""Most kinds of mistake, and epochs, that are shown."""


for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):  # under a one-byte encoding: what it lacks is spelled with what it has
        stream.reconfigure(errors=RESPELLED)


def show(title: str, columns: str | Sequence[str], rows: list[Row]) -> None:
    """Print a table of the keys ``columns``, or of those of the table with that name."""
    keys = TABLES[columns].columns if isinstance(columns, str) else columns
    out.print(table(title, keys, rows))
    out.print()


def spaced(rows: list[Row]) -> list[Row]:
    """About ``SHOWN`` of the rows, evenly spaced, with the last."""
    step = -(-len(rows) // SHOWN)
    return rows[::-1][::step][::-1]


def close(result: Result, json_file: Path | None, data: Sequence[str] = ("DATA",)) -> None:
    """Notes, the JSON file, and what to do next with the images that ``data``, as typed, names."""
    for note in result.notes:
        out.print(Text.assemble(("• ", "dim"), printable(note)))
    if json_file and str(json_file) == "-":
        sys.stdout.write(result.to_json() + "\n")
    elif json_file:
        result.to_json(json_file)
        where(json_file, "rows, settings and versions")
    for command in result.next_steps:
        command = command.replace(" DATA ", f" {shlex.join(data)} ")
        out.print(Text.assemble(("next: ", "dim"), (printable(command), "green")), soft_wrap=True)


@contextmanager
def tables_aside(aside: bool) -> Iterator[None]:
    """While the context is open, and ``aside``, tables and notes go to standard error: standard output is for JSON."""
    global out
    kept = out
    out = err if aside else kept
    try:
        yield
    finally:
        out = kept


def where(path: Path, what: str) -> None:
    """Say where something lies, on one line however long, to be copied."""
    out.print(Text.assemble((f"{what}: ", "dim"), printable(str(path))), soft_wrap=True)


def failure(message: str) -> None:
    """Say on standard error why a command could not be done."""
    lines = "\n".join(map(printable, message.split("\n")))
    Console(stderr=True).print(Text.assemble(("✗ ", "bold red"), lines), soft_wrap=True)  # whichever process it is


def interrupted() -> None:
    """Say on standard error that the user stopped it, and what is kept."""
    err.print(
        "stopped. What was saved in --out and --feature-cache is kept: run the same command again to go on.",
        soft_wrap=True,
    )


@contextmanager
def progress() -> Iterator[Any]:
    """Progress on standard error: bars on a terminal, one line a step elsewhere."""
    if not err.is_terminal:
        yield _announced
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:

        def track(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
            task = bars.add_task(escape(description), total=total)
            try:
                for item in items:
                    yield item
                    bars.advance(task)
            finally:
                bars.remove_task(task)

        yield track


def _announced(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
    err.print(Text(printable(f"{description} …")), soft_wrap=True)
    yield from items
