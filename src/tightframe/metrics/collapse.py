"""How collapsed features are: the neural-collapse metrics, read off ``ClassMoments``.

Lower means more collapsed, for every metric here. Definitions follow Papyan, Han, Donoho (PNAS 2020) and Zhu et al.
(NeurIPS 2021) unless a function says otherwise. Between-class covariance comes in two weightings that agree when
classes are balanced: ``"class"`` (each class counts the same; the papers' convention and the default) and
``"sample"`` (classes count by their samples; only then is Σ_T = Σ_W + Σ_B the covariance of all features).

Values are not comparable across different numbers of classes, dimensions or samples a class: few samples make any
features look collapsed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments, as_tensor

Weighting = Literal["class", "sample"]
ROUNDING = 1e-12
"""What float64 leaves of a difference of two numbers near 1 that are equal."""


class Head(NamedTuple):
    """A linear classifier: logits = features @ weight.T + bias."""

    weight: Float64[Tensor, "k d"]
    bias: Float64[Tensor, " k"]

    def logits(self, features: Any) -> Float64[Tensor, "n k"]:
        """Logits (n, K) of features (n, d)."""
        return as_tensor(features, dtype=torch.float64) @ self.weight.T + self.bias

    def accuracy(self, features: Any, labels: Any) -> float:
        """Share of features (n, d) whose largest logit is at their label (n,)."""
        return float((self.logits(features).argmax(1) == as_tensor(labels)).double().mean())


@dataclass(frozen=True)
class CollapseMetrics(Mapping[str, float]):
    """Metrics by name, with what must be known to read them.

    Attributes:
        by_name: metric name to value; what the mapping itself shows.
        weighting: how classes were weighted in Σ_B, ``"class"`` or ``"sample"``.
        rank_between: rank of Σ_B that NC1 and VCI used, at most K − 1; below that, some class means coincide.
        cutoff: singular values of the centred means at or below it counted as zero.
        samples_per_class: n of each class.
        notes: what a reader should know before comparing, in plain words.
    """

    by_name: dict[str, float]
    weighting: Weighting
    rank_between: int
    cutoff: float
    samples_per_class: tuple[int, ...]
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> float:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


def collapse_metrics(
    moments: ClassMoments,
    head: Head | None = None,
    *,
    features: Any = None,
    weighting: Weighting = "class",
) -> CollapseMetrics:
    """Every metric that the arguments allow.

    Args:
        moments: of the features to judge, K ≥ 2 classes, each with samples.
        head: the linear classifier trained on these classes; adds ``nc3``.
        features: (n, d), with ``head`` adds ``nc4``, which moments alone can't give.
        weighting: of classes in Σ_B.

    Returns:
        ``nc1``, ``nc1_ratio``, ``cdnv``, ``numerical_rank``, ``vci``, ``nc2_norm``, ``nc2_angle``, ``nc2_etf`` and,
        where asked for, ``nc3`` and ``nc4``. Where all class means coincide, ``nc1``, ``nc1_ratio`` and ``cdnv`` are
        infinite, ``vci`` is 1 and the NC2 values and ``nc3`` are NaN; where two of them do, ``cdnv`` is infinite.

    Raises:
        MeasureError: fewer than two classes, an empty class, no class with two samples, or a head that does not fit.
    """
    notes = cautions(moments, weighting)
    factor = between_factor(moments, weighting)
    values = {
        "nc1": nc1(moments, weighting),
        "nc1_ratio": nc1_ratio(moments, weighting),
        "cdnv": cdnv(moments),
        "numerical_rank": numerical_rank(moments),
        "vci": vci(moments, weighting),
        "nc2_norm": nc2_norm(moments, weighting),
        "nc2_angle": nc2_angle(moments, weighting),
        "nc2_etf": nc2_etf(moments, weighting),
    }
    if head is not None:
        values["nc3"] = nc3(moments, head, weighting)
        if features is not None:
            values["nc4"] = nc4(moments, head, features)
    counts = tuple(int(n) for n in moments.counts)
    return CollapseMetrics(values, weighting, factor.rank, factor.cutoff, counts, tuple(notes))


def cautions(moments: ClassMoments, weighting: Weighting = "class") -> list[str]:
    """What a reader should know before comparing metrics of these moments. Raises as ``check_measurable``."""
    notes = check_measurable(moments)
    rank = between_factor(moments, weighting).rank
    if rank < moments.classes - 1:
        notes.append(f"class means span {rank} of {moments.classes - 1} directions: some classes coincide")
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


class BetweenFactor(NamedTuple):
    """Thin SVD of the centred, weighted class means: Σ_B = U S² Uᵀ with U (d, rank) and S (rank,)."""

    directions: Float64[Tensor, "d r"]
    singular: Float64[Tensor, " r"]
    cutoff: float

    @property
    def rank(self) -> int:
        """Rank of Σ_B."""
        return len(self.singular)


def between_factor(moments: ClassMoments, weighting: Weighting = "class") -> BetweenFactor:
    """Σ_B factored, keeping at most K − 1 directions and those above rounding.

    Centring K means leaves rank K − 1 by construction. The tolerance is scaled by the means *before* centring, since
    that is where their rounding error comes from: relative to the centred means alone, a large common offset would
    let noise through.
    """
    directions, singular, _ = torch.linalg.svd(moments.between(weighting), full_matrices=False)
    cutoff = _rounding(moments.means)
    rank = min(int((singular > cutoff).sum()), moments.classes - 1)
    return BetweenFactor(directions[:, :rank], singular[:rank], cutoff)


def nc1(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Within-class variability against between-class spread, tr(Σ_W Σ_B⁺) / K (Papyan et al. 2020).

    Computed on the at most K − 1 directions in which class means differ, in O(dK² + d²K): no d × d inverse.
    """
    factor = between_factor(moments, weighting)
    if factor.rank == 0:
        return float("inf")
    within = ((moments.scatter @ factor.directions) * factor.directions).sum(0) / moments.samples
    return float((within / factor.singular.square()).sum()) / moments.classes


