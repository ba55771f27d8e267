"""What every key of a result means, said once: for tables, the page, notebooks and ``docs/fields.md``.

Rows stay plain dictionaries, which go into JSON and pandas as they are. What types them is declared here: ``FIELDS``
has title, format (and with it type and unit) and meaning of each key, ``TABLES`` the keys of each job's rows. A test
runs the jobs and compares. To add a key, add a line to ``fields.csv`` and name the key in the tables that have it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from tightframe.report import formats
from tightframe.report.formats import Format

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """What a key of a row means and how its value is shown.

    Attributes:
        key: in the row.
        title: the words above a column.
        format: how a value is spelled.
        low: the key of the lower end of the value's 95 % interval (``test_low``; the upper one is ``test_high``), for
            fields that have one.
        meaning: one sentence.
    """

    key: str
    title: str
    format: Format = formats.text
    low: str = ""
    meaning: str = ""

    @property
    def right(self) -> bool:
        """Whether values align right, as all but words do."""
        return self.format not in (formats.text, formats.listed, formats.flag)

    @property
    def high(self) -> str:
        """The key of the upper end of the interval."""
        return self.low.removesuffix("low") + "high" if self.low else ""

    def cell(self, row: Row) -> str:
        """The value in ``row``, spelled."""
        return self.format(row.get(self.key))

    def interval(self, row: Row) -> str:
        """The interval in ``row``, spelled; empty if it has none."""
        low, high = row.get(self.low), row.get(self.high)
        return "" if low is None else formats.interval(low, high, self.format)

    def told(self, row: Row) -> str:
        """The value in ``row`` with its interval, in one line."""
        return f"{self.cell(row)} ({self.interval(row)})" if self.interval(row) else self.cell(row)

    def told_in(self, row: Row) -> bool:
        """Whether ``row`` has a value to show."""
        return row.get(self.key) not in (None, "")


def _read() -> dict[str, Field]:
    lines = resources.files("tightframe.report").joinpath("fields.csv").read_text(encoding="utf-8").splitlines()
    found = (line | {"format": getattr(formats, line["format"])} for line in csv.DictReader(lines))
    return {field["key"]: Field(**field) for field in found}


FIELDS = _read()
"""Every key that a row may have."""


def fields(keys: Iterable[str]) -> list[Field]:
    """The fields of these keys."""
    return [FIELDS[key] for key in keys]


def failed(row: Row) -> bool:
    """Whether ``row`` says what went wrong instead of what was measured."""
    return bool(row.get("error"))


def shown(given: Sequence[Field], rows: Sequence[Row]) -> list[Field]:
    """Fields with something in at least one row that succeeded. The first always stays: it names the rows."""
    measured = [row for row in rows if not failed(row)]
    first, *rest = given
    return [first, *(one for one in rest if any(one.told_in(row) or one.interval(row) for row in measured))]


@dataclass(frozen=True)
class Table:
    """What the rows of one table hold.

    Attributes:
        title: above the table.
        columns: keys that are shown, in order.
        others: further keys in the rows.
    """

    title: str
    columns: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def fields(self) -> list[Field]:
        """What is shown."""
        return fields(self.columns)

    @property
    def keys(self) -> set[str]:
        """Every key that a row may have, ends of intervals included."""
        held = fields(dict.fromkeys((*self.columns, *self.others, "error")))
        return {key for field in held for key in (field.key, field.low, field.high) if key}


_PROBES = ("ridge", "logistic", "center", "knn")
_SCORES = ("nc1", "cdnv", "vci", "h_score", "h_score_shrunk", "logme", "leep", "nce", "gbc", "gbc_of_features")
_SCORES += ("transrate", "sfda", "ncti", "parc")
_TUNED = ("method", "block", "validation_accuracy", "test_accuracy", "train_accuracy", "nc1", "trainable_parameters")
_TUNED += ("trainable_share", "lr", "weight_decay", "seconds", "bytes")

TABLES: dict[str, Table] = {
    "rank": Table(
        "Models",
        ("model", "expected_accuracy", "p_best", "probe_accuracy", "knn_accuracy", "nc1", "test_accuracy")
        + ("source_accuracy", "parameters", "macs", "images_seen", "seconds"),
        ("uri", "given", "tied", "lda_accuracy", "saturated", "images", "dimension", "precision", *_SCORES),
    ),
    "scores": Table("Scores: higher is better, except for NC1, CDNV and VCI", ("model", *_SCORES)),
    "quality": Table(
        "How well each score ranks the models",
        ("score", "models", "weighted_tau", "tau", "spearman", "pearson", "regret"),
    ),
    "measure": Table(
        "Collapse at each layer",
        ("layer", "dimension", "probe_accuracy", "nc1", "nc1_corrected", "cdnv", "cdnv_corrected", "vci")
        + ("vci_corrected", "nc2_etf", "numerical_rank"),
        ("model", "position", "parameters", "nc1_ratio", "nc2_norm", "nc2_angle", "rank_between")
        + ("samples_per_class", "notes", "chosen"),
    ),
    "layers": Table(
        "Accuracy of probes at each layer",
        ("layer", "dimension", "nc1", *(f"{probe}_{part}" for part in ("held_out", "test") for probe in _PROBES)),
        ("model", "recommended", "ridge_penalty", "logistic_strength", "logistic_calibration_error", "knn_neighbors")
        + tuple(f"{probe}_{part}" for part in ("train", "per_class") for probe in _PROBES),
    ),
    "fewshot": Table(
        "Few-shot accuracy",
        ("classifier", "shots", "accuracy", "nc1", "nc1_corrected"),
        ("model", "ways", "queries", "episodes", "margin"),
    ),
    "tune": Table("Tuned model", _TUNED, ("all_parameters", "epochs")),
    "compare": Table("Methods", _TUNED, ("all_parameters", "epochs")),
    "transfer": Table("Methods", _TUNED, ("all_parameters", "epochs")),
    "epochs": Table(
        "Training",
        ("method", "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "nc1"),
        ("phase", "initial_lr", "lr", "weight_decay", "seconds"),
    ),
    "pretrain": Table(
        "Pre-training",
        ("epoch", "train_loss", "train_accuracy", "nc1", "nc2", "nc3", "test_accuracy", "test_nc1", "test_nc2")
        + ("test_nc3", "seconds"),
        ("lr", "test_loss"),
    ),
    "predict": Table("Predictions", ("path", "predicted", "probability"), ("probabilities",)),
    "samples": Table("Sample predictions", ("path", "true", "predicted", "probability"), ("index",)),
    "evaluate": Table(
        "Accuracy", ("images", "accuracy", "balanced_accuracy", "calibration_error", "log_loss"), ("classes",)
    ),
    "classes": Table("Each class", ("class", "images", "correct", "accuracy", "times_predicted")),
    "confusion": Table("Confusion matrix", ("true", "predicted", "count", "share")),
    "mistakes": Table("Most confident mistakes", ("path", "true", "predicted", "probability"), ("index",)),
    "merge": Table("Merged model", ("model", "format", "parameters", "bytes", "difference")),
    "export": Table("Exported model", ("model", "bytes", "images", "difference", "same", "opset"), ("file",)),
    "push": Table("On the hub", ("repository", "address", "files", "bytes")),
    "evidence": Table("Evidence", ("question", "statistic", "value", "units", "verdict")),
    "studies": Table("What the paper claims, study by study", ("name", "claim", "models_from", "minutes")),
}
"""The rows of each job's result, and of the other tables that results hold."""
