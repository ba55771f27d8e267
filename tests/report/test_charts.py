from __future__ import annotations

import json
import math
import re

import pytest
import vl_convert

from tightframe.report.chart import THEME, Axis, chart
from tightframe.report.charts import (
    collapse_chart,
    confusion_chart,
    curve_chart,
    layer_chart,
    method_chart,
    ranking_chart,
)

OKABE_ITO = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"}


@pytest.fixture(
    params=["ranking", "collapse", "layer", "curve", "method", "confusion"],
)
def drawing(request, models, layers, epochs, methods, confusions):
    return {
        "ranking": (ranking_chart, models),
        "collapse": (collapse_chart, models),
        "layer": (layer_chart, layers),
        "curve": (curve_chart, epochs),
        "method": (method_chart, methods),
        "confusion": (confusion_chart, confusions),
    }[request.param]


def found(node, key):
    """Every value under ``key`` anywhere in a spec, its data left out."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            if name != "datasets":
                yield from found(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from found(value, key)


def rows_of(chart):
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def drawn(chart):
    """The SVG, drawn by the same Vega that the page holds."""
    return vl_convert.vegalite_to_svg(chart.to_dict())


def marks(svg, kind):
    """How many marks of a kind the data made; axes and legends have marks of their own."""
    groups = re.findall(rf'<g class="mark-{kind} role-mark[^>]*(?<!/)>(.*?)</g>', svg)
    return sum(group.count("<path") + group.count("<line") for group in groups)


def test_names_are_data_never_fields_or_expressions(drawing, nasty):
    draw, rows = drawing
    spec = draw(rows).to_dict()
    fields = [value for value in found(spec, "field") if isinstance(value, str)]
    assert fields
    assert all(re.fullmatch("[a-z0-9_]+", field) for field in fields)
    code = [*found(spec, "expr"), *found(spec, "labelExpr"), *found(spec, "filter"), *found(spec, "test")]
    assert not any(name in str(part) for part in code for name in nasty)


@pytest.mark.slow
def test_every_chart_is_drawn_named_and_strict_json(drawing):
    draw, rows = drawing
    chart = draw(rows)
    svg = drawn(chart)
    assert marks(svg, "symbol") + marks(svg, "rect") + marks(svg, "line") > 0
    spec = chart.to_dict()
    assert spec["title"]["text"]
    assert spec["description"].startswith(spec["title"]["text"])
    assert spec["config"]["axis"] == THEME["axis"]
    assert json.dumps(spec, allow_nan=False)
    assert list(found(spec, "tooltip"))


def test_every_quantity_has_an_axis_title(drawing):
    draw, rows = drawing
    titles = set(re.findall(r"aria-label=\"[XY]-axis titled '(.*?)' for", drawn(draw(rows))))
    assert titles
    assert titles <= {
        "Accuracy (%)",
        "Test accuracy (%)",
        "Ridge probe (%)",
        "NC1 (log scale)",
        "NC1 (log scale; lower is more collapsed)",
        "Model",
        "Method",
        "Epoch",
        "Layer",
        "True",
        "Predicted",
    }


def test_nothing_to_draw_gives_none(drawing):
    draw, rows = drawing
    keys = dict.fromkeys(rows[0])
    assert draw([]) is None
    assert draw([keys | {"position": 0, "epoch": 1, "error": "broken"}]) is None
    assert draw([keys | {"position": 0, "epoch": 1, "nc1": math.nan, "probe_accuracy": math.nan}]) is None


def test_one_row_is_enough(drawing):
    draw, rows = drawing
    svg = drawn(draw(rows[:1]))
    assert marks(svg, "symbol") + marks(svg, "rect") > 0
    assert "NaN" not in svg


def test_ranking_is_best_first_whatever_the_order_of_rows(models):
    shuffled = [models[index] for index in (3, 0, 5, 1, 6, 2, 4)]
    spec = ranking_chart([*shuffled, {"model": "broken", "error": "x"}]).to_dict()
    names = next(found(spec, "y"))["scale"]["domain"]
    expected = [row["model"] for row in models]
    assert names == [" ".join(name.split()) for name in expected]


def test_ranking_without_a_test_set_shows_the_probe_only(models):
    rows = [row | {"test_accuracy": None} for row in models]
    assert {row["color"] for row in rows_of(ranking_chart(rows))} == {"expected"}
    assert {row["color"] for row in rows_of(ranking_chart(models))} == {"expected", "ridge probe on the test set"}


def test_models_of_the_same_name_stay_apart(models):
    names = {row["y"] for row in rows_of(ranking_chart([models[3], models[3], models[4]]))}
    assert names == {"a.b[0]", "a.b[0] #2", "datum.x"}


@pytest.mark.slow
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0, None])
def test_a_log_axis_leaves_out_what_it_cannot_show(models, layers, bad):
    rows = [row | {"nc1": bad} if index == 0 else row for index, row in enumerate(models)]
    points = rows_of(collapse_chart(rows))
    assert len(points) == len(models) - 1
    assert all(math.isfinite(point["x"]) and point["x"] > 0 for point in points)
    rows = [row | {"nc1": bad} for row in layers]
    spec = layer_chart(rows).to_dict()
    assert len(spec["concat"]) == 1
    assert "penultimate" in drawn(layer_chart(rows))


def test_a_log_axis_copes_with_one_value_and_with_extremes(models):
    same = [row | {"nc1": 2.0} for row in models]
    assert "NaN" not in drawn(collapse_chart(same))
    wide = [models[0] | {"nc1": 1e-308}, models[1] | {"nc1": 1e308}]
    assert "NaN" not in drawn(collapse_chart(wide))


def test_collapse_uses_the_test_set_only_if_every_model_has_one(models):
    assert "Test accuracy (%)" in list(found(collapse_chart(models).to_dict(), "title"))
    some = [models[0] | {"test_accuracy": None}, *models[1:]]
    chart = collapse_chart(some)
    assert "Ridge probe (%)" in list(found(chart.to_dict(), "title"))
    assert len(rows_of(chart)) == len(models)


@pytest.mark.slow
def test_layers_are_in_order_of_depth_with_the_chosen_one_marked(layers):
    spec = layer_chart(list(reversed(layers))).to_dict()
    domains = [y["scale"]["domain"] for y in found(spec, "y") if "scale" in y]
    assert domains
    assert all((domain[3], domain[-1]) == ("a.b[0]", "penultimate") for domain in domains)
    svg = drawn(layer_chart(layers))
    assert marks(svg, "rule") == 2
    unmarked = layer_chart([row | {"chosen": False} for row in layers])
    assert marks(drawn(unmarked), "rule") == 0
    assert "chosen" in layer_chart(layers).to_dict()["title"]["subtitle"]
    assert "chosen" not in unmarked.to_dict()["title"]["subtitle"]


def test_layers_of_two_models_get_panels_of_their_own(layers):
    spec = layer_chart([*layers, *(row | {"model": "other [x]"} for row in layers)]).to_dict()
    assert [panel["title"]["text"] for panel in spec["concat"]] == ["net", "net", "other [x]", "other [x]"]


def test_curves_of_training_and_validation_differ_by_dashes_with_a_legend(epochs):
    rows = [row | {"validation_accuracy": None, "nc1": None} for row in epochs]
    spec = curve_chart(rows).to_dict()
    assert len(spec["concat"]) == 1
    assert not list(found(spec["concat"], "strokeDash"))
    dashes = next(dash for dash in found(curve_chart(epochs).to_dict(), "strokeDash") if "scale" in dash)
    assert dashes["scale"]["domain"] == ["training images", "held-out images"]
    assert dashes["scale"]["range"] == [[1, 0], [4, 4]]


@pytest.mark.slow
def test_the_ticks_of_few_epochs_are_whole_numbers(epochs):
    for last in (1, 2, 3, 5):
        svg = drawn(curve_chart([row for row in epochs if row["epoch"] <= last]))
        axes = re.findall(r"X-axis titled 'Epoch' for a linear scale with values from (\S+) to (\S+)\"", svg)
        labels = re.findall(r"role-axis-label.*?</g>", svg.split("X-axis titled 'Epoch'")[1])[0]
        ticks = re.findall(r">([^<]+)</text>", labels)
        assert axes
        assert ticks == [str(epoch) for epoch in range(1, last + 1)]


def test_methods_keep_their_color_in_both_panels_and_colors_are_safe(epochs):
    spec = curve_chart(epochs).to_dict()
    scales = [color["scale"] for color in found(spec["concat"], "color") if "scale" in color]
    assert all(scale == scales[0] for scale in scales)
    assert set(scales[0]["range"]) <= OKABE_ITO
    assert len(set(scales[0]["range"])) == 3


def test_methods_without_intervals_or_shares(methods):
    rows = [row | {"test_low": None, "test_high": math.nan, "trainable_share": None} for row in methods]
    assert marks(drawn(method_chart(rows)), "rule") == 0
    assert " trained<" not in drawn(method_chart(rows))
    assert marks(drawn(method_chart(methods)), "rule") == len(methods)
    assert "(blocks.3), 10.0 % trained<" in drawn(method_chart(methods))


@pytest.mark.parametrize(("classes", "numbers"), [(2, True), (20, True), (21, False), (100, False)])
def test_confusions_show_numbers_while_they_can_be_read(classes, numbers):
    rows = [{"true": f"c{i}", "predicted": f"c{i}", "count": 1234 + i} for i in range(classes)]
    svg = drawn(confusion_chart([*rows, {"true": "c0", "predicted": "c1", "count": 0}]))
    assert marks(svg, "rect") >= classes
    assert ("1,234" in re.sub("<[^>]*>", "", svg)) is numbers


def test_a_class_never_predicted_keeps_its_column_and_empty_cells_stay_empty():
    rows = [{"true": "a", "predicted": "b", "count": 3}, {"true": "b", "predicted": "b", "count": 0}]
    chart = confusion_chart(rows)
    assert next(found(chart.to_dict(), "x"))["scale"]["domain"] == ["a", "b"]
    assert [(row["x"], row["y"], row["share"]) for row in rows_of(chart)] == [("b", "a", 1)]
    assert confusion_chart(rows[1:]) is None


# One measurement against another, in panels

NC1, ACCURACY = Axis("nc1", log=True), Axis("accuracy")
ROWS = [
    {"model": "a<b", "data": "x", "nc1": 1.0, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "epoch": 2},
    {"model": "c", "data": "x", "nc1": 10.0, "accuracy": 0.7, "epoch": 1},
    {"model": "c", "data": "y", "nc1": 4.0, "accuracy": 0.9, "epoch": 1},
]


def related(rows, **more):
    return chart(rows, NC1, ACCURACY, title="A title", subtitle="How to read it", **more)


def marks_of(drawn):
    """Marks of each panel."""
    spec = drawn.to_dict()
    given = [panel["layer"][-1].get("data") or panel.get("data") or spec["data"] for panel in spec["concat"]]
    return [data.get("values") or spec["datasets"][data["name"]] for data in given]


def test_each_set_has_a_panel_and_shares_become_percent():
    drawn = related(ROWS, panels="data", tips=("model", "nc1", "accuracy"))
    panels = marks_of(drawn)
    assert [[(mark["x"], mark["y"]) for mark in panel] for panel in panels] == [
        [(1.0, 50.0), (10.0, 70.0)],
        [(4.0, 90.0)],
    ]
    assert (panels[0][0]["low"], panels[0][0]["high"]) == pytest.approx((40, 60))
    assert [panels[0][0][f"tip{index}"] for index in range(3)] == ["a<b", "1.000", "50.0 % (40.0–60.0 %)"]
    assert "A title" in vl_convert.vegalite_to_svg(drawn.to_dict())


def test_what_can_not_be_drawn_is_left_out():
    rows = [
        *ROWS,
        {"model": "d", "data": "x", "nc1": 0.0, "accuracy": 0.5},
        {"model": "e", "data": "x", "error": "broken"},
    ]
    rows += [{"model": "f", "data": "x", "nc1": float("nan"), "accuracy": 0.5}]
    (panel,) = marks_of(related(rows))
    assert len(panel) == 3
    assert related(rows[3:]) is None
    assert related([]) is None


def test_colors_come_with_shapes_and_a_legend_and_lines_with_an_order():
    drawn = related(ROWS, color="model", joined="epoch")
    svg = vl_convert.vegalite_to_svg(drawn.to_dict())
    assert "a&lt;b" in svg
    layers = [layer["mark"]["type"] for layer in drawn.to_dict()["concat"][0]["layer"]]
    assert layers == ["rule", "line", "point"]
    (panel,) = marks_of(drawn)
    assert [mark["order"] for mark in panel] == [2, 1, 1]
    assert drawn.to_dict()["concat"][0]["layer"][-1]["encoding"]["shape"]["field"] == "color"


def test_one_mark_is_enough():
    assert "svg" in vl_convert.vegalite_to_svg(related(ROWS[:1]).to_dict())


def test_whole_numbers_have_whole_ticks():
    drawn = chart(ROWS, Axis("epoch"), ACCURACY, title="t", subtitle="s", tips=("accuracy",))
    assert drawn.to_dict()["concat"][0]["layer"][-1]["encoding"]["x"]["axis"]["values"] == [1, 2]
