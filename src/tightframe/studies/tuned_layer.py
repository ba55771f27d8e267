"""Which block to tune: does the one that leads to the most collapse lead to the best accuracy?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from tightframe.backbone import Backbone
from tightframe.images import ImageSplits
from tightframe.jobs.tune import tune
from tightframe.report.chart import Axis, chart
from tightframe.row import Row
from tightframe.studies.evidence import LEAST_RHO, Evidence, Score, averaged, correlations, crossed, minus
from tightframe.studies.study import Lab, Point, Scale, Study
from tightframe.studies.tunings import penultimate_nc1, plan, sampled

UNIT = ("model", "data", "seed")


def _points(lab: Lab) -> Iterator[Point]:
    for seed in lab.seeds:
        for data in lab.data:
            images = sampled(lab, data, seed)
            for backbone in lab.models:
                for index in _spread(len(backbone.layers), lab.scale.blocks):
                    labels = {"data": data.name, "model": backbone.name, "seed": seed, "index": index + 1}
                    yield Point(labels, partial(_rows, lab, images, backbone, index, seed))


def _spread(blocks: int, most: int) -> list[int]:
    """At most so many of the blocks, evenly, the last among them."""
    return sorted({int(place) for place in np.linspace(0, blocks - 1, min(blocks, most)).round()})


def _rows(lab: Lab, data: ImageSplits, backbone: Backbone, index: int, seed: int) -> list[Row]:
    block = backbone.layers[index].name
    tuned = tune(data, backbone, method="layer", block=block, config=plan(lab, seed), workspace=lab.workspace)
    kept = ("test_accuracy", "train_accuracy", "trainable_share", "seconds", "lr")
    found = {key: tuned.metrics[key] for key in kept} | {"nc1": penultimate_nc1(tuned, data.train)}
    return [{"block": block, "depth": (index + 1) / len(backbone.layers), **found}]


def _evidence(rows: Sequence[Row]) -> list[Evidence]:
    def across(question: str, score: Score | str, truth: Score | str = "test_accuracy") -> Evidence:
        return crossed(question, "Spearman's ρ", correlations(rows, score, truth, UNIT), LEAST_RHO, most=1.0)

    return [
        across("the more collapsed the last features after tuning a block, the better its accuracy", minus("nc1")),
        across("the deeper the block, the better its accuracy", "depth"),
        across("the deeper the block, the more collapsed the last features", "depth", minus("nc1")),
    ]


def _plot(rows: Sequence[Row]) -> Any:
    return chart(
        averaged(rows, ("data", "model", "block", "depth"), ("test_accuracy", "train_accuracy", "nc1")),
        Axis("depth", "Depth of the tuned block (share of all blocks, %)"),
        Axis("test_accuracy", "Test accuracy (%)"),
        title="Accuracy by the block that is tuned",
        subtitle="Each mark is a model tuned anew, one block and the head only; mean over seeds.",
        panels="data",
        color="model",
        joined="depth",
        tips=(
            "model",
            "block",
            "nc1",
            "test_accuracy",
            "train_accuracy",
        ),
    )


STUDY = Study(
    name="tuned-layer",
    claim="tuning the block that leads to the most collapsed last features leads to the best accuracy; the best is "
    "seldom the last",
    paper="One block after the other of a ResNet was tuned with the head, and penultimate NC1 and accuracy set against "
    "its index.",
    small="At most six blocks of each model, evenly over its depth, each tuned anew with the head (Layer FT) on 20 "
    "images a class; rate and decay chosen for each on training images held out.",
    minutes=12,
    points=_points,
    evidence=_evidence,
    columns=(
        "data",
        "model",
        "index",
        "block",
        "test_accuracy",
        "train_accuracy",
        "nc1",
        "trainable_share",
    ),
    plot=_plot,
    scales={
        "small": Scale(epochs=20, seeds=1, shots=(20,)),
        "paper": Scale(epochs=100, seeds=3, blocks=100, models=("timm/resnet18.tv_in1k", "timm/resnet50.tv_in1k")),
    },
)
