"""Cross-validation as algebra: moments of every fold, whose sums are moments of all samples but one fold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import STRIPE, ClassMoments, add_gram, mirrored, work_type
from tightframe.features.samples import as_tensor, check_samples, group_numbers

FOLDS = 5
LOST = 1e-3
"""Share of all spread below which what is left without a fold is not taken as a difference."""


class Part(NamedTuple):
    """Counts (K,) and means (K, d) of one fold, and its scatter (d, d) on and below the diagonal, stripe by stripe.

    Scatter is kept in the precision in which its products were made.
    """

    counts: Int64[Tensor, " k"]
    means: Float64[Tensor, "k d"]
    stripes: tuple[Float[Tensor, "_ _"], ...]

    @classmethod
    def of(cls, moments: ClassMoments, dtype: torch.dtype) -> Part:
        """Of all moments of the fold."""
        starts = range(0, moments.dimension, STRIPE)
        stripes = tuple(moments.scatter[at:, at : at + STRIPE].to(dtype, copy=True) for at in starts)
        return cls(moments.counts, moments.means, stripes)

    def add_to(self, total: Float64[Tensor, "d d"], sign: int = 1) -> None:
        """Add ± scatter to ``total``, in place, on and below its diagonal stripes only: see ``mirrored``."""
        for at, stripe in zip(range(0, len(total), STRIPE), self.stripes, strict=True):
            total[at:, at : at + STRIPE].add_(stripe, alpha=sign)

    def spread(self, weight: Float64[Tensor, "k d"]) -> Float64[Tensor, " k"]:
        """wᵀ S w for each row w of weights (k, d) and the scatter S."""
        found = torch.zeros_like(weight[:, 0])
        for at, stripe in zip(range(0, weight.shape[1], STRIPE), self.stripes, strict=True):
            own, below, wide = weight[:, at : at + STRIPE], weight[:, at + STRIPE :], stripe.double()
            width = own.shape[1]
            found += torch.linalg.vecdot(torch.addmm(own @ wide[:width], below, wide[width:], alpha=2), own)
        return found


@dataclass(frozen=True, eq=False)
class Folds:
    """Labeled features cut into stratified folds.

    Attributes:
        features: shape (n, d), as given.
        labels: shape (n,), integers 0 … ``classes`` − 1.
        classes: K.
        held: indices of the samples of each fold.
        groups: of each sample, shape (n,); no two folds share one. ``None``: every sample stands alone.
    """

    features: Float[Tensor, "n d"]
    labels: Int64[Tensor, " n"]
    classes: int
    held: tuple[Int64[Tensor, " _"], ...]
    groups: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        features: Any,
        labels: Any,
        classes: int,
        folds: int = FOLDS,
        seed: int = 0,
        groups: np.ndarray | None = None,
    ) -> Folds:
        """Features (n, d) with integer labels (n,) in 0 … classes − 1, dealt into ``folds`` parts by ``seed``.

        Samples of the same number in ``groups`` (n,) are in one fold.
        """
        features, labels = as_tensor(features), as_tensor(labels)
        check_samples(features, labels, classes)
        labels = labels.long().to(features.device)
        assigned = fold_of(labels.cpu().numpy(), folds, seed, groups)
        held = tuple(
            torch.from_numpy(np.flatnonzero(assigned == fold)).to(features.device) for fold in np.unique(assigned)
        )
        return cls(features, labels, classes, held, group_numbers(groups, len(labels)))

    @cached_property
    def _made(self) -> tuple[tuple[Part, ...], ClassMoments]:
        parts, total = [], None
        for held in self.held:
            made = ClassMoments.from_features(self.features, self.labels, self.classes, rows=held)
            parts.append(Part.of(made, work_type(self.features)))
            total = made if total is None else total.merge(made)
        assert total is not None
        return tuple(parts), total

    @property
    def parts(self) -> tuple[Part, ...]:
        """Moments of each fold."""
        return self._made[0]

    @cached_property
    def total(self) -> ClassMoments:
        """Moments of all samples: from those of the folds, unless probes are better off in ``compacted`` folds."""
        if self._wide:
            return ClassMoments.from_features(self.features, self.labels, self.classes)
        return self._made[1]

    def rest(self, fold: int) -> ClassMoments:
        """Moments of all samples but those of ``fold``: counts, means and scatter, the rest being NaN."""
        parts, total = self._made
        left, held = total.counts - parts[fold].counts, parts[fold]
        share = torch.where(left > 0, held.counts.double() / left.clamp(min=1), 0.0)[:, None]
        apart = total.means - held.means
        means = torch.where(left[:, None] > 0, total.means + apart * share, 0.0)
        scatter = total.scatter.clone()
        held.add_to(scatter, -1)
        mirrored(add_gram(scatter, (apart * (share * total.counts[:, None]).sqrt()).to(work_type(self.features)), -1))
        if float(scatter.trace()) < LOST * float(total.scatter.trace()):
            return self._summed(fold)
        nothing = scatter.new_full((), torch.nan)
        return ClassMoments(left, means, scatter, nothing.expand_as(means), nothing.expand(len(scatter)), nothing)

    def _summed(self, fold: int) -> ClassMoments:
        """``rest`` anew from features: where the fold has nearly all the spread, a difference would be rounding."""
        kept = torch.cat([held for other, held in enumerate(self.held) if other != fold])
        return ClassMoments.from_features(self.features, self.labels, self.classes, rows=kept)

    @cached_property
    def compacted(self) -> tuple[Folds, Float64[Tensor, "d n"] | None]:
        """The same folds of features (n, n) in an orthonormal basis (d, n) of their span, where n < d; else no basis.

        Whatever depends on inner products only is the same there, at a fraction of the cost.
        """
        if not self._wide:
            return self, None
        rows = self.features.double()
        basis = torch.linalg.qr(rows.T).Q
        return replace(self, features=rows @ basis), basis

    @property
    def _wide(self) -> bool:
        samples, dimension = self.features.shape
        return samples < dimension


def fold_of(labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Fold (n,) of each sample: every class is dealt out in turn, after shuffling, so folds are stratified.

    There are as many folds as the smallest class has samples, if those are fewer than ``folds``, but no fewer than
    two: the only sample of a class is held out once, and can't be recognized then.

    With ``groups`` (n,), samples of one group are in one fold, and folds are as stratified as that allows; the smallest
    class is then that of the fewest groups.
    """
    if folds < 2:
        raise MeasureError(f"cross-validation needs two folds or more, not {folds}")
    numbers = group_numbers(groups, len(labels))
    if numbers is not None:
        return _dealt_whole(labels, numbers, folds, seed)
    sizes = np.unique(labels, return_counts=True)[1]
    if sizes.max(initial=0) < 2:
        raise MeasureError(
            "cross-validation needs two training images of a class; give more images, or hold fewer out (--test-share)"
        )
    folds = min(folds, int(sizes[sizes > 1].min()))
    generator = np.random.default_rng(seed)
    assigned = np.empty(len(labels), dtype=np.int64)
    dealt = 0  # where one class stops the next goes on: sizes of folds differ by one at most
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        assigned[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return assigned


def _dealt_whole(labels: np.ndarray, numbers: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold (n,) of each sample, where groups ``numbers`` (n,) stay whole.

    Each group goes to the fold that has least of its classes, the largest groups first, as in scikit-learn's
    ``StratifiedGroupKFold``.
    """
    if not can_hold_out(labels, numbers):
        raise MeasureError(
            "cross-validation that keeps groups whole needs two groups of each of two classes; give images of more "
            "groups, or a pattern that makes smaller ones"
        )
    parts = tallied(labels, numbers)
    spread = np.bincount(np.concatenate([classes for classes, _ in parts]))
    folds = min(folds, int(spread[spread > 1].min()))
    luck = np.random.default_rng(seed).random(len(parts))
    weights = np.array([np.square(shares).sum() for _, shares in parts]).round(12)
    order = np.lexsort((luck, -weights))
    loads, sizes, place = np.zeros((folds, len(spread))), np.zeros(folds), np.empty(len(parts), dtype=np.int64)
    members = np.bincount(numbers)
    for group in order.tolist():
        classes, shares = parts[group]
        fold = np.lexsort((sizes, (loads[:, classes] @ shares).round(12)))[0]
        loads[fold, classes] += shares
        sizes[fold] += members[group]
        place[group] = fold
    return place[numbers]


def tallied(labels: np.ndarray, numbers: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each group 0 … G − 1, the classes that it has samples of, and which share of each class's samples."""
    pairs, counts = np.unique(np.stack([numbers, labels], 1), axis=0, return_counts=True)
    shares = counts / np.bincount(labels)[pairs[:, 1]]
    starts = np.searchsorted(pairs[:, 0], np.arange(1, numbers.max() + 1))
    return list(zip(np.split(pairs[:, 1], starts), np.split(shares, starts), strict=True))


def known_without(labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Mask (n,) of the samples whose class others have, too: others of other ``groups`` (n,), where there are any."""
    numbers = group_numbers(groups, len(labels))
    if numbers is None:
        return np.bincount(labels)[labels] > 1
    pairs = np.unique(np.stack([labels, numbers], 1), axis=0)
    return np.bincount(pairs[:, 0])[labels] > 1


def can_hold_out(labels: np.ndarray, groups: np.ndarray | None = None) -> bool:
    """Whether classifiers can be judged on samples held out: a class has two, or two classes have two ``groups``."""
    known = np.unique(labels[known_without(labels, groups)])
    return len(known) > (0 if group_numbers(groups, len(labels)) is None else 1)
