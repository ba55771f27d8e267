"""What rows of a study say of a claim: a statistic with its interval, and a verdict by one rule.

A claim is *supported* where the 95 % interval of its statistic lies wholly above 0, *not supported* where it ends below
the least effect that would matter, and else we *can't tell from this*. Statistics are written so that the claim says
they are above 0. What is resampled or averaged over are units that could have been others: models, datasets,
seeds; never images alone, of which there are always enough to find something.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from tightframe.row import Row

Score = Callable[[Row], float | None]

SUPPORTED, NOT_SUPPORTED, UNCLEAR = "supported", "not supported", "can't tell from this"
LEAST_RHO, LEAST_SHARE = 0.3, 0.005
"""Least effects that would matter: of a rank correlation, and of an accuracy (half a point)."""
FEWEST, FEWEST_RANKED = 4, 3
"""Units below which a bootstrap, and below which ranks or a standard deviation, say nothing."""
CROSSED = ("models", "datasets")
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
        units: what the interval is over, and how many there are; how many there were, where they are too few for one.
        least: effect below which it would not matter.
        share: whether it is a share, told in points of a percentage.
    """

    question: str
    statistic: str
    value: float | None
    low: float | None
    high: float | None
    units: str
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

    def told(self) -> dict[str, Any]:
        """As a row of a table; shares in points."""
        scale = 100.0 if self.share else 1.0
        ends = {
            name: None if (end := getattr(self, name)) is None else scale * end for name in ("value", "low", "high")
        }
        kind = f"{self.statistic} (points)" if self.share else self.statistic
        units = self.units if self.low is not None else f"{self.units}: too few for an interval"
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
    and goes together, in all groups. Groups of fewer than three units are left out. With ``than``, the difference to
    that score's ρ.

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
    compact = _compact(rows, readers, (*within, *over))
    groups = _grouped(compact, within)
    known = [row for group in groups.values() if len(_grouped(group, over)) >= FEWEST_RANKED for row in group]

    def statistic(drawn: Sequence[Row]) -> float:
        found = [group for group in _grouped(drawn, within).values() if len(_grouped(group, over)) >= FEWEST_RANKED]
        return _mean([_rho(group) for group in found])

    if not known:
        return Evidence(question, told, None, None, None, _counted(len(_grouped(compact, over)), unit), LEAST_RHO)
    return bootstrap(question, told, known, statistic, over=over, unit=unit, least=LEAST_RHO)


def correlations(
    rows: Iterable[Row], score: Score | str, truth: Score | str, within: Sequence[str]
) -> dict[Hashable, float]:
    """Spearman's ρ in each group of three rows or more that share the columns ``within``; see ``correlation``."""
    groups = _grouped(_compact(rows, [_reader(score), _reader(truth)], within), within)
    found = {key: _rho(group) for key, group in groups.items() if len(group) >= FEWEST_RANKED}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def differences(
    rows: Iterable[Row],
    value: Score | str,
    by: str,
    first: Sequence[Any],
    second: Sequence[Any],
    pairs: Sequence[str],
) -> dict[Hashable, float]:
    """How much higher ``value`` is where column ``by`` is in ``first`` than where it is in ``second``.

    Rows that agree in the columns ``pairs`` are compared, by their means where there are several; the key is what those
    columns hold.
    """
    read, found = _reader(value), dict[Hashable, float]()
    known = [row for row in rows if "error" not in row and _number(read(row))]
    for key, group in _grouped(known, pairs).items():
        ours, theirs = ([float(read(row) or 0.0) for row in group if row[by] in side] for side in (first, second))
        if ours and theirs:
            found[key] = _mean(ours) - _mean(theirs)
    return found


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

    There is none where the statistic is not finite, or units are few. The statistic must be able to fall on either
    side of 0: an interval of what can't be negative says nothing.
    """
    value, units = statistic(rows), list(_grouped(rows, over).values())
    if not math.isfinite(value) or len(units) < FEWEST:
        return Evidence(question, told, _known(value), None, None, _counted(len(units), unit), least, share)
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        chosen = generator.integers(0, len(units), len(units))
        draws.append(statistic([row for at in chosen for row in units[at]]))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Evidence(question, told, value, float(low), float(high), _counted(len(units), unit), least, share)


def over_units(
    question: str, told: str, values: Iterable[float], unit: str, least: float, share: bool = False
) -> Evidence:
    """The mean of one value a unit, with Student's t interval where there are three or more."""
    known = list(values)
    mean, low, high = mean_and_ends(known)
    return Evidence(question, told, _known(mean), low, high, _counted(len(known), unit), least, share)


