"""Multinomial logistic regression for a whole grid of penalties: scikit-learn's optimum, found faster.

The objective is scikit-learn's, on standardized features x: ``Σ_i −log softmax(W x_i + b)[y_i] + ‖W‖² / (2C)``, the
intercept b free. Two classes: scikit-learn fits one row w of a sigmoid; the softmax that gives the same
probabilities has rows ±w/2 and half the squared norm, so it is solved here at C/2, with the same loss and the same
minimum.

How. Penalties are solved from strong to weak, each from where the two before it point. Steps are L-BFGS (Nocedal 1980)
started from the Hessian's own shape: one Cholesky factor of ``Σ_i w_i x_i x_iᵀ + I/C``, w_i the mean over classes of
p(1 − p), serves all classes (the idea of Böhning's fixed bound, 1992, with the weights that hold at the start instead
of the worst there are). Logits are linear along a line, so searching it costs no product with the features.

How exact. Residuals p − y are taken without the cancellation in 1 − p, so that float32 products do, even for classes
that are separable, where the loss is the sum of tiny numbers. ``C ‖gradient‖² / 2`` is the duality gap (dual as in Yu,
Huang, Lin 2011): an upper bound of how far the loss is from its minimum, whatever the solver did to get there. Where
float32 can't reach the tolerance, float64 goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import as_tensor, check_samples
from tightframe.metrics.collapse import Head

STRENGTHS = tuple(10.0 ** (-4 + 8 * step / 9) for step in range(10))
"""Inverse penalties C, 1e-4 … 1e4: the grid of scikit-learn's LogisticRegressionCV."""
TOLERANCE = 1e-5
"""Distance of the loss from its minimum, relative to the loss, at which a solution counts as found."""
ROUNDS = 2000
"""Steps after which a penalty is given up as not converged; a hundred are already unusual."""
MEMORY = 5
"""Steps that L-BFGS remembers; with the Hessian's shape known, more gain nothing."""
SETTLING = 20
"""Steps that must have gained next to nothing where only an estimate says that the minimum is near."""
AFRESH = 50
"""Steps after which logits are computed anew: until then they are added up, and so is their rounding."""
TRIALS = 30
"""Points tried along one line."""
PART = 2048
"""Rows held in float64 at a time."""
LEVEL = 1e-6
"""Relative difference of losses that single precision can't tell from none."""
NEGLIGIBLE = 0.05
"""Share of the samples' weights that the Hessian's shape may lack."""
RIDGE = 1e-5
"""Added to the Hessian's shape, in units of its mean diagonal, so that it can be factored in single precision; more
where columns are so alike that this is too little."""

Solve = Callable[[Float[Tensor, "k p"]], Float[Tensor, "k p"]]


@dataclass(frozen=True, eq=False)
class LogisticPath:
    """Heads for a grid of penalties, in the order of the grid.

    Attributes:
        strengths: the grid, scikit-learn's ``C``.
        heads: one a penalty, acting on raw features.
        losses: value of the objective at each head: summed log-losses (nats) plus penalty.
        gaps: bound of ``losses`` minus the minimum, from duality; loose where the penalty is weak.
        rounds: steps taken for each penalty.
        converged: whether each loss is the minimum, to ``TOLERANCE`` of itself: proven where its gap is as small,
            else judged by the solver's own estimate and progress.
    """

    strengths: tuple[float, ...]
    heads: tuple[Head, ...]
    losses: tuple[float, ...]
    gaps: tuple[float, ...]
    rounds: tuple[int, ...]
    converged: tuple[bool, ...]


def logistic_path(features: Any, labels: Any, classes: int, strengths: tuple[float, ...] = STRENGTHS) -> LogisticPath:
    """Multinomial logistic regression with an L2 penalty on standardized features, for every penalty of a grid.

    Memory: a float32 copy of the features, and about six arrays (K, n) of float32.

    Args:
        features: shape (n, d), any scale: each column is brought to mean 0 and standard deviation 1, constant
            columns to 0.
        labels: integers 0 … classes − 1, shape (n,).
        classes: K; a class without samples gets weight 0 and bias −∞: it is never predicted.
        strengths: scikit-learn's ``C``, inverse penalties, in any order.

    Raises:
        MeasureError: shapes, labels or strengths that don't fit, a feature that is not finite, or samples of fewer
            than two classes.
    """
    features, labels = as_tensor(features), as_tensor(labels)
    check_samples(features, labels, classes)
    present, numbered = torch.unique(labels, return_inverse=True)
    _check(present, strengths)
    scaled = standardize(features)
    problem, basis = _problem(scaled.values, numbered, len(present))
    ascending = sorted(range(len(strengths)), key=strengths.__getitem__)
    half = 2 if len(present) == 2 else 1
    found = _along(problem, [strengths[index] / half for index in ascending])
    solutions = [found[ascending.index(index)] for index in range(len(strengths))]
    return LogisticPath(
        tuple(strengths),
        tuple(_unfold(solution.point.weight, basis, scaled, present, classes) for solution in solutions),
        tuple(solution.point.loss for solution in solutions),
        tuple(solution.point.gap for solution in solutions),
        tuple(solution.rounds for solution in solutions),
        tuple(solution.converged for solution in solutions),
    )


