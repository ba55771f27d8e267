"""``ClassMoments``: the one small statistic from which almost every measure is read.

Counts, means and scatter of features by class form a commutative monoid: ``zero`` is its identity, ``merge`` its
operation and ``update`` a merge with one batch. Batches, processes, machines and cross-validation folds are
therefore one operation, exact in whichever order they come.

Numerics. Collapsed features have a within-class scatter many orders below their means, so the textbook
``Σ h hᵀ − n μ μᵀ`` cancels. Here every batch is centered on its own class means first, and batches are joined by the
parallel-axis identity (Chan, Golub, LeVeque 1979). Products of centered features are made in the precision in which
the features came (half precision in float32, features of few values in float64), sums in float64: wide float32
features give a scatter right to about 1e-7 of the deviations that it multiplies, others to 1e-15, wherever their origin
lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tightframe.errors import MeasureError, SavedError
from tightframe.features.samples import as_tensor, check_samples
from tightframe.files import write_tensors

Weighting = Literal["class", "sample"]
CHUNK = 2048
"""Rows that are centered at a time, at most; and no more than take ``CHUNK_BYTES`` in float32."""
CHUNK_BYTES = 2**22
WIDENED = 256
"""Rows of which there are copies in float64, at most: they stay in the processor's cache."""
NARROW = 256
"""Values up to which products are always float64, at little cost: features of first blocks and of untrained models
can vary a thousand times more in one direction than in another, which float32 products would blur."""
LEAST_SQUARE = 1e-25
"""Mean square below which products are made again in float64: of constant features, too, at no harm."""
STRIPE = 256
"""Columns of the scatter made by one product: the half above the diagonal is left out, stripe by stripe."""

