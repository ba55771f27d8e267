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

    def ends(self, row: Row) -> tuple[Any, Any]:
        """The ends of the value's 95 % interval in ``row``; ``KEY_low`` and ``KEY_high`` hold them for any field."""
        low = f"{self.key}_low" if f"{self.key}_low" in row else self.low
        return row.get(low), row.get(upper(low))

    def cell(self, row: Row) -> str:
        """The value in ``row``, spelled."""
        return self.format(row.get(self.key))

    def interval(self, row: Row) -> str:
        """The interval in ``row``, spelled; empty if it has none."""
        low, high = self.ends(row)
        return "" if low is None else formats.interval(low, high, self.format)

    def told(self, row: Row) -> str:
        """The value in ``row`` with its interval, in one line."""
        return f"{self.cell(row)} ({self.interval(row)})" if self.interval(row) else self.cell(row)

    def told_in(self, row: Row) -> bool:
        """Whether ``row`` has a value to show."""
        return row.get(self.key) not in (None, "")


def upper(low: str) -> str:
    """The key of an interval's upper end, by that of the lower one."""
    return low.removesuffix("low") + "high" if low else ""


def _read() -> dict[str, Field]:
    lines = resources.files("tightframe.report").joinpath("fields.csv").read_text(encoding="utf-8").splitlines()
    return {
        key: Field(key, title, getattr(formats, spelled), low, meaning)
        for key, title, spelled, low, meaning in csv.reader(lines[1:])
    }


FIELDS = _read()
"""Every key that a row may have."""


def fields(keys: Iterable[str]) -> list[Field]:
    """The fields of these keys."""
    return [FIELDS[key] for key in keys]


def failed(row: Row) -> bool:
    """Whether ``row`` says what went wrong instead of what was measured."""
    return bool(row.get("error"))


def shown(keys: Iterable[str], rows: Sequence[Row]) -> list[Field]:
    """Fields with something in at least one row that succeeded. The first always stays: it names the rows."""
    measured = [row for row in rows if not failed(row)]
    first, *rest = fields(keys)
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
    others: tuple[str, ...]

    @property
    def keys(self) -> set[str]:
        """Every key that a row may have, ends of intervals included."""
        held = fields(dict.fromkeys((*self.columns, *self.others, "error")))
        return {key for field in held for key in (field.key, field.low, upper(field.low)) if key}


def _table(title: str, columns: str, others: str = "") -> Table:
    return Table(title, tuple(columns.split()), tuple(others.split()))


_SCORES = "nc1 cdnv vci h_score h_score_shrunk logme leep nce gbc gbc_of_features transrate sfda ncti parc"
_TUNED = (
    "method block expected_accuracy held_out_loss test_accuracy train_accuracy nc1 trainable_parameters "
    "trainable_share lr weight_decay seconds bytes",
    "all_parameters epochs temperature",
)

TABLES: dict[str, Table] = {
    "rank": _table(
        "Models",
        "model expected_accuracy p_best probe_accuracy knn_accuracy nc1 test_accuracy source_accuracy parameters macs "
        "images_seen seconds",
        f"uri given tied zero_shot lda_accuracy saturated images dimension precision {_SCORES}",
    ),
    "scores": _table("Scores: higher is better, except for NC1, CDNV and VCI", f"model {_SCORES}"),
    "quality": _table("How well each score ranks the models", "score models weighted_tau tau spearman pearson regret"),
    "measure": _table(
        "Collapse at each layer",
        "layer dimension probe_accuracy nc1 nc1_corrected cdnv cdnv_corrected vci vci_corrected nc2_etf numerical_rank",
        "model position parameters nc1_ratio nc2_norm nc2_angle rank_between samples_per_class notes chosen",
    ),
    "layers": _table(
        "Accuracy of probes at each layer",
        "layer dimension nc1 ridge_held_out logistic_held_out center_held_out knn_held_out ridge_test logistic_test "
        "center_test knn_test",
        "model recommended ridge_train logistic_train center_train knn_train ridge_per_class logistic_per_class "
        "center_per_class knn_per_class ridge_penalty logistic_strength logistic_calibration_error knn_neighbors",
    ),
    "fewshot": _table(
        "Few-shot accuracy",
        "classifier shots accuracy nc1 nc1_corrected",
        "model ways queries episodes margin",
    ),
    "tune": _table("Tuned model", *_TUNED),
    "compare": _table("Methods", *_TUNED),
    "transfer": _table("Methods", *_TUNED),
    "epochs": _table(
        "Training",
        "method epoch train_loss train_accuracy validation_loss validation_accuracy nc1",
        "phase initial_lr lr weight_decay seconds",
    ),
    "pretrain": _table(
        "Pre-training",
        "epoch train_loss train_accuracy nc1 nc2 nc3 test_accuracy test_nc1 test_nc2 test_nc3 seconds",
        "lr test_loss",
    ),
    "predict": _table("Predictions", "path predicted probability nearest", "probabilities rejected"),
    "samples": _table("Sample predictions", "path true predicted probability", "index"),
    "evaluate": _table(
        "Accuracy",
        "images accuracy balanced_accuracy calibration_error calibration_error_before log_loss",
        "classes",
    ),
    "classes": _table("Each class", "class images correct accuracy times_predicted"),
    "confusion": _table("Confusion matrix", "true predicted count share"),
    "mistakes": _table("Most confident mistakes", "path true predicted probability", "index"),
    "merge": _table("Merged model", "model format parameters bytes difference", "folder"),
    "export": _table("Exported model", "model bytes images difference same opset", "file"),
    "push": _table("On the hub", "repository address files bytes"),
    "check": _table(
        "What is wrong", "finding path class likely other words", "severity partition other_class strength remove"
    ),
    "checks": _table("Findings", "finding severity findings removable", "advice"),
    "evidence": _table("Evidence", "question statistic value units verdict"),
    "studies": _table("What the paper claims, study by study", "name claim models_from minutes"),
}
"""The rows of each job's result, and of the other tables that results hold."""
