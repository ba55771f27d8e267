"""Do models that are more collapsed on the downstream images classify them better?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

from tightframe.backbone import Backbone
from tightframe.images import ImageSplits
from tightframe.jobs.rank import rank
from tightframe.report.chart import Axis, chart
from tightframe.row import Row
from tightframe.studies.evidence import Evidence, Score, correlation, minus
from tightframe.studies.study import Lab, Point, Scale, Study

KEPT = ("test_accuracy", "nc1", "logme", "h_score", "knn_accuracy", "source_accuracy", "parameters", "macs")
BASELINES = {
    "the accuracy of nearest neighbors": "knn_accuracy",
    "accuracy on the source": "source_accuracy",
    "arithmetic": "macs",
    "size": "parameters",
    "LogME": "logme",
}
PAPER = (
    *(f"timm/resnet{depth}.tv_in1k" for depth in (18, 34, 50, 101, 152)),
    *(f"timm/densenet{depth}.tv_in1k" for depth in (121, 169, 201)),
    "timm/mobilenetv2_100.ra_in1k",
)


def _points(lab: Lab) -> Iterator[Point]:
    for data, backbone in product(lab.data, lab.models):
        yield Point(labels_of(data, backbone), partial(_row, lab, data, backbone))


def labels_of(data: ImageSplits, backbone: Backbone) -> Row:
    """Which images and model, and the side of the images that the model is given, which tells kinds apart."""
    return {"data": data.name, "model": backbone.name, "side": backbone.preprocessing.input_size[0]}


def _row(lab: Lab, data: ImageSplits, backbone: Backbone) -> list[Row]:
    (found,) = rank(data, [backbone], workspace=lab.workspace).rows
    return [{key: found.get(key) for key in (*KEPT, "error") if key in found}]


def _evidence(rows: Sequence[Row]) -> list[Evidence]:
    def over(question: str, than: Score | str | None = None, within: Sequence[str] = ("data",)) -> Evidence:
        ours, of, unit = minus("nc1"), "test_accuracy", "models"
        return correlation(question, rows, ours, of, within=within, over=["model"], unit=unit, than=than)

    compared = [over(f"NC1 ranks models better than {what}", column) for what, column in BASELINES.items()]
    return [
        over("the more collapsed downstream, the more accurate a probe"),
        over("the same, among models for images of one size only", within=("data", "side")),
        *(one for one in compared if one.value is not None),
    ]


def _plot(rows: Sequence[Row]) -> Any:
    return chart(
        rows,
        Axis("nc1", "Downstream NC1 (log scale; lower: more collapsed)", log=True),
        Axis("test_accuracy", "Probe accuracy on test images (%)"),
        title="Downstream collapse and accuracy",
        subtitle="Each mark is a pretrained model, as it came.",
        panels="data",
        tips=(
            "model",
            "nc1",
            "test_accuracy",
            "parameters",
        ),
    )


STUDY = Study(
    name="downstream-collapse",
    claim="across pretrained models, the more collapsed their features are on the downstream training images, the "
    "more accurate a linear probe",
    paper="ResNets, DenseNets and MobileNetV2, pretrained on ImageNet, on CIFAR-10, FGVC-Aircraft, DTD and "
    "Oxford-IIIT-Pet; a linear probe for each.",
    small="The models and datasets that are given, each model as it came; the probe is ridge regression, its "
    "strength chosen by cross-validation. NC1 has to beat what is known without it: k-NN accuracy (leave-one-out), "
    "source accuracy, arithmetic and size; and LogME. Models for images of one size are also compared among "
    "themselves, for models of ImageNet and of small images differ in more than collapse.",
    minutes=8,
    points=_points,
    evidence=_evidence,
    columns=(
        "data",
        "model",
        "side",
        "nc1",
        "test_accuracy",
        "knn_accuracy",
        "source_accuracy",
        "logme",
        "parameters",
        "macs",
    ),
    plot=_plot,
    scales={"small": Scale(), "paper": Scale(models=PAPER)},
)
