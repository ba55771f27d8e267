"""How well a score ranks models, against accuracies that are known: the field's correlations, and regret."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from tightframe.errors import MeasureError

DRAWS = 400


class Agreement(NamedTuple):
    """One way to say how well a score ranks, with its 95 % interval; NaN where it has no meaning."""

    value: float
    low: float
    high: float


def agreement(
    scores: Sequence[float] | np.ndarray, truth: Sequence[float] | np.ndarray, seed: int = 0, draws: int = DRAWS
) -> dict[str, Agreement]:
    """How well ``scores`` rank the models whose accuracies are ``truth``; both of length m, higher is better.

    Returns:
        ``weighted_tau`` (Vigna 2015, hyperbolic weights averaged over both orders, as the field uses it), ``tau``
        (Kendall's τ-b), ``spearman``, ``pearson``, and ``regret``: how far the accuracy of the model with the highest
        score falls short of the best one, in the unit of ``truth`` (its mean over models that share the highest
        score). Intervals are percentiles of a bootstrap over models: with few of them they are wide, and honest.
        Infinite scores have a rank, but no Pearson's r; where a score or an accuracy is NaN, so is everything.

    Raises:
        MeasureError: there are not as many scores as accuracies, or none at all.
    """
    given = np.asarray(scores, float), np.asarray(truth, float)
    if given[0].ndim != 1 or given[0].shape != given[1].shape or not len(given[0]):
        raise MeasureError(f"{given[0].shape} scores and {given[1].shape} accuracies: give one of each a model")
    if np.isnan(given).any():
        return {name: Agreement(np.nan, np.nan, np.nan) for name in STATISTICS}
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, len(given[0]), (draws, len(given[0])))
    found = {}
    for name, statistic in STATISTICS.items():
        drawn = np.array([statistic(given[0][rows], given[1][rows]) for rows in chosen])
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
        found[name] = Agreement(float(statistic(*given)), float(low), float(high))
    return found


def _correlation(function: Callable[..., tuple[float, float]]) -> Callable[[np.ndarray, np.ndarray], float]:
    def statistic(scores: np.ndarray, truth: np.ndarray) -> float:
        if len(set(scores.tolist())) < 2 or len(set(truth.tolist())) < 2:
            return float("nan")  # one value throughout ranks nothing
        if function is stats.pearsonr and not np.isfinite([scores, truth]).all():
            return float("nan")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            return float(function(scores, truth)[0])

    return statistic


def regret(scores: np.ndarray, truth: np.ndarray) -> float:
    """Best accuracy minus that of the model with the highest score, (m,) each."""
    return float(truth.max() - truth[scores == scores.max()].mean())


STATISTICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "weighted_tau": _correlation(stats.weightedtau),
    "tau": _correlation(stats.kendalltau),
    "spearman": _correlation(stats.spearmanr),
    "pearson": _correlation(stats.pearsonr),
    "regret": regret,
}
