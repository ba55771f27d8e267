"""Whether test images are drawn as training images are, by their features alone.

A classifier two-sample test (Lopez-Paz & Oquab, ICLR 2017): a ridge classifier learns to tell test from training
images, each judged by a model without it. Ridge regression has these predictions in closed form for any labels, so the
test is an exact permutation test: the same is done for a few hundred relabelings at once, with one product of matrices.
Class shares, where labels are known, are compared by chi-squared over the same relabelings, and the two tests share the
level. Where images come in groups, whole groups change sides. The effect size is the AUC: the probability that the
classifier finds the test image in a pair of one test and one training image; 0.5 is no difference.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata

from tightframe.images import among

DRAWS = 400
"""Relabelings: the least p-value is one in so many."""
MOST = 3000
"""Images that are compared at most, drawn at random: more would only make ever smaller differences beyond doubt."""
LEVEL = 0.05
LARGE = 0.65
"""AUC from which a difference is large."""
RIDGE = 0.5
"""Ridge penalty in units of the mean eigenvalue of the features' covariance, times their number."""


class Shift(NamedTuple):
    """What tells test from training images.

    Attributes:
        auc: how well a classifier tells them apart, 0.5 to 1; below 0.5 by chance where there is nothing to tell.
        by_features: how often as good a classifier arises where there is no difference.
        by_shares: how often class shares differ as much where there is no difference; 1 without labels.
        within: ``by_features`` inside classes: what class shares don't explain.
    """

    auc: float
    by_features: float
    by_shares: float
    within: float

    @property
    def p_value(self) -> float:
        """Of both tests together (Bonferroni)."""
        return min(1.0, 2 * min(self.by_features, self.by_shares))

    @property
    def found(self) -> bool:
        """Whether there is a difference, at the level of 5 %."""
        return self.p_value <= LEVEL

    @property
    def explained(self) -> bool:
        """Whether class shares alone explain it."""
        return self.found and self.within > LEVEL and self.by_shares <= LEVEL


def shift_between(
    train: np.ndarray,
    test: np.ndarray,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Shift | None:
    """Compare features (n, d) of training with those (m, d) of test images; ``None`` where there are too few.

    Args:
        train: features of training images.
        test: features of test images.
        labels: classes of both, (n + m,): by them it is said whether class shares explain the difference.
        groups: of both, (n + m,): images with the same number change sides together.
        seed: of draws.
    """
    generator = np.random.default_rng(seed)
    features = np.concatenate([train, test]).astype(np.float64)
    side = np.repeat([0, 1], [len(train), len(test)])
    kept = _drawn(side, generator)
    features, side = features[kept], side[kept]
    labels = None if labels is None else labels[kept]
    groups = among(groups, kept)
    if min(np.bincount(side, minlength=2)) < 5:
        return None
    hat = _left_out(features)
    free = _relabeled(side, groups, None, generator)
    auc, by_features = _tested(hat, side, free)
    if labels is None:
        return Shift(auc, by_features, 1.0, by_features)
    within = _tested(hat, side, _relabeled(side, groups, labels, generator), labels)[1]
    return Shift(auc, by_features, _shares(side, free, labels), within)


def _shares(side: np.ndarray, relabeled: np.ndarray, labels: np.ndarray) -> float:
    """How often class shares of ``relabeled`` (n, draws) differ as much as the true ones, by chi-squared."""
    _, known = np.unique(labels, return_inverse=True)
    sides = np.column_stack([side, relabeled])
    count = np.bincount(known)[:, None]
    expected = count * sides.mean(0)
    found = np.stack([sides[known == one].sum(0) for one in range(len(count))])
    odds = ((found - expected) ** 2 / expected + (found - expected) ** 2 / (count - expected)).sum(0)
    return float((1 + (odds[1:] >= odds[0] - 1e-9).sum()) / len(odds))


def _drawn(side: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    if len(side) <= MOST:
        return np.arange(len(side))
    return np.sort(generator.choice(len(side), MOST, replace=False))


class _Hat(NamedTuple):
    """Ridge predictions as a linear map of targets, (n, n), and its diagonal."""

    matrix: torch.Tensor
    own: torch.Tensor


def _left_out(features: np.ndarray) -> _Hat:
    values = torch.from_numpy(features)
    values = values - values.mean(0)
    values = values / values.std(0).clamp(min=1e-9)
    gram = values @ values.T
    ridge = RIDGE * gram.diagonal().mean()
    matrix = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), gram)
    matrix = matrix + (1 / len(gram))  # an intercept: features are centered
    return _Hat(matrix, matrix.diagonal())


def _tested(
    hat: _Hat, side: np.ndarray, relabeled: np.ndarray, labels: np.ndarray | None = None
) -> tuple[float, float]:
    """AUC of the true sides, and how many of ``relabeled`` (n, draws) do as well."""
    targets = torch.from_numpy(np.column_stack([side, relabeled]).astype(np.float64))
    said = ((hat.matrix @ targets - hat.own[:, None] * targets) / (1 - hat.own[:, None])).numpy()
    ranks = said if labels is None else _centered(said, labels)
    ranks = rankdata(ranks, axis=0)
    sides = targets.numpy()
    ones = sides.sum(0)
    zeros = len(sides) - ones
    aucs = ((ranks * sides).sum(0) - ones * (ones + 1) / 2) / (ones * zeros)
    return float(aucs[0]), float((1 + (aucs[1:] >= aucs[0]).sum()) / len(aucs))


def _centered(said: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Without the mean of each class."""
    said = said.copy()
    for label in np.unique(labels):
        said[labels == label] -= said[labels == label].mean(0)
    return said


def _relabeled(
    side: np.ndarray, groups: np.ndarray | None, labels: np.ndarray | None, generator: np.random.Generator
) -> np.ndarray:
    """Sides (n, DRAWS) dealt anew: by image inside each class, or by whole groups."""
    drawn = np.empty((len(side), DRAWS), dtype=np.int64)
    if groups is not None:
        _, first, member = np.unique(groups, return_index=True, return_inverse=True)
        for draw in range(DRAWS):
            drawn[:, draw] = generator.permutation(side[first])[member]
        return drawn
    strata = [np.arange(len(side))] if labels is None else [np.flatnonzero(labels == k) for k in np.unique(labels)]
    for members in strata:
        for draw in range(DRAWS):
            drawn[members, draw] = generator.permutation(side[members])
    return drawn


def shift_words(shift: Shift, by: str = "features") -> str:
    """Whether test images differ from training images ``by`` what was compared, and whether class shares explain it."""
    told = f"AUC {max(shift.auc, 0.5):.2f}, p = {shift.p_value:.2g}"
    if not shift.found:
        return f"test images can't be told from training images by their {by} ({told})"
    if shift.explained:
        return f"test images have other class shares than training images (p = {shift.by_shares:.2g}), no other looks"
    size = "much" if shift.auc >= LARGE else "a little"
    more = "; class shares differ, too" if shift.by_shares <= LEVEL / 2 else ""
    return f"test images differ {size} from training images by their {by} ({told}){more}"
