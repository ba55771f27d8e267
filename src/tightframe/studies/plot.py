"""How the rows of a study are shown: in a table, and in a plot of one measurement against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tightframe.report.relations import Axis, relation_chart
from tightframe.report.tables import Column, count, exact, millions, number, percent, seconds, text
from tightframe.row import Row
from tightframe.studies.evidence import averaged

FIELDS = {
    column.key: column
    for column in (
        Column("model", "Model", text),
        Column("data", "Dataset", text),
        Column("sample", "Sample", text),
        Column("method", "Method", text),
        Column("layer", "Layer", text),
        Column("block", "Block", text),
        Column("position", "Position", count),
        Column("depth", "Depth", percent),
        Column("loss", "Loss", text),
        Column("augment", "Augmentation strength", exact),
        Column("projector", "Projection layers", count),
        Column("epochs", "Epochs", count),
        Column("seed", "Seed", count),
        Column("times", "Seeds", count),
        Column("shots", "Shots", count),
        Column("classes", "Classes", count),
        Column("images", "Training images", count),
        Column("side", "Side (px)", count),
        Column("dimension", "Dimension", count),
        Column("parameters", "Parameters (M)", millions),
        Column("macs", "MACs (M)", millions),
        Column("trainable_parameters", "Trainable parameters", count),
        Column("trainable_share", "Trainable (%)", percent),
        Column("seconds", "Time", seconds),
        Column("nc1", "NC1", number),
        Column("nc1_corrected", "NC1 corrected", number),
        Column("source_nc1", "Source NC1", number),
        Column("source_test_nc1", "Source NC1, test", number),
        Column("logme", "LogME", number),
        *(
            Column(key, header, percent)
            for key, header in {
                "accuracy": "Accuracy",
                "test_accuracy": "Test accuracy",
                "train_accuracy": "Training accuracy",
                "knn_accuracy": "k-NN",
                "source_accuracy": "Source accuracy",
                "source_train_accuracy": "Source accuracy, train",
                "source_test_accuracy": "Source accuracy, test",
                "fewshot_accuracy": "Few-shot accuracy",
                "logistic_test": "Logistic, test",
                "ridge_test": "Ridge, test",
                "center_test": "Nearest center, test",
                "knn_test": "k-NN, test",
            }.items()
        ),
    )
}


def columns(keys: Sequence[str]) -> list[Column]:
    """What tables and tooltips show of these keys."""
    return [FIELDS[key] for key in keys]


@dataclass(frozen=True)
class Plot:
    """One measurement against another, with a mark for each row.

    Attributes:
        title, subtitle: of the plot; the second says how to read it.
        x, y: columns.
        x_title, y_title: of the axes, with units.
        x_log: whether the scale of ``x`` is logarithmic.
        panels: columns; each of their values has a panel.
        color: a column whose values differ in color and shape.
        joined: a column in whose order lines join the marks of one color.
        tips: columns shown on hover.
        mean_by: columns; rows that share them are one mark at their mean, with its 95 % interval.
    """

    title: str
    subtitle: str
    x: str
    x_title: str
    y: str
    y_title: str
    x_log: bool = False
    panels: Sequence[str] = ("data",)
    color: str | None = None
    joined: str | None = None
    tips: Sequence[str] = ()
    mean_by: Sequence[str] = ()

    def draw(self, rows: Sequence[Row]) -> Any:
        """The Altair chart of rows without an ``error``; ``None`` if no row has both measurements."""
        if self.mean_by:
            rows = averaged(rows, self.mean_by, sorted({self.x, self.y, *self.tips} - {*self.mean_by, "times"}))
        return relation_chart(
            [row | {"panel": ", ".join(str(row[key]) for key in self.panels)} for row in rows],
            Axis(self.x, self.x_title, self.x_log, share=FIELDS[self.x].format is percent),
            Axis(self.y, self.y_title, share=FIELDS[self.y].format is percent),
            title=self.title,
            subtitle=self.subtitle,
            panel="panel",
            color=self.color,
            joined=self.joined,
            tips=columns(self.tips),
        )
