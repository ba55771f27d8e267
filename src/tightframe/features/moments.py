"""``ClassMoments``: the one small statistic from which almost every measure is read.

Counts, means and scatter of features by class form a commutative monoid: ``zero`` is its identity, ``merge`` its
operation and ``update`` a merge with one batch. Batches, processes, machines and cross-validation folds are
therefore one operation, exact in whichever order they come.

Numerics. Collapsed features have a within-class scatter many orders below their means, so the textbook
``Σ h hᵀ − n μ μᵀ`` cancels. Here every batch is centred on its own class means first, and batches are joined by the
parallel-axis identity (Chan, Golub, LeVeque 1979). Centring a float32 batch in float64 is exact to 1e-16 of the
feature, and the products are float64 too: float32 products stop at a relative error of about 1e-7, whatever they are
summed in, and the promise here is 1e-9.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tightframe.errors import MeasureError, SavedError
from tightframe.files import write_tensors

CHUNK = 4096
"""Rows that ``from_features`` centres at a time: large enough for a fast product, small enough for the cache."""

FORMAT = "tightframe.ClassMoments/1"


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues (d,), ascending and not negative, and eigenvectors (d, d), in columns, of a covariance."""

    values: Float64[Tensor, " d"]
    vectors: Float64[Tensor, "d d"]
    cutoff: float
    """Eigenvalues at or below it count as zero; there are at most N − 1 above it, by construction."""

    @property
    def kept(self) -> Tensor:
        """Mask (d,) of the directions in which there is variance at all."""
        return self.values > self.cutoff


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """First and second moments of features by class, in float64 (METHOD: Σ_W = scatter / N).

    Attributes:
        counts: samples per class, shape (K,).
        means: class means, shape (K, d); a row of zeros for a class with no samples.
        scatter: sum over all samples of (h − μ_k)(h − μ_k)ᵀ, shape (d, d).
        class_variances: trace of each class's covariance, mean of ‖h − μ_k‖², shape (K,).
    """

    counts: Int64[Tensor, " k"]
    means: Float64[Tensor, "k d"]
    scatter: Float64[Tensor, "d d"]
    class_variances: Float64[Tensor, " k"]

    @classmethod
    def zero(cls, classes: int, dimension: int, device: torch.device | str = "cpu") -> ClassMoments:
        """No samples yet, of ``classes`` classes (K) and features of ``dimension`` values (d)."""
        wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        return cls(
            torch.zeros(classes, dtype=torch.int64, device=device),
            torch.zeros(classes, dimension, **wide),
            torch.zeros(dimension, dimension, **wide),
            torch.zeros(classes, **wide),
        )

    @classmethod
    def from_features(cls, features: Any, labels: Any, classes: int) -> ClassMoments:
        """Moments of features (n, d) with integer labels (n,) in 0 … classes − 1; arrays or tensors."""
        features, labels = as_tensor(features), as_tensor(labels)
        check_samples(features, labels, classes)
        moments = cls.zero(classes, features.shape[1], features.device)
        for start in range(0, len(features), CHUNK):
            moments = moments.update(features[start : start + CHUNK], labels[start : start + CHUNK])
        return moments

    def update(self, features: Any, labels: Any) -> ClassMoments:
        """These moments and one more batch: features (n, d), labels (n,). Returns a new object.

        Raises:
            MeasureError: a shape or label does not fit, or a feature is NaN or infinite.
        """
        features = as_tensor(features, device=self.means.device)
        labels = as_tensor(labels, device=self.means.device)
        check_samples(features, labels, self.classes, self.dimension)
        labels, features = labels.long(), features.double()
        counts = torch.bincount(labels, minlength=self.classes)
        sums = torch.zeros_like(self.means).index_add_(0, labels, features)
        means = sums / counts.clamp(min=1)[:, None]
        centred = features - means[labels]
        squares = torch.zeros_like(self.class_variances).index_add_(0, labels, centred.square().sum(1))
        batch = ClassMoments(counts, means, centred.T @ centred, squares / counts.clamp(min=1))
        return self.merge(batch)

    def merge(self, other: ClassMoments) -> ClassMoments:
        """Moments of both sets of samples. Returns a new object that shares no memory with either."""
        if self.means.shape != other.means.shape:
            raise MeasureError(
                f"moments of {self.classes} classes × {self.dimension} values can't be merged with "
                f"{other.classes} × {other.dimension}: merge moments of the same layer and the same classes"
            )
        counts = self.counts + other.counts
        share = other.counts.double() / counts.clamp(min=1)  # how far the mean moves from ours to theirs
        gap = other.means - self.means
        between = self.counts * share  # n₁n₂ / (n₁ + n₂): zero unless both have samples of the class
        both = between > 0
        shift = gap[both] * between[both].sqrt()[:, None]
        return ClassMoments(
            counts,
            torch.where((self.counts == 0)[:, None], other.means, self.means + gap * share[:, None]),
            self.scatter + other.scatter + shift.T @ shift,
            self.class_variances * (1 - share)
            + other.class_variances * share
            + gap.square().sum(1) * between / counts.clamp(min=1),
        )

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
    def global_mean(self) -> Float64[Tensor, " d"]:
        """Mean of all samples, μ_G."""
        return (self.counts.double() @ self.means) / max(self.samples, 1)

    @property
    def balanced(self) -> bool:
        """Whether every class has the same number of samples."""
        return bool((self.counts == self.counts[0]).all())

    @cached_property
    def spectrum(self) -> Spectrum:
        """Eigendecomposition of the total covariance, factored once and read by probes and scores alike."""
        return self.spectrum_with(self.between(weighting="sample"))

    def between(self, weighting: str) -> Float64[Tensor, "d k"]:
        """Matrix A with A Aᵀ = Σ_B: centred class means in columns, scaled by the root of their weight.

        ``weighting="class"``: every class counts the same and the centre is the mean of the class means;
        ``"sample"``: classes count by their samples, the centre is μ_G, and Σ_W + Σ_B is the total covariance.
        """
        if weighting == "class":
            return (self.means - self.means.mean(0)).T / self.classes**0.5
        if weighting == "sample":
            return (self.means - self.global_mean).T * (self.counts.double() / self.samples).sqrt()
        raise MeasureError(f'no weighting "{weighting}"; choose "class" or "sample"')

    def spectrum_with(self, between: Float64[Tensor, "d k"]) -> Spectrum:
        """Eigendecomposition of Σ_W + A Aᵀ for the between-class factor A given."""
        values, vectors = torch.linalg.eigh(self.scatter / self.samples + between @ between.T)
        values = values.clamp(min=0)
        values[: max(0, self.dimension - (self.samples - 1))] = 0  # rank ≤ N − 1, whatever rounding says
        cutoff = float(values[-1]) * self.dimension * torch.finfo(torch.float64).eps
        return Spectrum(values, vectors, cutoff)

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


