"""Do models that are more collapsed on new classes learn those from a few images better?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

from tightframe.backbone import Backbone
from tightframe.data.class_lists import class_list
from tightframe.images import ImageSplits
from tightframe.jobs.fewshot import fewshot
from tightframe.report.chart import Axis, chart
from tightframe.row import Row
from tightframe.studies.downstream_collapse import PAPER, labels_of
from tightframe.studies.evidence import Evidence, correlation, minus
from tightframe.studies.study import Lab, Point, Scale, Study

WAYS, SHOTS = 5, (1, 5)
SPLIT = "cifar-fs:test"
"""The classes that are taken of a set that has them all."""


def _points(lab: Lab) -> Iterator[Point]:
    for data, backbone in product(lab.data, lab.models):
        yield Point(labels_of(data, backbone), partial(_rows, lab, data, backbone))


def _rows(lab: Lab, data: ImageSplits, backbone: Backbone) -> list[Row]:
    published = class_list(SPLIT)
    classes = published if set(published) <= set(data.classes) else data.classes
    ways, episodes = min(WAYS, len(classes)), lab.scale.episodes
    found = fewshot(data, backbone, ways=ways, shots=SHOTS, episodes=episodes, classes=classes, workspace=lab.workspace)
    kept = ("shots", "accuracy", "accuracy_low", "accuracy_high", "nc1", "nc1_corrected")
    return [
        {"classes": len(classes)} | {key: row.get(key) for key in kept}
        for row in found.rows
        if row["classifier"] == "logistic"
    ]


def _evidence(rows: Sequence[Row]) -> list[Evidence]:
    known, within, over = [row for row in rows if "error" not in row], ["data", "shots"], ["model"]
    plain, better = minus("nc1"), minus("nc1_corrected")
    by_shots = [
        correlation(
            f"the more collapsed on new classes, the better {shots}-shot",
            [row for row in known if row["shots"] == shots],
            plain,
            "accuracy",
            within=within,
            over=over,
            unit="models",
        )
        for shots in SHOTS
    ]
    alike = correlation(
        "the same, among models for images of one size only",
        known,
        plain,
        "accuracy",
        within=[*within, "side"],
        over=over,
        unit="models",
    )
    question = "NC1 corrected for few images says more than NC1 as it is"
    corrected = correlation(question, known, better, "accuracy", within=within, over=over, unit="models", than=plain)
    return [*by_shots, alike, corrected]


def _plot(rows: Sequence[Row]) -> Any:
    told = [row | {"shots_told": f"{row['shots']}-shot"} for row in rows if "error" not in row]
    return chart(
        told,
        Axis("nc1", "NC1 of the new classes (log scale; lower: more collapsed)", log=True),
        Axis("accuracy", "Accuracy over episodes (%)"),
        title="Collapse on new classes and few-shot accuracy",
        subtitle="Each mark is a model. Bars: 95 % intervals over episodes.",
        panels="data",
        color="shots_told",
        tips=(
            "model",
            "nc1",
            "nc1_corrected",
            "accuracy",
        ),
    )


STUDY = Study(
    name="few-shot",
    claim="the more collapsed a model's features are on classes it has not seen, the better few-shot classifiers do",
    paper="Models were pre-trained on the merged meta-training classes of miniImageNet and CIFAR-FS and frozen; "
    "logistic regression in 5-way episodes of 1 and 5 shots.",
    small="The models that are given, as they came, on the datasets that are given: the test classes of CIFAR-FS "
    "of a set that has them, else all classes; logistic regression in 300 episodes of 5 classes. Models for images "
    "of one size are also compared among themselves.",
    minutes=2,
    points=_points,
    evidence=_evidence,
    columns=(
        "data",
        "model",
        "classes",
        "shots",
        "accuracy",
        "nc1",
        "nc1_corrected",
    ),
    plot=_plot,
    scales={"small": Scale(), "paper": Scale(models=PAPER, episodes=600)},
)
