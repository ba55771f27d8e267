"""Ends the command soon after it is told to: Ctrl-C (SIGINT), SIGTERM from a scheduler, or a reader that is gone.

A signal interrupts Python wherever it is, so that what was begun is put away. Where it is in the middle of a long
computation it can't be interrupted; then a thread that waits for signals ends the process. Nothing is lost by that:
files appear whole or not at all.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

PATIENCE = 1.2
"""Seconds that the command has to put away what it was doing."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def stoppable(say: Callable[[], None]) -> Iterator[None]:
    """Within the context SIGTERM interrupts, as Ctrl-C does, and the process ends soon after either.

    Args:
        say: says that the command was stopped, where it can't do so itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    end, start = os.pipe()
    os.set_blocking(start, False)
    threading.Thread(target=_watch, args=(end, say), daemon=True).start()
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, _terminate)
        signal.set_wakeup_fd(start, warn_on_full_buffer=False)
    yield  # what was set up stays: the process is about to end, and its threads may take their time


def status(stopped: KeyboardInterrupt) -> int:
    """The exit status that says by which signal."""
    return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)


def leave(code: int) -> NoReturn:
    """End the process now: to take PyTorch down in an orderly way can take longer than people wait."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def unread() -> int:
    """Leave what can't be written unwritten, as ``| head`` wants it; the exit status."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    return 128 + getattr(signal, "SIGPIPE", 13)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _watch(end: int, say: Callable[[], None]) -> None:
    """Wait for a signal, give the command time to end by itself, then end it."""
    stopping = {int(signal.SIGINT), int(signal.SIGTERM)}
    while (number := os.read(end, 1)[0]) not in stopping:
        continue
    threading.Event().wait(PATIENCE)
    with suppress(Exception):
        say()
    os._exit(128 + number)
