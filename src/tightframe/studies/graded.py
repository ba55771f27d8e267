"""Studies of one thing that is turned up in pre-training: does it keep features from collapsing, and help transfer?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tightframe.report.chart import Axis, chart
from tightframe.report.fields import FIELDS
from tightframe.row import Row
from tightframe.studies.evidence import (
    LEAST_RHO,
    LEAST_SHARE,
    Evidence,
    averaged,
    correlation,
    correlations,
    differences,
    over_units,
)
from tightframe.studies.study import Lab, Point, Study
from tightframe.studies.variants import BUILT_IN, COLUMNS, MEDIUM, PAPER, SMALL, variants


def graded_study(
    *,
    name: str,
    claim: str,
    paper: str,
    small: str,
    minutes: int,
    what: str,
    knob: str,
    levels: Sequence[int] | Sequence[float],
) -> Study:
    """A study that compares models pre-trained at every one of ``levels``, the first of which is none of it.

    Args:
        name: and others: see ``Study``.
        claim: likewise.
        paper: likewise.
        small: likewise.
        minutes: likewise.
        what: is turned up, in words that follow "with".
        knob: the field of ``Pretraining`` that says how much.
        levels: rising.
    """

    def points(lab: Lab) -> Iterator[Point]:
        return variants(lab, [{knob: level} for level in levels], (knob,))

    def evidence(rows: Sequence[Row]) -> list[Evidence]:
        def ahead(question: str, measure: str) -> Evidence:
            gaps = differences(rows, measure, knob, levels[1:], levels[:1], ("seed",))
            return over_units(question, "paired difference", gaps.values(), "seeds", LEAST_SHARE, share=True)

        source = averaged(rows, (knob, "seed"), ["source_nc1"])  # it stands beside every set that is transferred to
        rising = correlations(source, knob, "source_nc1", ["seed"]).values()
        return [
            ahead(f"with {what} a probe is better", "test_accuracy"),
            ahead(f"with {what} few-shot accuracy is better", "fewshot_accuracy"),
            over_units("the more of it, the less source collapse", "Spearman's ρ", rising, "seeds", LEAST_RHO),
            correlation(
                "the less source collapse, the better a probe",
                rows,
                "source_nc1",
                "test_accuracy",
                within=["data"],
                over=[knob, "seed"],
                unit="pre-trained models",
            ),
        ]

    def image(rows: Sequence[Row]) -> Any:
        return chart(
            averaged(rows, ("data", knob), ("source_nc1", "test_accuracy", "nc1")),
            Axis(knob, f"{FIELDS[knob].title} ({what})"),
            Axis("test_accuracy", "Probe accuracy downstream (%)"),
            title=f"Accuracy downstream with {what}",
            subtitle="Mean over seeds; bars, from three seeds on: 95 % intervals.",
            panels="data",
            joined=knob,
            tips=(
                knob,
                "source_nc1",
                "nc1",
                "test_accuracy",
                "times",
            ),
        )

    return Study(
        name,
        claim,
        paper,
        small,
        minutes,
        points,
        evidence,
        (knob, *COLUMNS),
        image,
        {"small": SMALL, "medium": MEDIUM, "paper": PAPER},
        pretrains=True,
        built_in=BUILT_IN,
    )
