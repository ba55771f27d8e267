"""Does a model that is less collapsed on what it was trained on transfer better, and up to where?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tightframe.pretraining.losses import LOSSES, MANY
from tightframe.report.chart import Axis, chart
from tightframe.row import Row
from tightframe.studies.evidence import LEAST_SHARE, Evidence, Score, averaged, bootstrap, correlation, minus
from tightframe.studies.study import Lab, Point, Study
from tightframe.studies.variants import BUILT_IN, COLUMNS, MEDIUM, PAPER, SMALL, variants

SHORTER = (10, 3)
"""Lengths of training: all epochs, and so many times fewer; and none."""
WAYS, UNIT = ("loss", "epochs"), "ways of pre-training"
"""Of pre-training: what intervals are over. Seeds of one way are no other way."""
RATE, RATES = 0.1, {"mse": 0.2}
"""The gradients of a mean over classes are smaller, where the loss is not rescaled."""


def _points(lab: Lab) -> Iterator[Point]:
    lengths = list(dict.fromkeys([lab.scale.epochs, *(max(1, lab.scale.epochs // part) for part in SHORTER)]))
    rates = RATES if len(lab.data[0].classes) <= MANY else {}
    trained = [
        {"loss": loss, "epochs": length, "lr": rates.get(loss, RATE)} for loss in LOSSES for length in sorted(lengths)
    ]
    return variants(lab, [{"epochs": 0}, *trained], ("loss", "epochs"))


def _evidence(rows: Sequence[Row]) -> list[Evidence]:
    trained = [row for row in rows if row["epochs"]]
    longest = [row for row in rows if row["epochs"] == max(row["epochs"] for row in rows)]

    def over(question: str, chosen: Sequence[Row], score: Score | str, truth: str, units: Sequence[str]) -> Evidence:
        told = "losses" if units == ["loss"] else UNIT
        return correlation(question, chosen, score, truth, within=["data", "seed"], over=units, unit=told)

    loss, less = ["loss"], "the less source collapse, the better"
    return [
        over(f"trained to the end, {less} a probe", longest, "source_nc1", "test_accuracy", loss),
        over("the same, of few-shot accuracy", longest, "source_nc1", "fewshot_accuracy", loss),
        over("the same, of NC1 on source test images", longest, "source_test_nc1", "test_accuracy", loss),
        over(f"of all trained models, {less}", trained, "source_nc1", "test_accuracy", WAYS),
        over("of these, the more collapse downstream, the better", trained, minus("nc1"), "test_accuracy", WAYS),
        *_threshold(rows),
    ]


def _threshold(rows: Sequence[Row]) -> list[Evidence]:
    """Whether accuracy rises from the most collapsed model on, and falls towards the least one."""
    known = [row for row in rows if "error" not in row and 0 < (row["source_nc1"] or 0) < math.inf]
    places = [turn for group in by_set(known) if (turn := turning_point(group)) is not None]
    where = f" (the curve turns at {min(places):.2g} to {max(places):.2g})" if places else ""

    def slope(question: str, end: int, sign: float) -> Evidence:
        def statistic(drawn: Sequence[Row]) -> float:
            found = [slopes[end] for group in by_set(drawn) if (slopes := _slopes(group)) is not None]
            return sign * float(np.mean(found)) if found else math.nan

        told = "slope per tenfold NC1"
        return bootstrap(question, told, known, statistic, over=WAYS, unit=UNIT, least=LEAST_SHARE, share=True)

    return [
        slope(f"among the most collapsed models, less source collapse is better{where}", 0, 1.0),
        slope("among the least collapsed models, more source collapse is better", 1, -1.0),
    ]


def by_set(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of each set that was transferred to."""
    groups = defaultdict[str, list[Row]](list)
    for row in rows:
        groups[row["data"]].append(row)
    return list(groups.values())


def turning_point(rows: Sequence[Row]) -> float | None:
    """Source NC1 at the top of a parabola through accuracy over log NC1; ``None`` where it has no top among them."""
    curve = _curve(rows)
    if curve is None or curve[0] >= 0:
        return None
    logs, top = [math.log(row["source_nc1"]) for row in rows], float(-curve[1] / (2 * curve[0]))
    return math.exp(top) if min(logs) < top < max(logs) else None


def _slopes(rows: Sequence[Row]) -> tuple[float, float] | None:
    """Slopes of the parabola at the most and at the least collapsed model, per tenfold NC1."""
    curve = _curve(rows)
    if curve is None:
        return None
    logs = [math.log(row["source_nc1"]) for row in rows]
    slopes = math.log(10) * np.polyval(np.polyder(curve), [min(logs), max(logs)])
    return float(slopes[0]), float(slopes[1])


def _curve(rows: Sequence[Row]) -> np.ndarray | None:
    logs = [math.log(row["source_nc1"]) for row in rows]
    return np.polyfit(logs, [row["test_accuracy"] for row in rows], 2) if len(set(logs)) >= 4 else None


def _plot(rows: Sequence[Row]) -> Any:
    marks = averaged(rows, ("data", "loss", "epochs"), ("source_nc1", "test_accuracy", "nc1"))
    return chart(
        marks,
        Axis("source_nc1", "Source NC1 (log scale; lower: more collapsed)", log=True),
        Axis("test_accuracy", "Probe accuracy downstream (%)"),
        title="Source collapse and transfer",
        subtitle="Each mark is a way of pre-training, averaged over seeds. Lines join training short and long.",
        panels="data",
        color="loss",
        joined="epochs",
        tips=(
            "loss",
            "epochs",
            "source_nc1",
            "nc1",
            "test_accuracy",
        ),
    )


STUDY = Study(
    name="source-collapse",
    claim="the less a model is collapsed on its source images, the better it transfers, up to a threshold: "
    "models that have learned nothing are the least collapsed of all",
    paper="Models were pre-trained on CIFAR-100 and miniImageNet under different losses, and NC1 of the source "
    "images set against accuracy on other datasets.",
    small="A ResNet-8 is pre-trained from scratch on the first of the datasets under five losses, at three "
    "lengths (MSE at twice the rate of the other losses), and judged on the other sets by a ridge probe and "
    "5-shot episodes; an untrained one stands beside. Source NC1 is measured in the finished model. A "
    "threshold shows where a parabola through accuracy over log NC1 turns: its slopes at both ends are tested.",
    minutes=26,
    points=_points,
    evidence=_evidence,
    columns=("loss", "epochs", *COLUMNS),
    plot=_plot,
    scales={"small": replace(SMALL, seeds=2), "medium": MEDIUM, "paper": PAPER},
    pretrains=True,
    built_in=BUILT_IN,
)
