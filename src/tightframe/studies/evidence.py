"""Evidence for a claim, read off the rows of a study: a statistic, its 95 % interval, and a verdict by one rule.

Every statistic is written so that it is positive if the claim holds. A claim is *supported* if the interval lies
entirely above 0, *not supported* if it ends below the smallest effect that would matter, and *inconclusive* otherwise.
Intervals are over units that could have been others (models, datasets, seeds), never over images alone, of which there
are always enough to find something.

A study declares claims: functions of its rows, made here by ``ranks``, ``ranks_within`` and ``gains``. A column whose
name is written with a minus, such as ``"-nc1"``, counts negatively: lower is better.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tightframe.probes.results import student_interval
from tightframe.row import Row

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
LEAST_RHO, LEAST_SHARE = 0.3, 0.005
"""Smallest effects that would matter: for a rank correlation, and for an accuracy (half a point)."""
FEWEST, FEWEST_RANKED = 4, 3
"""Fewest units for a bootstrap, and fewest for ranks or a standard deviation."""
DRAWS = 1000
VALUE, VALUES = "value", "values"
RULE = (
    "Supported: the 95 % interval of the statistic lies entirely above 0. Not supported: it ends below the smallest "
    f"effect that would matter ({LEAST_RHO:g} for a correlation, {100 * LEAST_SHARE:g} points for an accuracy). "
    "Inconclusive: anything else."
)


@dataclass(frozen=True)
class Statistic:
    """What is computed.

    Attributes:
        name: shown beside the value.
        least: the effect below which it would not matter.
        share: whether it is a difference of shares, shown in percentage points.
        most: its largest possible size, where an interval ends.
    """

    name: str
    least: float
    share: bool = False
    most: float = math.inf


RHO = Statistic("Spearman's ρ", LEAST_RHO, most=1.0)
RHO_DIFFERENCE = Statistic("difference of Spearman's ρ", LEAST_RHO)
DIFFERENCE = Statistic("paired difference", LEAST_SHARE, share=True)
GAP = Statistic("difference", LEAST_SHARE, share=True)


@dataclass(frozen=True)
class Units:
    """What an interval is over: a name in singular and plural, and the columns that tell units apart."""

    one: str
    many: str
    columns: tuple[str, ...]

    def codes(self, rows: Iterable[Row]) -> np.ndarray:
        """The unit of each row, numbered from 0."""
        return codes(rows, self.columns)

    def count(self, rows: Iterable[Row]) -> int:
        """The number of units in ``rows``."""
        return len(set(self.codes(rows)))

    def counted(self, number: int) -> str:
        """``number`` in words: "3 models"."""
        return f"{number} {self.one if number == 1 else self.many}"


MODELS, DATASETS = Units("model", "models", ("model",)), Units("dataset", "datasets", ("data",))
SEEDS = Units("seed", "seeds", ("seed",))


@dataclass(frozen=True)
class Evidence:
    """One statistic that bears on a claim.

    Attributes:
        question: what a positive value would mean.
        statistic: what it is.
        value, low, high: the value and its 95 % interval; ``None`` if there is none.
        units: what the interval is over, and how many of them there are.
    """

    question: str
    statistic: Statistic
    value: float | None
    low: float | None
    high: float | None
    units: str

    @property
    def verdict(self) -> str:
        """Whether the claim is supported, by the rule of this module."""
        if self.low is None or self.high is None:
            return INCONCLUSIVE
        if self.low > 0:
            return SUPPORTED
        return NOT_SUPPORTED if self.high < self.statistic.least else INCONCLUSIVE

    def row(self) -> Row:
        """The row of a table; shares in percentage points."""
        scale, points = (100.0, " (points)") if self.statistic.share else (1.0, "")
        ends = {name: getattr(self, name) for name in ("value", "low", "high")}
        return {
            "question": self.question,
            "statistic": self.statistic.name + points,
            **{name: None if end is None else scale * end for name, end in ends.items()},
            "units": self.units if self.low is not None else f"{self.units}: too few for an interval",
            "verdict": self.verdict,
        }


Claim = Callable[[Sequence[Row]], Evidence | None]


def ranks(
    question: str, score: str, truth: str, *, within: Sequence[str], over: Units, than: str | None = None
) -> Claim:
    """Spearman's ρ of two columns, averaged over groups of rows, with the interval of a bootstrap over units.

    All rows of a unit are drawn together, in all groups: ten datasets on which the same six models rank alike are
    still six models. Groups of fewer than three units are left out.

    Args:
        question: what a positive value would mean.
        score: a column; higher is better.
        truth: the column that it should predict.
        within: columns that rows of a group share.
        over: the units.
        than: another score, whose ρ is subtracted; rows need all three columns.
    """
    columns = [score, truth, *([] if than is None else [than])]
    statistic = RHO if than is None else RHO_DIFFERENCE

    def claim(rows: Sequence[Row]) -> Evidence:
        known = _numbers(rows, columns, (*within, *over.columns))
        groups = [group for group in grouped(known, within).values() if over.count(group) >= FEWEST_RANKED]
        ranked = [row for group in groups for row in group]
        if not ranked:
            return Evidence(question, statistic, None, None, None, over.counted(over.count(known)))
        values, group, unit = _values(ranked), codes(ranked, within), over.codes(ranked)

        def mean_rho(drawn: np.ndarray) -> float:
            parts = [drawn[group[drawn] == one] for one in range(group.max() + 1)]
            found = [_rho(values[part]) for part in parts if len(set(unit[part])) >= FEWEST_RANKED]
            return finite_mean(found)

        return bootstrap(question, statistic, ranked, mean_rho, over)

    return claim


def ranks_within(
    question: str, score: str, truth: str, *, within: Sequence[str], over: Sequence[Units] = (MODELS, DATASETS)
) -> Claim:
    """Spearman's ρ of two columns in each group of rows that share the columns ``within``, averaged; see ``mean``."""

    def claim(rows: Sequence[Row]) -> Evidence:
        groups = grouped(_numbers(rows, (score, truth), within), within)
        ranked = {key: group for key, group in groups.items() if len(group) >= FEWEST_RANKED}
        cells = [dict(zip(within, key, strict=True)) | {VALUE: _rho(_values(group))} for key, group in ranked.items()]
        return mean(question, RHO, cells, over)

    return claim


