"""What rows of a study say of a claim: a statistic with its interval, and a verdict by one rule.

A claim is *supported* where the 95 % interval of its statistic lies wholly above 0, *not supported* where it ends below
the least effect that would matter, and else we *can't tell from this*. Statistics are written so that the claim says
they are above 0. What is resampled or averaged over are units that could have been others: networks, picture sets,
seeds; never pictures alone, of which there are always enough to find something.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from tightframe.jobs.run import Row

Score = Callable[[Row], float | None]

SUPPORTED, NOT_SUPPORTED, UNCLEAR = "supported", "not supported", "can't tell from this"
LEAST_RHO, LEAST_SHARE = 0.3, 0.005
"""Least effects that would matter: of a rank correlation, and of an accuracy (half a point)."""
FEWEST = 4
"""Units below which a bootstrap says nothing."""
DRAWS = 1000
VALUES = "values"
RULE = (
    "Supported: the 95 % interval of the statistic lies wholly above 0. Not supported: it ends below the least effect "
    f"that would matter ({LEAST_RHO:g} of a correlation, {100 * LEAST_SHARE:g} points of accuracy). Else: can't tell."
)


@dataclass(frozen=True)
class Evidence:
    """One statistic that bears on a claim.

    Attributes:
        question: what being above 0 would mean.
        statistic: what it is.
        value, low, high: with its 95 % interval; ``None`` where there is none.
        units: how many the interval is over, and ``unit``, what they are.
        least: effect below which it would not matter.
        share: whether it is a share, told in points of a percentage.
    """

    question: str
    statistic: str
    value: float | None
    low: float | None
    high: float | None
    units: int
    unit: str
    least: float
    share: bool = False

    @property
    def verdict(self) -> str:
        """By the rule of the module."""
        if self.low is None or self.high is None:
            return UNCLEAR
        if self.low > 0:
            return SUPPORTED
        return NOT_SUPPORTED if self.high < self.least else UNCLEAR

    def within(self, most: float) -> Evidence:
        """The same with an interval that does not reach beyond what is possible."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, -most), high=min(self.high, most))

    def told(self) -> dict[str, Any]:
        """As a row of a table; shares in points."""
        scale = 100.0 if self.share else 1.0
        ends = {
            name: None if (end := getattr(self, name)) is None else scale * end for name in ("value", "low", "high")
        }
        kind = f"{self.statistic} (points)" if self.share else self.statistic
        units = f"{self.units} {self.unit}"
        return {"question": self.question, "statistic": kind, **ends, "units": units, "verdict": self.verdict}


def minus(column: str) -> Score:
    """The negative of a column, for measures of which lower is better."""
    return lambda row: None if row.get(column) is None else -row[column]


def correlation(
    question: str,
    rows: Iterable[Row],
    score: Score | str,
    truth: Score | str,
    *,
    within: Sequence[str],
    over: Sequence[str],
    unit: str,
    than: Score | str | None = None,
) -> Evidence:
    """Spearman's ρ of ``score`` and ``truth``, averaged over the groups that share the columns ``within``.

    Its interval is that of a bootstrap over the units that share the columns ``over``: whatever belongs to a unit comes
    and goes together, in all groups. Where each group is a unit, groups are averaged with Student's t instead. With
    ``than``, the difference to that score's ρ.

    Args:
        question: what being above 0 would mean.
        rows: those with an ``error``, or without a score or truth, are left out.
        score: a column, or what makes a number of a row; higher is better.
        truth: likewise.
        within: columns that tell groups apart.
        over: columns that tell units apart.
        unit: what to call units.
        than: another score.
    """
    told = "Spearman's ρ" if than is None else "difference of Spearman's ρ"
    readers = [_reader(one) for one in (score, truth, than) if one is not None]
    good = [(row, [read(row) for read in readers]) for row in rows if "error" not in row]
    labels = dict.fromkeys((*within, *over))
    known = [{name: row[name] for name in labels} | {VALUES: of} for row, of in good if all(map(_number, of))]

    def statistic(drawn: Sequence[Row]) -> float:
        groups = _grouped(drawn, within).values()
        return _mean([_rho(np.array([row[VALUES] for row in group], float)) for group in groups])

    if tuple(within) != tuple(over):
        return bootstrap(question, told, known, statistic, over=over, unit=unit, least=LEAST_RHO)
    each = [value for group in _grouped(known, within).values() if math.isfinite(value := statistic(group))]
    return over_units(question, told, each, unit, LEAST_RHO).within(1.0 if than is None else 2.0)