class Standardized(NamedTuple):
    """Features with every column at mean 0 and standard deviation 1: ``values = (features − center) · factor``."""

    values: Float[Tensor, "n d"]
    center: Float64[Tensor, " d"]
    factor: Float64[Tensor, " d"]
    """1 / standard deviation; 0 for a column that is constant."""

    def apply(self, features: Shaped[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """Other features (m, d), moved and scaled as these were."""
        values = torch.empty(features.shape, dtype=self.values.dtype, device=features.device)
        for source, target in zip(_parts(features), _parts(values), strict=True):
            target.copy_((source.double() - self.center) * self.factor)
        return values


def standardize(features: Shaped[Tensor, "n d"], dtype: torch.dtype = torch.float32) -> Standardized:
    """Standardize columns: centerd in float64, so that a far offset costs nothing, then kept in ``dtype``."""
    center = torch.stack([part.double().sum(0) for part in _parts(features)]).sum(0) / len(features)
    squares = torch.stack([(part.double() - center).square().sum(0) for part in _parts(features)]).sum(0)
    spread = (squares / len(features)).sqrt()
    # A constant column's mean is rounded, and its spread with it: look at the values themselves.
    alive = (features.amax(0) > features.amin(0)) & (spread > 0)
    factor = torch.where(alive, 1 / torch.where(alive, spread, 1.0), 0.0)
    empty = torch.empty(0, features.shape[1], dtype=dtype, device=features.device)
    fitted = Standardized(empty, center, factor)
    return fitted._replace(values=fitted.apply(features))


def _parts(rows: Shaped[Tensor, "n d"]) -> tuple[Tensor, ...]:
    """Views of a few rows each, small enough to be worked on in float64 at no cost in memory."""
    return rows.split(PART)


class _Point(NamedTuple):
    """Where the solver stands: weights with the intercept as last column, and what was computed there."""

    weight: Float[Tensor, "k p"]
    logits: Float[Tensor, "k n"]
    residual: Float[Tensor, "k n"]
    """Probabilities minus one-hot labels."""
    loss: float
    gradient: Float[Tensor, "k p"]
    gap: float


class _Step(NamedTuple):
    moved: Float[Tensor, "k p"]
    change: Float[Tensor, "k p"]
    curvature: float


class _Solution(NamedTuple):
    point: _Point
    rounds: int
    converged: bool


@dataclass(frozen=True, eq=False)
class _Problem:
    """One penalized problem; ``inputs`` (n, p) end in a column of ones, for the intercept."""

    inputs: Float[Tensor, "n p"]
    labels: Int64[Tensor, " n"]
    classes: int
    penalty: float = 0.0

    def logits(self, weight: Float[Tensor, "k p"]) -> Float[Tensor, "k n"]:
        """Classes come first: products and sums over classes are several times faster so than the other way."""
        return weight @ self.inputs.T

    def losses(self, logits: Float[Tensor, "k n"]) -> tuple[float, Float[Tensor, "k n"]]:
        """Summed log-loss, and residuals; both exact in relative terms however sure the classifier is."""
        own = (self.labels, torch.arange(len(self.labels), device=logits.device))
        lead = logits - logits[own]
        top = lead.amax(0)  # not below 0, the lead of the own class over itself
        odds = lead.sub_(top).exp_()
        odds[own] = 0
        others, mine = odds.sum(0), torch.exp(-top)
        total = others + mine
        loss = torch.where(top > 0, top + total.log(), others.log1p())
        residual = odds.div_(total)
        residual[own] = -others / total
        return float(loss.sum(dtype=torch.float64)), residual

    def at(self, weight: Float[Tensor, "k p"]) -> _Point:
        """The point with these weights."""
        logits = self.logits(weight)
        loss, residual = self.losses(logits)
        return self.point(weight, logits, residual, loss + self.penalty / 2 * _dot(weight[:, :-1], weight[:, :-1]))

    def point(
        self, weight: Float[Tensor, "k p"], logits: Float[Tensor, "k n"], residual: Float[Tensor, "k n"], loss: float
    ) -> _Point:
        """The point at which all but the gradient is known."""
        gradient = residual @ self.inputs
        gradient[:, :-1] += self.penalty * weight[:, :-1]
        gap = _dot(gradient[:, :-1], gradient[:, :-1]) / (2 * self.penalty)
        return _Point(weight, logits, residual, loss, gradient, gap)

    def double(self) -> _Problem:
        """The same in float64."""
        return replace(self, inputs=self.inputs.double())


def _check(present: Tensor, strengths: tuple[float, ...]) -> None:
    if len(present) < 2:
        raise MeasureError(
            f"logistic regression needs samples of two classes or more, not {len(present)}; give more images"
        )
    if not strengths or not all(0 < strength < float("inf") for strength in strengths):
        raise MeasureError(
            f"strengths must be positive numbers, not {strengths}; try {STRENGTHS[0]:g} … {STRENGTHS[-1]:g}"
        )


def _problem(
    values: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], classes: int
) -> tuple[_Problem, Float[Tensor, "d r"] | None]:
    """The problem, and the basis it is written in: for n < d that of the samples' span (else none is needed).

    The penalty keeps every weight within the span of the samples, so nothing is lost.
    """
    basis = None
    if len(values) < values.shape[1]:
        basis = torch.linalg.qr(values.double().T).Q
        values = (values.double() @ basis).to(values.dtype)
    ones = values.new_ones(len(values), 1)
    return _Problem(torch.cat([values, ones], 1), labels, classes), basis


def _along(problem: _Problem, strengths: list[float]) -> list[_Solution]:
    """Solutions for ascending strengths, each started where the two before it point to."""
    shares = torch.bincount(problem.labels, minlength=problem.classes).double() / len(problem.labels)
    weight = problem.inputs.new_zeros(problem.classes, problem.inputs.shape[1])
    weight[:, -1] = shares.log()
    trend = torch.zeros_like(weight)
    solutions: list[_Solution] = []
    for strength in strengths:
        penalized = replace(problem, penalty=1 / strength)
        solution = _minimize(penalized, weight, trend)
        if not solution.converged:
            solution = _minimize(penalized.double(), solution.point.weight.double(), trend.double())
        found = solution.point.weight.to(weight.dtype)
        trend = found - weight if solutions else trend
        weight = found
        solutions.append(solution)
    return solutions


def _minimize(problem: _Problem, weight: Float[Tensor, "k p"], trend: Float[Tensor, "k p"]) -> _Solution:
    """L-BFGS from ``weight``, after a first step along ``trend``."""
    point = problem.at(weight)
    point = _search(problem, point, trend) or point
    solve = _preconditioner(problem, point)
    memory: deque[_Step] = deque(maxlen=MEMORY)
    losses: deque[float] = deque(maxlen=SETTLING)
    for rounds in range(ROUNDS):
        direction = _direction(point.gradient, memory, solve)
        decrement = -_dot(point.gradient, direction) / 2
        if _done(point, decrement, losses):
            return _Solution(point, rounds, True)
        if rounds % AFRESH == AFRESH - 1:
            point = problem.at(point.weight)
        following = _search(problem, point, direction)
        if following is None:
            return _Solution(point, rounds, False)
        losses.append(point.loss)
        moved, change = following.weight - point.weight, following.gradient - point.gradient
        point = following
        if (curvature := _dot(moved, change)) > 0:
            memory.append(_Step(moved, change, curvature))
    return _Solution(point, ROUNDS, False)


def _done(point: _Point, decrement: float, losses: deque[float]) -> bool:
    """Whether the loss is within ``TOLERANCE`` of the minimum; ``losses``: of the points before, the oldest first.

    The duality gap proves it, up to the intercept, which has no penalty and which the Newton decrement stands for.
    Weak penalties make that bound loose. Then the decrement must be a hundred times below the tolerance, and, as it
    is only estimated (far too low where a class is rare), the last steps must have gained next to nothing.
    """
    allowed = TOLERANCE * point.loss
    settled = len(losses) == SETTLING and losses[0] - point.loss <= allowed / 10
    return max(point.gap, decrement) <= allowed or (settled and decrement <= allowed / 100)


def _preconditioner(problem: _Problem, point: _Point) -> Solve:
    """Solves with Σ_i w_i x_i x_iᵀ + penalty, w_i the mean over classes of p(1 − p): the Hessian's blocks, averaged."""
    own = -point.residual[problem.labels, torch.arange(len(problem.labels), device=point.residual.device)]
    others = point.residual.square().sum(0) - own.square()
    spread = (own * (2 - own) - others).clamp(min=0) / problem.classes  # 1 − Σ p², from 1 − p without cancellation
    rows = _weighty(spread)
    inputs = problem.inputs[rows]
    shape = (inputs * spread[rows, None]).T @ inputs
    shape.diagonal()[:-1] += problem.penalty
    factor = _factor(shape)
    return lambda right: torch.cholesky_solve(right.T, factor).T


def _weighty(weights: Float[Tensor, " n"]) -> Int64[Tensor, " m"]:
    """The samples that hold all but ``NEGLIGIBLE`` of the weight: few, once most are classified with certainty."""
    rising, order = weights.sort()
    return (
        order[int((rising.cumsum(0, dtype=torch.float64) <= NEGLIGIBLE * float(weights.sum())).sum()) :].sort().values
    )


def _factor(shape: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Cholesky factor, of the matrix with no more added to its diagonal than its rounding makes necessary."""
    mean = shape.diagonal().mean().clamp(min=torch.finfo(shape.dtype).tiny)
    ridge = RIDGE
    while True:
        factor, failed = torch.linalg.cholesky_ex(shape + ridge * mean * torch.eye(len(shape)).to(shape))
        if not failed or ridge > 1:
            return factor
        ridge *= 10


def _direction(gradient: Float[Tensor, "k p"], memory: deque[_Step], solve: Solve) -> Float[Tensor, "k p"]:
    """The two loops of L-BFGS around ``solve``."""
    rest, parts = gradient, []
    for step in reversed(memory):
        parts.append(_dot(step.moved, rest) / step.curvature)
        rest = rest - parts[-1] * step.change
    rest = solve(rest)
    for step, part in zip(memory, reversed(parts), strict=True):
        rest = rest + (part - _dot(step.change, rest) / step.curvature) * step.moved
    return -rest


def _search(problem: _Problem, point: _Point, direction: Float[Tensor, "k p"]) -> _Point | None:
    """A lower point along ``direction``; ``None`` if there is none that rounding lets us see.

    Armijo's condition, or, where losses differ by no more than rounding, that on slopes (Hager, Zhang 2005).
    """
    slope = _dot(point.gradient, direction)
    if not slope < 0:
        return None
    shift = problem.logits(direction)
    pull = problem.penalty * _dot(point.weight[:, :-1], direction[:, :-1])
    bend = problem.penalty * _dot(direction[:, :-1], direction[:, :-1])
    fixed = problem.penalty / 2 * _dot(point.weight[:, :-1], point.weight[:, :-1])
    size = 1.0
    for _ in range(TRIALS):
        logits = torch.add(point.logits, shift, alpha=size)
        loss, residual = problem.losses(logits)
        loss += fixed + size * pull + size**2 * bend / 2
        tilt = _dot(residual, shift) + pull + size * bend
        lower = loss <= point.loss + 1e-4 * size * slope
        level = loss <= point.loss * (1 + LEVEL) and tilt <= -0.8 * slope
        if (lower or level) and tilt <= -0.9 * slope:
            return problem.point(point.weight + size * direction, logits, residual, loss)
        size *= min(max(slope / (slope - tilt), 0.1), 0.7) if tilt > slope else 0.5
    return None


def _unfold(
    weight: Float[Tensor, "k p"],
    basis: Float[Tensor, "d r"] | None,
    scaled: Standardized,
    present: Int64[Tensor, " k"],
    classes: int,
) -> Head:
    """The head that does to raw features, with all classes, what ``weight`` does to standardized ones."""
    slopes, bias = weight[:, :-1].double(), weight[:, -1].double()
    slopes = (slopes if basis is None else slopes @ basis.T) * scaled.factor
    full = slopes.new_zeros(classes, slopes.shape[1])
    offsets = slopes.new_full((classes,), -torch.inf)
    full[present] = slopes
    offsets[present] = bias - bias.mean() - slopes @ scaled.center
    return Head(full, offsets)


def _dot(one: Tensor, other: Tensor) -> float:
    """Inner product: rows summed pairwise in their own precision, which is fast, then all of them in float64."""
    return float((one * other).sum(-1).sum(dtype=torch.float64))
