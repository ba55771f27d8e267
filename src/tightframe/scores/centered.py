"""Labeled features around their mean, in float64: what scores that need every sample are computed from.

Single precision would halve the time of a product, but what scores read off it (determinants, inverses) is decided by
its smallest eigenvalues, which single precision loses. Features are converted a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int64, Num
from scipy.linalg import eigh
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import add_gram, mirrored
from tightframe.features.samples import as_tensor, check_samples
from tightframe.metrics.factors import EPS

CHUNK_BYTES = 2**25
"""Size of the rows held in float64 at a time."""


@dataclass(frozen=True, eq=False)
class CenteredFeatures:
    """Features of several classes, read around their mean. The features given are neither copied nor modified."""

    features: Num[Tensor, "n d"]
    labels: Int64[Tensor, " n"]
    counts: Int64[Tensor, " k"]
    mean: Float64[Tensor, " d"]

    @classmethod
    def of(cls, features: Any, labels: Any, classes: int) -> CenteredFeatures:
        """Take features (n, d) with labels (n,), arrays or tensors of any precision.

        Raises:
            MeasureError: a shape or label does not fit, a feature is NaN or infinite, there are fewer than two
                classes, one has no samples, or none has two.
        """
        features, labels = as_tensor(features), as_tensor(labels)
        check_samples(features, labels, classes)
        if features.shape[1] == 0:
            raise MeasureError("features have no values (shape (n, 0)); give features of at least one dimension")
        labels = labels.long().to(features.device)
        counts = torch.bincount(labels, minlength=classes)
        _check_classes(counts)
        total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
        for rows in features.split(_chunk(features)):
            total += rows.double().sum(0)
        return cls(features, labels, counts, total / len(features))

    @property
    def dimension(self) -> int:
        """Number of values in a feature, d."""
        return self.features.shape[1]

    @property
    def samples(self) -> int:
        """Number of samples, n."""
        return len(self.features)

    def chunks(self) -> Iterator[tuple[Float64[Tensor, "m d"], Int64[Tensor, " m"]]]:
        """Centered rows with their labels, in the order in which they came."""
        size = _chunk(self.features)
        for rows, labels in zip(self.features.split(size), self.labels.split(size), strict=True):
            yield rows.double() - self.mean, labels

    def members(self) -> tuple[Int64[Tensor, " m"], ...]:
        """For every class which samples it has."""
        return torch.argsort(self.labels, stable=True).split(self.counts.tolist())

    def rows(self, chosen: Int64[Tensor, " m"] | slice = slice(None)) -> Float64[Tensor, "m d"]:
        """Centered rows of some samples at once: for fewer of them than dimensions."""
        return self.features[chosen].double() - self.mean

    def gram(self, chosen: Int64[Tensor, " m"] | None = None) -> Float64[Tensor, "r r"]:
        """The smaller one of RRᵀ and RᵀR, R being the centered rows of these samples (all of them if not given)."""
        features = self.features if chosen is None else self.features[chosen]
        if len(features) < self.dimension:
            rows = features.double() - self.mean
            return rows @ rows.T
        total = torch.zeros(self.dimension, self.dimension, dtype=torch.float64, device=features.device)
        for rows in features.split(_chunk(features)):
            add_gram(total, rows.double() - self.mean)
        return mirrored(total)


def _chunk(features: Tensor) -> int:
    """How many rows to take at a time."""
    return max(1, CHUNK_BYTES // (8 * features.shape[1]))


def _check_classes(counts: Tensor) -> None:
    if len(counts) < 2:
        raise MeasureError(f"{len(counts)} class given; scores compare classes, so at least two are needed")
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise MeasureError(f"no samples for class {', '.join(map(str, empty))}; leave empty classes out of the labels")
    if int(counts.max()) == 1:
        raise MeasureError("one sample a class: there is no spread within classes to measure; give two or more")


class Components(NamedTuple):
    """Principal components: projections (n, r) and their variances (r,), falling, with divisor n − 1."""

    scores: Float64[Tensor, "n r"]
    variances: Float64[Tensor, " r"]


def principal_components(
    samples: CenteredFeatures, at_most: int | None = None, energy: float | None = None
) -> Components:
    """The leading principal components, exactly, through the smaller of the two Gram matrices.

    Directions that hold nothing but rounding are left out, so there can be fewer components than asked for, and none
    for constant features. Of the two signs of a component, the projection farthest from 0 is positive: signs depend
    neither on the order of samples nor on how features are rotated.

    Args:
        samples: of which to take the components.
        at_most: how many to keep.
        energy: keep as many as explain more than this share of the variance.
    """
    product = samples.gram()
    values, vectors = leading(product, len(product) if at_most is None else min(at_most, len(product)))
    keep = _rank(values, samples)
    if energy is not None:
        keep = min(keep, int((values.cumsum(0) <= energy * product.trace()).sum()) + 1)
    values, vectors = values[:keep], vectors[:, :keep]
    if samples.samples < samples.dimension:
        scores = vectors * values.sqrt()
    else:
        scores = torch.cat([rows @ vectors for rows, _ in samples.chunks()])
    if keep:
        scores = scores * scores.gather(0, scores.abs().argmax(0)[None]).sign()
    return Components(scores, values / (samples.samples - 1))


def leading(matrix: Float64[Tensor, "d d"], count: int) -> tuple[Float64[Tensor, " c"], Float64[Tensor, "d c"]]:
    """The largest eigenvalues of a covariance, falling and not negative, and their eigenvectors in columns.

    By SciPy, which finds some of them without the rest, and on two threads is many times faster than PyTorch.
    """
    size = len(matrix)
    values, vectors = eigh(matrix.cpu().numpy(), subset_by_index=[size - count, size - 1])
    found = torch.from_numpy(values).flip(0).clamp(min=0), torch.from_numpy(vectors).flip(1)
    return found[0].to(matrix.device), found[1].to(matrix.device)


def _rank(values: Tensor, samples: CenteredFeatures) -> int:
    """How many eigenvalues, falling, of the Gram matrix stand out from rounding of products and of centering."""
    products = float(values[0]) * max(samples.samples, samples.dimension) * EPS
    centering = samples.samples * (4 * EPS * float(samples.mean.norm())) ** 2
    return min(int((values > max(products, centering)).sum()), samples.samples - 1)
