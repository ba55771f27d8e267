"""Transferability scores from a Fisher discriminant of the features: SFDA and NCTI. Higher is better.

Both regularize the within-class covariance by how large it is, so both depend on the scale of the features: compare
models with features of like scale. Arguments and errors are those of ``feature_scores``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import exp, isfinite
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.metrics.collapse import Head
from tightframe.metrics.registry import measure
from tightframe.scores.centered import ROUNDING, CenterdFeatures, gram, leading, principal_components

LEAST_SHRINKAGE = 1e-10
COLLAPSED = (
    "features do not vary within classes, so NCTI's discriminant is not defined; they are collapsed or constant: see "
    "the collapse metrics, or leave this model out of the pool"
)
Chunks = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@measure(
    "score",
    better="higher",
    unchanged_by={"rotation", "offset"},
    reference="Shao et al., ECCV 2022 (arXiv 2207.03036)",
)
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
    samples = CenterdFeatures.of(features, labels, classes)
    plain = _in_span(samples)
    means, within = _within(plain, samples)
    shrinkage = max(exp(-5 * float(leading(within, 1)[0])), LEAST_SHRINKAGE)
    rule = _discriminant(means, _shrunk(means, within, samples, shrinkage), samples)
    trust = [
        rule.logits(rows).softmax(1).softmax(1).gather(1, held[:, None]) for rows, held in plain()
    ]  # a list over chunks: (m, 1) each
    others = (means.sum(0) - means) / (classes - 1)

    def mixed() -> Iterator[tuple[Tensor, Tensor]]:
        for (rows, held), weight in zip(plain(), trust, strict=True):
            center = others[held]
            yield (rows - center).mul_(weight).add_(center), held

    means, within = _within(mixed, samples)
    rule = _discriminant(means, _shrunk(means, within, samples, shrinkage), samples)
    total = sum(float(rule.logits(rows).softmax(1).gather(1, held[:, None]).sum()) for rows, held in mixed())
    return total / samples.samples


def _in_span(samples: CenterdFeatures) -> Chunks:
    """Chunks of the samples; for n < d in the at most n directions in which they lie, in which all is the same."""
    if samples.samples >= samples.dimension:
        return samples.chunks
    rows = torch.linalg.qr(samples.all_rows().T, mode="r").R.T
    return lambda: iter([(rows, samples.labels)])


def _within(chunks: Chunks, samples: CenterdFeatures) -> tuple[Float64[Tensor, "k r"], Float64[Tensor, "r r"]]:
    """Class means and Σ_W."""
    sums: Tensor | None = None
    for rows, held in chunks():
        sums = rows.new_zeros(samples.classes, rows.shape[1]) if sums is None else sums
        sums.index_add_(0, held, rows)
    assert sums is not None  # there are samples: CenterdFeatures has seen to it
    means = sums / samples.counts[:, None]
    scatter = gram((rows - means[held] for rows, held in chunks()), means.shape[1])
    return means, scatter / samples.samples


def _shrunk(means: Tensor, within: Tensor, samples: CenterdFeatures, shrinkage: float) -> Float64[Tensor, "r r"]:
    """(1 − s) Σ_W + s tr(Σ_W)/d I; where that vanishes, what rounding of Σ_T leaves stands in for it."""
    centerd = means - (samples.counts.double() @ means) / samples.samples
    between = float((samples.counts[:, None] * centerd.square()).sum()) / samples.samples
    trace = float(within.trace())
    least = max(ROUNDING * (trace + between) / samples.dimension, torch.finfo(torch.float64).tiny)
    unit = max(shrinkage * trace / samples.dimension, least)
    return (1 - shrinkage) * within + unit * torch.eye(len(within), dtype=within.dtype, device=within.device)


def _discriminant(means: Tensor, within: Tensor, samples: CenterdFeatures) -> Head:
    """The linear discriminant with Σ_W given: logits are log posteriors but for what all classes share."""
    weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(within)).T
    return Head(weight, -(weight * means).sum(1) / 2 + _log_shares(samples))


def _log_shares(samples: CenterdFeatures) -> Float64[Tensor, " k"]:
    return (samples.counts.double() / samples.samples).log()


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
        ``spread``: nuclear norm of the centerd discriminant features (higher is better; grows with √n);
        ``nearness``: mean probability of the true class (higher is better);
        ``collapse``: log of the sum over classes of the nuclear norm of their probabilities (lower is better).
        The authors' code calls them seli, ncc and vc. Unchanged by rotation and offset, not by scale.

    Raises:
        MeasureError: also if features do not vary within classes.

    Source: Wang et al., ICCV 2023, and its authors' code.
    """
    samples = CenterdFeatures.of(features, labels, classes)
    scores, variances = principal_components(samples, at_most=64)
    if not len(variances):
        raise MeasureError(COLLAPSED)
    fitted = _within(lambda: iter([(scores, samples.labels)]), samples)
    if float(fitted[1].trace()) <= ROUNDING * float(variances.sum()):
        raise MeasureError(COLLAPSED)
    shrinkage = exp(-float(variances[:32].sum()))
    total = variances * ((samples.samples - 1) / samples.samples)
    axes = (
        _whitened_axes(*fitted, samples) if shrinkage <= LEAST_SHRINKAGE else _fisher_axes(fitted[1], total, shrinkage)
    )
    weight = fitted[0] @ axes @ axes.T
    rule = Head(weight, -(weight * fitted[0]).sum(1) / 2 + _log_shares(samples))
    spread = float(torch.linalg.svdvals(scores @ axes[:, : classes - 1]).sum())  # scores are centerd already
    sure, nuclear = 0.0, 0.0
    for label, index in enumerate(samples.members()):
        probabilities = rule.logits(scores[index]).softmax(1)
        sure += float(probabilities[:, label].sum())
        nuclear += float(torch.linalg.svdvals(probabilities).sum())
    return NctiParts(spread, sure / samples.samples, float(torch.tensor(nuclear).log()))


def _fisher_axes(within: Tensor, total: Tensor, shrinkage: float) -> Float64[Tensor, "r r"]:
    """All generalized eigenvectors of shrunk Σ_B against shrunk Σ_W, the most telling first; Σ_W becomes I."""
    identity = torch.eye(len(total), dtype=total.dtype, device=total.device)
    inner = (1 - shrinkage) * within + shrinkage * within.trace() / len(total) * identity
    outer = (1 - shrinkage) * torch.diag(total) + shrinkage * total.mean() * identity
    root = torch.linalg.cholesky(inner)
    half = torch.linalg.solve_triangular(root, outer - inner, upper=False)
    _, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.T, upper=False))
    return torch.linalg.solve_triangular(root.T, vectors.flip(1), upper=True)


def _whitened_axes(means: Tensor, within: Tensor, samples: CenterdFeatures) -> Float64[Tensor, "r m"]:
    """At most K − 1 axes that make Σ_W the identity, the most telling first (scikit-learn's rule and its 1e-4)."""
    deviations = within.diagonal().sqrt()
    deviations = torch.where(deviations > 0, deviations, 1.0)
    values, vectors = torch.linalg.eigh(within / (deviations[:, None] * deviations))
    kept = values > 1e-4**2
    whitening = vectors[:, kept] / values[kept].sqrt() / deviations[:, None]
    between = (samples.counts.double().sqrt()[:, None] * means) @ whitening
    _, singular, rotation = torch.linalg.svd(between, full_matrices=False)
    telling = singular > 1e-4 * singular[0]
    return whitening @ rotation[telling].T


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
