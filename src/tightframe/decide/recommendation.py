"""Which model is likely the best of a list, and how sure that is.

Each model's probes were right or wrong on the same images, each image held out when it was judged. Their shared
luck cancels in differences between models, so images are resampled for all models at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot, log2
from typing import NamedTuple

import numpy as np

WEIGHTS: Mapping[str, float] = {"ridge": 0.4, "lda": 0.4, "knn": 0.2}
"""How much the held-out predictions of each probe count."""
SIZE = 0.08
"""What a model with e times the parameters is ahead by before any image is seen."""
FADING = 100
"""Number of images that halve that."""
DOUBT = 0.02
"""Standard deviation of what held-out predictions on these images don't tell of accuracy on others."""
MOVING = 0.015
"""Standard deviation by which accuracies of models move apart each time that images are doubled, as measured
(``benchmarks/ranking.py``)."""
DRAWS = 4000
CREDIBLE = 0.05
"""A model with at least this chance of being the best ties with the first."""


class Standing(NamedTuple):
    """Where one model stands in a list.

    Attributes:
        expected: estimated accuracy of a linear classifier, 0 … 1.
        low, high: its 95 % interval.
        p_best: how often the model comes first when images are drawn anew, 0 … 1.
        tied: whether it can't be told from the model estimated best.
    """

    expected: float
    low: float
    high: float
    p_best: float
    tied: bool


def credit(correct: Mapping[str, Sequence[int] | np.ndarray]) -> np.ndarray:
    """What each image (n,) says for a model: the weighted share of its probes that were right on it."""
    total = sum(WEIGHTS.values())
    parts = [np.asarray(correct[probe], float) * weight for probe, weight in WEIGHTS.items()]
    return np.sum(parts, axis=0) / total


def standings(
    credits: Sequence[np.ndarray], parameters: Sequence[int], seed: int = 0, eventually: int = 0
) -> list[Standing]:
    """Where each of m models stands.

    The estimate is the mean of a model's ``credit``, moved by how much larger the model is than the others
    (geometric mean): by ``SIZE`` for each factor e, less and less as images come in. ``benchmarks/ranking.py`` judges
    this rule on data sets that had no part in its numbers.

    Args:
        credits: of each model on the same n images, (n,) each.
        parameters: how many each model has.
        seed: of the draws.
        eventually: how many images there will be, if more than n: who is the best then is less sure.
    """
    table = np.stack(credits)
    generator = np.random.default_rng(seed)
    images = table.shape[1]
    sizes = np.log(np.maximum(np.asarray(parameters, float), 1))
    table = table + (SIZE * FADING / (FADING + images) * (sizes - sizes.mean()))[:, None]
    drawn = np.empty((DRAWS, len(table)))
    for start in range(0, DRAWS, 500):
        times = generator.multinomial(images, np.full(images, 1 / images), 500)
        drawn[start : start + 500] = times @ table.T / images
    doublings = log2(max(eventually / images, 1.0))
    drawn += hypot(DOUBT, MOVING * doublings) * generator.standard_normal(drawn.shape)
    first = np.bincount(drawn.argmax(1), minlength=len(table)) / DRAWS
    ends = np.quantile(drawn, [0.025, 0.975], axis=0).clip(0, 1)
    best = int(table.mean(1).argmax())
    return [
        Standing(
            float(table[place].mean().clip(0, 1)),
            float(ends[0, place]),
            float(ends[1, place]),
            float(first[place]),
            place != best and bool(first[place] >= CREDIBLE),
        )
        for place in range(len(table))
    ]
