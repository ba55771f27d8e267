"""Transferability scores from a Fisher discriminant of the features: SFDA and NCTI. Higher is better.

Both regularize the within-class covariance by how large it is, so both depend on the scale of the features: compare
models with features of like scale. Arguments and errors are those of ``feature_scores``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from math import exp, isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import Head
from tightframe.metrics.factors import EPS
from tightframe.metrics.registry import measure
from tightframe.probes.linear import discriminant
from tightframe.scores.centered import CenteredFeatures, leading, principal_components

LEAST_SHRINKAGE = 1e-10
TINY = torch.finfo(torch.float64).tiny
COLLAPSED = (
    "features do not vary within classes, so NCTI's discriminant is not defined; they are collapsed or constant: see "
    "the collapse metrics, or leave this model out of the pool"
)
Chunks = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@measure("score", changed_by={"scale"}, reference="Shao et al., ECCV 2022 (arXiv 2207.03036)")
def sfda(features: Any, labels: Any, classes: int) -> float:
    """How surely a linear discriminant tells classes apart once hard samples are made harder (0 … 1).

    A Fisher discriminant with Σ_W shrunk towards a multiple of I, by exp(−5 λ) but at least 1e-10, λ the largest
    eigenvalue of Σ_W. Then every sample is moved to p x + (1 − p) m, p the softmax of the discriminant's probabilities
    (as published: softmax of a softmax) at its class, m the mean of the other classes' means. A second discriminant
    with the same shrinkage is fitted to these, and the score is the mean probability that it gives the true class.

    Published code approximates λ by three rounds of the power method, overwrites its input, and finds generalized
    eigenvectors V only to use V Vᵀ = Σ_W⁻¹. Here λ is exact, so that rotations don't matter; nothing is modified.

    With n < d the weakly shrunk discriminant fits everything and the score saturates at 1.0: it says nothing then.
    Moving samples by their labels also tells classes apart that coincide: without spread within classes the score is
    1.0 unless all classes coincide, and then what guessing by the classes' shares gives.

    Args:
        features: shape (n, d).
        labels: integers 0 … classes − 1, shape (n,).
        classes: K.
    """
    samples = CenteredFeatures.of(features, labels, classes)
    chunks = _in_span(samples)
    plain = _moments(chunks(), classes)
    shrinkage = max(exp(-5 * float(leading(plain.scatter / plain.samples, 1)[0])), LEAST_SHRINKAGE)
    rule = _shrunk_discriminant(plain, shrinkage, samples.dimension)
    others = (plain.means.sum(0) - plain.means) / (classes - 1)

    def harder() -> Iterator[tuple[Tensor, Tensor]]:
        for rows, held in chunks():
            trust = rule.logits(rows).softmax(1).softmax(1).gather(1, held[:, None])
            yield others[held] + trust * (rows - others[held]), held

    again = _shrunk_discriminant(_moments(harder(), classes), shrinkage, samples.dimension)
    total = sum(float(again.logits(rows).softmax(1).gather(1, held[:, None]).sum()) for rows, held in harder())
    return total / samples.samples


def _in_span(samples: CenteredFeatures) -> Chunks:
    """Chunks of the samples; for n < d in the at most n directions in which they lie, in which all is the same."""
    if samples.samples >= samples.dimension:
        return samples.chunks
    rows = torch.linalg.qr(samples.rows().T, mode="r").R.T
    return lambda: iter([(rows, samples.labels)])


def _moments(chunks: Iterator[tuple[Tensor, Tensor]], classes: int) -> ClassMoments:
    rows, held = next(chunks)
    moments = ClassMoments.from_features(rows, held, classes)
    for rows, held in chunks:
        moments = moments.update(rows, held)
    return moments


def _shrunk_discriminant(moments: ClassMoments, shrinkage: float, dimension: int) -> Head:
    """With (1 − s) Σ_W + s tr(Σ_W)/d I; where that vanishes, what rounding of Σ_T leaves stands in for it."""
    within = moments.scatter / moments.samples
    least = max(EPS * float(moments.total_trace) / moments.samples / dimension, TINY)
    return discriminant(moments, (1 - shrinkage) * within, max(shrinkage * float(within.trace()) / dimension, least))


class NctiParts(NamedTuple):
    """The three raw components of NCTI, each in its own unit; see ``ncti_parts``."""

    spread: float
    nearness: float
    collapse: float


def ncti_parts(features: Any, labels: Any, classes: int) -> NctiParts:
    """Give the three raw components of NCTI, to be brought together over a pool of models by ``ncti``.

    Features are reduced to 64 principal components and to K − 1 directions of a linear discriminant, shrunk by
    exp(−sum of the 32 largest variances). Where that falls to 1e-10 or below, it is scikit-learn's ``"svd"``
    discriminant, which is not shrunk and leaves out directions with next to no variance within classes. With fewer than
    64 + K samples these are the directions in which classes differ: the components then mean little. Give more.

    Args:
        features: shape (n, d).
        labels: integers 0 … classes − 1, shape (n,).
        classes: K.

    Returns:
        ``spread``: nuclear norm of the centered discriminant features (higher is better; grows with √n);
        ``nearness``: mean probability of the true class (higher is better);
        ``collapse``: log of the sum over classes of the nuclear norm of their probabilities (lower is better).
        The authors' code calls them seli, ncc and vc. Unchanged by rotation and offset, not by scale.

    Raises:
        MeasureError: also if features do not vary within classes.

    Source: Wang et al., ICCV 2023, and its authors' code.
    """
    samples = CenteredFeatures.of(features, labels, classes)
    components, variances = principal_components(samples, at_most=64)
    moments = ClassMoments.from_features(components, samples.labels, classes)
    if float(moments.scatter.trace()) <= EPS * float(variances.sum()) * samples.samples:
        raise MeasureError(COLLAPSED)
    shrinkage = exp(-float(variances[:32].sum()))
    projected, probabilities = _fisher(components.cpu().numpy(), samples.labels.cpu().numpy(), shrinkage)
    nuclear = sum(np.linalg.norm(probabilities[index.cpu().numpy()], "nuc") for index in samples.members())
    own = probabilities[np.arange(samples.samples), samples.labels.cpu().numpy()]
    return NctiParts(float(np.linalg.norm(projected, "nuc")), float(own.mean()), float(np.log(nuclear)))


def _fisher(points: np.ndarray, labels: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Centered discriminant features (n, at most K − 1) and class probabilities (n, K), by scikit-learn."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rule = LinearDiscriminantAnalysis(solver="svd")
    if shrinkage > LEAST_SHRINKAGE:
        rule = LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "only one sample": a class of one has no covariance
        projected = rule.fit_transform(points, labels)
    return projected - projected.mean(0), rule.predict_proba(points)


def ncti(parts: Sequence[tuple[float, float, float]]) -> list[float]:
    """NCTI of every model of a pool, from the ``ncti_parts`` of each (Wang et al., ICCV 2023).

    Each component is scaled to 0 … 1 over the pool; the score is spread + nearness − collapse, between −1 and 2.
    It therefore changes with the pool: adding or removing a model can move the others, and values of two pools are
    not comparable. A component in which all models are alike counts 0 (published code divides by zero), so a lone
    model has the score 0.

    Raises:
        MeasureError: a component is NaN or infinite.
    """
    if not all(len(part) == 3 and all(map(isfinite, part)) for part in parts):
        raise MeasureError("NCTI needs three finite components a model; take them from ncti_parts")
    spread, nearness, collapse = (_scaled(column) for column in zip(*parts, strict=True)) if parts else ([], [], [])
    return [a + b - c for a, b, c in zip(spread, nearness, collapse, strict=True)]


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]
