"""Does tuning one block with a skip connection beat the linear probe, the block alone, and all of the model?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from tightframe.report.chart import Axis, chart
from tightframe.row import Row
from tightframe.studies.evidence import LEAST_RHO, Evidence, correlations, crossed, minus
from tightframe.studies.study import Lab, Point, Scale, Study
from tightframe.studies.tunings import ALL_METHODS, COLUMNS, ahead, by_methods, not_behind, others, sampled

UNIT = ("model", "data", "seed")


def _points(lab: Lab) -> Iterator[Point]:
    for seed in lab.seeds:
        for data in lab.data:
            images = sampled(lab, data, seed)
            for place, backbone in enumerate(lab.models):
                labels = {"data": data.name, "model": backbone.name, "seed": seed}
                out = lab.folder / "tuned" / f"{lab.data.index(data)}-{place}-{seed}"
                yield Point(labels, partial(by_methods, lab, images, backbone, lab.scale.methods, seed, out))


def _evidence(rows: Sequence[Row]) -> list[Evidence]:
    question = "across methods, the more collapsed the last features after tuning, the better"
    by_collapse = correlations(rows, minus("nc1"), "test_accuracy", UNIT)
    return [
        not_behind(rows, "full", UNIT),
        *(ahead(rows, name, UNIT) for name in others(rows)),
        crossed(question, "Spearman's ρ", by_collapse, LEAST_RHO, most=1.0),
    ]


def _plot(rows: Sequence[Row]) -> Any:
    return chart(
        rows,
        Axis("trainable_parameters", "Trainable parameters (log scale)", log=True),
        Axis("test_accuracy", "Test accuracy (%)"),
        title="Accuracy and the parameters it takes",
        subtitle="Each mark is a model tuned by a method.",
        panels="data",
        color="method",
        tips=(
            "model",
            "method",
            "block",
            "trainable_parameters",
            "test_accuracy",
            "train_accuracy",
        ),
    )


STUDY = Study(
    name="methods",
    claim="tuning one block with a skip connection to the last features (SCL) is as accurate as full fine-tuning or "
    "better, with a fraction of the parameters, and better than the linear probe and Layer FT",
    paper="Linear probe, Layer FT, SCL FT and full FT of ResNets and vision transformers on several datasets: "
    "accuracy, NC1, parameters, time and memory.",
    small="The models and datasets that are given, 20 images a class; block, rate and decay are chosen on "
    "training images held out, each method with the same block, split and epochs.",
    minutes=24,
    points=_points,
    evidence=_evidence,
    columns=(
        "data",
        "model",
        "seed",
        *COLUMNS,
    ),
    plot=_plot,
    scales={
        "small": Scale(epochs=20, seeds=1, shots=(20,)),
        "paper": Scale(
            epochs=100,
            seeds=3,
            models=("timm/resnet18.tv_in1k", "timm/resnet50.tv_in1k", "timm/vit_base_patch32_224.augreg_in21k_ft_in1k"),
            methods=ALL_METHODS,
        ),
    },
)
