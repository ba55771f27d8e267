"""Which of several processes this is, where a launcher started some together to do the same."""

from __future__ import annotations

import os


def is_first() -> bool:
    """Whether this process is the first of those started together, or alone: the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"
