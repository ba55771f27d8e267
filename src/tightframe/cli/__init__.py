"""The command line: arguments in, a job, a table and what to do next out. No logic of its own."""

from __future__ import annotations

from collections.abc import Sequence

from tightframe.cli import terminal
from tightframe.cli.arguments import parser
from tightframe.errors import TightframeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 it can't be done and why, 2 usage, 130 interrupted."""
    try:
        options = parser().parse_args(arguments)
        options.command(options)
    except TightframeError as error:
        terminal.failure(str(error))
        return 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        terminal.failure(f"{what}. Check that the folders given exist, may be written to and have room.")
        return 1
    except KeyboardInterrupt:
        terminal.interrupted()
        return 130
    return 0
