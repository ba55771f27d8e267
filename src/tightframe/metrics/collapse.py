"""How collapsed features are: the neural-collapse metrics, read off ``ClassMoments``.

Lower means more collapsed, for every metric here. Definitions follow Papyan, Han, Donoho (PNAS 2020) and Zhu et al.
(NeurIPS 2021) unless a function says otherwise. Between-class covariance comes in two weightings that agree when
classes are balanced: ``"class"`` (each class counts the same; the papers' convention and the default) and
``"sample"`` (classes count by their samples; only then is Σ_T = Σ_W + Σ_B the covariance of all features).

Values are not comparable across different numbers of classes, dimensions or samples a class: few samples make any
features look collapsed.
"""

from __future__ import annotations

from math import fsum
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments, Weighting
from tightframe.features.samples import as_tensor, check_samples
from tightframe.metrics.factors import between_factor, rounding, spectrum
from tightframe.metrics.registry import measure

ROUNDING = 1e-12
"""What float64 leaves of a difference of two numbers near 1 that are equal."""
ROWS = 256
"""Rows of a d × d matrix that are copied at a time."""
SINGLE = 1e-7
"""What float32 features leave of it: with no more samples than dimensions VCI is 0, up to that."""
CLOSE = 1e-5
"""Squared distance over summed squared lengths from which a product of means leaves ten digits of it."""


class Head(NamedTuple):
    """A linear classifier: logits = features @ weight.T + bias."""

    weight: Float64[Tensor, "k d"]
    bias: Float64[Tensor, " k"]

    def logits(self, features: Any) -> Float64[Tensor, "n k"]:
        """Logits (n, K) of features (n, d)."""
        return as_tensor(features, dtype=torch.float64) @ self.weight.T + self.bias

    def predict(self, features: Any) -> Int64[Tensor, " n"]:
        """Class (n,) of features (n, d): that of the largest logit."""
        return self.logits(features).argmax(1)

    def accuracy(self, features: Any, labels: Any) -> float:
        """Share of features (n, d) whose largest logit is at their label (n,)."""
        return float((self.predict(features) == as_tensor(labels)).double().mean())


def cautions(moments: ClassMoments, weighting: Weighting = "class") -> list[str]:
    """What a reader should know before comparing metrics of these moments. Raises as ``check_measurable``."""
    notes = check_measurable(moments)
    rank = between_factor(moments, weighting).rank
    if rank < moments.classes - 1:
        why = "features have no more values" if rank == moments.dimension else "some classes coincide"
        notes.append(f"class means span {rank} of {moments.classes - 1} directions: {why}")
    return notes


def check_measurable(moments: ClassMoments) -> list[str]:
    """Raise ``MeasureError`` if collapse has no meaning for these moments; else notes on what weakens it."""
    counts = moments.counts
    if moments.classes < 2:
        raise MeasureError(f"{moments.classes} class given; collapse compares classes, so at least two are needed")
    if not bool((counts > 0).all()):
        empty = [int(k) for k in (counts == 0).nonzero().flatten()]
        raise MeasureError(f"no samples for class {', '.join(map(str, empty))}; leave empty classes out of the labels")
    if moments.samples == moments.classes:
        raise MeasureError("one sample a class: there is no spread within classes to measure; give two or more")
    notes = []
    single = int((counts == 1).sum())
    if single:
        notes.append(f"{single} of {moments.classes} classes have one sample; their spread counts as 0")
    if moments.samples - moments.classes < moments.dimension:
        notes.append(
            f"{moments.samples} samples in {moments.dimension} dimensions: features look more collapsed than they are"
        )
    return notes


