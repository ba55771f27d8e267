"""Transferability scores that need the features themselves: TransRate, NLEEP, PARC, GBC. Higher is better.

Each is compared between models on the same images only. Features (n, d) may be of any precision; labels (n,) are
integers 0 … classes − 1. All raise ``MeasureError`` for a NaN or infinite feature, fewer than two classes, a class
without samples, or one sample a class throughout; a single class with one sample is fine.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.registry import measure
from tightframe.scores.centered import CenteredFeatures, principal_components
from tightframe.scores.from_moments import minus_overlaps
from tightframe.scores.from_source import leep

COMPONENTS_PER_CLASS = 5
"""Gaussians that NLEEP's mixture has for each class."""
ENERGY = 0.8
"""Share of the variance that NLEEP's principal components explain."""
COMPONENTS = 64
"""Principal components that ``gbc_of_features`` looks at."""
FLOOR = 1e-4
"""Least variance of a class in ``gbc_of_features``, as a share of the components' mean one."""


@measure("score", changed_by={"scale"}, reference="Huang et al., ICML 2022 (arXiv 2106.09362)")
def transrate(features: Any, labels: Any, classes: int, epsilon: float = 1e-4) -> float:
    """How many nats fewer it takes to code features once their class is known: room between classes against within.

    R(Z) − mean over classes of R(Z_k), with R(Z) = ½ log det(I + ZᵀZ / (n ε)) and all features centered on the mean of
    all. As in the listing in the paper and in tllib, classes count alike. The authors' repository weights them by their
    samples, scales every feature to length 1 and divides by the rank, which is not done here.

    The value depends on the scale of the features, by about log scale a dimension: compare models with features of
    like scale, or scale them alike first.

    Args:
        features: shape (n, d).
        labels: integers 0 … classes − 1, shape (n,).
        classes: K.
        epsilon: squared distortion, in the squared unit of the features.
    """
    if not epsilon > 0:
        raise MeasureError(f"epsilon must be positive, not {epsilon}; the published value is 1e-4")
    samples = CenteredFeatures.of(features, labels, classes)
    rates = [_coding_rate(samples.gram(index), len(index), epsilon) for index in samples.members()]
    return _coding_rate(samples.gram(), samples.samples, epsilon) - float(np.mean(rates))


def _coding_rate(product: Float64[Tensor, "m m"], count: int, epsilon: float) -> float:
    """½ log det(I + ZᵀZ / (n ε)) of n = ``count`` features, from ZᵀZ or Z Zᵀ."""
    identity = torch.eye(len(product), dtype=product.dtype, device=product.device)
    return float(torch.linalg.cholesky(identity + product / (count * epsilon)).diagonal().log().sum())


