"""The report of a transfer run, told in order: which model, which layer, how it trained, how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tightframe.decide.training import chosen_trial
from tightframe.images import Images, ImageSplits
from tightframe.report.charts import (
    collapse_chart,
    confusion_chart,
    curve_chart,
    layer_chart,
    method_chart,
    ranking_chart,
)
from tightframe.report.columns import LAYERS, METHODS, RANKING
from tightframe.report.page import Grid, Samples, Section, write_report
from tightframe.row import Row

if TYPE_CHECKING:
    from tightframe.jobs.transfer import Transfer

SAMPLES = 12


def write_story(
    path: Path, data: ImageSplits, run: Transfer, histories: dict[str, list[Row]], probabilities: np.ndarray | None
) -> None:
    """Write the report of ``run`` to ``path``; ``probabilities`` (n, K) are of the test images."""
    sections = [_models(run), _layers(run), _training(histories), _methods(run)]
    if data.test is not None and probabilities is not None:
        sections += [_confusion(run, data.test, probabilities), _samples(run, data.test)]
    write_report(
        path,
        title=f"{data.name}: which model, which layer, how well",
        summary=run.result.notes,
        sections=sections,
        settings=run.result.settings,
        versions=run.result.versions,
    )


def _models(run: Transfer) -> Section:
    rows = run.ranking.rows
    words = (
        "Expected accuracy: how often three classifiers on the penultimate features (ridge, discriminant analysis, "
        "nearest neighbors) are right on training images held out from them. Larger models get a bonus that fades "
        "as images come in. Drawing images anew gives the interval and the chance of being the best. NC1 says how "
        "tightly features cluster by class (lower is tighter). Test accuracy is shown and never used to choose."
    )
    grid = Grid(RANKING, rows)
    return Section("Which model", words, [ranking_chart(rows), collapse_chart(rows), grid])


def _layers(run: Transfer) -> Section:
    words = (
        "NC1 and probe accuracy after every block, in the order in which they run. The block marked is the one tuned. "
        "Of the blocks which, with the new head, own at most a tenth of all parameters, the most collapsed and the "
        "deepest were trained for a few epochs, and judged on training images held out."
    )
    grid = Grid(LAYERS, run.layers)
    return Section("Which layer", words, [layer_chart(run.layers), grid])


def _training(histories: dict[str, list[Row]]) -> Section:
    rows = [row | {"method": method} for method, history in histories.items() for row in _shown_trial(history)]
    words = (
        "The rate and decay chosen, trained on the part of the training images that left some out to validate on. "
        "NC1 is that of the features which the head sees."
    )
    return Section("How it trained", words, [curve_chart(rows)])


def _shown_trial(history: Sequence[Row]) -> list[Row]:
    """The epochs of the trial that was chosen; of the final training if nothing was searched."""
    return chosen_trial(history) or [row for row in history if row["phase"] == "final"]


def _methods(run: Transfer) -> Section:
    words = (
        "All methods on the same images, each with its own best rate and decay, then trained on all training "
        "images. Validation accuracy is that on training images held out while rate and decay were chosen. "
        "Intervals are exact 95 % binomial intervals over the images judged."
    )
    grid = Grid(METHODS, run.methods)
    return Section("How to tune it", words, [method_chart(run.methods), grid])


def _confusion(run: Transfer, test: Images, probabilities: np.ndarray) -> Section:
    rows = confusion_rows(test.labels, probabilities.argmax(1), test.classes)
    name = run.tuned.model.method.name
    return Section(
        "Where it errs", f"Test images of each class and what {name} took them for.", [confusion_chart(rows)]
    )


def _samples(run: Transfer, test: Images) -> Section:
    images = [row | {"image": test[row["index"]]} for row in run.samples]
    return Section("What it says", "Test images, its surest mistakes last.", [Samples(images)])


def sample_rows(test: Images, probabilities: np.ndarray) -> list[Row]:
    """A few test images: some spread over those that are right, then the most confident mistakes.

    Rows hold ``index``, ``path``, ``actual``, ``predicted`` and ``probability``.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong, right = np.flatnonzero(predicted != test.labels), np.flatnonzero(predicted == test.labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][: SAMPLES // 2]
    if len(right):
        right = right[np.linspace(0, len(right) - 1, min(SAMPLES - len(wrong), len(right))).astype(int)]
    return [
        {
            "index": int(i),
            "path": test.identifiers[i],
            "actual": test.classes[test.labels[i]],
            "predicted": test.classes[predicted[i]],
            "probability": float(confidence[i]),
        }
        for i in (*right, *wrong)
    ]


def confusion_rows(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> list[Row]:
    """How often each actual class was predicted as each: rows ``actual``, ``predicted``, ``count``."""
    table = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(table, (labels, predicted), 1)
    return [
        {"actual": classes[i], "predicted": classes[j], "count": int(table[i, j])}
        for i in range(len(classes))
        for j in range(len(classes))
    ]
