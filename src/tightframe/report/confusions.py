"""A heat map of which class was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from tightframe.report.tables import Row, count, percent, text
from tightframe.report.theme import BLUE, VERMILLION, data, finish, finite, thinned, tooltips

Chart = Any
MOST_NUMBERS = 20


def confusion_chart(rows: Sequence[Row]) -> Chart | None:
    """Which class was taken for which: right answers blue, mistakes orange, darker for a larger share of the class."""
    cells = [(text(row.get("actual")), text(row.get("predicted")), finite(row.get("count")) or 0.0) for row in rows]
    actual = list(dict.fromkeys(of for of, _, _ in cells))
    classes = list(dict.fromkeys([*actual, *(predicted for _, predicted, _ in cells)]))
    totals = {name: sum(amount for of, _, amount in cells if of == name) for name in actual}
    filled = [_confusion_cell(*cell, totals[cell[0]]) for cell in cells if cell[2] > 0]
    if not filled:
        return None
    step = max(9, min(56, 560 // len(classes)))
    base = alt.Chart(data(filled)).encode(
        **_classes(classes, small=step < 14),
        tooltip=tooltips(actual="Actual class", predicted="Predicted class", count_text="Images", share_text="Share"),
    )
    layers = [_shaded(base, "datum.right", BLUE), _shaded(base, "!datum.right", VERMILLION)]
    layers += [_counts(base, len(classes))] if len(classes) <= MOST_NUMBERS else []
    subtitle = "Blue: right. Orange: mistaken. Darker: a larger share of the actual class."
    chart, side = alt.layer(*layers).resolve_scale(color="independent"), step * len(classes)
    room = {"maxWidth": max(side + 160, 320), "minHeight": min(side, 22 * len(classes))}
    return finish(chart, "Actual and predicted classes", subtitle, width="container", height=side).properties(
        usermeta={"tightframe": room}
    )


def _classes(classes: Sequence[str], *, small: bool) -> dict[str, Any]:
    scale = alt.Scale(domain=classes, padding=0.04)
    axis = {"grid": False, "ticks": False, "domain": False, "labelFontSize": 8 if small else 12, "labelOverlap": False}
    across = alt.Axis(title="Predicted class", labelAngle=-50, labelExpr=thinned(len(classes), "width"), **axis)
    down = alt.Axis(title="Actual class", titleAlign="right", titleX=-6, **axis)
    return {
        "x": alt.X(field="predicted", type="nominal", scale=scale, axis=across),
        "y": alt.Y(field="actual", type="nominal", scale=scale, axis=down),
    }


def _confusion_cell(actual: str, predicted: str, amount: float, total: float) -> dict[str, Any]:
    share, right = amount / total, actual == predicted
    spelled = {"count": amount, "count_text": count(amount), "share_text": f"{percent(share)} of {actual}"}
    return {"actual": actual, "predicted": predicted, "right": right, "share": share, **spelled}


def _shaded(base: Any, which: str, color: str) -> Any:
    """Square-root shading: a few mistakes among many images must still be seen."""
    shade = alt.Scale(type="sqrt", domain=[0, 1], range=["#ffffff", color], interpolate="rgb")
    fill = alt.Color(field="share", type="quantitative", scale=shade, legend=None)
    return base.transform_filter(which).mark_rect(cornerRadius=2).encode(color=fill)


def _counts(base: Any, classes: int) -> Any:
    dark = alt.condition("datum.share > 0.4", alt.value("white"), alt.value("#1f2328"))
    number = alt.Text(field="count_text", type="nominal")
    return base.mark_text(fontSize=alt.ExprRef(f"min(13, width / {classes} * 0.42)")).encode(text=number, color=dark)