def gains(
    question: str,
    value: str,
    by: str,
    first: Sequence[Any],
    second: Sequence[Any],
    *,
    pairs: Sequence[str],
    over: Sequence[Units] = (MODELS, DATASETS),
    statistic: Statistic = DIFFERENCE,
    handicap: float = 0.0,
) -> Claim:
    """How much higher ``value`` is where column ``by`` is in ``first`` than where it is in ``second``; see ``mean``.

    Rows that share the columns ``pairs`` are compared, by their means if there are several. ``handicap`` is added to
    each difference.
    """

    def claim(rows: Sequence[Row]) -> Evidence:
        cells = []
        for key, group in grouped(_numbers(rows, [value], (*pairs, by)), pairs).items():
            ours, theirs = ([row[VALUES][0] for row in group if row[by] in side] for side in (first, second))
            if ours and theirs:
                gain = float(np.mean(ours) - np.mean(theirs)) + handicap
                cells.append(dict(zip(pairs, key, strict=True)) | {VALUE: gain})
        return mean(question, statistic, cells, over)

    return claim


def among(select: Callable[[Sequence[Row]], Sequence[Row]], *claims: Claim) -> tuple[Claim, ...]:
    """The claims, about selected rows."""
    return tuple(partial(lambda claim, rows: claim(select(rows)), claim) for claim in claims)


def only(**labels: Any) -> Callable[[Sequence[Row]], Sequence[Row]]:
    """Selects the rows with these labels, for ``among``."""
    return lambda rows: [row for row in rows if all(row[name] == value for name, value in labels.items())]


def if_known(claim: Claim) -> Claim:
    """The claim, left out if its statistic can't be computed."""

    def known(rows: Sequence[Row]) -> Evidence | None:
        found = claim(rows)
        return found if found is not None and found.value is not None else None

    return known


def bootstrap(
    question: str,
    statistic: Statistic,
    rows: Sequence[Row],
    compute: Callable[[np.ndarray], float],
    over: Units,
) -> Evidence:
    """A statistic of rows, given by their indices, with the 95 % percentile interval of a bootstrap over units.

    There is no interval if the statistic is not finite or units are few. The statistic must be able to fall on either
    side of 0: the interval of one that can't be negative says nothing.
    """
    value, unit = compute(np.arange(len(rows))), over.codes(rows)
    units = [np.flatnonzero(unit == one) for one in range(over.count(rows))]
    if not math.isfinite(value) or len(units) < FEWEST:
        known = value if math.isfinite(value) else None
        return Evidence(question, statistic, known, None, None, over.counted(len(units)))
    generator = np.random.default_rng(0)
    drawn = (generator.integers(0, len(units), len(units)) for _ in range(DRAWS))
    values = [compute(np.concatenate([units[one] for one in chosen])) for chosen in drawn]
    low, high = map(float, np.nanquantile(values, [0.025, 0.975]))
    return Evidence(question, statistic, value, low, high, over.counted(len(units)))


