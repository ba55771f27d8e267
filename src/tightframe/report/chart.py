"""One builder for every chart: marks at (x, y), with intervals, lines, labels and tooltips, in panels.

``chart`` draws one measurement against another; ``panel`` and ``figure`` are its two halves, for charts whose panels
differ. Each gives ``None`` when the rows hold nothing that can be drawn. Rows with an ``error`` and values that are
missing, NaN, infinite or (on log axes) not positive are left out; the tables show them. Names of models, layers and
classes are only ever data, never field names or expressions, so they may hold anything. Shares are drawn in percent.

The palette is Okabe and Ito's (2008), which people with any common color blindness can tell apart. Axis titles lie flat
above their axis, where they can be read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import altair as alt

from tightframe.report.fields import FIELDS, Field, Row, failed, fields
from tightframe.report.formats import MISSING, percent, text
from tightframe.report.placing import place

THEME: dict[str, Any] = json.loads(resources.files("tightframe.report").joinpath("templates/theme.json").read_text())
"""The Vega-Lite config of every chart."""
PALETTE = THEME["range"]["category"]
BLUE, VERMILLION, *_ = PALETTE
INK = THEME["axis"]["titleColor"]
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left"]
DASHES = [[1, 0], [4, 4]]
WIDTH, HEIGHT = 640, 300
"""Pixels of a chart before the page fits it to its place."""
MOST_TICKS = 11
"""Most whole numbers that all have their tick."""
MOST_DOTS = 12
"""Most marks of a line that are drawn as dots too."""

Chart = Any
Mark = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """A measurement to draw, or names to draw measurements beside.

    Attributes:
        key: in the rows, and of the field that says whether it is a name, a share or a number.
        title: of the axis, with its unit; made from the field's where empty.
        log: whether only ratios matter.
    """

    key: str
    title: str = ""
    log: bool = False

    @property
    def field(self) -> Field:
        """What the key means."""
        return FIELDS[self.key]

    @property
    def named(self) -> bool:
        """Whether values are names."""
        return self.field.format is text

    @property
    def share(self) -> bool:
        """Whether values are shares, drawn in percent."""
        return self.field.format is percent

    @property
    def heading(self) -> str:
        """The title, with its unit."""
        return self.title or self.field.title + (" (%)" if self.share else " (log scale)" if self.log else "")

    def drawable(self, value: Any) -> Any:
        """What to draw for ``value``: a name, a number, or ``None``."""
        if self.named or value is None:
            return text(value) if self.named else None
        amount = float(value) * (100 if self.share else 1)
        return amount if math.isfinite(amount) and (amount > 0 or not self.log) else None


@dataclass(frozen=True)
class Look:
    """What tells marks apart, by keys of the rows.

    Attributes:
        color: up to eight values that differ in color and shape; all blue without it.
        dash: lines of its second value are dashed.
        joined: lines join the marks of each color in its order.
        label: its values stand beside the marks.
        chosen: where it is true, the mark stands out.
        tips: what is said of a mark on hover.
    """

    color: str | None = None
    dash: str | None = None
    joined: str | None = None
    label: str | None = None
    chosen: str | None = None
    tips: Sequence[str] = ()


def chart(
    rows: Sequence[Row], x: Axis, y: Axis, *, title: str, subtitle: str, panels: str | None = None, **look: Any
) -> Chart | None:
    """``y`` against ``x``, in a panel for each value of the key ``panels``; every panel has its own axes.

    Args:
        rows: a mark each; those that failed or lack a measurement are left out.
        x: from left to right.
        y: upwards; names from the top down, in the order of the rows.
        title: of the chart.
        subtitle: how to read it.
        panels: a key; one panel without it.
        look: see ``Look``.
    """
    parts = {name: [row for row in rows if text(row.get(panels or "")) == name] for name in _values(rows, panels)}
    shades = _values(rows, look.get("color"))
    return figure([panel(part, x, y, Look(**look), shades, name) for name, part in parts.items()], title, subtitle)


def _values(rows: Iterable[Row], key: str | None) -> list[str]:
    """The different values of ``key`` in rows that succeeded, in their order; "–" alone without a key."""
    return list(dict.fromkeys(text(row.get(key or "")) for row in rows if not failed(row)))


def figure(panels: Iterable[Chart | None], title: str, subtitle: str, columns: int = 2, **fitted: Any) -> Chart | None:
    """Panels side by side under one title; ``fitted`` tells ``report.js`` how to fit them to the page."""
    drawn = [one for one in panels if one is not None]
    if not drawn:
        return None
    columns = min(columns, len(drawn))
    width = WIDTH // columns
    sized = [one.properties(width=width) for one in drawn]
    whole = alt.concat(*sized, columns=columns, spacing=36).add_params(alt.param(name="room", value=width))
    return whole.properties(
        title=alt.TitleParams(text=title, subtitle=subtitle),
        description=f"{title}. {subtitle}",
        config=alt.Config.from_dict(THEME),
        usermeta={"tightframe": fitted},
    )


def panel(
    rows: Sequence[Row], x: Axis, y: Axis, look: Look, shades: Sequence[str] = (), title: str = ""
) -> Chart | None:
    """Marks, with 95 % intervals as bars; ``shades`` are the values of the color's key in all panels."""
    marks = [mark for row in rows if (mark := _mark(row, x, y, look)) is not None]
    if not marks:
        return None
    if look.label:
        place(marks, log_x=x.log)
    across, up = _channel(alt.X, "x", x, marks), _channel(alt.Y, "y", y, marks)
    base = alt.Chart(data(marks)).encode(x=across, y=up, color=_color(shades, look))
    layers = []
    if any(None not in (mark["low"], mark["high"]) for mark in marks):
        layers.append(_bars(base, "x" if y.named else "y"))
    if look.chosen:
        chosen = alt.Chart(data(mark for mark in marks if mark["chosen"])).encode(y=up)
        layers.append(chosen.mark_rule(color=VERMILLION, strokeDash=[4, 4]))
    if look.joined:
        layers.append(_lines(base, marks))
    if y.named or not look.joined or len({mark["order"] for mark in marks}) <= MOST_DOTS:
        layers.append(base.mark_point(size=70).encode(shape=_shape(shades), tooltip=tooltips(look.tips)))
    if look.label:
        layers.append(_labels(base))
    heading = {"title": alt.TitleParams(text=title, fontSize=13, offset=24)} if title not in ("", MISSING) else {}
    lines = len({mark["y"] for mark in marks})
    height = lines * max(14, min(36, 720 // lines)) if y.named else HEIGHT
    return alt.layer(*layers).properties(height=height, **heading)


def _mark(row: Row, x: Axis, y: Axis, look: Look) -> Mark | None:
    """What is drawn of one row, under names of our own: those in the row may be anything."""
    where = {"x": x.drawable(row.get(x.key)), "y": y.drawable(row.get(y.key))}
    if failed(row) or None in where.values():
        return None
    measured = x if y.named else y
    low, high = (measured.drawable(end) for end in measured.field.ends(row))
    names = {name: text(row.get(getattr(look, name) or "")) for name in ("color", "dash", "label")}
    order = row[look.joined] if look.joined else None
    chosen = bool(row.get(look.chosen or ""))
    return {**where, "low": low, "high": high, **names, "order": order, "chosen": chosen, **spelled(row, look.tips)}


def spelled(row: Row, tips: Sequence[str]) -> dict[str, str]:
    """What ``tooltips`` show of a row."""
    return {f"tip{index}": field.told(row) for index, field in enumerate(fields(tips))}


def tooltips(tips: Sequence[str]) -> list[Any]:
    """Tooltips over what ``spelled`` put into the marks."""
    return [
        alt.Tooltip(field=f"tip{index}", type="nominal", title=field.title) for index, field in enumerate(fields(tips))
    ]


def data(marks: Iterable[Mark]) -> Any:
    """Marks that travel inside the chart."""
    return alt.InlineData(values=list(marks))


def _channel(channel: Any, name: str, axis: Axis, marks: Sequence[Mark]) -> Any:
    if axis.named:
        rule = alt.Axis(title=axis.heading, titleAlign="right", titleX=-6, grid=False)
        names = list(dict.fromkeys(mark[name] for mark in marks))
        return channel(field=name, type="nominal", scale=alt.Scale(domain=names, padding=0.3), axis=rule)
    measured = "x" if any(isinstance(mark["y"], str) for mark in marks) else "y"
    ends = (name, "low", "high") if name == measured else (name,)
    values = [mark[end] for mark in marks for end in ends if mark[end] is not None]
    scale, ticks = (_log_scale if axis.log else _share_scale if axis.share else _plain_scale)(values)
    return channel(field=name, type="quantitative", scale=scale, axis=alt.Axis(title=axis.heading, **ticks))


def _log_scale(values: Sequence[float]) -> tuple[Any, dict[str, Any]]:
    """A log scale with room to either side, even if all values are the same."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max((high - low) * 0.08, 0.12)
    low, high = max(low - room, -300.0), min(high + room, 300.0)
    decades = range(math.floor(low), math.ceil(high) + 1, max(1, round((high - low) / 8)))
    ticks = [float(f"{step}e{decade}") for decade in decades for step in ((1, 2, 5) if high - low < 3 else (1,))]
    inside = [tick for tick in ticks if low <= math.log10(tick) <= high]
    scale = alt.Scale(type="log", domain=[10**low, 10**high], nice=False, clamp=True)
    return scale, {"format": "~g", "values": inside if len(inside) >= 3 else alt.Undefined}


def _share_scale(values: Sequence[float]) -> tuple[Any, dict[str, Any]]:
    """Percentages, never beyond 0 and 100 and never so narrow that noise looks like news."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.08, 0.5)
    scale = alt.Scale(domain=[max(0.0, low - room), min(100.0, high + room)], zero=False, nice=True, clamp=True)
    return scale, {"tickCount": 6}


def _plain_scale(values: Sequence[float]) -> tuple[Any, dict[str, Any]]:
    """Numbers as they are; ticks of whole numbers are whole, and none comes twice."""
    scale, ticks = alt.Scale(zero=False, nice=False, padding=10), range(int(min(values)), int(max(values)) + 1)
    if any(value != int(value) for value in values):
        return scale, {}
    return scale, {"format": "d"} | ({"values": list(ticks)} if len(ticks) <= MOST_TICKS else {"tickMinStep": 1})


def _color(shades: Sequence[str], look: Look) -> Any:
    if len(shades) > 1:
        return _told_apart(alt.Color, "color", shades, PALETTE)
    return alt.condition("datum.chosen", alt.value(VERMILLION), alt.value(BLUE)) if look.chosen else alt.value(BLUE)


def _shape(shades: Sequence[str]) -> Any:
    return _told_apart(alt.Shape, "color", shades, SHAPES) if len(shades) > 1 else alt.value("circle")


def _told_apart(channel: Any, name: str, values: Sequence[str], looks: Sequence[Any]) -> Any:
    given = [looks[index % len(looks)] for index in range(len(values))]
    return channel(field=name, type="nominal", scale=alt.Scale(domain=values, range=given), legend=alt.Legend())


def _bars(base: Any, along: str) -> Any:
    """Intervals between ``low`` and ``high``."""
    rules = base.transform_filter("isValid(datum.low) && isValid(datum.high)").mark_rule(strokeWidth=3, opacity=0.4)
    if along == "x":
        return rules.encode(x=alt.X(field="low", type="quantitative"), x2=alt.X2(field="high"))
    return rules.encode(y=alt.Y(field="low", type="quantitative"), y2=alt.Y2(field="high"))


def _lines(base: Any, marks: Sequence[Mark]) -> Any:
    lines = base.mark_line(opacity=0.7).encode(order=alt.Order(field="order", type="quantitative"))
    dashes = _values(marks, "dash")
    return lines.encode(strokeDash=_told_apart(alt.StrokeDash, "dash", dashes, DASHES)) if len(dashes) > 1 else lines


def _labels(base: Any) -> Any:
    """Names beside marks, each on the side that ``place`` chose."""
    sides = {side: alt.ExprRef(f"datum.{side}") for side in ("align", "dx", "dy")}
    words = base.mark_text(color=INK, fontSize=12, baseline="middle", limit=alt.ExprRef("room * 0.5"), **sides)
    return words.encode(text=alt.Text(field="label", type="nominal"), color=alt.value(INK))


def svg(drawn: Chart) -> str:
    """The chart as a picture that needs no program to show."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(drawn.to_dict()))
