"""Multinomial logistic regression on standardized features, and the cross-validated probe made of it.

The objective is scikit-learn's: ``Σ_i −log softmax(W x_i + b)[y_i] + ‖W‖² / (2C)``, the intercept b free. For two
classes scikit-learn fits one row w of a sigmoid; the softmax with the same probabilities has rows ±w/2 and half the
squared norm, so it is solved here at C/2.

The solver is preconditioned conjugate gradients (Polak, Ribière 1969). The preconditioner is the Hessian averaged over
classes at the start: one Cholesky factor of ``Σ_i w_i x_i x_iᵀ + I/C``, w_i the mean over classes of p(1 − p), serves
all classes. Logits are linear along a line, so searching it takes no product with the features. scikit-learn's L-BFGS
takes two to ten times as long to the same loss (``benchmarks/logistic.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from tightframe.errors import MeasureError
from tightframe.features.samples import as_tensor, check_samples
from tightframe.metrics.collapse import Head
from tightframe.metrics.folds import Folds
from tightframe.probes.calibration import LEAST_LOG, calibration_error
from tightframe.probes.results import ProbeResult, judged

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""scikit-learn's ``C``: the range in which logistic regression on standardized features of models does best."""
TOLERANCE = 1e-3
"""Change of every logit in one step below which a solution counts as found; the loss is within 1e-6 of its minimum."""
ROUNDS = 2000
"""Steps after which the solver gives up; a hundred are already unusual."""
TRIALS = 30
"""Points tried along one line, at most."""
FARTHEST = 100.0
"""Longest step along a line; the preconditioner makes the usual one 1."""
LEVEL = 0.05
"""Share of its first slope at which a line counts as searched."""
RIDGE = 1e-6
"""Added to the preconditioner, in units of its mean diagonal, so that it can always be factored."""
PART = 2048
"""Rows held in float64 at a time while features are standardized."""


class LogisticProbe(NamedTuple):
    """A cross-validated logistic regression, its held-out log-loss (nats a sample) and its calibration error."""

    result: ProbeResult
    log_loss: float
    calibration_error: float


def cross_validated_logistic(folds: Folds, strengths: Sequence[float] = STRENGTHS) -> LogisticProbe:
    """Logistic regression at the strength (scikit-learn's ``C``) of least held-out log-loss.

    A class that the training samples of a fold lack has probability 1e-12 there.
    """
    features, labels, classes = folds.features, folds.labels, folds.classes
    logits = torch.empty(len(strengths), len(labels), classes, dtype=torch.float64)
    for rows in folds.held:
        seen = torch.ones(len(labels), dtype=torch.bool)
        seen[rows] = False
        for at, head in enumerate(logistic_path(features[seen], labels[seen], classes, strengths)):
            logits[at, rows] = head.logits(features[rows]).cpu()
    log_probabilities = logits.log_softmax(2).clamp(min=LEAST_LOG)
    losses = [float(functional.nll_loss(one, labels.cpu())) for one in log_probabilities]
    best = losses.index(min(losses))
    head = logistic_path(features, labels, classes, [strengths[best]])[0]
    result = judged(folds, logits[best].argmax(1).to(labels.device), head, strengths[best])
    return LogisticProbe(result, losses[best], calibration_error(logits[best].softmax(1), labels.cpu()))


def logistic_path(features: Any, labels: Any, classes: int, strengths: Sequence[float] = STRENGTHS) -> list[Head]:
    """Logistic regression with an L2 penalty on standardized features, one head a strength.

    Args:
        features: shape (n, d), any scale: each column is brought to mean 0 and standard deviation 1, constant
            columns to 0.
        labels: integers 0 … classes − 1, shape (n,).
        classes: K; a class without samples gets weight 0 and bias −∞: it is never predicted.
        strengths: scikit-learn's ``C``, inverse penalties, in any order.

    Raises:
        MeasureError: shapes, labels or strengths don't fit, a feature is not finite, fewer than two classes have
            samples, or a strength is so large that the optimum is not found.
    """
    features, labels = as_tensor(features), as_tensor(labels)
    check_samples(features, labels, classes)
    present, numbered = torch.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise MeasureError(f"logistic regression needs samples of two classes, not {len(present)}; give more images")
    if not strengths or not all(0 < strength < float("inf") for strength in strengths):
        raise MeasureError(f"strengths must be positive numbers, not {tuple(strengths)}; try {STRENGTHS}")
    scaled = standardize(features)
    values, basis = scaled.values, None
    if len(values) < values.shape[1]:  # the penalty keeps every weight within the span of the samples
        basis = torch.linalg.qr(values.double().T).Q
        values = (values.double() @ basis).to(values.dtype)
    inputs = torch.cat([values, values.new_ones(len(values), 1)], 1)
    targets = functional.one_hot(numbered).T.to(inputs)
    weights = inputs.new_zeros(len(present), inputs.shape[1])
    weights[:, -1] = targets.mean(1).log()
    heads = {}
    for strength in sorted(strengths):
        weights, _ = softmax_regression(inputs, targets, strength, weights)
        heads[strength] = _unfolded(weights.double(), basis, scaled, present, classes)
    return [heads[strength] for strength in strengths]


