"""Charts of one measurement against another: what is drawn, what is left out, what is said on hover."""

from __future__ import annotations

import pytest
import vl_convert

from tightframe.report.relations import Axis, relation_chart
from tightframe.report.tables import Column, number, percent, text

NC1, ACCURACY = Axis("nc1", "NC1", log=True), Axis("accuracy", "Accuracy (%)", share=True)
ROWS = [
    {"model": "a<b", "data": "x", "nc1": 1.0, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "depth": 2},
    {"model": "c", "data": "x", "nc1": 10.0, "accuracy": 0.7, "depth": 1},
    {"model": "c", "data": "y", "nc1": 4.0, "accuracy": 0.9, "depth": 1},
]


def chart(rows, **more):
    return relation_chart(rows, NC1, ACCURACY, title="A title", subtitle="How to read it", **more)


def marks_of(drawn):
    """Marks of each panel."""
    spec = drawn.to_dict()
    given = [panel["layer"][-1].get("data") or panel.get("data") or spec["data"] for panel in spec["concat"]]
    return [data.get("values") or spec["datasets"][data["name"]] for data in given]


def test_each_set_has_a_panel_and_shares_become_percent():
    drawn = chart(ROWS, panel="data", tips=[Column("model", "Model", text), Column("nc1", "NC1", number)])
    panels = marks_of(drawn)
    assert [[(mark["x"], mark["y"]) for mark in panel] for panel in panels] == [
        [(1.0, 50.0), (10.0, 70.0)],
        [(4.0, 90.0)],
    ]
    assert (panels[0][0]["low"], panels[0][0]["high"]) == pytest.approx((40, 60))
    assert panels[0][0]["tip0"] == "a<b"
    assert "A title" in vl_convert.vegalite_to_svg(drawn.to_dict())


def test_what_can_not_be_drawn_is_left_out():
    rows = [
        *ROWS,
        {"model": "d", "data": "x", "nc1": 0.0, "accuracy": 0.5},
        {"model": "e", "data": "x", "error": "broken"},
    ]
    rows += [{"model": "f", "data": "x", "nc1": float("nan"), "accuracy": 0.5}]
    (panel,) = marks_of(chart(rows))
    assert len(panel) == 3
    assert chart(rows[3:]) is None
    assert chart([]) is None


def test_colors_come_with_shapes_and_a_legend_and_lines_with_an_order():
    drawn = chart(ROWS, color="model", joined="depth")
    svg = vl_convert.vegalite_to_svg(drawn.to_dict())
    assert "a&lt;b" in svg
    layers = [layer["mark"]["type"] for layer in drawn.to_dict()["concat"][0]["layer"]]
    assert layers == ["rule", "line", "point"]
    (panel,) = marks_of(drawn)
    assert [mark["order"] for mark in panel] == [2, 1, 1]
    assert drawn.to_dict()["concat"][0]["layer"][-1]["encoding"]["shape"]["field"] == "color"


def test_one_mark_is_enough():
    assert "svg" in vl_convert.vegalite_to_svg(chart(ROWS[:1]).to_dict())


def test_whole_numbers_have_whole_ticks():
    drawn = relation_chart(
        ROWS, Axis("depth", "Depth"), ACCURACY, title="t", subtitle="s", tips=[Column("accuracy", "A", percent)]
    )
    assert drawn.to_dict()["concat"][0]["layer"][-1]["encoding"]["x"]["axis"]["tickMinStep"] == 1
