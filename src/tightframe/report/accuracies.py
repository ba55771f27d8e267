"""Charts of accuracies: models ranked, collapse against accuracy, and ways to fine-tune compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from tightframe.report.placing import place
from tightframe.report.tables import Row, count, failed, number, percent, seconds, size, text
from tightframe.report.theme import (
    BLUE,
    INK,
    VERMILLION,
    accuracy_scale,
    accuracy_x,
    apart,
    data,
    finish,
    finite,
    hundredfold,
    log_axis,
    names_axis,
    positive,
    spelled,
    tooltips,
)

EXPECTED, TEST = "expected", "ridge probe on the test set"
NC1 = "NC1 (log scale; lower is more collapsed)"
Chart = Any


def _interval(row: Row, low: str, high: str) -> dict[str, Any]:
    ends = hundredfold(row.get(low)), hundredfold(row.get(high))
    spelled = f"{percent(row.get(low))} to {percent(row.get(high))}" if None not in ends else percent(None)
    return {"low": ends[0], "high": ends[1], "interval_text": spelled}


def _best_first(rows: Iterable[Row], *keys: str) -> list[Row]:
    """Rows that succeeded and have a value for the first or another key, best first; ties keep their order."""

    def quality(row: Row) -> list[float]:
        return [value if (value := finite(row.get(key))) is not None else -1.0 for key in keys]

    measured = [row for row in rows if not failed(row) and max(quality(row)) >= 0]
    return sorted(measured, key=quality, reverse=True)


def _names(names: Sequence[str], title: str) -> Any:
    return alt.Y(field="name", type="nominal", scale=alt.Scale(domain=names, padding=0.3), axis=names_axis(title))


def _bars(base: Any, scale: Any) -> Any:
    """Intervals as rules between ``low`` and ``high``."""
    rules = base.transform_filter("isValid(datum.low) && isValid(datum.high)")
    rules = rules.mark_rule(strokeWidth=4, opacity=0.35, strokeCap="round")
    return rules.encode(x=alt.X(field="low", type="quantitative", scale=scale), x2=alt.X2(field="high"))


def ranking_chart(rows: Sequence[Row]) -> Chart | None:
    """Accuracy expected of each model, best first, with 95 % intervals, and a probe's accuracy on the test set."""
    ranked = _best_first(rows, "expected_accuracy", "test_accuracy")
    if not ranked:
        return None
    names = _model_names(ranked)
    points = [point for name, row in zip(names, ranked, strict=True) for point in _ranking_points(name, row)]
    scale = accuracy_scale(point[end] for point in points for end in ("accuracy", "low", "high"))
    color, shape = _kinds({point["kind"] for point in points})
    tips = tooltips(name="Model", kind="Measured by", accuracy_text="Accuracy", interval_text="95 % interval")
    tips += tooltips(nc1_text="NC1", h_score_text="H-score", logme_text="LogME", parameters_text="Parameters")
    tips += tooltips(seconds_text="Time")
    base = alt.Chart(data(points)).encode(y=_names(names, "Model"), color=color, tooltip=tips)
    dots = base.mark_point(size=110).encode(x=accuracy_x("accuracy", scale, "Accuracy (%)"), shape=shape)
    subtitle = "Simple classifiers on the frozen features, best model first. Bars: 95 % intervals."
    return _finish_rows(_bars(base, scale) + dots, names, "Accuracy of each model", subtitle)


def _kinds(found: set[str]) -> tuple[Any, Any]:
    """Color and shape of what was measured, with a legend where there is something to tell apart."""
    marks = {EXPECTED: (BLUE, "circle"), TEST: (VERMILLION, "diamond")}
    kinds = [kind for kind in marks if kind in found]
    legend = alt.Legend() if len(kinds) > 1 else None
    colors, shapes = ([marks[kind][part] for kind in kinds] for part in (0, 1))
    return (
        alt.Color(field="kind", type="nominal", scale=alt.Scale(domain=kinds, range=colors), legend=legend),
        alt.Shape(field="kind", type="nominal", scale=alt.Scale(domain=kinds, range=shapes), legend=legend),
    )


def _finish_rows(chart: Any, names: Sequence[str], title: str, subtitle: str) -> Chart:
    return finish(chart, title, subtitle, width="container", height=36 * len(names))


def _ranking_points(name: str, row: Row) -> Iterable[dict[str, Any]]:
    facts = spelled(row, nc1=number, h_score=number, logme=number, parameters=count, seconds=seconds)
    for kind, key in ((EXPECTED, "expected_accuracy"), (TEST, "test_accuracy")):
        if (accuracy := hundredfold(row.get(key))) is not None:
            known = row if kind == EXPECTED else {}
            ends = {"accuracy_text": percent(row.get(key)), **_interval(known, "expected_low", "expected_high")}
            yield {"name": name, "kind": kind, "accuracy": accuracy, **ends, **facts}