def softmax_regression(
    inputs: Float[Tensor, "*e n p"],
    targets: Float[Tensor, "k n"],
    strength: float,
    start: Float[Tensor, "*e k p"],
    tolerance: float = TOLERANCE,
) -> tuple[Float[Tensor, "*e k p"], Float[Tensor, "*e k n"]]:
    """Weights and logits at the optimum of scikit-learn's objective, for e problems at once.

    Args:
        inputs: samples, the last column being 1 for the intercept, which has no penalty.
        targets: one-hot labels, the same for all problems.
        strength: scikit-learn's ``C``.
        start: weights from which to start.
        tolerance: change of every logit in one step at which to stop.

    Raises:
        MeasureError: the optimum is not found in ``ROUNDS`` steps.
    """
    penalty = inputs.new_full(inputs.shape[-1:], (2 if len(targets) == 2 else 1) / strength)
    penalty[-1] = 0
    weights, logits = start, start @ inputs.mT
    factor = _preconditioner(inputs, logits.softmax(-2), penalty)
    gradient = direction = torch.zeros_like(weights)
    slope = torch.ones_like(weights[..., :1, :1])
    for _ in range(ROUNDS):
        before, gradient = gradient, (logits.softmax(-2) - targets) @ inputs + penalty * weights
        downhill = -torch.cholesky_solve(gradient.mT, factor).mT
        turned = downhill + (_dot(before - gradient, downhill) / slope).clamp(min=0) * direction
        direction = torch.where(_dot(gradient, turned) < 0, turned, downhill)
        slope = _positive(-_dot(gradient, downhill))
        shift = direction @ inputs.mT
        pull, bend = _dot(penalty * weights, direction), _dot(penalty * direction, direction)
        size = _searched(logits, shift, targets, pull, bend)
        weights, logits = weights + size * direction, logits + size * shift
        if float((size * shift).abs().max()) < tolerance:
            return weights, logits
    raise MeasureError(f"logistic regression found no optimum in {ROUNDS} steps; give a strength below {strength:g}")


def _preconditioner(
    inputs: Float[Tensor, "*e n p"], probabilities: Float[Tensor, "*e k n"], penalty: Float[Tensor, " p"]
) -> Float[Tensor, "*e p p"]:
    """Cholesky factor of the Hessian averaged over classes."""
    spread = (probabilities * (1 - probabilities)).mean(-2)
    shape = ((inputs * spread[..., None]).mT @ inputs).double() + torch.diag(penalty.double())
    shape.diagonal(dim1=-2, dim2=-1).add_(RIDGE * shape.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True))
    return torch.linalg.cholesky(shape).to(inputs.dtype)


def _searched(
    logits: Float[Tensor, "*e k n"],
    shift: Float[Tensor, "*e k n"],
    targets: Float[Tensor, "k n"],
    pull: Float[Tensor, "*e 1 1"],
    bend: Float[Tensor, "*e 1 1"],
) -> Float[Tensor, "*e 1 1"]:
    """How far to go along a line of logits, by Newton's method kept within brackets.

    ``pull`` and ``bend`` are slope and curvature of the penalty along it.
    """
    size, low, high = torch.zeros_like(pull), torch.zeros_like(pull), torch.full_like(pull, FARTHEST)
    first = torch.zeros_like(pull)
    for trial in range(TRIALS):
        probabilities = (logits + size * shift).softmax(-2)
        tilt = _dot(probabilities - targets, shift) + pull + size * bend
        first = first if trial else tilt
        if bool(((tilt.abs() <= LEVEL * first.abs()) | (first >= 0)).all()):  # none falls further: all is rounding
            break
        low, high = torch.where(tilt < 0, size, low), torch.where(tilt > 0, size, high)
        apart = shift - (probabilities * shift).sum(-2, keepdim=True)
        newton = size - tilt / _positive(_dot(probabilities * apart, apart) + bend)
        size = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
    return torch.where(first < 0, size, 0)


def _dot(one: Tensor, other: Tensor) -> Float[Tensor, "*e 1 1"]:
    return (one * other).sum((-2, -1), keepdim=True)


def _positive(values: Tensor) -> Tensor:
    """To divide by."""
    return values.clamp(min=torch.finfo(values.dtype).tiny)


def _unfolded(
    weights: Float64[Tensor, "k p"],
    basis: Float64[Tensor, "d r"] | None,
    scaled: Standardized,
    present: Int64[Tensor, " k"],
    classes: int,
) -> Head:
    """The head that does to raw features, with all classes, what ``weights`` do to standardized ones."""
    slopes = (weights[:, :-1] if basis is None else weights[:, :-1] @ basis.T) * scaled.factor
    full, bias = slopes.new_zeros(classes, slopes.shape[1]), slopes.new_full((classes,), -torch.inf)
    full[present] = slopes
    bias[present] = weights[:, -1] - weights[:, -1].mean() - slopes @ scaled.center
    return Head(full, bias)


class Standardized(NamedTuple):
    """Features with every column at mean 0 and standard deviation 1: ``values = (features − center) · factor``."""

    values: Float[Tensor, "n d"]
    center: Float64[Tensor, " d"]
    factor: Float64[Tensor, " d"]
    """1 / standard deviation; 0 for a column that is constant."""

    def apply(self, features: Shaped[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """Other features (m, d), moved and scaled as these were."""
        parts = [((part.double() - self.center) * self.factor).to(self.values.dtype) for part in features.split(PART)]
        return torch.cat(parts)


def standardize(features: Shaped[Tensor, "n d"]) -> Standardized:
    """Standardize columns: centered in float64, so that a far offset costs nothing, then kept in float32."""
    center = torch.stack([part.double().sum(0) for part in features.split(PART)]).sum(0) / len(features)
    squares = torch.stack([(part.double() - center).square().sum(0) for part in features.split(PART)]).sum(0)
    spread = (squares / len(features)).sqrt()
    # A constant column's mean is rounded, and its spread with it: look at the values themselves.
    alive = (features.amax(0) > features.amin(0)) & (spread > 0)
    factor = torch.where(alive, 1 / torch.where(alive, spread, 1.0), 0.0)
    fitted = Standardized(torch.empty(0, features.shape[1], device=features.device), center, factor)
    return fitted._replace(values=fitted.apply(features))
