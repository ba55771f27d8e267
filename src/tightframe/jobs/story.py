"""The report of a transfer run, told in order: which model, which layer, how it trained, how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tightframe.decide.training import chosen_trial
from tightframe.images import Images
from tightframe.report.charts import (
    collapse_chart,
    confusion_chart,
    curve_chart,
    layer_chart,
    method_chart,
    ranking_chart,
)
from tightframe.report.fields import TABLES
from tightframe.report.page import Grid, Samples, Section, write_report
from tightframe.report.result import Result
from tightframe.row import Row

MODELS = (
    "Expected accuracy: how often discriminants of all layers, read in closed form, are right on training images left "
    "out in turn, with the 95 % interval that so many images leave. P(best), the probability of being the best, comes "
    "from redrawing the images; larger models have a head start that fades as images are added. NC1 says how tightly "
    "features cluster by class (lower is tighter)."
)
LAYERS = (
    "Probe accuracy and NC1 after every block, in the order of computation. The marked block is the first that is "
    "tuned: by partial fine-tuning the middle one and all that follow. Methods that tune one block let a few race on "
    "held-out training images: the most collapsed and the deepest of those that, with the new head, have at most a "
    "tenth of all parameters."
)
TRAINING = (
    "The training that made each saved model: accuracy and NC1 of all training images, with the chosen learning rate "
    "and weight decay. Where these were searched for, the accuracy on held-out images is that of the chosen trial, "
    "which was trained on the rest. NC1 is that of the features that the head sees."
)
METHODS = (
    "All methods on the same training images. Expected accuracy and held-out loss are those of predictions of training "
    "images by models that were not trained on them. By these, image by image, the method is chosen. auto is "
    "discriminant, which reads all layers in closed form, or its mean with what partial fine-tuning made, where that "
    "loses less; another method is used only where it clearly loses less than auto. Intervals hold 95 %."
)


def epoch_rows(histories: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The epochs of each method's final training, and how its chosen trial did on held-out images."""
    rows = []
    for method, history in histories.items():
        rows += [{"method": method, **row} for row in history if row["phase"] == "final"]
        judged = ("phase", "initial_lr", "weight_decay", "epoch", "validation_loss", "validation_accuracy")
        rows += [{"method": method, **{key: row.get(key) for key in judged}} for row in chosen_trial(history)]
    return rows


def write_story(path: Path, result: Result, test: Images | None) -> None:
    """Write the report of ``transfer`` to ``path``, with sample images from ``test``.

    ``result.tables`` holds ``rank``, ``measure`` and ``epochs`` (see ``epoch_rows``) and, if there are test images,
    ``confusion`` and ``samples``, as ``evaluate`` has them.
    """
    models, layers, methods = result.tables["rank"], result.tables["measure"], result.rows
    sections = [
        Section("Which model", MODELS, [ranking_chart(models), collapse_chart(models), _grid("rank", models)]),
        Section("Which layer", LAYERS, [layer_chart(layers), _grid("measure", layers)]),
        Section("Training", TRAINING, [curve_chart(result.tables["epochs"])]),
        Section("Which method", METHODS, [method_chart(methods), _grid("transfer", methods)]),
    ]
    if test is not None:
        samples = [row | {"image": test[row["index"]]} for row in result.tables["samples"]]
        matrix = confusion_chart(result.tables["confusion"])
        sections += [
            Section("Confusion matrix", "Test images by true and predicted class.", [matrix]),
            Section("Sample predictions", "Test images, the most confident mistakes last.", [Samples(samples)]),
        ]
    write_report(
        path,
        title=f"{result.settings['data']}: which model, which layer, how well",
        summary=result.notes,
        sections=sections,
        settings=result.settings,
        versions=result.versions,
    )


def _grid(table: str, rows: Sequence[Row]) -> Grid:
    return Grid(TABLES[table].columns, rows)
