"""All collapse metrics of some features at once; and those of class means for less than a product of the features.

NC1, CDNV and NC2 look at class means and at the spread along the at most K − 1 directions in which class means differ:
projecting features on those takes 2 N d K operations where the whole scatter takes 2 N d².
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

import torch
from torch import Tensor

from tightframe.features.moments import ClassMoments, Weighting, chunks, sums_by_class, work_type
from tightframe.features.samples import as_tensor, check_samples
from tightframe.metrics.collapse import Head, cautions, check_measurable, nc3
from tightframe.metrics.correction import corrected
from tightframe.metrics.factors import between_factor
from tightframe.metrics.registry import MEASURES, measures


@dataclass(frozen=True)
class CollapseMetrics(Mapping[str, float]):
    """Metrics by name, with what must be known to read them.

    Attributes:
        by_name: metric name to value; what the mapping itself shows.
        weighting: how classes were weighted in Σ_B, ``"class"`` or ``"sample"``.
        rank_between: rank of Σ_B that NC1 and VCI used, at most K − 1; below that, some class means coincide.
        cutoff: singular values of the centered means at or below it counted as zero.
        samples_per_class: n of each class.
        notes: what a reader should know before comparing, in plain words.
    """

    by_name: dict[str, float]
    weighting: Weighting
    rank_between: int
    cutoff: float
    samples_per_class: tuple[int, ...]
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> float:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


def collapse_metrics(
    moments: ClassMoments,
    head: Head | None = None,
    *,
    features: Any = None,
    weighting: Weighting = "class",
    correct: bool = False,
) -> CollapseMetrics:
    """Every metric that the arguments allow.

    Args:
        moments: of the features to judge, K ≥ 2 classes, each with samples.
        head: the linear classifier trained on these classes; adds ``nc3``.
        features: (n, d), with ``head`` adds ``nc4``, which moments alone can't give.
        weighting: of classes in Σ_B.
        correct: replace ``nc1``, ``cdnv`` and ``vci`` by estimates of what any number of samples would show (see
            ``metrics.correction``, which weights classes alike). Where these samples can't tell, the value is NaN and a
            note gives a lower bound.

    Returns:
        ``nc1``, ``nc1_ratio``, ``cdnv``, ``numerical_rank``, ``vci``, ``nc2_norm``, ``nc2_angle``, ``nc2_etf`` and,
        where asked for, ``nc3`` and ``nc4``. Where all class means coincide, ``nc1``, ``nc1_ratio`` and ``cdnv`` are
        infinite, ``vci`` is 1 and the NC2 values and ``nc3`` are NaN; where two of them do, ``cdnv`` is infinite.

    Raises:
        MeasureError: fewer than two classes, an empty class, no class with two samples, or a head that does not fit.
    """
    notes, factor = cautions(moments, weighting), between_factor(moments, weighting)
    evidence = {"moments": moments, "head": head, "features": features}
    found = {measure.name: measure.of(evidence, weighting=weighting) for measure in measures("collapse")}
    values = {name: value for name, value in found.items() if value is not None}
    if correct:
        better = corrected(moments)
        notes += better.notes
        for name, estimate in better.by_name.items():
            values[name] = nan if estimate.value is None else estimate.value
    counts = tuple(int(n) for n in moments.counts)
    return CollapseMetrics(values, weighting, factor.rank, factor.cutoff, counts, tuple(notes))


def quick_collapse(
    features: Any, labels: Any, classes: int, weighting: Weighting = "class", head: Head | None = None
) -> dict[str, float]:
    """``nc1``, ``cdnv``, ``nc2_norm``, ``nc2_angle``, ``nc2_etf`` of features (n, d), labels (n,), ``nc3`` of a head.

    Equal to those of ``collapse_metrics`` up to rounding; raises as it does.
    """
    features, labels = as_tensor(features), as_tensor(labels)
    moments = moments_along_means(features, labels, classes)
    check_measurable(moments)
    names = ["nc1", "cdnv", "nc2_norm", "nc2_angle", "nc2_etf"]
    found = {name: MEASURES[name].of({"moments": moments}, weighting=weighting) for name in names}
    if head is not None:  # its weights are in all d dimensions: of class means alone
        means = sums_by_class(features, labels.long().to(features.device), classes) / moments.counts[:, None]
        alone = replace(ClassMoments.zero(classes, means.shape[1], means.device), counts=moments.counts, means=means)
        found["nc3"] = nc3(alone, head, weighting)
    return {name: value for name, value in found.items() if value is not None}


def moments_along_means(features: Tensor, labels: Tensor, classes: int) -> ClassMoments:
    """Moments in K directions that hold all class means, and one more that stands for all the rest.

    That last one has the spread of each class that the others miss, and a mean that is the same for all classes: the
    length of what they have in common. So whatever looks only at means, at spread along them and at traces finds
    what it would find in d dimensions.
    """
    check_samples(features, labels, classes)
    if classes + 1 >= features.shape[1]:
        return ClassMoments.from_features(features, labels, classes)
    labels = labels.long().to(features.device)
    counts = torch.bincount(labels, minlength=classes)
    present = counts.clamp(min=1)[:, None]
    means = sums_by_class(features, labels, classes) / present
    common = means.mean(0)
    rounded, basis = means.to(work_type(features)), torch.linalg.qr((means - common).T)[0]
    wide: dict[str, Any] = {"dtype": torch.float64, "device": features.device}
    scatter = torch.zeros(classes + 1, classes + 1, **wide)
    along, lengths = torch.zeros(classes, classes, **wide), torch.zeros(classes, 1, **wide)  # squares, by class
    for rows, which in chunks(features, labels):
        centered = rows - rounded[which]
        seen = centered @ basis.to(rounded.dtype)
        scatter[:classes, :classes] += seen.T @ seen
        along.index_add_(0, which, seen.double().square())
        lengths.index_add_(0, which, torch.linalg.vecdot(centered, centered).double()[:, None])
    missed = (lengths - along.sum(1, keepdim=True)).clamp(min=0)
    scatter[-1, -1] = missed.sum()
    seats = torch.cat([(means - common) @ basis, torch.linalg.vector_norm(common).expand(classes, 1)], 1)
    nothing = torch.full((classes + 1,), torch.nan, dtype=torch.float64, device=features.device)
    return ClassMoments(counts, seats, scatter, torch.cat([along, missed], 1) / present, nothing, nothing[0])
