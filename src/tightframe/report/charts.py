"""The charts of rankings, layers, training, methods and confusion matrices, declared for the one builder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from tightframe.report import chart as build
from tightframe.report.chart import Axis, Chart, Look, chart, figure, panel
from tightframe.report.fields import Row, failed
from tightframe.report.formats import apart, percent, text

EXPECTED, TEST = "expected", "ridge probe on the test set"
TRAINING, HELD_OUT = "training images", "held-out images"
MOST_NUMBERS = 20
"""Most classes of a confusion matrix whose counts can be read."""


def ranking_chart(rows: Sequence[Row]) -> Chart | None:
    """Expected accuracy of each model, best first, with 95 % intervals, and a probe's accuracy on the test set."""
    marks = []
    for row in _named_apart(_best_first(rows, "expected_accuracy", "test_accuracy"), "model"):
        ends = {"accuracy_low": row.get("expected_low"), "accuracy_high": row.get("expected_high")}
        marks += [
            row | {"kind": EXPECTED, "accuracy": row.get("expected_accuracy")} | ends,
            row | {"kind": TEST, "accuracy": row.get("test_accuracy")},
        ]
    return chart(
        [mark for mark in marks if mark["accuracy"] is not None],
        Axis("accuracy"),
        Axis("model"),
        title="Accuracy of each model",
        subtitle="Discriminants of all layers, best model first. Bars: 95 % intervals.",
        color="kind",
        tips=("model", "kind", "accuracy", "nc1", "h_score", "logme", "parameters", "seconds"),
    )


def _best_first(rows: Sequence[Row], *keys: str) -> list[Row]:
    """Rows that succeeded and have a value for the first or another key, best first; ties keep their order."""

    def quality(row: Row) -> list[float]:
        values = [row.get(key) for key in keys]
        return [value if value is not None and math.isfinite(value) else -1.0 for value in values]

    return sorted((row for row in rows if not failed(row) and max(quality(row)) >= 0), key=quality, reverse=True)


def _named_apart(rows: Sequence[Row], key: str) -> list[dict[str, Any]]:
    """The rows, with names under ``key`` that differ: no two marks may lie on top of each other."""
    names = apart(text(row.get(key)) for row in rows)
    return [{**row, key: name} for name, row in zip(names, rows, strict=True)]


def collapse_chart(rows: Sequence[Row]) -> Chart | None:
    """NC1 against accuracy: on the test set if every model has it, else cross-validated."""
    good = _named_apart([row for row in rows if not failed(row)], "model")
    tested = all(row.get("test_accuracy") is not None for row in good)
    return chart(
        good,
        Axis("nc1", "NC1 (log scale; lower is more collapsed)", log=True),
        Axis("test_accuracy" if tested else "probe_accuracy"),
        title="Collapse and accuracy",
        subtitle="The further left, the closer images of one class lie together, relative to other classes.",
        label="model",
        tips=("model", "nc1", "test_accuracy", "probe_accuracy", "parameters"),
    )


def layer_chart(rows: Sequence[Row]) -> Chart | None:
    """Probe accuracy and NC1 of each layer from the first to the last, in a pair of panels for each model."""
    good = sorted((row for row in rows if not failed(row)), key=lambda row: int(row["position"]))
    models = list(dict.fromkeys(text(row.get("model")) for row in good))
    tips = ("layer", "position", "dimension", "nc1", "probe_accuracy", "chosen")
    look = Look(joined="position", chosen="chosen", tips=tips)
    panels = []
    for model in models:
        own = _named_apart([row for row in good if text(row.get("model")) == model], "layer")
        title = model if len(models) > 1 else ""
        panels += [panel(own, axis, Axis("layer"), look, title=title) for axis in (Axis("probe_accuracy"), LOG_NC1)]
    subtitle = "From the first layer, at the top, to the last. Bars: 95 % intervals."
    if any(row.get("chosen") for row in good):
        subtitle += " The dashed line marks the chosen block."
    return figure(panels, "Probe accuracy and NC1 by layer", subtitle)


LOG_NC1 = Axis("nc1", log=True)


def curve_chart(rows: Sequence[Row]) -> Chart | None:
    """Accuracy and NC1 by epoch, a color for each method; accuracy on training images and on images held out."""
    accuracies = [
        {**row, "split": split, "accuracy": row[key]}
        for row in rows
        for split, key in ((TRAINING, "train_accuracy"), (HELD_OUT, "validation_accuracy"))
        if row.get(key) is not None
    ]
    methods = list(dict.fromkeys(text(row.get("method")) for row in rows if not failed(row)))
    tips = ("method", "split", "epoch", "accuracy", "nc1", "train_loss", "validation_loss")
    look = Look(color="method", dash="split", joined="epoch", tips=tips)
    panels = [
        panel(accuracies, Axis("epoch"), Axis("accuracy"), look, methods),
        panel(rows, Axis("epoch"), LOG_NC1, look, methods),
    ]
    return figure(panels, "While training", "Accuracy and collapse after each epoch.")


