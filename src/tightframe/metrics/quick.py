"""NC1, CDNV and NC2 of features in memory, for less than a product of features with themselves.

They look at class means and at the spread along the at most K − 1 directions in which class means differ: projecting
on those takes 2 N d K operations where the whole scatter takes 2 N d².
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.features.moments import (
    ClassMoments,
    Weighting,
    as_tensor,
    check_samples,
    chunks,
    sums_by_class,
    work_type,
)
from tightframe.metrics.collapse import Head, cdnv, check_measurable, nc1, nc2_angle, nc2_etf, nc2_norm, nc3


def quick_collapse(
    features: Any, labels: Any, classes: int, weighting: Weighting = "class", head: Head | None = None
) -> dict[str, float]:
    """``nc1``, ``cdnv``, ``nc2_norm``, ``nc2_angle``, ``nc2_etf`` of features (n, d), labels (n,), ``nc3`` of a head.

    Equal to those of ``collapse_metrics`` up to rounding; raises as it does.
    """
    features, labels = as_tensor(features), as_tensor(labels)
    moments = moments_along_means(features, labels, classes)
    check_measurable(moments)
    aligned = {"nc3": nc3(_means_only(features, labels, moments.counts), head, weighting)} if head else {}
    return aligned | {
        "nc1": nc1(moments, weighting),
        "cdnv": cdnv(moments),
        "nc2_norm": nc2_norm(moments, weighting),
        "nc2_angle": nc2_angle(moments, weighting),
        "nc2_etf": nc2_etf(moments, weighting),
    }


def _means_only(features: Tensor, labels: Tensor, counts: Tensor) -> ClassMoments:
    """Moments that know class means alone, in all d dimensions: all that NC3 looks at."""
    means = sums_by_class(features, labels.long().to(features.device), len(counts)) / counts[:, None]
    nothing = torch.full((), torch.nan, dtype=means.dtype, device=means.device)
    unknown = nothing.expand(means.shape[1], means.shape[1])
    return ClassMoments(counts, means, unknown, nothing.expand(means.shape), unknown[0], nothing)


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
    seen = _Seen(*(torch.zeros(classes, width, **wide) for width in (classes, 1)))
    scatter = torch.zeros(classes + 1, classes + 1, **wide)
    for rows, which in chunks(features, labels):
        centerd = rows - rounded[which]
        along = centerd @ basis.to(rounded.dtype)
        scatter[:classes, :classes] += along.T @ along
        seen.along.index_add_(0, which, along.double().square())
        seen.length.index_add_(0, which, torch.linalg.vecdot(centerd, centerd).double()[:, None])
    missed = (seen.length - seen.along.sum(1, keepdim=True)).clamp(min=0)
    scatter[-1, -1] = missed.sum()
    seats = torch.cat([(means - common) @ basis, torch.linalg.vector_norm(common).expand(classes, 1)], 1)
    nothing = torch.full((classes + 1,), torch.nan, dtype=torch.float64, device=features.device)
    return ClassMoments(counts, seats, scatter, torch.cat([seen.along, missed], 1) / present, nothing, nothing[0])


class _Seen(NamedTuple):
    along: Float64[Tensor, "k k"]  # squared coordinates, summed by class
    length: Float64[Tensor, "k 1"]  # squared lengths, summed by class
