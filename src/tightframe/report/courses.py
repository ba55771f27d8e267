"""Charts along an order: layers by depth, epochs by time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from tightframe.report.tables import Row, count, failed, number, percent, text
from tightframe.report.theme import (
    BLUE,
    PALETTE,
    VERMILLION,
    accuracy_scale,
    apart,
    data,
    finish,
    finite,
    hundredfold,
    log_axis,
    positive,
    spelled,
    thinned,
    tooltips,
)

Chart = Any
TRAINING, VALIDATION = "training", "validation"
MOST_POINTS, ROOM = 12, 640


def layer_chart(rows: Sequence[Row]) -> Chart | None:
    """NC1 and probe accuracy of each layer by depth, the chosen layer marked; one pair of panels for each model."""
    measured = [row for row in rows if not failed(row)]
    models = list(dict.fromkeys(text(row.get("model")) for row in measured))
    pairs = [(name, _layer_panels([row for row in measured if text(row.get("model")) == name])) for name in models]
    pairs = [(name, panels) for name, panels in pairs if panels]
    if not pairs:
        return None
    if len(pairs) > 1:
        pairs = [(name, [first.properties(title=name), *rest]) for name, (first, *rest) in pairs]
    panels = itertools.chain.from_iterable(pair for _, pair in pairs)
    subtitle = "From the first layer to the last."
    if any(row.get("chosen") for row in measured):
        subtitle += " The dashed line marks the layer that was chosen."
    return finish(alt.vconcat(*panels, spacing=30), "NC1 and probe accuracy by layer", subtitle).add_params(
        alt.param(name="room", value=ROOM)
    )


def _layer_panels(rows: Sequence[Row]) -> list[Any]:
    """The panels of one model; only the lowest names the layers."""
    ordered = sorted(rows, key=lambda row: int(row["position"]))
    names = apart(text(row.get("layer")) for row in ordered)
    points = [_layer_point(name, row) for name, row in zip(names, ordered, strict=True)]
    for index, point in enumerate(points):
        point["align"] = "left" if 2 * index < len(points) else "right"
    drawn = [kind for kind in ("accuracy", "nc1") if any(point[kind] is not None for point in points)]
    return [
        _layer_panel(points, kind, _depth(names, kind == drawn[-1]), label=index == 0)
        for index, kind in enumerate(drawn)
    ]


def _layer_point(name: str, row: Row) -> dict[str, Any]:
    facts = spelled(row, position=count, dimension=count, nc1=number, probe_accuracy=percent)
    chosen = bool(row.get("chosen"))
    measured = {"nc1": positive(row.get("nc1")), "accuracy": hundredfold(row.get("probe_accuracy"))}
    return {"name": name, "chosen": chosen, "chosen_text": "yes" if chosen else "no", **measured, **facts}


def _layer_measure(kind: str, values: Sequence[float], **axis: Any) -> Any:
    if kind == "nc1":
        return log_axis("nc1", alt.Y, values, "NC1 (log scale; lower is more collapsed)", **axis)
    axis = alt.Axis(title="Probe accuracy (%)", **axis)
    return alt.Y(field=kind, type="quantitative", scale=accuracy_scale(values), axis=axis)


def _layer_panel(points: Sequence[dict[str, Any]], kind: str, depth: Any, *, label: bool) -> Any:
    kept = [point for point in points if point[kind] is not None]
    above = {"titleY": -28} if label else {}
    y = _layer_measure(kind, [point[kind] for point in kept], **above)
    tips = tooltips(name="Layer", position_text="Position", dimension_text="Features", nc1_text="NC1")
    tips += tooltips(probe_accuracy_text="Probe accuracy", chosen_text="Chosen")
    base = alt.Chart(data(kept)).encode(x=depth, y=y)
    shade = alt.condition("datum.chosen", alt.value(VERMILLION), alt.value(BLUE))
    large = alt.condition("datum.chosen", alt.value(170), alt.value(60))
    dots = base.mark_point().encode(color=shade, size=large, tooltip=tips)
    chosen = alt.Chart(data(point for point in points if point["chosen"])).encode(x=depth)
    layers = [chosen.mark_rule(color=VERMILLION, strokeDash=[4, 4]), base.mark_line(color=BLUE), dots]
    layers += [_chosen_label(chosen)] if label else []
    return alt.layer(*layers).properties(width=ROOM, height=190)


def _chosen_label(chosen: Any) -> Any:
    """The chosen layer's name on top of its line, on the side where there is room."""
    side = {"align": alt.ExprRef("datum.align"), "dx": alt.ExprRef("datum.align === 'left' ? -4 : 4")}
    label = chosen.mark_text(color=VERMILLION, fontWeight=600, fontSize=12, baseline="bottom", dy=-5, **side)
    return label.encode(y=alt.value(0), text=alt.Text(field="name", type="nominal"))


