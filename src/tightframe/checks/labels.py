"""Labels that are probably wrong, by what a model says of each image that was held out.

As in confident learning (Northcutt et al., JAIR 2021) probabilities of images left out are held against their labels,
and images are ranked by the probability of their label. How many of them to name is decided otherwise than by
cleanlab, which counts images above a threshold of each class and names many where classes are hard to tell apart. Here
it is a matter of calibration: were all labels drawn from the probabilities, a known number of them would be as
improbable as t or more; where more than twice as many are, most of these labels are wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tightframe.decide.evidence import Evidence

FALSE = 0.5
"""Share of the labels named as wrong that, by the probabilities, may be right."""
CONFUSED = 0.15
"""Share of the images of two classes that are taken for the other one, from which the two are called confused."""
LEAST_CONFUSED = 5


class Suspect(NamedTuple):
    """An image whose label is in doubt.

    Attributes:
        place: among the images judged.
        likely: the class that is most probable.
        own: probability of its label.
        probability: of ``likely``.
        wrong: whether its label is called wrong; otherwise it is doubtful.
    """

    place: int
    likely: int
    own: float
    probability: float
    wrong: bool


def suspects(evidence: Evidence) -> list[Suspect]:
    """Images whose labels are wrong or doubtful, the least probable label first."""
    said, own = np.exp(evidence.log_probabilities), evidence.probabilities
    likely = said.argmax(1)
    ranked = ranking(evidence)
    wrong = set(ranked[: _wrong(said[evidence.comparable], own[ranked])].tolist())
    usual = _usual_confidence(said, evidence.labels)
    found = []
    for index in ranked.tolist():
        sure = said[index, likely[index]]
        doubtful = sure >= usual[likely[index]] and own[index] < FALSE * sure
        if likely[index] != evidence.labels[index] and (index in wrong or doubtful):
            found.append(Suspect(index, int(likely[index]), float(own[index]), float(sure), index in wrong))
    return found


def ranking(evidence: Evidence) -> np.ndarray:
    """Indices of the images that can be judged, the one with the least probable label first."""
    judged = np.flatnonzero(evidence.comparable)
    return judged[np.argsort(evidence.log_probabilities[judged, evidence.labels[judged]], kind="stable")]


def confused(evidence: Evidence) -> list[tuple[int, int, float]]:
    """Pairs of classes of which many images are taken for the other, with that share, the worst first."""
    said, labels = evidence.log_probabilities.argmax(1), evidence.labels
    classes = evidence.log_probabilities.shape[1]
    table = np.bincount(labels * classes + said, minlength=classes**2).reshape(classes, classes)
    mutual, count = table + table.T, table.sum(1)
    found = []
    for one, other in np.argwhere(np.triu(mutual, 1) >= LEAST_CONFUSED).tolist():
        share = mutual[one, other] / (count[one] + count[other])
        if share >= CONFUSED and min(table[one, other], table[other, one]) > 0:
            found.append((one, other, float(share)))
    return sorted(found, key=lambda pair: -pair[2])


def _wrong(said: np.ndarray, own: np.ndarray) -> int:
    """How many of the least probable labels ``own`` (n,), ascending, to call wrong, by all probabilities (n, K)."""
    every = np.sort(said, axis=None)
    expected = np.concatenate([[0.0], np.cumsum(every)])[np.searchsorted(every, own, side="right")]
    within = np.flatnonzero(expected <= FALSE * np.arange(1, len(own) + 1))
    return int(within[-1]) + 1 if len(within) else 0


def _usual_confidence(said: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean probability of its label for the images of each class: confident learning's threshold; 1 without images."""
    classes = said.shape[1]
    sums = np.bincount(labels, said[np.arange(len(labels)), labels], minlength=classes)
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