def collapse_chart(rows: Sequence[Row]) -> Chart | None:
    """NC1 (lower is more collapsed) against accuracy: on the test set if every model has it, else cross-validated."""
    collapsed = [row for row in rows if not failed(row) and positive(row.get("nc1")) is not None]
    tested, probed = (
        [row for row in collapsed if finite(row.get(key)) is not None] for key in ("test_accuracy", "probe_accuracy")
    )
    key, kept = ("test_accuracy", tested) if len(tested) >= len(probed) else ("probe_accuracy", probed)
    if not kept:
        return None
    kind = "Test accuracy" if key == "test_accuracy" else "Cross-validated accuracy"
    points = [_collapse_point(name, row, key) for name, row in zip(_model_names(kept), kept, strict=True)]
    nc1, accuracy = [point["nc1"] for point in points], [point["accuracy"] for point in points]
    place(points, x="nc1", y="accuracy", log_x=True)
    y = alt.Y(field="accuracy", type="quantitative", scale=accuracy_scale(accuracy), title=f"{kind} (%)")
    tips = tooltips(name="Model", nc1_text="NC1", accuracy_text=kind, parameters_text="Parameters")
    base = alt.Chart(data(points)).encode(x=log_axis("nc1", alt.X, nc1, NC1), y=y, tooltip=tips)
    dots = base.mark_point(size=110, color=BLUE)
    subtitle = "Images of one class lie closer together, against the distance between classes, further left."
    return finish(dots + _labels(base), "Collapse and accuracy", subtitle, width="container", height=340)


def _model_names(rows: Sequence[Row]) -> list[str]:
    return apart(text(row.get("model")) for row in rows)


def _collapse_point(name: str, row: Row, key: str) -> dict[str, Any]:
    facts = {"accuracy_text": percent(row.get(key)), **spelled(row, nc1=number, parameters=count)}
    return {"name": name, "nc1": positive(row["nc1"]), "accuracy": hundredfold(row[key]), **facts}


def _labels(base: Any) -> Any:
    """Names beside points, each on the side that ``place`` chose."""
    return base.mark_text(
        color=INK,
        fontSize=12,
        limit=alt.ExprRef("width * 0.5"),
        align=alt.ExprRef("datum.align"),
        dx=alt.ExprRef("datum.dx"),
        dy=alt.ExprRef("datum.dy"),
        baseline="middle",
    ).encode(text=_words("name"))


def method_chart(rows: Sequence[Row]) -> Chart | None:
    """Test accuracy of each way to fine-tune with its 95 % interval, and the share of parameters that it trained."""
    ranked = _best_first(rows, "test_accuracy")
    if not ranked:
        return None
    names = apart(_method_name(row) for row in ranked)
    points = [_method_point(name, row) for name, row in zip(names, ranked, strict=True)]
    scale = accuracy_scale(point[end] for point in points for end in ("accuracy", "low", "high"))
    tips = tooltips(name="Method", accuracy_text="Test accuracy", interval_text="95 % interval")
    tips += tooltips(train_accuracy_text="Training accuracy", nc1_text="NC1", parameters_text="Trained parameters")
    tips += tooltips(share_text="Share of all parameters", seconds_text="Time", rate_text="Learning rate")
    tips += tooltips(decay_text="Weight decay", bytes_text="Saved size")
    base = alt.Chart(data(points)).encode(y=_names(names, "Method"), color=alt.value(BLUE), tooltip=tips)
    dots = base.mark_point(size=110).encode(x=accuracy_x("accuracy", scale, "Test accuracy (%)"))
    layers, subtitle = [_bars(base, scale), dots], "Best first. Bars: 95 % intervals."
    if any(finite(row.get("share")) is not None for row in ranked):
        layers += _beside(base, "share_text", "Trained")
        subtitle += " Right: share of the model's parameters that was trained."
    return _finish_rows(alt.layer(*layers), names, "Test accuracy of each way to fine-tune", subtitle)


def _method_name(row: Row) -> str:
    method, layer = text(row.get("method")), row.get("layer")
    return f"{method} ({text(layer)})" if layer else method


def _method_point(name: str, row: Row) -> dict[str, Any]:
    facts = spelled(row, train_accuracy=percent, nc1=number, parameters=count, share=percent, seconds=seconds)
    facts |= spelled(row, rate=number, decay=number, bytes=size)
    accuracy = {"accuracy": hundredfold(row["test_accuracy"]), "accuracy_text": percent(row["test_accuracy"])}
    return {"name": name, **accuracy, **_interval(row, "test_low", "test_high"), **facts}


def _beside(base: Any, field: str, title: str) -> list[Any]:
    """A column of text right of the plot."""
    style = {"align": "right", "dx": 68, "fontSize": 12}
    heading = alt.Chart(data([{"title": title}])).mark_text(color=INK, fontWeight=600, baseline="bottom", **style)
    return [
        base.mark_text(**style).encode(x=alt.value("width"), text=_words(field), color=alt.value(INK)),
        heading.encode(x=alt.value("width"), y=alt.value(-10), text=_words("title")),
    ]


def _words(field: str) -> Any:
    return alt.Text(field=field, type="nominal")