def bootstrap(
    question: str,
    told: str,
    rows: Sequence[Row],
    statistic: Callable[[Sequence[Row]], float],
    *,
    over: Sequence[str],
    unit: str,
    least: float,
    share: bool = False,
) -> Evidence:
    """A statistic of rows, with the 95 % percentile interval of a bootstrap over units that share the columns ``over``.

    There is none where the statistic is not finite, or units are few.
    """
    value, units = statistic(rows), list(_grouped(rows, over).values())
    if not math.isfinite(value) or len(units) < FEWEST:
        return Evidence(question, told, _known(value), None, None, len(units), unit, least, share)
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        chosen = generator.integers(0, len(units), len(units))
        draws.append(statistic([row for at in chosen for row in units[at]]))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Evidence(question, told, value, float(low), float(high), len(units), unit, least, share)


def _grouped(rows: Iterable[Row], columns: Sequence[str]) -> dict[Hashable, list[Row]]:
    """Rows by what they share."""
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        groups[_key(row, columns)].append(row)
    return groups


def _rho(columns: np.ndarray) -> float:
    """ρ of the first two columns, (n, 2); less that of the third and second, where there are three."""
    if len(columns) < 3:
        return math.nan
    ranks = stats.rankdata(columns, axis=0).T
    found = [_pearson(score, ranks[1]) for score in (ranks[0], *ranks[2:])]
    return found[0] - found[1] if len(found) == 2 else found[0]


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    length = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / length if length > 0 else math.nan


def difference(
    question: str,
    rows: Iterable[Row],
    value: Score | str,
    by: str,
    first: Sequence[Any],
    second: Sequence[Any],
    *,
    pairs: Sequence[str],
    over: Sequence[str],
    unit: str,
    least: float = LEAST_SHARE,
    share: bool = True,
) -> Evidence:
    """Mean paired difference of ``value`` between rows whose column ``by`` is in ``first`` and in ``second``.

    Rows that agree in the columns ``pairs`` are compared; differences are averaged within each unit, which shares the
    columns ``over``, and then over units, with Student's t.
    """
    read, sides = _reader(value), defaultdict[Hashable, tuple[list[float], list[float]]](lambda: ([], []))
    units = dict[Hashable, Hashable]()
    for row in rows:
        number = None if "error" in row else read(row)
        if number is not None and _number(number):
            key = _key(row, pairs)
            units[key] = _key(row, over)
            for side, values in enumerate((first, second)):
                if row[by] in values:
                    sides[key][side].append(float(number))
    by_unit = defaultdict[Hashable, list[float]](list)
    for key, (ours, theirs) in sides.items():
        if ours and theirs:
            by_unit[units[key]].append(_mean(ours) - _mean(theirs))
    return over_units(question, "paired difference", [_mean(of) for of in by_unit.values()], unit, least, share)


def over_units(
    question: str, statistic: str, values: Sequence[float], unit: str, least: float, share: bool = False
) -> Evidence:
    """The mean of one value a unit, with Student's t interval."""
    count, mean = len(values), _mean(values)
    if count < 3:
        return Evidence(question, statistic, _known(mean), None, None, count, unit, least, share)
    half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return Evidence(question, statistic, mean, mean - half, mean + half, count, unit, least, share)


def mean_and_ends(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean, and the ends of Student's t interval where there are two values or more."""
    mean = _mean(values)
    if len(values) < 2:
        return mean, None, None
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def _reader(score: Score | str) -> Score:
    return (lambda row: row.get(score)) if isinstance(score, str) else score


def _key(row: Row, columns: Sequence[str]) -> Hashable:
    return tuple(row[column] for column in columns)


def _number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
