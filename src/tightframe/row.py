"""A line of a table, and how it goes into JSON."""

from __future__ import annotations

import math
from typing import Any

Row = dict[str, Any]


def plain(value: Any) -> Any:
    """``value`` with every number that JSON can't hold replaced by ``None``."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value
