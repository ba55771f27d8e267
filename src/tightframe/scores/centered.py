"""Labeled features around their mean, a chunk at a time: what scores that need every sample are computed from.

Chunks are centerd, then multiplied, in float64. Single precision would halve the time of a product, but what scores
read off it (determinants, inverses) is decided by its smallest eigenvalues, which single precision loses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int64, Num
from scipy.linalg import eigh
from scipy.linalg.blas import dsyrk
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import as_tensor, check_samples

CHUNK_BYTES = 2**24
"""Size of the rows held in float64 at a time: small enough for memory to be reused from one chunk to the next."""
ROUNDING = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class CenterdFeatures:
    """Features of several classes, read around their mean. The features given are neither copied nor modified."""

    features: Num[Tensor, "n d"]
    labels: Int64[Tensor, " n"]
    counts: Int64[Tensor, " k"]
    mean: Float64[Tensor, " d"]

    @classmethod
    def of(cls, features: Any, labels: Any, classes: int) -> CenterdFeatures:
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
        for rows in features.split(chunk_of(features.shape[1])):
            total += rows.double().sum(0)
        return cls(features, labels, counts, total / len(features))

    @property
    def classes(self) -> int:
        """Number of classes, K."""
        return len(self.counts)

    @property
    def dimension(self) -> int:
        """Number of values in a feature, d."""
        return self.features.shape[1]

    @property
    def samples(self) -> int:
        """Number of samples, n."""
        return len(self.features)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Centerd rows (m, d) with their labels (m,), in the order in which they came."""
        size = chunk_of(self.dimension)
        for rows, labels in zip(self.features.split(size), self.labels.split(size), strict=True):
            yield rows.double() - self.mean, labels

    def by_class(self) -> Iterator[Iterator[Tensor]]:
        """For every class its centerd rows, in chunks."""
        for members in self.members():
            yield (self.features[index].double() - self.mean for index in members.split(chunk_of(self.dimension)))

    def members(self) -> tuple[Tensor, ...]:
        """For every class which samples it has."""
        return torch.argsort(self.labels, stable=True).split(self.counts.tolist())

    def all_rows(self) -> Float64[Tensor, "n d"]:
        """All rows at once: for fewer samples than dimensions."""
        return self.features.double() - self.mean


def chunk_of(dimension: int) -> int:
    """How many rows of ``dimension`` values to take at a time."""
    return max(1, CHUNK_BYTES // (8 * dimension))


def _check_classes(counts: Tensor) -> None:
    if len(counts) < 2:
        raise MeasureError(f"{len(counts)} class given; scores compare classes, so at least two are needed")
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise MeasureError(f"no samples for class {', '.join(map(str, empty))}; leave empty classes out of the labels")
    if int(counts.max()) == 1:
        raise MeasureError("one sample a class: there is no spread within classes to measure; give two or more")


def gram(chunks: Iterable[Float64[Tensor, "_ d"]], dimension: int) -> Float64[Tensor, "d d"]:
    """Sum of XᵀX over chunks X of ``dimension`` columns."""
    total: Tensor | None = None
    for rows in chunks:
        total = rows.new_zeros(dimension, dimension) if total is None else total
        _add_square(total, rows)
    if total is None:
        raise MeasureError("no samples to measure; give some")
    return total.tril() + total.tril(-1).T


def _add_square(total: Float64[Tensor, "d d"], rows: Float64[Tensor, "_ d"]) -> None:
    """Add XᵀX to what lies on and below the diagonal of ``total``: on a processor, half the work of a product."""
    if rows.is_cpu:
        dsyrk(1.0, rows.numpy().T, beta=1.0, c=total.numpy().T, overwrite_c=1)  # transposed: columns first, in place
    else:
        total.addmm_(rows.T, rows)


class Components(NamedTuple):
    """Principal components: projections (n, r) and their variances (r,), falling, with divisor n − 1."""

    scores: Float64[Tensor, "n r"]
    variances: Float64[Tensor, " r"]


def principal_components(
    samples: CenterdFeatures, at_most: int | None = None, energy: float | None = None
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
    wide = samples.samples < samples.dimension
    if wide:
        rows = samples.all_rows()
        product = rows @ rows.T
    else:
        product = gram((rows for rows, _ in samples.chunks()), samples.dimension)
    values, vectors = leading(product, len(product) if at_most is None else min(at_most, len(product)))
    keep = _rank(values, samples)
    if energy is not None:
        keep = min(keep, int((values.cumsum(0) <= energy * product.trace()).sum()) + 1)
    values, vectors = values[:keep], vectors[:, :keep]
    scores = vectors * values.sqrt() if wide else torch.cat([rows @ vectors for rows, _ in samples.chunks()])
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


def _rank(values: Tensor, samples: CenterdFeatures) -> int:
    """How many eigenvalues, falling, of the Gram matrix stand out from rounding of products and of centering."""
    products = float(values[0]) * max(samples.samples, samples.dimension) * ROUNDING
    centering = samples.samples * (4 * ROUNDING * float(samples.mean.norm())) ** 2
    return min(int((values > max(products, centering)).sum()), samples.samples - 1)