def nc1_ratio(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Tr Σ_W / tr Σ_B: spread within classes over spread between them, all directions counted alike."""
    between = float(moments.between(weighting).square().sum())
    within = float(moments.scatter.trace()) / moments.samples
    return within / between if between_factor(moments, weighting).rank else float("inf")


def cdnv(moments: ClassMoments) -> float:
    """Class-distance normalised variance, mean over pairs of (v_i + v_j) / (2‖μ_i − μ_j‖²) (Galanti et al. 2021)."""
    apart = torch.pdist(moments.means)  # from differences: a Gram matrix would cancel for classes close together
    first, second = torch.triu_indices(moments.classes, moments.classes, offset=1)
    spread = (moments.class_variances[first] + moments.class_variances[second]) / 2
    return float(torch.where(apart > _rounding(moments.means), spread / apart.square(), torch.inf).mean())


def numerical_rank(moments: ClassMoments) -> float:
    """(tr Σ_W)² / ‖Σ_W‖_F²: in how many directions classes spread, between 1 and d; 0 where there is no spread."""
    squared = float(moments.scatter.square().sum())
    return float(moments.scatter.trace()) ** 2 / squared if squared > 0 else 0.0


def vci(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Variability collapse index, 1 − tr(Σ_T⁺ Σ_B) / rank Σ_B (Xu & Liu, ICML 2023), with Σ_T = Σ_W + Σ_B.

    Unchanged by any invertible linear map of the features. 0 when collapsed, 1 when class means coincide.
    """
    rank = between_factor(moments, weighting).rank
    if not rank:
        return 1.0
    value = 1 - explained(moments, weighting) / rank
    return value if value > ROUNDING else 0.0


def explained(moments: ClassMoments, weighting: Weighting) -> float:
    """tr(Σ_T⁺ Σ_B): in how many directions classes explain the spread, at most K − 1."""
    factor = moments.between(weighting)
    same = weighting == "sample" or moments.balanced
    spectrum = moments.spectrum if same else moments.spectrum_with(factor)
    projected = spectrum.vectors[:, spectrum.kept].T @ factor
    return float((projected.square().sum(1) / spectrum.values[spectrum.kept]).sum())


def nc2_norm(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Unequal lengths: standard deviation over mean of ‖μ_k − centre‖ (Papyan et al. 2020)."""
    lengths = _centred_means(moments, weighting).norm(dim=1)
    return float(lengths.std(correction=0) / lengths.mean())


def nc2_angle(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Unequal angles: mean over pairs of |cos(μ_k − centre, μ_j − centre) + 1/(K−1)| (Papyan et al. 2020)."""
    means = _centred_means(moments, weighting)
    directions = means / means.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(moments.classes, moments.classes, offset=1)
    cosines = (directions @ directions.T)[first, second]
    return float((cosines + 1 / (moments.classes - 1)).abs().mean())


def nc2_etf(moments: ClassMoments, weighting: Weighting = "class") -> float:
    """Distance of the normalised Gram matrix of centred means from a simplex's (Zhu et al. 2021)."""
    means = _centred_means(moments, weighting)
    return _from_simplex(means @ means.T)


def nc3(moments: ClassMoments, head: Head, weighting: Weighting = "class") -> float:
    """Misalignment of classifier and centred class means, ‖WM/‖WM‖ − simplex‖ (Zhu et al. 2021)."""
    _check_head(moments, head)
    weight = as_tensor(head.weight, dtype=torch.float64, device=moments.means.device)
    return _from_simplex(weight @ _centred_means(moments, weighting).T)


def nc4(moments: ClassMoments, head: Head, features: Any) -> float:
    """Share of features (n, d) on which the classifier and the nearest class mean disagree (Papyan et al. 2020)."""
    _check_head(moments, head)
    wide: dict[str, Any] = {"dtype": torch.float64, "device": moments.means.device}
    rows = as_tensor(features, **wide)
    by_head = Head(as_tensor(head.weight, **wide), as_tensor(head.bias, **wide)).logits(rows).argmax(1)
    centre = moments.global_mean  # distances are taken around it: far offsets would cancel
    by_mean = torch.cdist(rows - centre, moments.means - centre).argmin(1)
    return float((by_head != by_mean).double().mean())


def _centred_means(moments: ClassMoments, weighting: Weighting) -> Float64[Tensor, "k d"]:
    """Class means around their centre; NaN where they coincide, lest rounding be read as a shape."""
    centre = moments.means.mean(0) if weighting == "class" else moments.global_mean
    centred = moments.means - centre
    return centred if between_factor(moments, weighting).rank else torch.full_like(centred, torch.nan)


def _rounding(means: Float64[Tensor, "k d"]) -> float:
    """How far apart rounding can put class means (k, d) that coincide."""
    scale = float(torch.linalg.matrix_norm(means, 2)) / len(means) ** 0.5
    return max(means.shape) * torch.finfo(torch.float64).eps * scale


def _from_simplex(gram: Float64[Tensor, "k k"]) -> float:
    classes = len(gram)
    simplex = (torch.eye(classes, dtype=gram.dtype, device=gram.device) - 1 / classes) / (classes - 1) ** 0.5
    return float(torch.linalg.matrix_norm(gram / torch.linalg.matrix_norm(gram) - simplex))


def _check_head(moments: ClassMoments, head: Head) -> None:
    if tuple(head.weight.shape) != tuple(moments.means.shape):
        raise MeasureError(
            f"the head maps {head.weight.shape[1]} values to {head.weight.shape[0]} classes, the features have "
            f"{moments.dimension} and {moments.classes}: NC3 and NC4 need the head trained on these classes"
        )