def crossed(
    question: str, told: str, cells: Mapping[Any, float], least: float, share: bool = False, most: float = math.inf
) -> Evidence:
    """The mean of values of (model, dataset, …), with an interval for other models and for other sets.

    Every model meets every set, so cells are not independent: the interval is the wider one of Student's t over the
    means of models and over the means of sets. Of which there are fewer than three, the interval is not over those,
    but for just those; ``most`` is as far as it can reach.
    """
    sides = [_averaged_by(cells, at) for at in (0, 1)]
    mean = _mean(sides[0])
    ends = [mean_and_ends(side)[1:] for side in sides if len(side) >= FEWEST_RANKED]
    low, high = max(ends, key=lambda end: (end[1] or 0) - (end[0] or 0)) if ends else (None, None)
    units = ", ".join(_counted(len(side), unit) for side, unit in zip(sides, CROSSED, strict=True))
    if low is not None and high is not None:
        low, high = max(low, -most), min(high, most)
    return Evidence(question, told, _known(mean), low, high, units, least, share)


def _averaged_by(cells: Mapping[Any, float], at: int) -> list[float]:
    """Means of the cells that share the part ``at`` of their key, each other part counting the same."""
    model_and_set: dict[tuple[Any, Any], list[float]] = defaultdict(list)
    for key, value in cells.items():
        model_and_set[key[0], key[1]].append(value)
    by_side: dict[Any, list[float]] = defaultdict(list)
    for pair, values in model_and_set.items():
        by_side[pair[at]].append(_mean(values))
    return [_mean(values) for values in by_side.values()]


def averaged(rows: Sequence[Row], by: Sequence[str], measures: Sequence[str]) -> list[Row]:
    """Rows that agree in the columns ``by``, averaged; ends of intervals over them where they are several."""
    made = []
    for key, group in _grouped([row for row in rows if "error" not in row], by).items():
        one: Row = dict(zip(by, key, strict=True)) | {"times": len(group)}
        for measure in measures:
            known = [row[measure] for row in group if row.get(measure) is not None]
            mean, low, high = mean_and_ends(known) if known else (None, None, None)
            one |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
        made.append(one)
    return made


def mean_and_ends(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean, and the ends of Student's t interval where there are three values or more: that of two says nothing."""
    mean = _mean(values)
    if len(values) < FEWEST_RANKED:
        return mean, None, None
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def _compact(rows: Iterable[Row], readers: Sequence[Score], labels: Sequence[str]) -> list[Row]:
    """Of the rows for which all readers have a number: the labels, and these numbers."""
    good = [(row, [read(row) for read in readers]) for row in rows if "error" not in row]
    return [{name: row[name] for name in labels} | {VALUES: of} for row, of in good if all(map(_number, of))]


def _grouped(rows: Iterable[Row], columns: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by what they share."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[column] for column in columns)].append(row)
    return groups


def _rho(group: Sequence[Row]) -> float:
    """ρ of the first two numbers of compact rows; less that of the third and second, where there are three."""
    ranks = stats.rankdata(np.array([row[VALUES] for row in group], float), axis=0).T
    found = [_pearson(score, ranks[1]) for score in (ranks[0], *ranks[2:])]
    return found[0] - found[1] if len(found) == 2 else found[0]


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    length = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / length if length > 0 else math.nan


def _reader(score: Score | str) -> Score:
    return (lambda row: row.get(score)) if isinstance(score, str) else score


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit.removesuffix('s') if count == 1 else unit}"


def _number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
