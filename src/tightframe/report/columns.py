"""Which columns each job shows, in the terminal and in the report alike."""

from __future__ import annotations

from typing import Any

from tightframe.report.tables import Column, count, exact, millions, number, percent, seconds, size, span, text

RANKING = (
    Column("network", "Network", text),
    Column("probe_accuracy", "Probe accuracy", percent),
    Column("interval", "95 % interval", span),
    Column("nc1", "NC1", number),
    Column("h_score", "H-score", number),
    Column("logme", "LogME", number),
    Column("test_accuracy", "Test accuracy", percent),
    Column("parameters", "Param. (M)", millions),
    Column("seconds", "Time", seconds),
)

LAYERS = (
    Column("layer", "Layer", text),
    Column("dimension", "d", count),
    Column("nc1", "NC1", number),
    Column("cdnv", "CDNV", number),
    Column("vci", "VCI", number),
    Column("nc2_etf", "NC2", number),
    Column("numerical_rank", "Numerical rank", number),
    Column("probe_accuracy", "Probe accuracy", percent),
    Column("interval", "95 % interval", span),
)

METHODS = (
    Column("method", "Method", text),
    Column("layer", "Block", text),
    Column("test_accuracy", "Test accuracy", percent),
    Column("interval", "95 % interval", span),
    Column("train_accuracy", "Train accuracy", percent),
    Column("nc1", "NC1", number),
    Column("parameters", "Trained", count),
    Column("share", "Share", percent),
    Column("rate", "Rate", exact),
    Column("decay", "Decay", exact),
    Column("seconds", "Time", seconds),
    Column("bytes", "Saved", size),
)

PREDICTIONS = (
    Column("path", "Picture", text),
    Column("predicted", "Class", text),
    Column("probability", "Probability", percent),
)

SAMPLES = (
    Column("path", "Picture", text),
    Column("actual", "Is", text),
    Column("predicted", "Said to be", text),
    Column("probability", "Probability", percent),
)


def with_interval(rows: list[dict[str, Any]], low: str, high: str) -> list[dict[str, Any]]:
    """The rows with the two ends of their 95 % interval as one pair, under ``interval``."""
    return [row | {"interval": (row[low], row[high])} if row.get(low) is not None else row for row in rows]
