"""Which layer to tune: the rule behind ``--layer auto``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import nc1, nc1_ratio
from tightframe.metrics.factors import between_factor

ALLOWANCE = 0.10
"""Largest share of all parameters that the tuned block and the new head may own together (the paper's promise)."""


class Reading(NamedTuple):
    """What is known of one block: its name, its spread (see ``spreads``) on training images, its parameters."""

    layer: str
    spread: float
    parameters: int


def spreads(layers: Sequence[ClassMoments]) -> list[float]:
    """Spread within classes against spread between them, for layers of different widths on the same images.

    NC1 per direction in which class means differ, which is infinite where they don't. A layer of fewer than K − 1
    values can't hold all these directions and looks collapsed for being narrow: among such layers, all are compared
    by tr Σ_W / tr Σ_B, which knows no directions.
    """
    narrow = any(moments.dimension < moments.classes - 1 for moments in layers)
    return [nc1_ratio(moments) if narrow else _per_direction(moments) for moments in layers]


def _per_direction(moments: ClassMoments) -> float:
    rank = between_factor(moments).rank
    return nc1(moments) * moments.classes / rank if rank else float("inf")


def recommend_layer(readings: Sequence[Reading], head_parameters: int, other_parameters: int) -> str:
    """The most collapsed block that can be tuned within the allowance.

    Among the blocks which, with the new head, own at most 10 % of all parameters, the one with the least spread on
    the training images; the deeper of two alike. If no block is that small, the smallest one.

    Args:
        readings: one a block, in the order in which they run.
        head_parameters: of the new head.
        other_parameters: of the backbone without its old head.
    """
    small = small_enough(readings, head_parameters, other_parameters)
    return min(reversed(small), key=lambda r: r.spread).layer


def small_enough(readings: Sequence[Reading], head_parameters: int, other_parameters: int) -> list[Reading]:
    """Blocks that can be tuned within the allowance; the smallest one if no block is that small."""
    owned = [reading for reading in readings if reading.parameters > 0]
    if not owned:
        raise MeasureError("no layer has parameters to tune; name some with --layers")
    total = head_parameters + other_parameters
    small = [r for r in owned if r.parameters + head_parameters <= ALLOWANCE * total]
    return small or [min(owned, key=lambda r: r.parameters)]
