"""Evaluate a tuned model on labeled images: accuracy, calibration, every class, and confusions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tightframe.deploy.tuned import Tuned, listed
from tightframe.errors import DataError
from tightframe.images import Images, ImageSplits, among, counted
from tightframe.probes.calibration import calibration_error
from tightframe.probes.results import accuracy_interval
from tightframe.report.result import Result
from tightframe.row import Row

MISTAKES, SAMPLES = 10, 12
"""Most rows of these tables."""


def evaluate(
    tuned: Tuned,
    data: Images | ImageSplits,
    *,
    batch_size: int = 64,
    device: str = "auto",
    engine: str = "",
    workers: int | None = None,
) -> Result:
    """Judge a tuned model on labeled images: accuracy, calibration, confusions.

    The one row holds ``images``, ``classes`` (those that occur), ``accuracy`` with its exact 95 % interval
    (``accuracy_low``, ``accuracy_high``), ``balanced_accuracy`` (mean over classes), ``calibration_error`` (expected,
    in 0 … 1; ``calibration_error_before``: without the temperature of a trained model) and ``log_loss`` (mean, in
    nats). ``tables`` holds

    - ``classes``: a row for each class that occurs: ``images``, ``correct``, ``accuracy`` with its interval, and how
      often the class was predicted (``times_predicted``)
    - ``confusion``: for each true class, the classes predicted: ``count`` and ``share`` of the true class
    - ``mistakes``: the most confident mistakes
    - ``samples``: a few correct predictions, then the most confident mistakes

    Args:
        tuned: The model.
        data: Labeled images; of splits, the test images, or all where there are none. Those that the model was trained
            on, known by their contents, are left out, and so are all others of their groups.
        batch_size: Images in one forward pass.
        device: Where the model runs: auto (a GPU if there is one), cpu, cuda, ….
        engine: What runs it: local, ray, or ray://ADDRESS:PORT; TIGHTFRAME_ENGINE by default.
        workers: Processes to share the images between; with Ray one a GPU or processor by default.

    Raises:
        DataError: no images but those that the model was trained on, or classes that the model does not know.
        BadImage: an image can't be decoded.
    """
    judged, notes = _judged_part(tuned, data)
    labels = _labels_of(tuned, judged)
    logits, _ = tuned.logits_and_features(judged, batch_size, device, engine, workers)
    answers = Answers(judged, tuned.classes, labels, logits)
    overall = answers.overall()
    if tuned.metrics.get("temperature"):
        before = torch.softmax(logits.double() * tuned.metrics["temperature"], 1)
        overall["calibration_error_before"] = calibration_error(before, labels)
    settings = tuned.settings | {"data": judged.name, "images": judged.fingerprint}
    return Result("evaluate", [overall], settings, notes, tables=answers.tables())


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model predicts for labeled images.

    Attributes:
        data: the images.
        classes: the model's K classes.
        labels: true classes (n,), numbered as in ``classes``.
        logits: the model's (n, K).
    """

    data: Images
    classes: tuple[str, ...]
    labels: np.ndarray
    logits: Tensor

    @cached_property
    def shares(self) -> Tensor:
        """Probabilities (n, K), in float64."""
        return self.logits.double().softmax(1)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Predicted classes (n,) as numbers."""
        return self.shares.argmax(1).numpy()

    @cached_property
    def wrong(self) -> np.ndarray:
        """Indices of the mistakes, the most confident first."""
        found = np.flatnonzero(self.predicted != self.labels)
        return found[np.argsort(-self.shares.amax(1).numpy()[found], kind="stable")]

    @cached_property
    def counts(self) -> np.ndarray:
        """Images of each class, how many were classified correctly, and predictions of the class, (3, K)."""
        lists = (self.labels, self.labels[self.predicted == self.labels], self.predicted)
        return np.stack([np.bincount(entries, minlength=len(self.classes)) for entries in lists])

    def overall(self) -> Row:
        """The row about all images together."""
        images, right, _ = self.counts
        present = images > 0
        return {
            "images": len(self.labels),
            "classes": int(present.sum()),
            **_rated(self.predicted == self.labels, self.data.groups),
            "balanced_accuracy": float((right[present] / images[present]).mean()),
            "calibration_error": calibration_error(self.shares, self.labels),
            "log_loss": float(functional.cross_entropy(self.logits.double(), torch.from_numpy(self.labels))),
        }

    def tables(self) -> dict[str, list[Row]]:
        """The tables of ``evaluate``."""
        right = np.flatnonzero(self.predicted == self.labels)
        wrong = self.wrong[: SAMPLES // 2]
        spread = np.linspace(0, len(right) - 1, min(SAMPLES - len(wrong), len(right))).astype(int)
        return {
            "classes": self.by_class(),
            "confusion": self.confusion(),
            "mistakes": self._samples(self.wrong[:MISTAKES]),
            "samples": self._samples(np.concatenate([right[spread], wrong])),
        }

    def by_class(self) -> list[Row]:
        """A row for each class that occurs."""
        correct, groups = self.predicted == self.labels, self.data.groups
        own = [np.flatnonzero(self.labels == index) for index in range(len(self.classes))]
        return [
            {"class": self.classes[index], "images": images, "correct": right}
            | _rated(correct[own[index]], among(groups, own[index]))
            | {"times_predicted": predicted}
            for index, (images, right, predicted) in enumerate(self.counts.T.tolist())
            if images
        ]

    def confusion(self) -> list[Row]:
        """What was predicted for each class, correct predictions included; what never happened has no row."""
        pairs, counts = np.unique(np.stack([self.labels, self.predicted], 1), axis=0, return_counts=True)
        return [
            {
                "true": self.classes[true],
                "predicted": self.classes[predicted],
                "count": count,
                "share": count / int(self.counts[0, true]),
            }
            for (true, predicted), count in zip(pairs.tolist(), counts.tolist(), strict=True)
        ]

    def _samples(self, indices: np.ndarray) -> list[Row]:
        return [
            {
                "index": index,
                "path": self.data.identifiers[index],
                "true": self.classes[self.labels[index]],
                "predicted": self.classes[self.predicted[index]],
                "probability": float(self.shares[index].max()),
            }
            for index in indices.tolist()
        ]


def mistaken(confusion: Sequence[Row]) -> list[Row]:
    """The rows of ``confusion`` that are mistakes, most frequent first."""
    return sorted((row for row in confusion if row["true"] != row["predicted"]), key=lambda row: -row["count"])


def _rated(correct: np.ndarray, groups: np.ndarray | None) -> Row:
    low, high = accuracy_interval(correct, groups)
    return {"accuracy": float(correct.mean()), "accuracy_low": low, "accuracy_high": high}


def _judged_part(tuned: Tuned, data: Images | ImageSplits) -> tuple[Images, list[str]]:
    """The images to evaluate on, and notes about them."""
    notes, others = list[str](), list[Images]()
    if isinstance(data, ImageSplits):
        notes, others = data.notes, [data.train]
        data = data.test or data.train
    known = set(tuned.trained_on)
    if not known or not len(data):
        return data, notes
    seen = np.array([digest in known for digest in data.digests])
    related = _related(data, others, known) & ~seen
    if (seen | related).all():
        raise DataError(
            f"the model was trained on all {len(data)} images of {data.name}, or on others of their groups, which say "
            "nothing of new ones; give others"
        )
    if seen.any():
        notes = [*notes, f"{counted(int(seen.sum()), 'image')} left out: the model was trained on the same"]
    if related.any():
        told = f"{counted(int(related.sum()), 'image')} left out: the model was trained on others of the same group"
        notes = [*notes, told]
    return data.subset(np.flatnonzero(~(seen | related))), notes


def _related(data: Images, others: Sequence[Images], known: Collection[str]) -> np.ndarray:
    """Mask (n,) of the images of groups of which there are ``known`` images, by hash, in ``data`` or ``others``."""
    if data.groups is None:
        return np.zeros(len(data), dtype=bool)
    trained = {
        group
        for images in [data, *others]
        if images.groups is not None
        for group, digest in zip(images.groups.tolist(), images.digests, strict=True)
        if digest in known
    }
    return np.isin(data.groups, sorted(trained))


def _labels_of(tuned: Tuned, data: Images) -> np.ndarray:
    """Labels (n,) of ``data`` in the numbering of ``tuned``."""
    if not len(data):
        raise DataError(f"{data.name} has no images to evaluate on; hold some out with --test-share, or give others")
    places = {name: index for index, name in enumerate(tuned.classes)}
    present = np.unique(data.labels).tolist()
    strange = [data.classes[label] for label in present if data.classes[label] not in places]
    if strange:
        raise DataError(
            f"{data.name} has images of {listed(strange)}, but the model was tuned on {listed(tuned.classes)}: "
            "rename those folders as the model's classes, take them out, or tune on all these classes"
        )
    return np.array([places.get(name, -1) for name in data.classes], dtype=np.int64)[data.labels]
