"""What could be read off every layer by simple classifiers, and which layer to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.errors import MeasureError
from tightframe.features.extract import SAMPLE, Features, sampled
from tightframe.features.samples import group_numbers
from tightframe.features.workspace import Workspace
from tightframe.images import Images, ImageSplits
from tightframe.metrics.collapse import Head, nc1
from tightframe.metrics.folds import Folds
from tightframe.models.names import tune_command
from tightframe.probes.calibration import per_class_accuracy
from tightframe.probes.knn import neighbors_accuracy, neighbors_predict
from tightframe.probes.linear import cross_validated_center, cross_validated_ridge
from tightframe.probes.logistic import cross_validated_logistic
from tightframe.probes.results import student_interval
from tightframe.report.result import Result
from tightframe.row import Row

STANDARDIZED = "logistic regression and k-NN see features standardized; ridge and nearest center see them as they are"


class Judged(NamedTuple):
    """One probe on one layer: held out, on the images it was fitted to, and on test images."""

    held_out: float
    correct: np.ndarray
    train: float
    test: np.ndarray | None  # classes given to the test images


def layers(
    data: ImageSplits | Images, backbone: Backbone, *, seed: int = 0, workspace: Workspace | None = None
) -> Result:
    """Read every layer with four simple classifiers, and recommend a layer.

    Rows, in order of depth and ending with the penultimate features: ``layer``, ``dimension``, ``nc1``, and for each
    probe (``ridge``, ``logistic``, ``center``: nearest class mean, ``knn``: nearest neighbors) ``NAME_held_out``
    (cross-validated; leave-one-out for ``knn``), ``NAME_train`` and, where there are test images, ``NAME_test``,
    ``NAME_per_class`` test accuracies; ``logistic_calibration_error`` (held out), and what each probe chose
    (``ridge_penalty``, ``logistic_strength``, ``knn_neighbors``). Logistic regression and neighbors see standardized
    features. ``recommended`` marks one row: the choice looks at held-out accuracy on training images only.

    Args:
        data: The images.
        backbone: The pretrained model.
        seed: Seed of the folds.
        workspace: Where and how the backbone runs, and what was computed before.
    """
    images = data.train if isinstance(data, ImageSplits) else data
    unseen = data.test if isinstance(data, ImageSplits) else None
    workspace = workspace or Workspace()
    features = workspace.features(backbone, images, most=SAMPLE)
    test = workspace.features(backbone, unseen, most=SAMPLE) if unseen is not None else None
    rows, correct = list[Row](), list[np.ndarray]()
    listed = workspace.progress(list(features), f"probing {backbone.name}", len(features))
    for name in listed:
        row, right = _row(name, features, test, len(images.classes), seed)
        rows.append({"model": backbone.name, "layer": name, "dimension": backbone.layer(name).dimension} | row)
        correct.append(right)
    chosen, why = recommended(rows, correct, features.groups)
    rows = [row | {"recommended": place == chosen} for place, row in enumerate(rows)]
    notes = [*(data.notes if isinstance(data, ImageSplits) else []), *sampled(features)]
    settings = {
        "data": images.name,
        "images": len(images),
        "test_images": len(unseen) if unseen is not None else 0,
        "classes": len(images.classes),
        "origin": backbone.origin,
        "pool": features.pool,
        "precision": features.precision,
        "seed": seed,
    }
    command = tune_command(backbone.origin.get("uri", backbone.name), backbone.origin)
    best = rows[chosen]["layer"]
    if best != PENULTIMATE:  # do what was said
        command += f" --block {best}"
    return Result("layers", rows, settings, [*notes, why, STANDARDIZED], [command])


def _row(name: str, features: Features, test: Features | None, classes: int, seed: int) -> tuple[Row, np.ndarray]:
    folds = Folds.of(features[name], features.labels, classes, seed=seed, groups=features.groups)
    held_out: Mapping[str, np.ndarray] | None = {"features": test[name], "labels": test.labels} if test else None
    row: Row = {"nc1": nc1(folds.total)}
    rights = []
    for probe, judge in JUDGES.items():
        judged = judge(folds, classes, None if held_out is None else held_out["features"], row)
        row |= {f"{probe}_held_out": judged.held_out, f"{probe}_train": judged.train}
        rights.append(judged.correct)
        if held_out is not None and judged.test is not None:
            row[f"{probe}_test"] = float((judged.test == held_out["labels"]).mean())
            row[f"{probe}_per_class"] = per_class_accuracy(judged.test, held_out["labels"], classes)
    return row, np.mean(rights, axis=0)


def _ridge(folds: Folds, classes: int, unseen: Any, row: Row) -> Judged:
    found = cross_validated_ridge(folds)
    row["ridge_penalty"] = found.penalty
    return _by_head(found.accuracy, found.correct, found.head, folds, unseen)


def _center(folds: Folds, classes: int, unseen: Any, row: Row) -> Judged:
    found = cross_validated_center(folds)
    return _by_head(found.accuracy, found.correct, found.head, folds, unseen)


def _logistic(folds: Folds, classes: int, unseen: Any, row: Row) -> Judged:
    found = cross_validated_logistic(folds)
    row |= {"logistic_calibration_error": found.calibration_error, "logistic_strength": found.result.penalty}
    return _by_head(found.result.accuracy, found.result.correct, found.result.head, folds, unseen)


def _knn(folds: Folds, classes: int, unseen: Any, row: Row) -> Judged:
    found = neighbors_accuracy(folds.features, folds.labels, classes, groups=folds.groups)
    row["knn_neighbors"] = found.k
    fitted = neighbors_predict(folds.features, folds.labels, folds.features, classes)
    said = None if unseen is None else neighbors_predict(folds.features, folds.labels, unseen, classes).numpy()
    return Judged(found.accuracy, found.correct, float((fitted == folds.labels).double().mean()), said)


JUDGES = {"ridge": _ridge, "logistic": _logistic, "center": _center, "knn": _knn}


def _by_head(accuracy: float, correct: np.ndarray, head: Head, folds: Folds, unseen: Any) -> Judged:
    said = None if unseen is None else head.predict(unseen).numpy()
    return Judged(accuracy, correct, head.accuracy(folds.features, folds.labels), said)


def recommended(rows: list[Row], correct: list[np.ndarray], groups: np.ndarray | None = None) -> tuple[int, str]:
    """Which of ``rows`` to read features at, and why, from what each probe got right while held out, (n,) a layer.

    Of the layers that can't be told from the most accurate one (paired difference within twice its standard error,
    over ``groups`` (n,) where there are any), the most collapsed.
    """
    if not rows:
        raise MeasureError("no layer to recommend; name some with --layers")
    means = [float(right.mean()) for right in correct]
    best = int(np.argmax(means))
    close = [place for place in range(len(rows)) if _alike(correct[best], correct[place], groups)]
    comparable = [place for place in close if rows[place]["dimension"] == rows[best]["dimension"]] or [best]
    chosen = min(comparable, key=lambda place: rows[place]["nc1"])
    told = f"recommended: {rows[chosen]['layer']}, where probes are right on {100 * means[chosen]:.1f} % while held out"
    if chosen == best and len(close) == 1:
        return chosen, f"{told}: more than at any other layer"
    alike = f"{len(close) - 1} other layer{'s' if len(close) > 2 else ''} can't be told from the best by these images"
    reason = "of those of its width it is the most collapsed" if len(comparable) > 1 else "it is the best of its width"
    return chosen, f"{told}; {alike}, and {reason}"


def _alike(best: np.ndarray, other: np.ndarray, groups: np.ndarray | None) -> bool:
    difference = best.astype(float) - other.astype(float)
    if group_numbers(groups, len(difference)) is not None:
        return student_interval(difference, groups=groups)[0] <= 1e-12
    return bool(difference.mean() <= 2 * difference.std() / max(len(difference) - 1, 1) ** 0.5 + 1e-12)
