"""What tests of the jobs share: images that are gone, and stops like Ctrl-C."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tightframe.errors import DataError


@dataclass(frozen=True)
class Unreadable:
    name: str

    def digest(self):
        return ""

    def open(self):
        raise DataError("disk gone")


@pytest.fixture
def unreadable():
    """Makes the same images, but on a disk that is gone."""
    return lambda images: replace(images, items=tuple(map(Unreadable, images.identifiers)))


@pytest.fixture
def stopping_at():
    """A progress callable that behaves like Ctrl-C at the given step of all that it is told of."""

    def make(moment):
        ticks = 0

        def progress(items, description, total):
            nonlocal ticks
            for item in items:
                ticks += 1
                if ticks == moment:
                    raise KeyboardInterrupt
                yield item

        return progress

    return make


@pytest.fixture
def often_stopped(stopping_at):
    """Calls ``run(progress)`` again and again, stopped two steps later each time, until it comes to its end.

    What it gave then, and how often it was stopped.
    """

    def going_on(run):
        stops = 0
        while True:
            try:
                return run(stopping_at(1 + 2 * stops)), stops
            except KeyboardInterrupt:
                stops += 1

    return going_on
