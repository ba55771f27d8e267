"""A ranking of models: its order, what it says of each, and how well each column ranks."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from tightframe.backbone import OUTPUT, PENULTIMATE
from tightframe.decide.recommendation import Outcome, Standing, standings
from tightframe.errors import MeasureError, SettingsError, TightframeError
from tightframe.features.extract import Features
from tightframe.images import ImageSplits
from tightframe.metrics.folds import Folds
from tightframe.metrics.registry import MEASURES
from tightframe.row import Row
from tightframe.scores.agreement import agreement
from tightframe.scores.fisher import ncti, ncti_parts
from tightframe.scores.transferability import SLOW

EXPECTED = "expected_accuracy"
NCTI = "ncti"
"""The one score that is scaled over the models at hand, and changes with them."""
COLLAPSE = ("nc1", "cdnv", "vci")
PARTS, CORRECT, PROBABLE, PRETRAINED, MERIT = "ncti_parts", "correct", "true_probability", "pretrained", "merit"
"""Keys of rows that say what is needed to put them in order."""
BASELINES = {
    "probe_accuracy": True,
    "lda_accuracy": True,
    "knn_accuracy": True,
    "source_accuracy": True,
    "parameters": True,
    "macs": True,
}
"""What every score has to beat, and whether higher is better."""


def orders() -> dict[str, bool]:
    """Columns that a ranking can go by, and whether higher is better."""
    measures = {m.name: m.higher_is_better for m in MEASURES.values() if m.kind == "score" or m.name in COLLAPSE}
    return {EXPECTED: True, **measures, NCTI: True, **BASELINES}


def ordered(rows: list[Row], sort_by: str, seed: int = 0, groups: np.ndarray | None = None) -> list[Row]:
    """Rows best first, those with an error last, each told what to expect of it and whether it ties with the first.

    ``groups`` (n,) says which of the images behind rows belong together.
    """
    good = [row for row in rows if "error" not in row]
    if good:
        outcomes = [Outcome(np.array(row[CORRECT]), np.array(row[PROBABLE]), groups) for row in good]
        smallest = min(row["parameters"] for row in good)  # that random weights are many says nothing for them
        sizes = [row["parameters"] if row.get(PRETRAINED, True) else smallest for row in good]
        for row, standing in zip(good, standings(outcomes, sizes, seed), strict=True):
            row |= told(standing)
        pool = [row for row in good if row.get(PARTS) is not None]
        for row, score in zip(pool, ncti([tuple(row[PARTS]) for row in pool]), strict=True):
            row[NCTI] = score
    known = [row for row in good if row.get(sort_by) is not None]
    by = MERIT if sort_by == EXPECTED else sort_by
    known.sort(key=lambda row: row[by], reverse=orders()[sort_by])
    return known + [row for row in good if row.get(sort_by) is None] + [row for row in rows if "error" in row]


def told(standing: Standing) -> Row:
    """A standing, as rows have it."""
    return {
        EXPECTED: standing.expected,
        "expected_low": standing.low,
        "expected_high": standing.high,
        MERIT: standing.merit,
        "p_best": standing.p_best,
        "tied": standing.tied,
    }


def notes_of(good: list[Row], sort_by: str) -> list[str]:
    """What a reader of the rows should know: ties, and where numbers are at their limit or not alike."""
    notes = []
    tied = [row["model"] for row in good if row["tied"]]
    best = max(good, key=lambda row: row[MERIT])["model"] if good else ""
    if tied:
        notes.append(f"these images can't tell {best} from {', '.join(tied)}: more of them would")
    saturated = [row["model"] for row in good if row.get("h_score") is not None and row.get("saturated")]
    if saturated:
        notes.append(
            f"no more images than values: H-score, SFDA and VCI are at their limit and say nothing for "
            f"{', '.join(saturated)}"
        )
    if sort_by != EXPECTED and len({row.get("dimension") for row in good}) > 1 and sort_by not in BASELINES:
        notes.append(f"{sort_by} is compared across different dimensions here: read it with care")
    if sort_by == NCTI:
        notes.append("NCTI is scaled over the models of this list: adding or leaving out one changes it")
    precisions = {row["precision"] for row in good if "precision" in row}
    if len(precisions) > 1:
        notes.append("some models ran in bfloat16, others in float32; --precision float32 treats all alike")
    return notes


def quality(rows: list[Row], known: Mapping[str, float] | None, seed: int = 0) -> list[Row]:
    """How well each column of ``rows`` ranks the models, best first; ``known`` accuracies, else the probe's on test.

    Rows hold ``score``, ``models`` (how many), and for ``weighted_tau``, ``tau``, ``spearman``, ``pearson`` and
    ``regret`` the value and its 95 % interval (``…_low``, ``…_high``).
    """
    truth = {row["model"]: row.get("test_accuracy") if known is None else known.get(row["model"]) for row in rows}
    made = []
    for column, higher in orders().items():
        pairs = [(row[column], truth[row["model"]]) for row in rows if row.get(column) is not None]
        pairs = [(score, accuracy) for score, accuracy in pairs if accuracy is not None]
        if len(pairs) < 3:
            continue
        scores, accuracies = np.array(pairs, float).T
        found = agreement(scores if higher else -scores, accuracies, seed)
        row: Row = {"score": column, "models": len(pairs)}
        for name, value in found.items():
            row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        made.append(row)
    if not made:
        raise SettingsError("a ranking is judged on three models or more whose accuracy is known; give more of them")
    return sorted(made, key=lambda row: np.nan_to_num(row["weighted_tau"], nan=-2.0), reverse=True)


def scores(features: Features, folds: Folds) -> Row:
    """Every score and collapse metric that the features allow; one that they don't allow is left out."""
    source = None
    if OUTPUT in features:
        probabilities = torch.from_numpy(features[OUTPUT]).double().softmax(1)
        source = probabilities if probabilities.shape[1] > 1 else None
    wanted = [m.name for m in MEASURES.values() if m.kind == "score" or m.name in COLLAPSE]
    return dict(_possible(wanted, features, folds, source))


def parts_of(features: Features) -> list[float] | None:
    """What NCTI is scaled from over all models, or ``None`` where these features don't allow it."""
    try:
        return list(ncti_parts(features[PENULTIMATE], features.labels, len(features.classes)))
    except MeasureError:
        return None


def _possible(
    wanted: Sequence[str], features: Features, folds: Folds, source: torch.Tensor | None
) -> Iterator[tuple[str, float]]:
    evidence = {
        "moments": folds.total,
        "features": features[PENULTIMATE],
        "labels": features.labels,
        "classes": len(features.classes),
        "source": source,
    }
    for name in wanted:
        try:
            value = None if name in SLOW else MEASURES[name].of(evidence)
        except TightframeError:
            continue  # a class of one image, say, which some scores have no meaning for
        if value is not None:
            yield name, value


def known_accuracies(truth: str | Mapping[str, float] | None, data: ImageSplits) -> Mapping[str, float] | None:
    """What ``rank`` was given to judge scores by, by model; ``None`` for the probe's test accuracy.

    Raises:
        SettingsError: the file is no such table, or there are no test images.
    """
    if truth is None or isinstance(truth, Mapping):
        return truth
    if truth == "probe":
        if data.test is None:
            raise SettingsError("--truth probe needs test images; give a test folder or --test-share above 0")
        return None
    try:
        with Path(truth).open(newline="", encoding="utf-8") as file:
            return {row["model"]: float(row["accuracy"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise SettingsError(
            f"{truth} can't be read as accuracies ({type(error).__name__}: {error}); it wants a line "
            '"model,accuracy" and then one line a model'
        ) from error
