"""Cross-validation as algebra: moments of every fold, whose sums are moments of all samples but one fold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.features.samples import as_tensor, check_samples

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Folds:
    """Labeled features cut into stratified folds.

    Attributes:
        features: shape (n, d), as given.
        labels: shape (n,), integers 0 … ``classes`` − 1.
        classes: K.
        held: indices of the samples of each fold.
    """

    features: Float[Tensor, "n d"]
    labels: Int64[Tensor, " n"]
    classes: int
    held: tuple[Int64[Tensor, " _"], ...]

    @classmethod
    def of(cls, features: Any, labels: Any, classes: int, folds: int = FOLDS, seed: int = 0) -> Folds:
        """Features (n, d) with integer labels (n,) in 0 … classes − 1, dealt into ``folds`` parts by ``seed``."""
        features, labels = as_tensor(features), as_tensor(labels)
        check_samples(features, labels, classes)
        labels = labels.long().to(features.device)
        assigned = fold_of(labels.cpu().numpy(), folds, seed)
        held = tuple(
            torch.from_numpy(np.flatnonzero(assigned == fold)).to(features.device) for fold in np.unique(assigned)
        )
        return cls(features, labels, classes, held)

    @cached_property
    def parts(self) -> tuple[ClassMoments, ...]:
        """Moments of each fold."""
        return tuple(ClassMoments.from_features(self.features[i], self.labels[i], self.classes) for i in self.held)

    @cached_property
    def total(self) -> ClassMoments:
        """Moments of all samples: from those of the folds, unless probes are better off in ``compacted`` folds."""
        if self._wide:
            return ClassMoments.from_features(self.features, self.labels, self.classes)
        return reduce(ClassMoments.merge, self.parts)

    def rest(self, fold: int) -> ClassMoments:
        """Moments of all samples but those of ``fold``."""
        return reduce(ClassMoments.merge, (part for other, part in enumerate(self.parts) if other != fold))

    @cached_property
    def compacted(self) -> tuple[Folds, Float64[Tensor, "d n"] | None]:
        """The same folds of features (n, n) in an orthonormal basis (d, n) of their span, where n < d; else no basis.

        Whatever depends on inner products only is the same there, at a fraction of the cost.
        """
        if not self._wide:
            return self, None
        rows = self.features.double()
        basis = torch.linalg.qr(rows.T).Q
        return Folds(rows @ basis, self.labels, self.classes, self.held), basis

    @property
    def _wide(self) -> bool:
        samples, dimension = self.features.shape
        return samples < dimension


def fold_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold (n,) of each sample: every class is dealt out in turn, after shuffling, so folds are stratified.

    There are as many folds as the smallest class has samples, if those are fewer than ``folds``, but no fewer than
    two: the only sample of a class is held out once, and can't be recognized then.
    """
    if folds < 2:
        raise MeasureError(f"cross-validation needs two folds or more, not {folds}")
    sizes = np.unique(labels, return_counts=True)[1]
    if sizes.max(initial=0) < 2:
        raise MeasureError("cross-validation needs two samples of a class; give more images")
    folds = min(folds, int(sizes[sizes > 1].min()))
    generator = np.random.default_rng(seed)
    assigned = np.empty(len(labels), dtype=np.int64)
    dealt = 0  # where one class stops the next goes on: sizes of folds differ by one at most
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        assigned[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return assigned