def mean(question: str, statistic: Statistic, cells: Sequence[Row], over: Sequence[Units]) -> Evidence:
    """The mean of the ``VALUE`` of cells, with an interval for other units of each kind.

    Where every model meets every dataset, cells are not independent: the interval is the widest of Student's t over
    the means of models and over the means of datasets. It says nothing of units of which there are fewer than three.
    """
    known = [cell for cell in cells if math.isfinite(cell[VALUE])]
    crossed = averaged(known, [column for units in over for column in units.columns], [VALUE])
    sides = [averaged(crossed, units.columns, [VALUE]) for units in over]
    counts = ", ".join(units.counted(len(side)) for units, side in zip(over, sides, strict=True))
    if not known:
        return Evidence(question, statistic, None, None, None, counts)
    means = [averaged(side, (), [VALUE])[0] for side in sides]
    ends = [(one[f"{VALUE}_low"], one[f"{VALUE}_high"]) for one in means if one[f"{VALUE}_low"] is not None]
    if not ends:
        return Evidence(question, statistic, means[0][VALUE], None, None, counts)
    low, high = max(ends, key=lambda end: end[1] - end[0])
    low, high = max(low, -statistic.most), min(high, statistic.most)
    return Evidence(question, statistic, means[0][VALUE], low, high, counts)


def averaged(rows: Sequence[Row], by: Sequence[str], measures: Sequence[str]) -> list[Row]:
    """Means over rows that share the columns ``by``, each with its 95 % interval and the number of rows (``times``).

    The interval is Student's t; its ends are ``None`` for fewer than three rows.
    """
    made = []
    for key, group in grouped(rows, by).items():
        one: Row = dict(zip(by, key, strict=True)) | {"times": len(group)}
        for measure in measures:
            known = [value for row in group if (value := _number(row, measure)) is not None]
            low, high = student_interval(known) if len(known) >= FEWEST_RANKED else (None, None)
            one |= {measure: float(np.mean(known)) if known else None, f"{measure}_low": low, f"{measure}_high": high}
        made.append(one)
    return made


def _number(row: Row, column: str) -> float | None:
    """The finite number in a column, negated if the column is written with a minus."""
    value = row.get(column.removeprefix("-"))
    number = math.nan if value is None else float(value)
    return (-number if column.startswith("-") else number) if math.isfinite(number) else None


def _numbers(rows: Iterable[Row], columns: Sequence[str], labels: Sequence[str]) -> list[Row]:
    """The labels of the rows that have a number in each column, and these numbers."""
    found = [(row, [_number(row, column) for column in columns]) for row in rows]
    return [{name: row[name] for name in labels} | {VALUES: of} for row, of in found if None not in of]


def _values(numbers: Sequence[Row]) -> np.ndarray:
    return np.array([row[VALUES] for row in numbers], float)


def grouped(rows: Iterable[Row], columns: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by what they have in ``columns``, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[column] for column in columns)].append(row)
    return groups


def codes(rows: Iterable[Row], columns: Sequence[str]) -> np.ndarray:
    """A number for each row, from 0, the same for rows that have the same in ``columns``."""
    seen: dict[tuple[Any, ...], int] = {}
    return np.array([seen.setdefault(tuple(row[column] for column in columns), len(seen)) for row in rows], int)


def finite_mean(values: Iterable[float]) -> float:
    """The mean of the finite values, NaN if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def _rho(values: np.ndarray) -> float:
    """ρ of the first two columns of (n, 2) values, less that of the third and second if there is a third."""
    others = values[:, None]
    ranked = ((values > others).sum(0) + (values >= others).sum(0)).T  # 2 rank - 1, of ties the mean: SciPy takes long
    found = [_pearson(score, ranked[1]) for score in (ranked[0], *ranked[2:])]
    return found[0] - found[1] if len(found) == 2 else found[0]


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    length = math.sqrt((first @ first) * (second @ second))
    return float(first @ second) / length if length > 0 else math.nan