@measure("collapse", reference="Papyan, Han, Donoho, PNAS 2020")
def nc1(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Within-class variability against between-class spread, tr(Σ_W Σ_B⁺) / K (Papyan et al. 2020).

    Computed on the at most K − 1 directions in which class means differ, in O(dK² + d²K): no d × d inverse.
    """
    check_measurable(moments)
    factor = between_factor(moments, weighting)
    if factor.rank == 0:
        return float("inf")
    within = ((moments.scatter @ factor.directions) * factor.directions).sum(0).clamp(min=0) / moments.samples
    return float((within / factor.singular.square()).sum()) / moments.classes


@measure("collapse", reference="tr Σ_W / tr Σ_B, a common shorthand for NC1")
def nc1_ratio(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Tr Σ_W / tr Σ_B: spread within classes over spread between them, all directions counted alike."""
    check_measurable(moments)
    between = float(moments.between(weighting).square().sum())
    within = float(moments.scatter.trace()) / moments.samples
    return within / between if between_factor(moments, weighting).rank else float("inf")


@measure("collapse", reference="Galanti, György, Hutter, ICLR 2022")
def cdnv(moments: ClassMoments) -> float:
    """Class-distance normalized variance, mean over pairs of (v_i + v_j) / (2‖μ_i − μ_j‖²) (Galanti et al. 2021)."""
    check_measurable(moments)
    return _mean_over_pairs(moments.class_variances, squared_distances(moments.means), rounding(moments))


@measure("collapse", reference="Rudelson, Vershynin, JACM 2007, with nuclear for spectral norm")
def numerical_rank(moments: ClassMoments) -> float:
    """(tr Σ_W)² / ‖Σ_W‖_F²: in how many directions classes spread, between 1 and d; 0 where there is no spread."""
    check_measurable(moments)
    trace = float(moments.scatter.trace())
    if trace <= moments.samples * rounding(moments) ** 2:
        return 0.0
    return 1 / fsum(float((rows / trace).square().sum()) for rows in moments.scatter.split(ROWS))


@measure("collapse", reference="Xu, Liu, ICML 2023")
def vci(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Variability collapse index, 1 − tr(Σ_T⁺ Σ_B) / rank Σ_B (Xu & Liu, ICML 2023), with Σ_T = Σ_W + Σ_B.

    Unchanged by any invertible linear map of the features. 0 when collapsed, 1 when class means coincide.
    """
    check_measurable(moments)
    rank = between_factor(moments, weighting).rank
    if not rank:
        return 1.0
    value = 1 - explained(moments, weighting) / rank
    return value if value > SINGLE else 0.0


def explained(moments: ClassMoments, weighting: Weighting) -> float:
    """tr(Σ_T⁺ Σ_B): in how many directions classes explain the spread, at most K − 1."""
    whole = spectrum(moments, weighting)
    projected = (whole.vectors.T @ moments.between(weighting)).square().sum(1)
    return float((projected[whole.kept] / whole.values[whole.kept]).sum())


@measure("collapse", reference="Papyan, Han, Donoho, PNAS 2020")
def nc2_norm(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Unequal lengths: standard deviation over mean of ‖μ_k − center‖ (Papyan et al. 2020)."""
    check_measurable(moments)
    lengths = _centered_means(moments, weighting).norm(dim=1)
    return float(lengths.std(correction=0) / lengths.mean())


@measure("collapse", reference="Papyan, Han, Donoho, PNAS 2020")
def nc2_angle(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Unequal angles: mean over pairs of |cos(μ_k − center, μ_j − center) + 1/(K−1)| (Papyan et al. 2020)."""
    check_measurable(moments)
    means = _centered_means(moments, weighting)
    directions = means / means.norm(dim=1, keepdim=True)
    return _over_pairs((directions @ directions.T + 1 / (moments.classes - 1)).abs_())


@measure("collapse", reference="Zhu et al., NeurIPS 2021")
def nc2_etf(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Distance of the normalized Gram matrix of centered means from a simplex's (Zhu et al. 2021)."""
    check_measurable(moments)
    means = _centered_means(moments, weighting)
    return _from_simplex(means @ means.T)


@measure("collapse", reference="Zhu et al., NeurIPS 2021")
def nc3(moments: ClassMoments, head: Head, weighting: Weighting = "class") -> float:
    """Misalignment of classifier and centered class means, ‖WM/‖WM‖ − simplex‖ (Zhu et al. 2021)."""
    _check_head(moments, head)
    weight = as_tensor(head.weight, dtype=torch.float64, device=moments.means.device)
    return _from_simplex(weight @ _centered_means(moments, weighting).T)


@measure("collapse", reference="Papyan, Han, Donoho, PNAS 2020")
def nc4(moments: ClassMoments, head: Head, features: Any) -> float:
    """Share of features (n, d) on which the classifier and the nearest class mean disagree (Papyan et al. 2020)."""
    _check_head(moments, head)
    wide: dict[str, Any] = {"dtype": torch.float64, "device": moments.means.device}
    rows = as_tensor(features, **wide)
    check_samples(rows, torch.zeros(len(rows), dtype=torch.int64), 1, moments.dimension)
    if not len(rows):
        raise MeasureError("no features to classify; NC4 needs those that the moments are of")
    by_head = Head(as_tensor(head.weight, **wide), as_tensor(head.bias, **wide)).logits(rows).argmax(1)
    center = moments.global_mean  # distances are taken around it: far offsets would cancel
    by_mean = torch.cdist(rows - center, moments.means - center).argmin(1)
    return float((by_head != by_mean).double().mean())


def _mean_over_pairs(variances: Float64[Tensor, " k"], squared: Float64[Tensor, "k k"], rounding: float) -> float:
    spread = (variances[:, None] + variances) / 2
    return _over_pairs(torch.where(squared > rounding**2, spread / squared, torch.inf))


def _over_pairs(values: Float64[Tensor, "k k"]) -> float:
    """Mean over pairs of two different classes of what is the same for both their orders; in place."""
    return float(values.fill_diagonal_(0).sum()) / (len(values) * (len(values) - 1))


def squared_distances(means: Float64[Tensor, "k d"]) -> Float64[Tensor, "k k"]:
    """‖μ_i − μ_j‖² from one product; pairs so close that it cancels are taken from their differences."""
    centered = means - means.mean(0)
    gram = centered @ centered.T
    lengths = gram.diagonal()[:, None] + gram.diagonal()
    squared = lengths - 2 * gram
    first, second = (squared < CLOSE * lengths).nonzero(as_tuple=True)
    squared[first, second] = (means[first] - means[second]).square().sum(1)
    return squared


def _centered_means(moments: ClassMoments, weighting: Weighting) -> Float64[Tensor, "k d"]:
    """Class means around their center; NaN where they coincide, lest rounding be read as a shape."""
    center = moments.means.mean(0) if weighting == "class" else moments.global_mean
    centered = moments.means - center
    return centered if between_factor(moments, weighting).rank else torch.full_like(centered, torch.nan)


def _from_simplex(gram: Float64[Tensor, "k k"]) -> float:
    classes = len(gram)
    simplex = (torch.eye(classes, dtype=gram.dtype, device=gram.device) - 1 / classes) / (classes - 1) ** 0.5
    return float(torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - simplex))


def _check_head(moments: ClassMoments, head: Head) -> None:
    check_measurable(moments)
    if tuple(head.weight.shape) != tuple(moments.means.shape):
        raise MeasureError(
            f"the head maps {head.weight.shape[1]} values to {head.weight.shape[0]} classes, the features have "
            f"{moments.dimension} and {moments.classes}: NC3 and NC4 need the head trained on these classes"
        )