FORMAT = "tightframe.ClassMoments/2"


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Moments of features by class, in float64 (METHOD: Σ_W = scatter / N).

    Attributes:
        counts: samples per class, shape (K,).
        means: class means, shape (K, d); a row of zeros for a class with no samples.
        scatter: sum over all samples of (h − μ_k)(h − μ_k)ᵀ, shape (d, d).
        variances: variance of each value within each class, mean of (h − μ_k)², shape (K, d).
        third: sum over all samples of ‖h − μ_G‖² (h − μ_G), shape (d,). It only serves to merge ``fourth``.
        fourth: sum over all samples of ‖h − μ_G‖⁴, shape (); what Ledoit–Wolf shrinkage needs.
    """

    counts: Int64[Tensor, " k"]
    means: Float64[Tensor, "k d"]
    scatter: Float64[Tensor, "d d"]
    variances: Float64[Tensor, "k d"]
    third: Float64[Tensor, " d"]
    fourth: Float64[Tensor, ""]

    @classmethod
    def zero(cls, classes: int, dimension: int, device: torch.device | str = "cpu") -> ClassMoments:
        """No samples yet, of ``classes`` classes (K) and features of ``dimension`` values (d)."""
        wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        return cls(
            torch.zeros(classes, dtype=torch.int64, device=device),
            torch.zeros(classes, dimension, **wide),
            torch.zeros(dimension, dimension, **wide),
            torch.zeros(classes, dimension, **wide),
            torch.zeros(dimension, **wide),
            torch.zeros((), **wide),
        )

    @classmethod
    def from_features(cls, features: Any, labels: Any, classes: int, *, rows: Tensor | None = None) -> ClassMoments:
        """Moments of features (n, d) with integer labels (n,) in 0 … classes − 1; arrays or tensors.

        With ``rows``, indices (m,), of these samples only, which are never copied all at once.

        Raises:
            MeasureError: a shape or label does not fit, or a feature is NaN or infinite.
        """
        features, labels = as_tensor(features), as_tensor(labels)
        if rows is None:
            check_samples(features, labels, classes)
        return _Batch(features, labels.long().to(features.device), classes, rows).moments()

    def update(self, features: Any, labels: Any) -> ClassMoments:
        """These moments and one more batch: features (n, d), labels (n,). Returns a new object.

        A batch costs a product with itself and, however small it is, a sum over d × d numbers: give a few thousand
        samples at a time. Raises as ``from_features``.
        """
        features = as_tensor(features, device=self.means.device)
        labels = as_tensor(labels, device=self.means.device)
        check_samples(features, labels, self.classes, self.dimension)
        batch = _Batch(features, labels.long(), self.classes)
        return self._joined(batch.moments(), batch.dtype)

    def merge(self, other: ClassMoments) -> ClassMoments:
        """Moments of both sets of samples. Returns a new object that shares no memory with either."""
        if self.means.shape != other.means.shape:
            raise MeasureError(
                f"moments of {self.classes} classes × {self.dimension} values can't be merged with "
                f"{other.classes} × {other.dimension}: merge moments of the same layer and the same classes"
            )
        return self._joined(other, torch.float64)

    def _joined(self, other: ClassMoments, dtype: torch.dtype) -> ClassMoments:
        """Merge, the product of differences between class means being made in ``dtype``."""
        counts = self.counts + other.counts
        share = (other.counts.double() / counts.clamp(min=1))[:, None]  # how far the mean moves from ours to theirs
        gap = other.means - self.means
        between = self.counts[:, None] * share  # n₁n₂ / (n₁ + n₂): zero unless both have samples of the class
        both = between[:, 0] > 0
        shift = (gap[both] * between[both].sqrt()).to(dtype)
        scatter = self.scatter + other.scatter
        add_gram(scatter, shift)
        means = torch.where((self.counts == 0)[:, None], other.means, self.means + gap * share)
        moved = gap.square() * between / counts.clamp(min=1)[:, None]
        variances = self.variances * (1 - share) + other.variances * share + moved
        center = (counts.double() @ means) / counts.sum().clamp(min=1)
        (third, fourth), (more_third, more_fourth) = self._tails_around(center), other._tails_around(center)
        return ClassMoments(counts, means, mirrored(scatter), variances, third + more_third, fourth + more_fourth)

    def _tails_around(self, center: Float64[Tensor, " d"]) -> tuple[Tensor, Tensor]:
        """``third`` and ``fourth`` with ``center`` in place of μ_G: binomials, of which the first order vanishes."""
        if not self.samples:
            return torch.zeros_like(self.third), torch.zeros_like(self.fourth)
        shift = self.global_mean - center
        length, trace = shift @ shift, self.total_trace
        along = self.scatter @ shift + self._means_around_global.T @ (self.counts * (self._means_around_global @ shift))
        third = self.third + 2 * along + shift * (trace + self.samples * length)
        quadratic = 4 * (shift @ along) + 2 * length * trace
        return third, self.fourth + 4 * (shift @ self.third) + quadratic + self.samples * length.square()

    @property
    def classes(self) -> int:
        """Number of classes, K, those without samples included."""
        return self.means.shape[0]

    @property
    def dimension(self) -> int:
        """Number of values in a feature, d."""
        return self.means.shape[1]

    @property
    def samples(self) -> int:
        """Number of samples, N."""
        return int(self.counts.sum())

    @property
    def class_variances(self) -> Float64[Tensor, " k"]:
        """Trace of each class's covariance, mean of ‖h − μ_k‖²."""
        return self.variances.sum(1)

    @property
    def global_mean(self) -> Float64[Tensor, " d"]:
        """Mean of all samples, μ_G."""
        return (self.counts.double() @ self.means) / max(self.samples, 1)

    @property
    def total_trace(self) -> Float64[Tensor, ""]:
        """Sum over all samples of ‖h − μ_G‖²."""
        return self.scatter.trace() + (self.counts * self._means_around_global.square().sum(1)).sum()

    @property
    def balanced(self) -> bool:
        """Whether every class has the same number of samples."""
        return bool((self.counts == self.counts[0]).all())

    @property
    def _means_around_global(self) -> Tensor:
        return self.means - self.global_mean

    def between(self, weighting: str) -> Float64[Tensor, "d k"]:
        """Matrix A with A Aᵀ = Σ_B: centered class means in columns, scaled by the root of their weight.

        ``weighting="class"``: every class counts the same and the center is the mean of the class means;
        ``"sample"``: classes count by their samples, the center is μ_G, and Σ_W + Σ_B is the total covariance.
        """
        if weighting == "class":
            return (self.means - self.means.mean(0)).T / self.classes**0.5
        if weighting == "sample":
            return self._means_around_global.T * (self.counts.double() / self.samples).sqrt()
        raise MeasureError(f'no weighting "{weighting}"; choose "class" or "sample"')

    def save(self, path: Path | str) -> None:
        """Write to one safetensors file."""
        write_tensors(Path(path), {name: getattr(self, name) for name in FIELDS}, {"format": FORMAT})

    @classmethod
    def load(cls, path: Path | str) -> ClassMoments:
        """Read what ``save`` wrote. Raises ``SavedError`` for any other file."""
        try:
            with safe_open(str(path), "pt") as file:
                if (file.metadata() or {}).get("format") != FORMAT:
                    raise SavedError(f"{path} holds no class moments; write one with ClassMoments.save")
                tensors = {name: file.get_tensor(name) for name in FIELDS}
        except (SafetensorError, OSError) as error:
            raise SavedError(f"{path} can't be read as class moments ({error})") from error
        flaw = _flaw(**tensors)
        if flaw:
            raise SavedError(f"{path} holds no class moments: {flaw}; write one with ClassMoments.save")
        return cls(**tensors)