def method_chart(rows: Sequence[Row]) -> Chart | None:
    """Test accuracy of each method with its 95 % interval, and the share of parameters that it trained."""
    ranked = [{**row, "method": _method(row)} for row in _best_first(rows, "test_accuracy")]
    tips = ("method", "test_accuracy", "train_accuracy", "nc1", "trainable_parameters", "lr", "weight_decay")
    return chart(
        _named_apart(ranked, "method"),
        Axis("test_accuracy"),
        Axis("method"),
        title="Test accuracy of each method",
        subtitle="Best first. Bars: 95 % intervals. Beside each name: the share of parameters that was trained.",
        tips=(*tips, "seconds", "bytes"),
    )


def _method(row: Row) -> str:
    """The method with its block and how much it trained."""
    block, share = row.get("block"), row.get("trainable_share")
    name = text(row.get("method")) + (f" ({text(block)})" if block else "")
    return name if share is None else f"{name}, {percent(share)} trained"


def confusion_chart(rows: Sequence[Row]) -> Chart | None:
    """How often each class was predicted as each: correct blue, mistakes orange, darker for a larger share."""
    cells = [(text(row.get("true")), text(row.get("predicted")), float(row.get("count") or 0)) for row in rows]
    classes = list(dict.fromkeys([*(true for true, _, _ in cells), *(predicted for _, predicted, _ in cells)]))
    totals = {name: sum(amount for true, _, amount in cells if true == name) for name in classes}
    filled = [_cell(*cell, totals[cell[0]]) for cell in cells if cell[2] > 0]
    if not filled:
        return None
    base = alt.Chart(build.data(filled)).encode(tooltip=build.tooltips(CELL), **_class_axes(classes))
    layers = [_shaded(base, "datum.correct", build.BLUE), _shaded(base, "!datum.correct", build.VERMILLION)]
    if len(classes) <= MOST_NUMBERS:
        dark = alt.condition("datum.share > 0.4", alt.value("white"), alt.value(build.INK))
        words = base.mark_text(fontSize=alt.ExprRef(f"min(13, room / {len(classes)} * 0.42)"))
        layers.append(words.encode(text=alt.Text(field="tip2", type="nominal"), color=dark))
    side = max(9, min(56, 560 // len(classes))) * len(classes)
    matrix = alt.layer(*layers).resolve_scale(color="independent").properties(height=side)
    subtitle = "Blue: correct. Orange: mistakes. Darker: a larger share of the true class."
    least = min(side, 22 * len(classes))
    return figure([matrix], "Confusion matrix", subtitle, maxWidth=max(side + 160, 320), minHeight=least)


CELL = ("true", "predicted", "count", "share")


def _cell(true: str, predicted: str, amount: float, total: float) -> dict[str, Any]:
    row = {"true": true, "predicted": predicted, "count": amount, "share": amount / total}
    return {"x": predicted, "y": true, "correct": true == predicted, "share": row["share"], **build.spelled(row, CELL)}


def _class_axes(classes: Sequence[str]) -> dict[str, Any]:
    """Axes of class names; those across are slanted where long, and only every so many where they don't all fit."""
    scale, size = alt.Scale(domain=classes, padding=0.04), 12 if len(classes) <= 40 else 8
    axis = {"grid": False, "ticks": False, "domain": False, "labelFontSize": size, "labelOverlap": False}
    every, last = f"ceil({19 * len(classes)} / room)", len(classes) - 1
    some = f"round((1 - datum.index) * {last}) % {every} === 0 ? datum.label : ''"
    angle = -50 if max(map(len, classes)) > 3 else 0
    across = alt.Axis(title="Predicted", labelAngle=angle, labelExpr=some, **axis)
    down = alt.Axis(title="True", titleAlign="right", titleX=-6, **axis)
    return {
        "x": alt.X(field="x", type="nominal", scale=scale, axis=across),
        "y": alt.Y(field="y", type="nominal", scale=scale, axis=down),
    }


def _shaded(base: Any, which: str, color: str) -> Any:
    """Square-root shading: a few mistakes among many images must still be seen."""
    shade = alt.Scale(type="sqrt", domain=[0, 1], range=["#ffffff", color], interpolate="rgb")
    fill = alt.Color(field="share", type="quantitative", scale=shade, legend=None)
    return base.transform_filter(which).mark_rect(cornerRadius=2).encode(color=fill)


def chart_of(job: str, rows: Sequence[Row], tables: Mapping[str, Sequence[Row]]) -> Chart | None:
    """The chart of a job's result, for those that have one."""
    if job == "evaluate":
        return confusion_chart(tables["confusion"])
    drawings = {"rank": ranking_chart, "measure": layer_chart}
    drawings |= dict.fromkeys(("tune", "compare", "transfer"), method_chart)
    return drawings[job](rows) if job in drawings else None
