"""What all charts share: colors, type, axes, and the numbers a chart can draw.

The palette is Okabe and Ito's (2008), which people with any common color blindness can tell apart. Axis titles lie
flat above their axis, where they can be read. Charts are given numbers that can be drawn: ``finite`` turns NaN,
infinities and missing values to ``None``, and ``log_axis`` leaves room even around a single value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from tightframe.report.tables import Format, Row

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, YELLOW = "#E69F00", "#56B4E9", "#1c1c1c", "#F0E442"
PALETTE = [BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW]

INK, MUTED, HAIRLINE = "#1f2328", "#5b636d", "#e4e7eb"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif'

Encoding = dict[str, Any]


def theme() -> dict[str, Any]:
    """The Vega-Lite config of every chart."""
    axis = {
        "labelColor": MUTED,
        "titleColor": INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 600,
        "gridColor": HAIRLINE,
        "domainColor": "#b9c0c8",
        "tickColor": "#b9c0c8",
        "labelPadding": 6,
    }
    return {
        "font": FONT,
        "background": "white",
        "view": {"stroke": None},
        "axis": axis,
        "axisY": {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": 0, "titleY": -10}
        | {"titleBaseline": "bottom", "domain": False, "ticks": False, "labelLimit": 260},
        "axisX": {"titlePadding": 10, "labelLimit": 150, "labelFlush": False},
        "legend": {"orient": "top", "title": None, "labelColor": INK, "labelFontSize": 12, "labelLimit": 300}
        | {"symbolSize": 90, "symbolOpacity": 1, "offset": 26, "columnPadding": 18, "rowPadding": 6},
        "title": {"anchor": "start", "fontSize": 16, "fontWeight": 600, "color": INK, "offset": 16}
        | {"subtitleColor": MUTED, "subtitleFontSize": 13, "subtitlePadding": 6},
        "range": {"category": PALETTE},
        "point": {"filled": True, "size": 90, "opacity": 1},
        "line": {"strokeWidth": 2},
    }


def finish(chart: Any, title: str, subtitle: str, **properties: Any) -> Any:
    """``chart`` with its title, what the title means for people who can't see it, and the theme."""
    heading = alt.TitleParams(text=title, subtitle=subtitle)
    return chart.properties(
        title=heading, description=f"{title}. {subtitle}", config=alt.Config.from_dict(theme()), **properties
    )


def data(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Rows that travel inside the chart."""
    return alt.InlineData(values=[dict(row) for row in rows])


def finite(value: Any) -> float | None:
    """``value`` as a number that can be drawn, or ``None``."""
    if value is None:
        return None
    amount = float(value)
    return amount if math.isfinite(amount) else None


def positive(value: Any) -> float | None:
    """``value`` as a number that a log axis can show, or ``None``."""
    amount = finite(value)
    return amount if amount is not None and amount > 0 else None


def hundredfold(value: Any) -> float | None:
    """A share as a percentage, or ``None`` if it can't be drawn."""
    amount = finite(value)
    return None if amount is None else 100 * amount


def log_axis(field: str, channel: Any, values: Sequence[float], title: str, **options: Any) -> Any:
    """A log axis around positive ``values``, with room to either side even if they are all the same."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max((high - low) * 0.08, 0.12)
    low, high = max(low - room, -300.0), min(high + room, 300.0)
    scale = alt.Scale(type="log", domain=[10**low, 10**high], nice=False, clamp=True)
    axis = alt.Axis(title=title, values=_log_ticks(low, high), format="~g", **options)
    return channel(field=field, type="quantitative", scale=scale, axis=axis)


def _log_ticks(low: float, high: float) -> Any:
    """Ticks at 1, 2 and 5 times powers of ten between two exponents; sparser over many decades, Vega's own over few."""
    decades = range(math.floor(low), math.ceil(high) + 1, max(1, round((high - low) / 8)))
    steps = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    inside = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return inside if len(inside) >= 3 else alt.Undefined


def accuracy_scale(values: Iterable[float | None]) -> Any:
    """A linear scale around percentages, never beyond 0 and 100 and never so narrow that noise looks like news."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    room = max((high - low) * 0.08, 0.5)
    return alt.Scale(domain=[max(0.0, low - room), min(100.0, high + room)], zero=False, nice=True, clamp=True)


def accuracy_x(field: str, scale: Any, title: str) -> Any:
    """Percentages from left to right, with as many ticks as there is room for."""
    axis = alt.Axis(title=title, tickCount=alt.ExprRef("max(2, ceil(width / 80))"))
    return alt.X(field=field, type="quantitative", scale=scale, axis=axis)


def thinned(amount: int, width: str, label: str = "datum.label") -> str:
    """An expression for slanted labels: every one where ``width`` has room, else every so many, the last always."""
    every, back = f"ceil({19 * amount} / {width})", f"round((1 - datum.index) * {amount - 1})"
    return f"{back} % {every} === 0 ? {label} : ''"


def names_axis(title: str) -> Any:
    """An axis of names whose title heads them like a column."""
    return alt.Axis(title=title, titleAlign="right", titleX=-6, grid=False)


def tooltips(**titles: str) -> list[Any]:
    """Tooltips over fields already spelled for people; ``titles`` maps a field to the words before its value."""
    return [alt.Tooltip(field=field, type="nominal", title=title) for field, title in titles.items()]


def apart(names: Iterable[str]) -> list[str]:
    """The same names, numbered where one comes twice, so that no two marks lie on top of each other."""
    taken: set[str] = set()
    different = []
    for name in names:
        candidates = (name if turn == 1 else f"{name} #{turn}" for turn in itertools.count(1))
        different.append(next(candidate for candidate in candidates if candidate not in taken))
        taken.add(different[-1])
    return different


def spelled(row: Row, **formats: Format) -> dict[str, str]:
    """Fields for tooltips: each value as people read it."""
    return {f"{key}_text": spell(row.get(key)) for key, spell in formats.items()}
