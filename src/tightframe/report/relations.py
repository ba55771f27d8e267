"""Charts of one measurement against another, in panels: what the studies draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from tightframe.report.tables import Column, Row, failed, text
from tightframe.report.theme import (
    BLUE,
    INK,
    PALETTE,
    accuracy_scale,
    data,
    finish,
    finite,
    hundredfold,
    log_axis,
    positive,
    tooltips,
)

Chart = Any
SIDE, COLUMNS = 300, 2
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left"]


@dataclass(frozen=True)
class Axis:
    """A measurement to draw.

    Attributes:
        key: in the rows.
        title: of the axis, with its unit.
        log: whether only ratios matter.
        share: whether it is a share, drawn in percent.
    """

    key: str
    title: str
    log: bool = False
    share: bool = False

    def of(self, row: Row, end: str = "") -> float | None:
        """The number to draw, or that of an end of its interval."""
        value = row.get(self.key + end)
        return hundredfold(value) if self.share else positive(value) if self.log else finite(value)


def relation_chart(
    rows: Sequence[Row],
    x: Axis,
    y: Axis,
    *,
    title: str,
    subtitle: str,
    panel: str | None = None,
    color: str | None = None,
    joined: str | None = None,
    tips: Sequence[Column] = (),
) -> Chart | None:
    """``y`` against ``x``, a panel for each value of a column, color and shape by another.

    Where rows have the ends of an interval (``…_low``, ``…_high``) of ``y``, it is drawn. Every panel has its own axes.

    Args:
        rows: a mark each; those that failed or lack a measurement are left out.
        x: from left to right.
        y: upwards.
        title: of the chart.
        subtitle: how to read it.
        panel: a column; one panel without it.
        color: a column of eight values at most that differ in color and shape; blue without it.
        joined: a column in whose order lines join the marks of each color.
        tips: what is said of a mark on hover, beside both measurements.
    """
    marks = [mark for row in rows if (mark := _mark(row, x, y, panel, color, joined, tips)) is not None]
    if not marks:
        return None
    shades = list(dict.fromkeys(mark["color"] for mark in marks))
    panels = list(dict.fromkeys(mark["panel"] for mark in marks))
    drawn = [
        _panel([mark for mark in marks if mark["panel"] == name], x, y, shades, joined is not None, tips).properties(
            width=SIDE, height=SIDE * 0.8, **({"title": _heading(name)} if panel else {})
        )
        for name in panels
    ]
    return finish(alt.concat(*drawn, columns=COLUMNS, spacing=36), title, subtitle)


def _heading(name: str) -> Any:
    return alt.TitleParams(text=name, fontSize=13, fontWeight=600, color=INK, offset=24)


def _mark(
    row: Row, x: Axis, y: Axis, panel: str | None, color: str | None, joined: str | None, tips: Sequence[Column]
) -> dict[str, Any] | None:
    measured = {"x": x.of(row), "y": y.of(row)}
    if failed(row) or None in measured.values():
        return None
    where = {
        "panel": "" if panel is None else text(row.get(panel)),
        "color": "" if color is None else text(row.get(color)),
    }
    order = {"order": None if joined is None else finite(row[joined])}
    ends = {"low": y.of(row, "_low"), "high": y.of(row, "_high")}
    return {**measured, **where, **order, **ends, **{f"tip{i}": column.cell(row) for i, column in enumerate(tips)}}


def _panel(
    marks: Sequence[dict[str, Any]], x: Axis, y: Axis, shades: Sequence[str], joined: bool, tips: Sequence[Column]
) -> Any:
    told = tooltips(**{f"tip{i}": column.header for i, column in enumerate(tips)})
    base = alt.Chart(data(marks)).encode(
        x=_channel(alt.X, "x", x, [mark["x"] for mark in marks]),
        y=_channel(alt.Y, "y", y, [mark[end] for mark in marks for end in ("y", "low", "high")]),
        color=_shades(alt.Color, shades, PALETTE) if len(shades) > 1 else alt.value(BLUE),
    )
    bars = base.transform_filter("isValid(datum.low) && isValid(datum.high)").mark_rule(strokeWidth=1.5, opacity=0.6)
    shape = _shades(alt.Shape, shades, SHAPES) if len(shades) > 1 else alt.value("circle")
    layers = [bars.encode(y=alt.Y(field="low", type="quantitative"), y2=alt.Y2(field="high"))]
    layers += (
        [base.mark_line(opacity=0.7).encode(order=alt.Order(field="order", type="quantitative"))] if joined else []
    )
    return alt.layer(*layers, base.mark_point(size=70).encode(shape=shape, tooltip=told))


def _channel(channel: Any, field: str, axis: Axis, values: Sequence[float | None]) -> Any:
    known = [value for value in values if value is not None]
    if axis.log:
        return log_axis(field, channel, known, axis.title)
    scale = accuracy_scale(known) if axis.share else alt.Scale(zero=False, nice=False, padding=12)
    whole = {"tickMinStep": 1} if all(value == int(value) for value in known) else {}
    return channel(field=field, type="quantitative", scale=scale, axis=alt.Axis(title=axis.title, **whole))


def _shades(channel: Any, names: Sequence[str], look: Sequence[str]) -> Any:
    given = [look[place % len(look)] for place in range(len(names))]
    return channel(field="color", type="nominal", scale=alt.Scale(domain=names, range=given), legend=alt.Legend())
