"""All collapse metrics of some features at once, with what must be known to read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Any

from tightframe.features.moments import ClassMoments, Weighting
from tightframe.metrics.collapse import Head, cautions
from tightframe.metrics.correction import corrected
from tightframe.metrics.factors import between_factor
from tightframe.metrics.registry import measures


@dataclass(frozen=True)
class CollapseMetrics(Mapping[str, float]):
    """Metrics by name, with what must be known to read them.

    Attributes:
        by_name: metric name to value; what the mapping itself shows.
        weighting: how classes were weighted in Σ_B, ``"class"`` or ``"sample"``.
        rank_between: rank of Σ_B that NC1 and VCI used, at most K − 1; below that, some class means coincide.
        cutoff: singular values of the centerd means at or below it counted as zero.
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
    correct: bool = False,
) -> CollapseMetrics:
    """Every metric that the arguments allow.

    Args:
        moments: of the features to judge, K ≥ 2 classes, each with samples.
        head: the linear classifier trained on these classes; adds ``nc3``.
        features: (n, d), with ``head`` adds ``nc4``, which moments alone can't give.
        weighting: of classes in Σ_B.
        correct: replace ``nc1``, ``cdnv`` and ``vci`` by estimates of what any number of samples would show (see
            ``metrics.correction``, which weights classes alike). Where these samples can't tell, the value is NaN and a
            note gives a lower bound.

    Returns:
        ``nc1``, ``nc1_ratio``, ``cdnv``, ``numerical_rank``, ``vci``, ``nc2_norm``, ``nc2_angle``, ``nc2_etf`` and,
        where asked for, ``nc3`` and ``nc4``. Where all class means coincide, ``nc1``, ``nc1_ratio`` and ``cdnv`` are
        infinite, ``vci`` is 1 and the NC2 values and ``nc3`` are NaN; where two of them do, ``cdnv`` is infinite.

    Raises:
        MeasureError: fewer than two classes, an empty class, no class with two samples, or a head that does not fit.
    """
    notes, factor = cautions(moments, weighting), between_factor(moments, weighting)
    evidence = {"moments": moments, "head": head, "features": features}
    found = {measure.name: measure.of(evidence, weighting=weighting) for measure in measures("collapse")}
    values = {name: value for name, value in found.items() if value is not None}
    if correct:
        better = corrected(moments)
        notes += better.notes
        for name, estimate in better.by_name.items():
            values[name] = nan if estimate.value is None else estimate.value
    counts = tuple(int(n) for n in moments.counts)
    return CollapseMetrics(values, weighting, factor.rank, factor.cutoff, counts, tuple(notes))
