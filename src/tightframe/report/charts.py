"""Charts of rankings, layers, training curves, methods and confusions, each drawn from plain rows.

Every function returns an Altair chart, or ``None`` when the rows hold nothing that can be drawn. Rows with an ``error``
and values that are missing, NaN, infinite or (on log axes) not positive are left out; the tables show them. Names of
models, layers and classes are only ever data, never field names or expressions, so they may hold anything. Accuracies
are shares in the rows and percentages in the charts. What a tooltip says is spelled by the tables' formats.
"""

from tightframe.report.accuracies import collapse_chart, method_chart, ranking_chart
from tightframe.report.confusions import confusion_chart
from tightframe.report.courses import curve_chart, layer_chart
from tightframe.report.theme import theme

__all__ = [
    "collapse_chart",
    "confusion_chart",
    "curve_chart",
    "layer_chart",
    "method_chart",
    "ranking_chart",
    "theme",
]