FIELDS = ("counts", "means", "scatter", "variances", "third", "fourth")


class _Batch:
    """One batch of features on its way to moments, read twice: for its means, then around them.

    Means are sums in float64. Centering subtracts them as rounded to the precision of the features, which is exact
    wherever features are far from zero; what rounding left out is made up for at the end.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int, rows: Tensor | None = None):
        self.dtype = work_type(features)
        self.features, self.labels, self.classes, self.rows = features, labels, classes, rows
        self.counts = torch.bincount(labels if rows is None else labels[rows], minlength=classes)
        self.device = features.device

    def moments(self) -> ClassMoments:
        wide: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        dimension, present = self.features.shape[1], self.counts.clamp(min=1)[:, None]
        means = sums_by_class(self.features, self.labels, self.classes, self.rows) / present
        centers = means.to(self.dtype)
        scatter = torch.zeros(dimension, dimension, **wide)
        squares = torch.zeros(self.classes, dimension, **wide)
        third, fourth = torch.zeros(dimension, **wide), torch.zeros((), **wide)
        center = ((self.counts.double() @ means) / self.counts.sum().clamp(min=1)).to(self.dtype)
        room: Tensor | None = None  # one chunk's worth, taken once: fresh memory costs more than the arithmetic in it
        for rows, labels in chunks(self.features, self.labels, self.rows):
            room = torch.empty_like(rows) if room is None else room
            centered = torch.sub(rows, center, out=room[: len(rows)])
            lengths = torch.linalg.vecdot(centered, centered)
            third += lengths @ centered
            fourth += lengths.double().square().sum()
            torch.index_select(centers, 0, labels, out=centered)
            add_gram(scatter, torch.sub(rows, centered, out=centered))
            _add_by_class(squares, centered.square_(), labels)
        rest = means - centers.double()
        add_gram(scatter, (rest * present.sqrt()).to(self.dtype), -1)
        variances = (squares / present - rest.square()).clamp(min=0)
        found = ClassMoments(self.counts, means, mirrored(scatter), variances, third, fourth)
        if self.dtype != torch.float64 and not _within_single(found):
            return _Batch(self.features.double(), self.labels, self.classes, self.rows).moments()
        return found


def _within_single(moments: ClassMoments) -> bool:
    """Whether sums of squares neither left the range of float32 nor sank to its smallest numbers."""
    usual = float(moments.scatter.trace()) / max(moments.samples * moments.dimension, 1)
    whole = bool(torch.isfinite(moments.fourth)) and bool(torch.isfinite(moments.third).all())
    return whole and bool(torch.isfinite(moments.scatter.sum())) and usual > LEAST_SQUARE


def work_type(features: Tensor) -> torch.dtype:
    """In which centered features are multiplied: float64, and wide half or single precision in float32."""
    half_or_single = features.dtype in (torch.float16, torch.bfloat16, torch.float32)
    return torch.float32 if half_or_single and features.shape[1] > NARROW else torch.float64


def chunks(
    features: Shaped[Tensor, "n d"], labels: Int64[Tensor, " n"], rows: Int64[Tensor, " m"] | None = None
) -> Iterator[tuple[Float[Tensor, "b d"], Int64[Tensor, " b"]]]:
    """Features and labels a few megabytes at a time, features in their ``work_type``: all, or those of some rows."""
    size = max(1, min(CHUNK, CHUNK_BYTES // (4 * max(features.shape[1], 1))))
    for start in range(0, len(features if rows is None else rows), size):
        at: Any = slice(start, start + size) if rows is None else rows[start : start + size]
        yield features[at].to(work_type(features)), labels[at]


def sums_by_class(
    features: Shaped[Tensor, "n d"], labels: Int64[Tensor, " n"], classes: int, some: Int64[Tensor, " m"] | None = None
) -> Float64[Tensor, "k d"]:
    """Sum of the features of each class; with ``some``, of these rows only."""
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    for rows, which in chunks(features, labels, some):
        _add_widened(sums, rows, which)
    return sums


def _add_widened(total: Float64[Tensor, "k d"], rows: Shaped[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> None:
    for part, own in zip(rows.split(WIDENED), labels.split(WIDENED), strict=True):
        total.index_add_(0, own, part.double())


def _add_by_class(total: Float64[Tensor, "k d"], rows: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> None:
    """Add each row to that of its class; few classes are summed in the precision of the rows first."""
    if 2 * len(total) > len(rows):
        _add_widened(total, rows, labels)
    else:
        total += torch.zeros_like(rows[: len(total)]).index_add_(0, labels, rows)


def add_gram(total: Float64[Tensor, "d d"], rows: Shaped[Tensor, "n d"], sign: int = 1) -> Float64[Tensor, "d d"]:
    """``total`` with ± rowsᵀ rows added in place, on and below its diagonal stripes only: see ``mirrored``."""
    for start in range(0, rows.shape[1], STRIPE):
        stop = start + STRIPE
        total[start:, start:stop].add_(rows[:, start:].T @ rows[:, start:stop], alpha=sign)
    return total


def mirrored(total: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """``total`` with what stands below its diagonal stripes copied to above them, in place."""
    for start in range(0, len(total), STRIPE):
        stop = start + STRIPE
        total[start:stop, stop:] = total[stop:, start:stop].T
    return total


def _flaw(counts: Tensor, **wide: Tensor) -> str:
    """Why these tensors can't be moments; empty if they can."""
    if counts.dtype != torch.int64 or any(tensor.dtype != torch.float64 for tensor in wide.values()):
        return "counts must be int64, the rest float64"
    classes, dimension = counts.numel(), wide["scatter"].shape[-1] if wide["scatter"].ndim else 0
    shapes = [tuple(tensor.shape) for tensor in (counts, *wide.values())]
    table = (classes, dimension)
    if shapes != [(classes,), table, (dimension, dimension), table, (dimension,), ()]:
        return f"shapes {shapes} do not belong together"
    if not all(bool(torch.isfinite(tensor).all()) for tensor in wide.values()):
        return "NaN or infinite values"
    if bool((counts < 0).any()) or bool((wide["variances"] < 0).any()) or bool(wide["fourth"] < 0):
        return "negative counts or variances"
    return ""
