"""How sure measures are: 95 % intervals over images.

Resampling images is wrong here. A class mean of n samples carries noise of covariance Σ/n, and a bootstrap adds it
once more, so that its values lie as far below the metric as the metric below the population's; a jackknife counts the
square of that noise, in many dimensions most of it, twice (Efron, Stein 1981). Samples are therefore drawn anew from a
population with the noise taken out (see ``population``): as a measure varies from draw to draw there, so it varies.
"""

from __future__ import annotations

from collections.abc import Collection
from math import exp, inf, isfinite, nan
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments, Weighting
from tightframe.metrics.collapse import check_measurable, vci
from tightframe.metrics.correction import Estimate, corrected
from tightframe.metrics.folds import Folds
from tightframe.metrics.population import Population
from tightframe.metrics.registry import measures

DRAWS, FEW, MANY = 32, 12, 200
"""Draws from the population: they tell a standard deviation to 13 %, for which Student's t makes up. With ``MANY``
classes and more, where a draw costs as much as reading tens of thousands of samples, a ``FEW`` are made."""
DOUBTFUL = 0.1
"""Share of draws without an estimate from which on there is no upper bound."""
UNSEEN = 0.5
"""Of the error that eigenvalues of Σ make by not being quite log-normal, the part that samples don't show."""
BEYOND = ("vci", "numerical_rank")
"""Collapse metrics that look at other directions than those of class means."""


class Interval(NamedTuple):
    """A value, NaN where there is none, and its interval, infinite where samples give no bound."""

    value: float
    low: float
    high: float


def collapse_intervals(
    folds: Folds, level: float = 0.95, *, weighting: Weighting = "class", draws: int | None = None, seed: int = 0
) -> dict[str, Interval]:
    """Intervals over images of the collapse metrics that need moments alone, by name.

    They are about what as many images of these classes give on average, which is not the population's value where
    few images are biased (see ``corrected_intervals``). Costs O(d³) once and O(K d² + K³) a draw. Where VCI is 0
    because there are no more samples than dimensions, so are both ends of its interval.

    Args:
        folds: the samples; how they are cut into folds does not matter.
        level: chance that an interval holds what it is about. Intervals are symmetric on a log scale for metrics that
            are always positive, else as they are.
        weighting: of classes in Σ_B.
        draws: from the population, two or more; 32, and 12 for 200 classes and more, if not given.
        seed: of the draws.

    Raises:
        MeasureError: a class is empty, no class has two samples, there is one draw, or the level is no chance.
    """
    check_measurable(folds.total)
    found = _values(folds.total, weighting)
    if not _spread(folds.total):
        return {name: Interval(value, value, value) for name, value in found.items()}
    draws, population = _enough(draws, folds.total), Population.of(folds)
    quantile, rng = _quantile(level, draws - 1), np.random.default_rng(seed)
    drawn = [_values(population.draw_along(rng), weighting, without=BEYOND) for _ in range(draws)]
    made = {name: _interval(found[name], np.array([one[name] for one in drawn]), quantile) for name in drawn[0]}
    made["vci"] = Interval(0.0, 0.0, 0.0)
    if found["vci"]:
        draw = population.draw if population.whitened is None else population.draw_whitened
        rng = np.random.default_rng(seed)
        again = np.array([vci(draw(rng), weighting) for _ in range(draws)])
        made["vci"] = _capped("vci", _interval(found["vci"], again, quantile))
    reach = _quantile(level, population.known.freedom) * population.rank_error()
    made["numerical_rank"] = _scaled(found["numerical_rank"], reach)
    return {name: made[name] for name in found}


def _values(moments: ClassMoments, weighting: Weighting, without: Collection[str] = ()) -> dict[str, float]:
    """Every collapse metric that needs moments alone, but for some."""
    wanted = [measure for measure in measures("collapse", ["moments"]) if measure.name not in without]
    found = {measure.name: measure.of({"moments": moments}, weighting=weighting) for measure in wanted}
    return {name: value for name, value in found.items() if value is not None}


