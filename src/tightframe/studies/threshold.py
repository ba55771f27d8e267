"""Whether transfer is best at an intermediate source collapse: a parabola through accuracy over log NC1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tightframe.row import Row
from tightframe.studies import evidence
from tightframe.studies.evidence import Claim, Evidence, Units

SLOPE = evidence.Statistic("slope per tenfold NC1", evidence.LEAST_SHARE, share=True)
FEWEST_PLACES = 4
"""Fewest different NC1 that a parabola is fitted to."""


def rising(over: Units) -> Claim:
    """Accuracy rises with source NC1 at the most collapsed model."""

    def claim(rows: Sequence[Row]) -> Evidence:
        tops = [top for group in evidence.grouped(rows, ["data"]).values() if (top := turning_point(group)) is not None]
        where = f" (the curve turns at NC1 {min(tops):.2g} to {max(tops):.2g})" if tops else ""
        return _slope(f"among the most collapsed models, less source collapse is better{where}", rows, 0, over)

    return claim


def falling(over: Units) -> Claim:
    """Accuracy falls with source NC1 at the least collapsed model."""
    return lambda rows: _slope("among the least collapsed models, more source collapse is better", rows, 1, over)


def turning_point(rows: Sequence[Row]) -> float | None:
    """Source NC1 at the top of the parabola; ``None`` if it has no top among the rows."""
    logs, accuracy = _curve(_collapsed(rows))
    curve = _parabola(logs, accuracy)
    if curve is None or curve[0] >= 0:
        return None
    top = float(-curve[1] / (2 * curve[0]))
    return math.exp(top) if logs.min() < top < logs.max() else None


def _slope(question: str, rows: Sequence[Row], end: int, over: Units) -> Evidence:
    """The slope per tenfold NC1 at the most (``end`` 0) or, downwards, at the least collapsed model (1)."""
    known = _collapsed(rows)
    (logs, accuracy), group = _curve(known), evidence.codes(known, ["data"])

    def mean_slope(drawn: np.ndarray) -> float:
        """The mean over datasets."""
        found = []
        for one in set(group):
            part = drawn[group[drawn] == one]
            curve = _parabola(logs[part], accuracy[part])
            if curve is not None:
                place = logs[part].max() if end else logs[part].min()
                found.append(math.log(10) * float(2 * curve[0] * place + curve[1]))
        return (-1 if end else 1) * evidence.finite_mean(found)

    return evidence.bootstrap(question, SLOPE, known, mean_slope, over)


def _collapsed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if 0 < (row["source_nc1"] or 0) < math.inf]


def _curve(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Log source NC1 and accuracy of each row."""
    return np.log([row["source_nc1"] for row in rows]), np.array([row["test_accuracy"] for row in rows])


def _parabola(logs: np.ndarray, accuracy: np.ndarray) -> np.ndarray | None:
    """Its three coefficients, if there are enough different places."""
    return np.polyfit(logs, accuracy, 2) if len(set(logs)) >= FEWEST_PLACES else None