@measure("score", reference="Li et al., CVPR 2021 (arXiv 2011.11200)")
def nleep(features: Any, labels: Any, classes: int, seed: int = 0) -> float:
    """How well clusters of the features, found without labels, foretell your labels (mean log likelihood, 0 at best).

    Principal components that explain 80 % of the variance, a Gaussian mixture of 5K full covariances on them
    (scikit-learn's, at most 100 rounds, converged or not), then LEEP of its posteriors. Published code (SFDA, NCTI)
    leaves out LEEP's log and the seed; some uses K components for large sets. Ours has the log, is seeded, and fits at
    most n / 2 components. Components are first divided by one number, the root of their mean variance, so that the
    mixture's own regularization (1e-6) has the same meaning at every scale, and sorted by the first, so that the order
    of samples does not matter; both up to the tolerance of the mixture's fit. Other seeds find other clusters.
    With constant features it is −H(Y).

    Slow: a round costs 5 K n r² for r components; take a few thousand images.

    Args:
        features: shape (n, d).
        labels: integers 0 … classes − 1, shape (n,).
        classes: K.
        seed: of the mixture's starting point.
    """
    samples = CenteredFeatures.of(features, labels, classes)
    scores, variances = principal_components(samples, energy=ENERGY)
    if not len(variances):
        return leep(np.ones((samples.samples, 1)), samples.labels.cpu(), classes)
    order = torch.argsort(scores[:, 0], stable=True)
    points = (scores[order] / variances.mean().sqrt()).cpu().numpy()
    posteriors = _mixture_posteriors(points, min(COMPONENTS_PER_CLASS * classes, samples.samples // 2), seed)
    return leep(posteriors, samples.labels[order].cpu(), classes)


def _mixture_posteriors(points: np.ndarray, components: int, seed: int) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as published, 100 rounds have to do
        return GaussianMixture(components, random_state=seed).fit(points).predict_proba(points)


@measure("score", reference="Bolya, Mittapalli, Hoffman, NeurIPS 2021 (arXiv 2111.06977)")
def parc(features: Any, labels: Any, classes: int, dimensions: int = 32, images: int = 2000, seed: int = 0) -> float:
    """Whether images of one class have like features: rank correlation of distances by feature and by label (−1 … 1).

    Spearman's correlation over all pairs of images of 1 − Pearson's r of their features and 1 − Pearson's r of their
    one-hot labels, after features are reduced to 32 principal components, each scaled to variance 1. Published code
    gives 100 times this, approximates the components (randomized, one iteration) and lets rounding break the ties
    between label distances. Ours are exact, with the signs that its library gave them then; components without
    variance are left out.

    The cost is quadratic: of more than ``images`` samples that many are drawn. The draw depends on the seed and on
    the samples' distances from their mean, not on their order.

    Args:
        features: shape (n, d).
        labels: integers 0 … classes − 1, shape (n,).
        classes: K.
        dimensions: principal components to keep, at least two.
        images: how many to compare at most.
        seed: of the draw.

    Raises:
        MeasureError: also if features vary in fewer than two directions: Pearson's r needs two values.
    """
    samples = _drawn(CenteredFeatures.of(features, labels, classes), images, seed)
    scores, variances = principal_components(samples, at_most=dimensions)
    if len(variances) < 2:
        raise MeasureError(
            f"features vary in {len(variances)} direction(s), of which at most {dimensions} are kept; PARC "
            "correlates features value by value, so it needs two or more: give wider features, or use another score"
        )
    first, second = np.triu_indices(samples.samples, 1)
    apart = 1 - _row_correlations(scores / variances.sqrt()).cpu().numpy()[first, second]
    known = samples.labels.cpu().numpy()
    return _spearman(apart.round(12), known[first] != known[second])  # rounding must not break ties


def _drawn(samples: CenteredFeatures, most: int, seed: int) -> CenteredFeatures:
    """At most ``most`` of the samples."""
    if samples.samples <= most:
        return samples
    lengths = torch.cat([rows.square().sum(1) for rows, _ in samples.chunks()])
    chosen = np.random.default_rng(seed).choice(samples.samples, most, replace=False)
    index = torch.argsort(lengths, stable=True)[torch.from_numpy(chosen).to(lengths.device)]
    left = torch.unique(samples.labels[index], return_inverse=True)[1]
    return CenteredFeatures.of(samples.features[index], left, int(left.max()) + 1)


def _row_correlations(rows: Float64[Tensor, "n r"]) -> Float64[Tensor, "n n"]:
    """Pearson's r of every two rows; 0 for a row of equal values."""
    centered = rows - rows.mean(1, keepdim=True)
    directions = torch.nn.functional.normalize(centered, dim=1)
    return directions @ directions.T


def _spearman(values: np.ndarray, flags: np.ndarray) -> float:
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(values), flags)[0, 1])  # flags have two values: ranks of theirs change nothing


@measure("score", reference="Pándy et al., CVPR 2022 (arXiv 2111.12780)")
def gbc_of_features(features: Any, labels: Any, classes: int) -> float:
    """How much classes overlap if each were a Gaussian: minus the sum of the overlaps of all pairs (0 at best).

    −Σ_{i≠j} exp(−D_B(i, j)), both orders of a pair counted, after reduction to 64 principal components (r if there are
    fewer), with D_B = ⅛ Δμᵀ Σ⁻¹ Δμ + ½ ln(|Σ| / √(|Σ_i| |Σ_j|)), Σ = (Σ_i + Σ_j) / 2, Σ_k the mean of the variances
    times I. Published code writes the determinant of Σ as one variance, not its r-th power, so its second term is r
    times too small; ours counts all. Variances have the divisor n_k, and are at least 1e-4 times the mean variance of
    the components: in published code 1e-4 itself, which makes the value depend on the features' scale. A class with one
    sample has that least variance. With constant features all classes coincide: −K (K − 1).

    Args:
        features: shape (n, d).
        labels: integers 0 … classes − 1, shape (n,).
        classes: K.
    """
    samples = CenteredFeatures.of(features, labels, classes)
    components, variances = principal_components(samples, at_most=COMPONENTS)
    if not len(variances):
        return -float(classes * (classes - 1))
    moments = ClassMoments.from_features(components, samples.labels, classes)
    return minus_overlaps(moments.means, moments.variances.clamp(min=FLOOR * variances.mean()).mean(1))