def corrected_intervals(
    folds: Folds, level: float = 0.95, *, draws: int | None = None, seed: int = 0
) -> dict[str, Interval]:
    """Intervals for ``nc1``, ``cdnv`` and ``vci`` of the population, around the estimates of ``corrected``.

    They allow for the scatter of these estimates and for class means that lie where Σ is unusually large or small, as
    far as the samples can't tell; not for what ``corrected`` assumes: Gaussian classes and, with N − K < d, a VCI of
    log-normal eigenvalues. Where samples can't tell a value, it is NaN, and the interval goes from the bound that they
    do give to infinity (VCI: to 1). Costs ``draws`` calls of ``corrected`` and d × d products.

    Args and errors: as for ``collapse_intervals``.
    """
    total, estimates = folds.total, corrected(folds.total).by_name
    if not _spread(total):
        return {name: Interval(*3 * (estimate.lower,)) for name, estimate in estimates.items()}
    draws, population, rng = _enough(draws, total), Population.of(folds), np.random.default_rng(seed)
    tried = [corrected(population.draw(rng), population.known.dimension).by_name for _ in range(draws)]
    quantile = _quantile(level, draws - 1)
    made = {
        name: _around(estimate, [one[name].value for one in tried], _doubt(name, population), quantile)
        for name, estimate in estimates.items()
    }
    return {name: _capped(name, interval) for name, interval in made.items()}


def _doubt(name: str, population: Population) -> float:
    """Standard error that draws don't show. Only with too few samples for Σ⁻¹ does it concern VCI."""
    if name == "nc1":
        return population.doubt
    if name == "cdnv" or population.whitened is not None:
        return 0.0
    first, second = population.known.traces[:2]
    dimension = population.known.dimension
    shape = max(dimension * second / first**2 - 1, 0.0) / dimension  # variance of the mean of 1/λ of d log-normal λ
    return float(np.hypot(population.doubt, UNSEEN * shape**0.5))


def _around(estimate: Estimate, again: list[float | None], doubt: float, quantile: float) -> Interval:
    """Around an estimate made ``again`` in other samples, with a further standard error ``doubt``."""
    if estimate.value is None:
        return Interval(nan, estimate.lower, inf)
    logs = np.log([value for value in again if value])
    if estimate.value <= 0 or len(logs) < 2:
        return Interval(estimate.value, min(estimate.lower, estimate.value), inf)
    reach = quantile * float(logs.var(ddof=1) + doubt**2) ** 0.5
    interval = _scaled(estimate.value, reach)
    return interval if len(logs) > (1 - DOUBTFUL) * len(again) else interval._replace(high=inf)


def _enough(draws: int | None, moments: ClassMoments) -> int:
    if draws is not None and draws < 2:
        raise MeasureError(f"{draws} draws tell no spread; make two or more, {DRAWS} are usual")
    return draws or (FEW if moments.classes >= MANY else DRAWS)


def _interval(value: float, drawn: np.ndarray, quantile: float) -> Interval:
    """Around ``value``, as wide as what was ``drawn`` is scattered."""
    if not isfinite(value):
        return Interval(value, value, value)
    if not np.isfinite(drawn).all():
        return Interval(value, 0.0 if value >= 0 else -inf, inf)
    if value > 0 and (drawn > 0).all():
        return _scaled(value, quantile * float(np.log(drawn).std(ddof=1)))
    reach = quantile * float(drawn.std(ddof=1))
    return Interval(value, value - reach, value + reach)


def _scaled(value: float, reach: float) -> Interval:
    """Symmetric on a log scale."""
    return Interval(value, value * exp(-reach), value * exp(reach))


def _capped(name: str, interval: Interval) -> Interval:
    return interval._replace(high=min(interval.high, 1.0)) if name == "vci" else interval


def _quantile(level: float, freedom: int | float) -> float:
    if not 0 < level < 1:
        raise MeasureError(f"level {level} is no chance between 0 and 1; usual is 0.95")
    return float(student.ppf((1 + level) / 2, freedom))


def _spread(moments: ClassMoments) -> bool:
    return float(moments.scatter.trace()) > 0
