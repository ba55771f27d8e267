from __future__ import annotations

import pytest


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
