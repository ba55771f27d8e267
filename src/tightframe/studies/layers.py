"""Within a model, is the layer that is the most collapsed also the one that classifies best?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

from tightframe.backbone import Backbone
from tightframe.images import ImageSplits
from tightframe.jobs.layers import layers
from tightframe.report.chart import Axis, chart
from tightframe.row import Row
from tightframe.studies.evidence import LEAST_RHO, LEAST_SHARE, Evidence, correlations, crossed, minus
from tightframe.studies.study import Lab, Point, Scale, Study

KEPT = ("layer", "dimension", "nc1", "ridge_test", "logistic_test", "center_test", "knn_test")
UNIT = ("model", "data")


def _points(lab: Lab) -> Iterator[Point]:
    for data, backbone in product(lab.data, lab.models):
        yield Point({"data": data.name, "model": backbone.name}, partial(_rows, lab, data, backbone))


def _rows(lab: Lab, data: ImageSplits, backbone: Backbone) -> list[Row]:
    found = layers(data, backbone, workspace=lab.workspace).rows
    return [{"depth": depth} | {key: row.get(key) for key in KEPT} for depth, row in enumerate(found, 1)]


def _evidence(rows: Sequence[Row]) -> list[Evidence]:
    apart = distinct(rows)

    def across(question: str, truth: str) -> Evidence:
        return crossed(question, "Spearman's ρ", correlations(apart, minus("nc1"), truth, UNIT), LEAST_RHO, most=1.0)

    return [
        across("across the layers of a model, the more collapsed, the better logistic regression", "logistic_test"),
        across("the same, of a ridge probe", "ridge_test"),
        across("the same, of nearest neighbors", "knn_test"),
        _reading(apart),
    ]


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Without failed ones, and without layers that say what the layer before them does: the last block, pooled, often
    is what the head sees.
    """
    kept: list[Row] = []
    for row in rows:
        before = kept[-1] if kept and all(kept[-1][part] == row[part] for part in UNIT) else None
        same = before is not None and all(before.get(key) == row.get(key) for key in KEPT if key != "layer")
        if "error" not in row and not same:
            kept.append(row)
    return kept


def _reading(rows: Sequence[Row]) -> Evidence:
    units = defaultdict[tuple[str, str], list[Row]](list)
    for row in rows:
        if row["nc1"] is not None and math.isfinite(row["nc1"]):
            units[row["model"], row["data"]].append(row)
    ahead = {
        key: min(unit, key=lambda row: row["nc1"])["logistic_test"] - unit[-1]["logistic_test"]
        for key, unit in units.items()
    }
    question = "the most collapsed layer classifies better than the last"
    return crossed(question, "difference", ahead, LEAST_SHARE, share=True)


def _plot(rows: Sequence[Row]) -> Any:
    return chart(
        rows,
        Axis("nc1", "NC1 of the layer (log scale; lower: more collapsed)", log=True),
        Axis("logistic_test", "Logistic regression, test images (%)"),
        title="Collapse and accuracy, layer by layer",
        subtitle="Each mark is a layer; lines go from the first to the last.",
        panels="data",
        color="model",
        joined="depth",
        tips=(
            "model",
            "layer",
            "nc1",
            "logistic_test",
        ),
    )


STUDY = Study(
    name="layers",
    claim="from layer to layer NC1 falls and probe accuracy rises, and the two go together",
    paper="NC1 and linear-probe accuracy at the output of every block of residual models and a vision transformer.",
    small="The same for the models and datasets that are given: four probes at every block and at the last "
    "features, NC1 of training images, accuracy on test images.",
    minutes=3,
    points=_points,
    evidence=_evidence,
    columns=(
        "data",
        "model",
        "layer",
        "dimension",
        "nc1",
        "logistic_test",
        "ridge_test",
        "center_test",
        "knn_test",
    ),
    plot=_plot,
    scales={
        "small": Scale(),
        "paper": Scale(
            models=("timm/resnet34.tv_in1k", "timm/resnet50.tv_in1k", "timm/vit_base_patch16_224.augreg_in1k")
        ),
    },
)
