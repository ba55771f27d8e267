"""For one model, does collapse say which datasets it will do well on?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.features.extract import Features
from tightframe.report.chart import Axis, chart
from tightframe.row import Row
from tightframe.studies.evidence import Evidence, correlation, minus
from tightframe.studies.probing import probed
from tightframe.studies.study import Lab, Point, Scale, Study

WHOLE, EQUAL = "as it is", "as many classes and images"


def _points(lab: Lab) -> Iterator[Point]:
    for backbone in lab.models:
        yield Point({"model": backbone.name}, partial(_rows, lab, backbone))


def _rows(lab: Lab, backbone: Backbone) -> list[Row]:
    made: list[Row] = []
    classes = min(len(data.classes) for data in lab.data)
    images = min(int(np.bincount(data.train.labels).min()) for data in lab.data)
    for data in lab.data:
        parts = [lab.workspace.features(backbone, part, [PENULTIMATE]) for part in (data.train, data.test) if part]
        whole = _of(parts, range(len(data.classes)))
        counted = {"classes": len(data.classes), "images": len(data.train)}
        made.append({"data": data.name, "sample": WHOLE, "draw": 0, **counted, **probed(*whole, len(data.classes))})
        for draw in lab.seeds:
            chosen = np.random.default_rng(draw).permutation(len(data.classes))[:classes]
            sample = _of(parts, chosen.tolist(), images, draw)
            counted = {"classes": classes, "images": len(sample[1])}
            made.append({"data": data.name, "sample": EQUAL, "draw": draw, **counted, **probed(*sample, classes)})
    return made


Sample = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _of(parts: Sequence[Features], classes: Sequence[int], images: int | None = None, seed: int = 0) -> Sample:
    """Features and labels (0 … K − 1) of some classes: of at most so many training images each, and of test ones."""
    train, test = parts
    luck = np.random.default_rng(seed)
    rows = [luck.permutation(np.flatnonzero(train.labels == label))[:images] for label in classes]
    unseen = [np.flatnonzero(test.labels == label) for label in classes]
    found = []
    for part, chosen in ((train, rows), (test, unseen)):
        labels = np.repeat(np.arange(len(classes)), [len(of) for of in chosen])
        found += [part[PENULTIMATE][np.concatenate(chosen)], labels]
    return found[0], found[1], found[2], found[3]


def _evidence(rows: Sequence[Row]) -> list[Evidence]:
    def across(question: str, sample: str) -> Evidence:
        chosen, of = [row for row in rows if row.get("sample") == sample], "test_accuracy"
        within = ["model", "draw"]
        return correlation(question, chosen, minus("nc1"), of, within=within, over=["data"], unit="datasets")

    return [
        across("for one model, the more collapsed a dataset, the more accurate a probe", WHOLE),
        across("the same, with as many classes and images a class of each set", EQUAL),
    ]


def _plot(rows: Sequence[Row]) -> Any:
    return chart(
        [row for row in rows if not row.get("draw")],
        Axis("nc1", "NC1 (log scale; lower: more collapsed)", log=True),
        Axis("test_accuracy", "Probe accuracy on test images (%)"),
        title="Collapse and accuracy, from dataset to dataset",
        subtitle="Each mark is a model on a dataset; on the right sets are cut down to the same size.",
        panels="sample",
        color="data",
        tips=(
            "model",
            "data",
            "nc1",
            "test_accuracy",
        ),
    )


STUDY = Study(
    name="across-data",
    claim="for one model, the more collapsed its features are on a dataset, the more accurate a linear probe is",
    paper="CLIP's image encoder on CIFAR, DTD, FGVC-Aircraft, Flowers-102 and SUN397.",
    small="The models and datasets that are given. NC1 grows with the number of classes, and accuracy falls, "
    "whatever the model: so sets are also cut down to the same number of classes and images a class, drawn five "
    "times.",
    minutes=11,
    points=_points,
    evidence=_evidence,
    columns=(
        "model",
        "data",
        "sample",
        "classes",
        "images",
        "nc1",
        "test_accuracy",
    ),
    plot=_plot,
    scales={"small": Scale(seeds=5), "paper": Scale(seeds=5, models=("open_clip/ViT-B-32/openai",))},
    built_in=("digits:0-4", "digits:5-9", "digits:1,3,5,7,9", "digits:0,2,4,6,8"),
)
