"""The plot of a study: one measurement against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tightframe.report.chart import Axis, chart
from tightframe.row import Row
from tightframe.studies.evidence import averaged


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
        return chart(
            [row | {"panel": ", ".join(str(row[key]) for key in self.panels)} for row in rows],
            Axis(self.x, self.x_title, log=self.x_log),
            Axis(self.y, self.y_title),
            title=self.title,
            subtitle=self.subtitle,
            panels="panel",
            color=self.color,
            joined=self.joined,
            tips=self.tips,
        )
