"""Where the names of points go, so that names cover neither each other nor points.

Greedy: each name in turn takes the side of its point on which it covers least. The plot's size is not known before it
is shown, so a middling one is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 460.0, 330.0
LETTER, LINE, GAP, DOT = 6.6, 15.0, 10.0, 6.0

SIDES = [("left", GAP, 0.0), ("right", -GAP, 0.0), ("center", 0.0, -15.0), ("center", 0.0, 16.0)]
SIDES += [(align, dx, dy) for dy in (-13.0, 13.0) for align, dx in (("left", 6.0), ("right", -6.0))]


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """The area of the overlap."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(across, 0.0) * max(down, 0.0)


def place(points: Sequence[dict[str, Any]], x: str, y: str, *, log_x: bool = False) -> None:
    """Give each point with a ``name`` the ``align``, ``dx`` and ``dy`` of its label."""
    across = _pixels([math.log10(point[x]) if log_x else point[x] for point in points], WIDTH)
    down = [HEIGHT - pixel for pixel in _pixels([point[y] for point in points], HEIGHT)]
    dots = [Box(h - DOT, v - DOT, h + DOT, v + DOT) for h, v in zip(across, down, strict=True)]
    taken = list(dots)
    for point, dot in zip(points, dots, strict=True):
        choices = [(_label(dot, point["name"], side), side) for side in SIDES]
        box, (align, dx, dy) = min(choices, key=lambda choice: _cost(choice[0], taken))
        taken.append(box)
        point.update(align=align, dx=dx, dy=dy)


def _pixels(values: Sequence[float], length: float) -> list[float]:
    low, high = min(values), max(values)
    spread = high - low
    return [length * (0.07 + 0.86 * (value - low) / spread) if spread else length / 2 for value in values]


def _label(dot: Box, name: str, side: tuple[str, float, float]) -> Box:
    align, dx, dy = side
    width = min(LETTER * len(name), WIDTH / 2)
    anchor = (dot.left + dot.right) / 2 + dx
    left = anchor - {"left": 0.0, "center": width / 2, "right": width}[align]
    middle = (dot.top + dot.bottom) / 2 + dy
    return Box(left, middle - LINE / 2, left + width, middle + LINE / 2)


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """Area that would cover something, and twice the area that would stick out of the plot."""
    outside = (box.right - box.left) * LINE - box.shared(Box(0, 0, WIDTH, HEIGHT))
    return 2 * outside + sum(box.shared(other) for other in taken)
