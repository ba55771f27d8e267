"""Which model is likely the best of a list, and how sure that is.

Each model's reading (``probes.discriminant``) said something of the same images, each image left out when it was
judged. Their shared luck cancels in differences between models, so images are resampled for all models at once: whole
groups of them where they belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, log2, sqrt
from typing import NamedTuple

import numpy as np

from tightframe.decide.evidence import Evidence, expected
from tightframe.features.samples import group_numbers

RIVALRY, LEAST = 0.5, 0.02
"""Standard deviation of what n images don't tell of a model beside others, times the square root of n, and the least
that it is: with it P(best) is what is found, on ten real sets at 5 to 20 images a class (``benchmarks/choosing.py``).
Images left out in turn share nearly all others, so that drawing them anew says too little."""
SIZE = 0.05
"""What a model with e times the parameters is ahead by before any image is seen."""
FADING = 100
"""Number of images that halve that."""
MOVING = 0.015
"""Standard deviation by which accuracies of models move apart each time that images are doubled, as measured
(``benchmarks/ranking.py``)."""
DRAWS = 4000
CREDIBLE = 0.05
"""A model with at least this chance of being the best ties with the first."""


class Standing(NamedTuple):
    """Where one model stands in a list.

    Attributes:
        expected: accuracy to expect of the reading of all layers, 0 … 1.
        low, high: its 95 % interval.
        merit: by which models are put in order.
        p_best: how often the model comes first when images are drawn anew, 0 … 1.
        tied: whether it can't be told from the model estimated best.
    """

    expected: float
    low: float
    high: float
    merit: float
    p_best: float
    tied: bool


class Outcome(NamedTuple):
    """What came of the images that one model was judged on: whether each was right, and how probable it was held.

    ``groups`` (n,) says which images belong together; ``None`` where each stands alone.
    """

    correct: np.ndarray
    probability: np.ndarray
    groups: np.ndarray | None = None

    @classmethod
    def of(cls, evidence: Evidence) -> Outcome:
        """Of out-of-fold predictions."""
        return cls(evidence.correct, evidence.probabilities, evidence.groups)

    @property
    def credit(self) -> np.ndarray:
        """What each image (n,) says for the model: half for being right, half for how probable the true class was."""
        return (np.asarray(self.correct, float) + np.asarray(self.probability, float)) / 2


def standings(
    outcomes: Sequence[Outcome], parameters: Sequence[int], seed: int = 0, eventually: int = 0
) -> list[Standing]:
    """Where each of m models stands.

    Which comes first goes by the mean of a model's ``credit``, moved by how much larger the model is than the others
    (geometric mean): by ``SIZE`` for each factor e, less and less as images come in. The accuracy to expect is moved by
    nothing.

    Args:
        outcomes: of each model on the same n images, in the same groups.
        parameters: how many each model has.
        seed: of the draws.
        eventually: how many images there will be, if more than n: who is the best then is less sure.
    """
    table = np.stack([outcome.credit for outcome in outcomes])
    generator = np.random.default_rng(seed)
    images = table.shape[1]
    numbers = group_numbers(outcomes[0].groups, images)
    alone = images if numbers is None else int(numbers.max()) + 1
    sizes = np.log(np.maximum(np.asarray(parameters, float), 1))
    table = table + (SIZE * FADING / (FADING + alone) * (sizes - sizes.mean()))[:, None]
    drawn = _resampled(table, numbers, alone, generator)
    doublings = log2(max(eventually / images, 1.0))
    unknown = hypot(RIVALRY / sqrt(alone), LEAST, MOVING * doublings)
    drawn += unknown * generator.standard_normal(drawn.shape)
    first = np.bincount(drawn.argmax(1), minlength=len(table)) / DRAWS
    merits = table.mean(1)
    best = int(merits.argmax())
    return [
        Standing(
            *expected(np.asarray(outcome.correct), outcome.groups),
            float(merits[place]),
            float(first[place]),
            place != best and bool(first[place] >= CREDIBLE),
        )
        for place, outcome in enumerate(outcomes)
    ]


def _resampled(table: np.ndarray, numbers: np.ndarray | None, alone: int, generator: np.random.Generator) -> np.ndarray:
    """Means (DRAWS, m) of what is in ``table`` (m, n), each over so many images, or groups, drawn anew."""
    totals, counts = table, None
    if numbers is not None:
        totals = np.stack([np.bincount(numbers, row) for row in table])
        counts = np.bincount(numbers)
    drawn = np.empty((DRAWS, len(table)))
    for start in range(0, DRAWS, 500):
        times = generator.multinomial(alone, np.full(alone, 1 / alone), 500)
        drawn[start : start + 500] = times @ totals.T / (alone if counts is None else (times @ counts)[:, None])
    return drawn
