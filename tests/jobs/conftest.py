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