def _depth(names: Sequence[str], named: bool) -> Any:
    """Layer names, cut at the front where they are long: what tells them apart is at the end."""
    axis = alt.Axis(title=None, labels=False, ticks=False, grid=False)
    if named:
        tail = "(length(datum.label) > 20 ? '…' + slice(datum.label, -19) : datum.label)"
        shown = thinned(len(names), "(room - 70)", tail)
        axis = alt.Axis(title="Layer, by depth", labelAngle=-50, labelExpr=shown, labelOverlap=False, grid=False)
    return alt.X(field="name", type="nominal", scale=alt.Scale(domain=names), axis=axis)


def curve_chart(rows: Sequence[Row]) -> Chart | None:
    """Accuracy (training dashed, validation solid) and NC1 by epoch, one color for each method."""
    measured = [row for row in rows if not failed(row)]
    methods = list(dict.fromkeys(text(row.get("method")) for row in measured))
    color = alt.Color(
        field="method",
        type="nominal",
        scale=alt.Scale(domain=methods, range=_colors(len(methods))),
        legend=alt.Legend(),
    )
    accuracies = [point for row in measured for point in _accuracy_points(row)]
    collapses = [point for row in measured for point in _collapse_points(row)]
    panels = [_accuracy_panel(accuracies, color)] if accuracies else []
    panels += [_collapse_panel(collapses, color)] if collapses else []
    splits = {point["split"] for point in accuracies}
    subtitle = "Solid: validation. Dashed: training." if VALIDATION in splits else "On the training images."
    return finish(alt.concat(*panels, columns=2, spacing=40), "While training", subtitle) if panels else None


def _colors(amount: int) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(amount)]


def _facts(row: Row) -> dict[str, Any]:
    facts = spelled(row, train_loss=number, validation_loss=number, nc1=number)
    return {
        "method": text(row.get("method")),
        "epoch": finite(row["epoch"]),
        "epoch_text": count(row["epoch"]),
        **facts,
    }


def _accuracy_points(row: Row) -> Iterable[dict[str, Any]]:
    for split, key in ((TRAINING, "train_accuracy"), (VALIDATION, "validation_accuracy")):
        if (accuracy := hundredfold(row.get(key))) is not None:
            loss = number(row.get(key.replace("accuracy", "loss")))
            measured = {"split": split, "accuracy": accuracy, "accuracy_text": percent(row[key]), "loss_text": loss}
            yield {**_facts(row), **measured}


def _collapse_points(row: Row) -> Iterable[dict[str, Any]]:
    if (nc1 := positive(row.get("nc1"))) is not None:
        yield {**_facts(row), "nc1": nc1}


def _epochs() -> Any:
    axis = alt.Axis(title="Epoch", format="d", tickMinStep=1, grid=False)
    return alt.X(field="epoch", type="quantitative", scale=alt.Scale(zero=False, nice=False, padding=8), axis=axis)


def _lines(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Points on the lines while there are few: a single epoch is a point and no line."""
    epochs = {point["epoch"] for point in points}
    return {"point": {"filled": True, "size": 36}} if len(epochs) <= MOST_POINTS else {}


def _accuracy_panel(points: Sequence[dict[str, Any]], color: Any) -> Any:
    scale = accuracy_scale(point["accuracy"] for point in points)
    y = alt.Y(field="accuracy", type="quantitative", scale=scale, title="Accuracy (%)")
    compared = any(point["split"] == VALIDATION for point in points)
    splits = {TRAINING: [4, 4], VALIDATION: [1, 0]} if compared else {TRAINING: [1, 0]}
    dash = alt.Scale(domain=list(splits), range=list(splits.values()))
    stroke = alt.StrokeDash(field="split", type="nominal", scale=dash, legend=None)
    opacity = alt.condition(f"datum.split === '{TRAINING}'", alt.value(0.7 if compared else 1), alt.value(1))
    tips = tooltips(
        method="Method", split="Measured on", epoch_text="Epoch", accuracy_text="Accuracy", loss_text="Loss"
    )
    return _panel(points, color, tips, y).encode(strokeDash=stroke, opacity=opacity)


def _collapse_panel(points: Sequence[dict[str, Any]], color: Any) -> Any:
    y = log_axis("nc1", alt.Y, [point["nc1"] for point in points], "NC1 (log scale)")
    tips = tooltips(method="Method", epoch_text="Epoch", nc1_text="NC1", train_loss_text="Training loss")
    return _panel(points, color, tips, y)


def _panel(points: Sequence[dict[str, Any]], color: Any, tips: list[Any], y: Any) -> Any:
    lines = alt.Chart(data(points)).mark_line(**_lines(points))
    return lines.encode(x=_epochs(), y=y, color=color, tooltip=tips).properties(width=300, height=260)