FIELDS = ("counts", "means", "scatter", "class_variances")


def check_samples(features: Tensor, labels: Tensor, classes: int, dimension: int | None = None) -> None:
    """Raise ``MeasureError`` unless features (n, d) are finite and labels (n,) are integers 0 … classes − 1."""
    if features.ndim != 2 or dimension not in (None, features.shape[1]):
        expected = f"(samples, {'dimension' if dimension is None else dimension})"
        raise MeasureError(f"features have shape {tuple(features.shape)}; expected {expected}")
    if labels.shape != features.shape[:1]:
        raise MeasureError(f"{len(features)} features need as many labels; labels have shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise MeasureError(f"labels must be integers from 0 to {classes - 1}, not {labels.dtype}")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise MeasureError(f"labels run from {found}; with {classes} classes they must be 0 to {classes - 1}")
    broken = ~torch.isfinite(features).all(1)
    if broken.any():
        first = int(broken.nonzero()[0])
        raise MeasureError(
            f"{int(broken.sum())} of {len(features)} feature rows hold NaN or infinity (first: row {first}); "
            "the network overflowed there: try precision float32, or leave those pictures out"
        )


def _flaw(counts: Tensor, means: Tensor, scatter: Tensor, class_variances: Tensor) -> str:
    """Why these tensors can't be moments; empty if they can."""
    wide = (means, scatter, class_variances)
    if counts.dtype != torch.int64 or any(tensor.dtype != torch.float64 for tensor in wide):
        return "counts must be int64, the rest float64"
    classes, dimension = counts.numel(), scatter.shape[-1] if scatter.ndim else 0
    shapes = [tuple(tensor.shape) for tensor in (counts, *wide)]
    if shapes != [(classes,), (classes, dimension), (dimension, dimension), (classes,)]:
        return f"shapes {shapes} do not belong together"
    if not all(bool(torch.isfinite(tensor).all()) for tensor in wide):
        return "NaN or infinite values"
    if bool((counts < 0).any()) or bool((class_variances < 0).any()):
        return "negative counts or variances"
    return ""


def as_tensor(values: Any, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """``values`` (tensor, array or sequence) as a tensor, without a copy where that is safe."""
    if not isinstance(values, Tensor):
        values = np.asarray(values)
        if not values.flags.writeable or min(values.strides, default=0) < 0:
            values = values.copy()
    return torch.as_tensor(values, dtype=dtype, device=device)
