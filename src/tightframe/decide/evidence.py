"""What a classifier says of every training image while that image is held out, and what follows from it.

All that is chosen among classifiers is chosen by this: paired, image by image, by log loss. Test images have no part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from tightframe.errors import MeasureError
from tightframe.images import among
from tightframe.metrics.folds import known_without
from tightframe.metrics.intervals import Interval
from tightframe.probes.calibration import LEAST_LOG, temperature
from tightframe.probes.results import independent, interval, student_interval
from tightframe.row import Row

DOUBT = 0.03
"""Standard deviation of what predictions on these images don't tell of accuracy on others: on ten real sets
(``benchmarks/decisions.py``) intervals with 0.02 held test accuracies in 88 % of cases."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Out-of-fold predictions of one classifier.

    Attributes:
        log_probabilities: of each class for each training image, by a model that was not trained on it, (n, K).
        labels: true classes (n,).
        groups: of each image, (n,): no prediction is by a model that was trained on an image of the same group, and
            what follows is over groups. ``None``: every image stands alone.
    """

    log_probabilities: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None

    @property
    def losses(self) -> np.ndarray:
        """Log loss of each image, (n,), in nats."""
        return -np.maximum(self.log_probabilities[np.arange(len(self.labels)), self.labels], LEAST_LOG)

    @property
    def comparable(self) -> np.ndarray:
        """Mask (n,) of the images that classifiers are compared by: not the only one of their class, if there are any.

        Held out, such an image is of a class that no model has seen; what they say of it is a matter of form. So are
        the images of the only group of their class.
        """
        shared = known_without(self.labels, self.groups)
        return shared if shared.any() else np.ones_like(shared)

    @property
    def log_loss(self) -> float:
        """Mean log loss of ``comparable`` images, in nats an image."""
        return float(self.losses[self.comparable].mean())

    @property
    def correct(self) -> np.ndarray:
        """Whether the most probable class was right, (n,)."""
        return self.log_probabilities.argmax(1) == self.labels

    @property
    def probabilities(self) -> np.ndarray:
        """Probability of the true class of each image, (n,)."""
        return np.exp(-self.losses)

    @property
    def expected_accuracy(self) -> Interval:
        """Accuracy to expect on new images like these: see ``expected``."""
        return expected(self.correct, self.groups)

    def told(self) -> Row:
        """What rows say of it."""
        value, low, high = self.expected_accuracy
        told = {"expected_accuracy": value, "expected_low": low, "expected_high": high}
        return told | {"held_out_loss": self.log_loss}

    def calibrated(self) -> tuple[Evidence, float]:
        """The same at the temperature of least log loss, and the factor of logits that this takes."""
        said, judged = torch.tensor(np.maximum(self.log_probabilities, LEAST_LOG)), torch.tensor(self.comparable)
        factor = temperature(said[judged], torch.tensor(self.labels)[judged])
        return replace(self, log_probabilities=(factor * said).log_softmax(1).numpy()), factor

    def averaged(self, other: Evidence) -> Evidence:
        """Of the mean of both classifiers' log-probabilities, normalized, on the same images."""
        _check_same(self, other)
        both = [np.maximum(one.log_probabilities, LEAST_LOG) for one in (self, other)]
        said = torch.tensor(np.mean(both, axis=0)).log_softmax(1)
        return replace(self, log_probabilities=said.numpy())

    def gains_over(self, other: Evidence) -> tuple[np.ndarray, np.ndarray | None]:
        """By how much less this loses than ``other`` on each ``comparable`` image, (m,), and the groups of these.

        Raises:
            MeasureError: the two are about other images.
        """
        _check_same(self, other)
        return (other.losses - self.losses)[self.comparable], among(self.groups, self.comparable)

    def gain_over(self, other: Evidence) -> Interval:
        """The mean of ``gains_over`` with its 95 % interval: positive where this is better."""
        gains, groups = self.gains_over(other)
        return Interval(float(gains.mean()), *student_interval(gains, groups=groups))


def _check_same(one: Evidence, other: Evidence) -> None:
    if not np.array_equal(one.labels, other.labels):
        raise MeasureError("predictions for other images can't be compared in pairs; use the same images for both")


def expected(correct: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """Accuracy to expect where these (n,) were right while held out, with what n images and ``DOUBT`` leave open.

    The interval is Clopper and Pearson's for as many images as would have that variance. Images that belong to
    ``groups`` (n,) count as the fewer that would tell as much alone: see ``probes.results.independent``.
    """
    value, images = float(correct.mean()), len(correct)
    smoothed = (correct.sum() + 1) / (images + 2)
    spread = smoothed * (1 - smoothed)
    effective = spread / (spread / independent(correct, groups) + DOUBT**2)
    return Interval(value, *interval(value * effective, effective))
