"""With few images, who overfits: SCL fine-tuning, or full fine-tuning?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from tightframe.report.chart import Axis, chart
from tightframe.row import Row
from tightframe.studies.evidence import LEAST_SHARE, Evidence, averaged, crossed, differences
from tightframe.studies.study import Lab, Point, Scale, Study
from tightframe.studies.tunings import ALL_METHODS, COLUMNS, ahead, by_methods, few, others

FEW_CLASSES, MANY_CLASSES = (3, 10, 32, 100, 316), (7, 17, 38, 87, 200)
"""Images a class: the paper's, of CIFAR-10 and of CIFAR-100."""
MANY = 20
UNIT = ("model", "data", "shots", "seed")


def _points(lab: Lab) -> Iterator[Point]:
    for seed in lab.seeds:
        for at, data in enumerate(lab.data):
            for place, backbone in enumerate(lab.models):
                for shots in FEW_CLASSES if len(data.classes) <= MANY else MANY_CLASSES:
                    images = few(data, shots, seed)
                    if images is None or len(images.train) > lab.scale.images:
                        continue
                    labels = {"data": data.name, "model": backbone.name, "shots": shots, "seed": seed}
                    out = lab.folder / "tuned" / f"{at}-{place}-{shots}-{seed}"
                    yield Point(labels, partial(by_methods, lab, images, backbone, lab.scale.methods, seed, out))


def _evidence(rows: Sequence[Row]) -> list[Evidence]:
    gaps = [row | {"gap": row["train_accuracy"] - row["test_accuracy"]} for row in rows if "error" not in row]
    falls = differences(gaps, "gap", "method", ["full"], ["scl"], UNIT)
    question = "full fine-tuning falls further from training to test images than SCL"
    overfits = crossed(question, "paired difference", falls, LEAST_SHARE, share=True)
    first, *rest = (ahead(gaps, name, UNIT) for name in others(gaps))
    return [first, overfits, *rest]


def _plot(rows: Sequence[Row]) -> Any:
    marks = averaged(rows, ("data", "model", "method", "shots"), ("test_accuracy", "train_accuracy", "nc1"))
    return chart(
        [mark | {"where": f"{mark['data']}, {mark['model']}"} for mark in marks],
        Axis("shots", "Training images a class (log scale)", log=True),
        Axis("test_accuracy", "Test accuracy (%)"),
        title="Accuracy with few images",
        subtitle="Mean over seeds; bars, from three seeds on: 95 % intervals.",
        panels="where",
        color="method",
        joined="shots",
        tips=(
            "method",
            "shots",
            "test_accuracy",
            "train_accuracy",
            "nc1",
            "times",
        ),
    )


STUDY = Study(
    name="scarce-data",
    claim="with few images full fine-tuning overfits, and tuning one block with a skip connection (SCL) is more "
    "accurate",
    paper="CIFAR-10 subsets of 3, 10, 32, 100 and 316 images a class (ResNet-18), CIFAR-100 subsets of 7, 17, 38, 87 "
    "and 200 (CLIP); training and test accuracy.",
    small="The models and datasets that are given, the paper's numbers of images a class, as far as there "
    "are so many and as they are 2,000 or fewer in all; rate, decay and block chosen on training images held out.",
    minutes=22,
    points=_points,
    evidence=_evidence,
    columns=(
        "data",
        "model",
        "shots",
        "seed",
        *COLUMNS,
    ),
    plot=_plot,
    scales={
        "small": Scale(epochs=12, seeds=1, images=2000),
        "medium": Scale(epochs=12, seeds=2, images=6000, methods=ALL_METHODS),
        "paper": Scale(
            epochs=100,
            seeds=3,
            images=1_000_000,
            models=("timm/resnet18.tv_in1k", "open_clip/ViT-B-32/openai"),
            methods=ALL_METHODS,
        ),
    },
)
