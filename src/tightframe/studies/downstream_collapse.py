"""Do networks that are more collapsed on the downstream pictures classify them better?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

from tightframe.jobs.rank import rank
from tightframe.jobs.run import Row
from tightframe.protocols import Backbone, ImageSplits
from tightframe.report.relations import Axis, relation_chart
from tightframe.report.tables import Column, count, millions, number, percent, text
from tightframe.studies.evidence import Evidence, Score, correlation, minus
from tightframe.studies.study import Lab, Point, Scale, Study

KEPT = ("test_accuracy", "nc1", "logme", "h_score", "knn_accuracy", "source_accuracy", "parameters", "multiply_adds")
BASELINES = {
    "the accuracy of nearest neighbours": "knn_accuracy",
    "accuracy on the source": "source_accuracy",
    "arithmetic": "multiply_adds",
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
    """Which pictures and network, and the side of the pictures that the network is given, which tells kinds apart."""
    return {"data": data.name, "network": backbone.name, "side": backbone.preprocessing.input_size[0]}


def _row(lab: Lab, data: ImageSplits, backbone: Backbone) -> list[Row]:
    (found,) = rank(data, [backbone], **lab.running).rows
    return [{key: found.get(key) for key in (*KEPT, "error") if key in found}]


def _evidence(rows: Sequence[Row]) -> list[Evidence]:
    def over(question: str, than: Score | str | None = None, within: Sequence[str] = ("data",)) -> Evidence:
        ours, of, unit = minus("nc1"), "test_accuracy", "networks"
        return correlation(question, rows, ours, of, within=within, over=["network"], unit=unit, than=than)

    compared = [over(f"NC1 ranks networks better than {what}", column) for what, column in BASELINES.items()]
    return [
        over("the more collapsed downstream, the more accurate a probe"),
        over("the same, among networks for pictures of one size only", within=("data", "side")),
        *(one for one in compared if one.value is not None),
    ]


def _picture(rows: Sequence[Row]) -> Any:
    return relation_chart(
        rows,
        Axis("nc1", "Downstream NC1 (log scale; lower: more collapsed)", log=True),
        Axis("test_accuracy", "Probe accuracy on test pictures (%)", share=True),
        title="Downstream collapse and accuracy",
        subtitle="Each mark is a pretrained network, as it came.",
        panel="data",
        tips=(
            Column("network", "Network", text),
            Column("nc1", "NC1", number),
            Column("test_accuracy", "Probe accuracy", percent),
            Column("parameters", "Param. (M)", millions),
        ),
    )


STUDY = Study(
    name="downstream-collapse",
    claim="across pretrained networks, the more collapsed their features are on the downstream training pictures, the "
    "more accurate a linear probe",
    paper="ResNets, DenseNets and MobileNetV2, pretrained on ImageNet, on CIFAR-10, FGVC-Aircraft, DTD and "
    "Oxford-IIIT-Pet; a linear probe for each.",
    small="The networks and picture sets that are given, each network as it came; the probe is ridge regression, its "
    "strength chosen by cross-validation. NC1 has to beat what is known without it: k-NN accuracy (leave-one-out), "
    "source accuracy, arithmetic and size; and LogME. Networks for pictures of one size are also compared among "
    "themselves, for networks of ImageNet and of small pictures differ in more than collapse.",
    minutes=8,
    points=_points,
    evidence=_evidence,
    columns=(
        Column("data", "Pictures", text),
        Column("network", "Network", text),
        Column("side", "Side (px)", count),
        Column("nc1", "NC1", number),
        Column("test_accuracy", "Probe, test", percent),
        Column("knn_accuracy", "k-NN", percent),
        Column("source_accuracy", "Source", percent),
        Column("logme", "LogME", number),
        Column("parameters", "Param. (M)", millions),
        Column("multiply_adds", "Mult-adds (M)", millions),
    ),
    picture=_picture,
    scales={"small": Scale(), "paper": Scale(models=PAPER)},
)
