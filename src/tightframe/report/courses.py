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
    log_scale,
    positive,
    spelled,
    tooltips,
)

Chart = Any
TRAINING, VALIDATION = "training", "validation"
MOST_POINTS = 40


def layer_chart(rows: Sequence[Row]) -> Chart | None:
    """NC1 and probe accuracy of each layer by depth, the chosen layer marked; one pair of panels for each network."""
    measured = [row for row in rows if not failed(row)]
    networks = list(dict.fromkeys(text(row.get("network")) for row in measured))
    pairs = [(name, _layer_panels([row for row in measured if text(row.get("network")) == name])) for name in networks]
    pairs = [(name, panels) for name, panels in pairs if panels]
    if not pairs:
        return None
    if len(pairs) > 1:
        pairs = [(name, [first.properties(title=name), *rest]) for name, (first, *rest) in pairs]
    panels = itertools.chain.from_iterable(pair for _, pair in pairs)
    subtitle = "From the first layer to the last. The dashed line marks the layer that was chosen."
    return finish(alt.vconcat(*panels, spacing=30), "Layers", subtitle)


def _layer_panels(rows: Sequence[Row]) -> list[Any]:
    """The panels of one network; only the lowest names the layers."""
    ordered = sorted(rows, key=lambda row: int(row["position"]))
    names = apart(text(row.get("layer")) for row in ordered)
    points = [_layer_point(name, row) for name, row in zip(names, ordered, strict=True)]
    for index, point in enumerate(points):
        point["align"] = "left" if 2 * index < len(points) else "right"
    drawn = [kind for kind in ("accuracy", "nc1") if any(point[kind] is not None for point in points)]
    panels = {"accuracy": _layer_accuracy, "nc1": _layer_collapse}
    return [_layer_panel(points, names, panels[kind], named=kind == drawn[-1]) for kind in drawn]


def _layer_point(name: str, row: Row) -> dict[str, Any]:
    facts = spelled(row, position=count, dimension=count, nc1=number, probe_accuracy=percent)
    chosen = bool(row.get("chosen"))
    measured = {"nc1": positive(row.get("nc1")), "accuracy": hundredfold(row.get("probe_accuracy"))}
    return {"name": name, "chosen": chosen, "chosen_text": "yes" if chosen else "no", **measured, **facts}


def _layer_accuracy(values: Sequence[float]) -> Any:
    return alt.Y(field="accuracy", type="quantitative", scale=accuracy_scale(values), title="Probe accuracy (%)")


def _layer_collapse(values: Sequence[float]) -> Any:
    title = "NC1 (log scale; lower is more collapsed)"
    return alt.Y(field="nc1", type="quantitative", scale=log_scale(values), title=title)


def _layer_panel(points: Sequence[dict[str, Any]], names: Sequence[str], axis: Any, *, named: bool) -> Any:
    key = "accuracy" if axis is _layer_accuracy else "nc1"
    kept = [point for point in points if point[key] is not None]
    tips = tooltips(name="Layer", position_text="Position", dimension_text="Features", nc1_text="NC1")
    tips += tooltips(probe_accuracy_text="Probe accuracy", chosen_text="Chosen")
    depth = alt.X(field="name", type="nominal", scale=alt.Scale(domain=names), axis=_depth_axis(named))
    y = axis([point[key] for point in kept])
    base = alt.Chart(data(kept)).encode(x=depth)
    line = base.mark_line(color=BLUE).encode(y=y)
    shade = alt.condition("datum.chosen", alt.value(VERMILLION), alt.value(BLUE))
    large = alt.condition("datum.chosen", alt.value(170), alt.value(60))
    dots = base.mark_point().encode(y=y, color=shade, size=large, tooltip=tips)
    chosen = alt.Chart(data(point for point in points if point["chosen"])).encode(x=depth)
    layers = [chosen.mark_rule(color=VERMILLION, strokeDash=[4, 4]), line, dots, _chosen_label(chosen)]
    return alt.layer(*layers).properties(width=640, height=190)


def _chosen_label(chosen: Any) -> Any:
    """The chosen layer's name at the top of its line, on the side where there is room."""
    style = {"color": VERMILLION, "fontWeight": 600, "fontSize": 12, "baseline": "top"}
    side = {"align": alt.ExprRef("datum.align"), "dx": alt.ExprRef("datum.align === 'left' ? 8 : -8")}
    return chosen.mark_text(**style, **side, limit=alt.ExprRef("width / 2")).encode(
        y=alt.value(0), text=alt.Text(field="name", type="nominal")
    )


def _depth_axis(named: bool) -> Any:
    """Layer names, cut at the front where they are long: what tells them apart is at the end."""
    if not named:
        return alt.Axis(title=None, labels=False, ticks=False, grid=False)
    tail = "length(datum.label) > 20 ? '…' + slice(datum.label, -19) : datum.label"
    return alt.Axis(title="Layer, by depth", labelAngle=-50, labelExpr=tail, labelOverlap="greedy", grid=False)


def curve_chart(rows: Sequence[Row]) -> Chart | None:
    """Accuracy (training dashed, validation solid) and NC1 by epoch, one colour for each method."""
    measured = [row for row in rows if not failed(row)]
    methods = list(dict.fromkeys(text(row.get("method")) for row in measured))
    colour = alt.Color(
        field="method",
        type="nominal",
        scale=alt.Scale(domain=methods, range=_colours(len(methods))),
        legend=alt.Legend(),
    )
    accuracies = [point for row in measured for point in _accuracy_points(row)]
    collapses = [point for row in measured for point in _collapse_points(row)]
    panels = []
    if accuracies:
        panels.append(_accuracy_panel(accuracies, colour))
    if collapses:
        panels.append(_collapse_panel(collapses, colour))
    subtitle = "Solid: validation. Dashed: training."
    return finish(alt.concat(*panels, columns=2, spacing=40), "Training", subtitle) if panels else None


def _colours(amount: int) -> list[str]:
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


def _accuracy_panel(points: Sequence[dict[str, Any]], colour: Any) -> Any:
    scale = accuracy_scale(point["accuracy"] for point in points)
    tips = tooltips(
        method="Method", split="Measured on", epoch_text="Epoch", accuracy_text="Accuracy", loss_text="Loss"
    )
    dash = alt.Scale(domain=[TRAINING, VALIDATION], range=[[4, 4], [1, 0]])
    return (
        alt.Chart(data(points))
        .mark_line(**_lines(points))
        .encode(
            x=_epochs(),
            y=alt.Y(field="accuracy", type="quantitative", scale=scale, title="Accuracy (%)"),
            color=colour,
            strokeDash=alt.StrokeDash(field="split", type="nominal", scale=dash, legend=None),
            tooltip=tips,
        )
        .properties(width=300, height=260)
    )


def _collapse_panel(points: Sequence[dict[str, Any]], colour: Any) -> Any:
    scale = log_scale([point["nc1"] for point in points])
    tips = tooltips(method="Method", epoch_text="Epoch", nc1_text="NC1", train_loss_text="Training loss")
    return (
        alt.Chart(data(points))
        .mark_line(**_lines(points))
        .encode(
            x=_epochs(),
            y=alt.Y(field="nc1", type="quantitative", scale=scale, title="NC1 (log scale)"),
            color=colour,
            tooltip=tips,
        )
        .properties(width=300, height=260)
    )
