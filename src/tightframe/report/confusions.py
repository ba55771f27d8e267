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
    actual, predicted = (list(dict.fromkeys(cell[side] for cell in cells)) for side in (0, 1))
    classes = list(dict.fromkeys([*actual, *predicted]))
    totals = {name: sum(amount for of, _, amount in cells if of == name) for name in actual}
    filled = [_confusion_cell(*cell, totals[cell[0]]) for cell in cells if cell[2] > 0]
    if not filled:
        return None
    step = max(9, min(56, 560 // len(classes)))
    scale, small = alt.Scale(domain=classes, padding=0.04), step < 14
    axis = {"grid": False, "ticks": False, "domain": False, "labelFontSize": 8 if small else 12, "labelOverlap": False}
    shown = thinned(len(classes), "width")
    across = alt.Axis(title="Predicted class", labelAngle=-50, labelExpr=shown, **axis)
    down = alt.Axis(title="Actual class", titleAlign="right", titleX=-6, **axis)
    base = alt.Chart(data(filled)).encode(
        x=alt.X(field="predicted", type="nominal", scale=scale, axis=across),
        y=alt.Y(field="actual", type="nominal", scale=scale, axis=down),
        tooltip=tooltips(actual="Actual class", predicted="Predicted class", count_text="Pictures", share_text="Share"),
    )
    layers = [_shaded(base, "datum.right", BLUE), _shaded(base, "!datum.right", VERMILLION)]
    if len(classes) <= MOST_NUMBERS:
        layers.append(_counts(base, len(classes)))
    subtitle = "Blue: right. Orange: mistaken. Darker: a larger share of the actual class."
    side = step * len(classes)
    return finish(
        alt.layer(*layers).resolve_scale(color="independent"),
        "Actual and predicted classes",
        subtitle,
        width="container",
        height=side,
    ).properties(usermeta={"tightframe": {"maxWidth": max(side + 160, 320), "minHeight": min(side, 22 * len(classes))}})


def _confusion_cell(actual: str, predicted: str, amount: float, total: float) -> dict[str, Any]:
    share, right = amount / total, actual == predicted
    spelled = {"count": amount, "count_text": count(amount), "share_text": f"{percent(share)} of {actual}"}
    return {"actual": actual, "predicted": predicted, "right": right, "share": share, **spelled}


def _shaded(base: Any, which: str, colour: str) -> Any:
    """Square-root shading: a few mistakes among many pictures must still be seen."""
    shade = alt.Scale(type="sqrt", domain=[0, 1], range=["#ffffff", colour], interpolate="rgb")
    fill = alt.Color(field="share", type="quantitative", scale=shade, legend=None)
    return base.transform_filter(which).mark_rect(cornerRadius=2).encode(color=fill)


def _counts(base: Any, classes: int) -> Any:
    dark = alt.condition("datum.share > 0.4", alt.value("white"), alt.value("#1f2328"))
    number = alt.Text(field="count_text", type="nominal")
    return base.mark_text(fontSize=alt.ExprRef(f"min(13, width / {classes} * 0.42)")).encode(text=number, color=dark)
