"""Where the labels of marks go, so that they cover neither each other nor marks.

Greedy: each label in turn takes the side of its mark on which it covers least. The plot's size is not known before it
is shown, so a middling one is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 460.0, 330.0
LETTER, LINE, DOT = 6.6, 15.0, 6.0

BESIDE = [("left", 10, 0), ("right", -10, 0), ("center", 0, -15), ("center", 0, 16)]
CORNERS = [("left", 6, -13), ("right", -6, -13), ("left", 6, 13), ("right", -6, 13)]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


def place(marks: Sequence[dict[str, Any]], *, log_x: bool = False) -> None:
    """Give each mark, which has ``x``, ``y`` and ``label``, the ``align``, ``dx`` and ``dy`` of its label."""
    across = _pixels([math.log10(mark["x"]) if log_x else mark["x"] for mark in marks], WIDTH)
    down = [HEIGHT - pixel for pixel in _pixels([mark["y"] for mark in marks], HEIGHT)]
    taken: list[Box] = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in zip(across, down, strict=True)]
    for mark, x, y in zip(marks, across, down, strict=True):
        boxes = {side: _box(x, y, mark["label"], *side) for side in BESIDE + CORNERS}
        align, dx, dy = best = min(boxes, key=lambda side: _cost(boxes[side], taken))
        taken.append(boxes[best])
        mark.update(align=align, dx=dx, dy=dy)


def _pixels(values: Sequence[float], length: float) -> list[float]:
    low, spread = min(values), max(values) - min(values)
    return [length * (0.07 + 0.86 * (value - low) / spread) if spread else length / 2 for value in values]


def _box(x: float, y: float, label: str, align: str, dx: int, dy: int) -> Box:
    width = min(LETTER * len(label), WIDTH / 2)
    left = x + dx - {"left": 0.0, "center": width / 2, "right": width}[align]
    return left, y + dy - LINE / 2, left + width, y + dy + LINE / 2


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """Area that would cover something, and twice the area that would stick out of the plot."""
    outside = _shared(box, box) - _shared(box, (0.0, 0.0, WIDTH, HEIGHT))
    return 2 * outside + sum(_shared(box, other) for other in taken)


def _shared(one: Box, other: Box) -> float:
    across, down = (min(one[side + 2], other[side + 2]) - max(one[side], other[side]) for side in (0, 1))
    return max(across, 0.0) * max(down, 0.0)
