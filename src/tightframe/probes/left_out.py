"""Linear discriminants of images left out in turn, from one factorization.

Leaving an image out changes the scatter within classes by one direction, and one class mean: scores of all n images,
each by the discriminant of the others, are algebra (Sherman, Morrison 1950). The factorization has as many dimensions
as features have values or, if there are fewer, as there are images. A group of images that is left out together is as
many directions and class means at once (Woodbury 1950).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.nn import functional

from tightframe.errors import MeasureError
from tightframe.metrics.factors import symmetric_eigen


class Grouping(NamedTuple):
    """Labels (n,), images of each class (K,), the matrix (K, n) that takes class means, and what is left out together.

    ``together`` holds the indices of the images of each group of two or more.
    """

    labels: Int64[Tensor, " n"]
    counts: Float64[Tensor, " k"]
    averaging: Float64[Tensor, "k n"]
    together: tuple[Int64[Tensor, " _"], ...] = ()

    @classmethod
    def of(cls, labels: Tensor, classes: int, groups: np.ndarray | None = None) -> Grouping:
        """Of labels (n,) in 0 … classes − 1. Raises ``MeasureError`` unless two classes have images.

        Images of the same number, 0 … G − 1, in ``groups`` (n,) are left out together.
        """
        indicator = functional.one_hot(labels, classes).double()
        counts = indicator.sum(0)
        if int((counts > 0).sum()) < 2:
            raise MeasureError("a classifier needs images of two classes or more")
        together = () if groups is None else _together(groups)
        return cls(labels, counts, (indicator / counts.clamp(min=1)).T, together)

    @property
    def samples(self) -> int:
        """Number of images, n."""
        return len(self.labels)

    @property
    def gone(self) -> Bool[Tensor, "n k"]:
        """Whether a class has no images but in the group that an image is left out with."""
        mask = torch.zeros(self.samples, len(self.counts), dtype=torch.bool)
        for rows in self.together:
            taken = torch.bincount(self.labels[rows], minlength=len(self.counts))
            mask[rows] = (taken > 0) & (taken == self.counts)
        return mask


def _together(groups: np.ndarray) -> tuple[Tensor, ...]:
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    return tuple(torch.from_numpy(rows) for rows in members if len(rows) > 1)


class Products(NamedTuple):
    """What is needed of B = (S + λ I)⁻¹, for centered features x and class means μ.

    Attributes:
        own: xᵀ B x, (n,).
        cross: xᵀ B μ_k, (n, K).
        means: μ_jᵀ B μ_k, (K, K).
        freedom: tr B S.
        reading: B μ_k, (K, d), or with ``dual`` the weights (K, n) of the images in it.
        dual: see there.
    """

    own: Float64[Tensor, " n"]
    cross: Float64[Tensor, "n k"]
    means: Float64[Tensor, "k k"]
    freedom: float
    reading: Float64[Tensor, "k _"]
    dual: bool

    def weights(self, parts: list[Float64[Tensor, "n _"]]) -> list[Float64[Tensor, "k _"]]:
        """B μ_k, (K, d), for each of the features (n, d) that stand side by side."""
        if self.dual:
            return [self.reading @ part for part in parts]
        return list(self.reading.split([part.shape[1] for part in parts], 1))


class Narrow(NamedTuple):
    """Features with fewer values than there are images, in the eigenbasis of their scatter."""

    values: Float64[Tensor, "n d"]
    means: Float64[Tensor, "k d"]
    spectrum: Float64[Tensor, " d"]
    basis: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, values: Tensor, grouping: Grouping) -> Narrow:
        """Of centered features (n, d)."""
        means = grouping.averaging @ values
        around = values - means[grouping.labels]
        spectrum, basis = symmetric_eigen(around.T @ around)
        return cls(values @ basis, means @ basis, spectrum.clamp(min=0), basis)

    @property
    def trace(self) -> float:
        """Tr S."""
        return float(self.spectrum.sum())

    def at(self, ridge: float) -> Products:
        """Products with B at λ = ``ridge``, above 0."""
        inverse = 1 / (self.spectrum + ridge)
        scaled = self.means * inverse
        return Products(
            (self.values.square() * inverse).sum(1),
            self.values @ scaled.T,
            self.means @ scaled.T,
            float((self.spectrum * inverse).sum()),
            scaled @ self.basis.T,
            dual=False,
        )

    def among(self, rows: Int64[Tensor, " m"], ridge: float) -> Float64[Tensor, "m m"]:
        """xᵀ B y for all pairs of some images."""
        values = self.values[rows]
        return values / (self.spectrum + ridge) @ values.T


class Wide(NamedTuple):
    """Features with more values than there are images, known by their Gram matrix X Xᵀ.

    With P, which takes class means away, and P X Xᵀ P = U diag(s) Uᵀ, Woodbury's identity gives
    B = (I − Xᵀ P U diag(1 / (s + λ)) Uᵀ P X) / λ.
    """

    gram: Float64[Tensor, "n n"]
    spectrum: Float64[Tensor, " n"]
    vectors: Float64[Tensor, "n n"]
    turned: Float64[Tensor, "n n"]
    grouping: Grouping

    @classmethod
    def of(cls, gram: Tensor, grouping: Grouping) -> Wide:
        """Of the Gram matrix (n, n) of centered features."""
        around = _around(gram, grouping)  # X Xᵀ P
        both = around - (grouping.averaging @ around)[grouping.labels]
        spectrum, vectors = symmetric_eigen((both + both.T) / 2)
        return cls(gram.clone(), spectrum.clamp(min=0), vectors, around @ vectors, grouping)

    @property
    def trace(self) -> float:
        """Tr S."""
        return float(self.spectrum.sum())

    def at(self, ridge: float) -> Products:
        """Products with B at λ = ``ridge``, above 0."""
        averaging, inverse = self.grouping.averaging, 1 / (self.spectrum + ridge)
        averaged = averaging @ self.turned
        scaled = averaged * inverse
        reading = averaging - _around(scaled @ self.vectors.T, self.grouping)
        by_mean = self.gram @ averaging.T
        return Products(
            (self.gram.diagonal() - (self.turned.square() * inverse).sum(1)) / ridge,
            (by_mean - self.turned @ scaled.T) / ridge,
            (averaging @ by_mean - averaged @ scaled.T) / ridge,
            float((self.spectrum * inverse).sum()),
            reading / ridge,
            dual=True,
        )

    def among(self, rows: Int64[Tensor, " m"], ridge: float) -> Float64[Tensor, "m m"]:
        """xᵀ B y for all pairs of some images."""
        turned = self.turned[rows]
        return (self.gram[rows][:, rows] - turned / (self.spectrum + ridge) @ turned.T) / ridge


def _around(rows: Float64[Tensor, "m n"], grouping: Grouping) -> Float64[Tensor, "m n"]:
    """Rows without their class means."""
    return rows - (rows @ grouping.averaging.T)[:, grouping.labels]


def noise(products: Products, grouping: Grouping, counts: Tensor) -> Tensor:
    """What the noise of a mean of ``counts`` images adds to μᵀ B μ, in expectation."""
    spread = products.freedom / max(grouping.samples - int((grouping.counts > 0).sum()), 1)
    return spread / counts.clamp(min=1)


def left_out(products: Products, grouping: Grouping) -> Float64[Tensor, "n k"]:
    """Scores (n, K) of each image by the discriminant of all others, at the same λ."""
    labels, rows = grouping.labels, torch.arange(grouping.samples)
    counts, means = grouping.counts, products.means
    distance = products.own[:, None] - 2 * products.cross + means.diagonal()
    along = products.own[:, None] - products.cross - products.cross[rows, labels][:, None] + means[labels]
    factor = (counts / (counts - 1).clamp(min=1))[labels]  # leaving x out moves its mean to x − factor (x − μ)
    own = distance[rows, labels]
    grown = factor / (1 - factor * own).clamp(min=1e-12)
    distance = distance + grown[:, None] * along.square()
    distance[rows, labels] = factor.square() * own + grown * (factor * own).square()
    others = counts.repeat(grouping.samples, 1)
    others[rows, labels] -= 1
    return -0.5 * (grouping.samples - 1) * (distance - noise(products, grouping, others))


def groups_left_out(
    solver: Narrow | Wide, ridge: float, products: Products, grouping: Grouping
) -> Float64[Tensor, "n k"]:
    """Scores (n, K) of each image by the discriminant of all that are not of its group, at the same λ.

    A class that has no images then scores as low as the lowest that has.
    """
    scores = left_out(products, grouping)
    for rows in grouping.together:
        scores[rows] = _without(rows, solver.among(rows, ridge), products, grouping)
    return scores


def _without(
    rows: Int64[Tensor, " m"], among: Float64[Tensor, "m m"], products: Products, grouping: Grouping
) -> Float64[Tensor, "m k"]:
    """Scores (m, K) of the images ``rows`` by the discriminant of all others.

    All that changes lies in the span of these images and the a means μ of their classes: vectors there are rows of
    coefficients (_, m + a), and ``between`` holds their products with B.
    """
    present, place = torch.unique(grouping.labels[rows], return_inverse=True)
    member = functional.one_hot(place, len(present)).double().T
    taken = member.sum(1)
    remaining = grouping.counts[present] - taken
    cross, means = products.cross[rows], products.means[present]
    between = torch.cat(
        [torch.cat([among, cross[:, present]], 1), torch.cat([cross[:, present].T, means[:, present]], 1)]
    )
    around = torch.cat([torch.eye(len(rows)).double(), -member.T], 1)
    excess = torch.cat([member, -taken.diag()], 1)  # what these images add to n (mean − μ), in the others' absence
    share = excess / remaining.clamp(min=1)[:, None]  # means move by − share
    lost = torch.cat([around, (share * remaining.sqrt()[:, None])[remaining > 0]])  # S loses lostᵀ lost
    toward = torch.cat([cross, means])  # of these vectors with the means of all classes
    toward[:, present] -= between @ share.T
    squares = products.means.diagonal().clone()
    squares[present] += ((share @ between) * share).sum(1) - 2 * (share @ between)[:, len(rows) :].diagonal()
    hole = torch.eye(len(lost)).double() - lost @ between @ lost.T
    root = torch.linalg.cholesky(hole + 1e-12 * torch.eye(len(lost)))
    own, other = (
        torch.linalg.solve_triangular(root, lost @ seen, upper=False) for seen in (between[:, : len(rows)], toward)
    )
    distance = among.diagonal()[:, None] - 2 * toward[: len(rows)] + squares
    distance = distance + own.square().sum(0)[:, None] - 2 * own.T @ other + other.square().sum(0)
    others = grouping.counts.clone()
    others[present] = remaining
    scores = -0.5 * (grouping.samples - len(rows)) * (distance - noise(products, grouping, others))
    if bool((others > 0).any()):
        gone = present[remaining == 0]
        scores[:, gone] = scores[:, others > 0].amin(1, keepdim=True)
    return scores
