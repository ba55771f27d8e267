"""k nearest neighbors on frozen features: what a representation knows before anything is trained on it.

Features are standardized first (each column to mean 0 and standard deviation 1 over the training samples; constant
columns to 0): few large columns would otherwise decide alone which images are alike. Similarity s of two rows is
then their cosine, or −‖a − b‖² / 2d, which has the same unit: −1 is the mean over pairs. Candidates are found by
blocked float32 products, and put in order by similarities computed one by one in float64, so that neither a block's
size nor rounding decides who is nearest.

The k nearest vote with weight exp(s / 0.07) (Wu et al. 2018; the evaluation of DINO, Caron et al. 2021), or with one
vote each. Of classes with as many votes the one with the larger sum of s wins, then the lower class.
Measured on features of MobileNets, k = 20, test accuracy on (parts of) DTD, TrashNet, CIFAR-10, CIFAR-100: cosine
with weights 85.0, 72.5, 75.6, 52.8 %, with equal votes 78.5, 69.2, 75.0, 51.4 %; distances with weights 75.2, 71.9,
72.2, 46.2 %, with equal votes 67.2, 64.4, 70.6, 44.0 %. With weights k hardly matters from 20 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tightframe.errors import MeasureError
from tightframe.features.moments import as_tensor, check_samples
from tightframe.probes.logistic import standardize
from tightframe.probes.results import interval

Metric = Literal["cosine", "euclidean"]
NEIGHBOURS = 20
"""Voters, k."""
TEMPERATURE = 0.07
"""Similarity by which a vote is worth e times less."""
BLOCK_BYTES = 2**26
"""Held at a time beside the features, at most, in float32; some times that with what is made from it."""
CACHED = 2**19
"""Numbers that are compared in float64 at a time: few enough to stay in the cache."""
SPARE = 16
"""Candidates beside the k nearest, among which float32 may have confused the order."""


@dataclass(frozen=True)
class NeighborsResult:
    """Leave-one-out classification by neighbors.

    Attributes:
        accuracy: share of samples classified right by the others.
        low, high: 95 % interval of ``accuracy`` (Clopper–Pearson, as if samples were judged independently).
        predicted: class given to each sample, shape (n,).
        correct: whether that was right, shape (n,).
        k: voters, no more than there were other samples.
        metric: ``"cosine"`` or ``"euclidean"``.
        temperature: of the votes' weights; ``None`` for equal votes.
    """

    accuracy: float
    low: float
    high: float
    predicted: np.ndarray
    correct: np.ndarray
    k: int
    metric: Metric
    temperature: float | None


def neighbors_accuracy(
    features: Any,
    labels: Any,
    classes: int,
    k: int = NEIGHBOURS,
    metric: Metric = "cosine",
    temperature: float | None = TEMPERATURE,
) -> NeighborsResult:
    """Leave-one-out accuracy of the k nearest neighbors, on standardized features.

    A sample never votes on itself, but an exact copy of it does: copies in the data flatter the result. Means and
    deviations of columns are those of all samples.

    Args:
        features: shape (n, d), n ≥ 2.
        labels: integers 0 … classes − 1, shape (n,).
        classes: K.
        k: voters; n − 1 where it is more.
        metric: what is near, ``"cosine"`` or ``"euclidean"``.
        temperature: a vote weighs exp(s / temperature), s the similarity; ``None``: votes are equal.

    Raises:
        MeasureError: shapes, labels or options don't fit, a feature is not finite, or there is one sample only.
    """
    features, labels = as_tensor(features), as_tensor(labels)
    check_samples(features, labels, classes)
    voting = _Voting(min(k, len(features) - 1), metric, temperature)
    _check(voting, k, len(features) - 1)
    rows = _prepared(standardize(features).values, metric)
    predicted = _votes(rows, labels.long(), rows, classes, voting, leave_out=True)
    correct = (predicted == labels).cpu().numpy()
    right = int(correct.sum())
    return NeighborsResult(
        right / len(correct),
        *interval(right, len(correct)),
        predicted.cpu().numpy(),
        correct,
        voting.k,
        metric,
        temperature,
    )


def neighbors_predict(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    classes: int,
    k: int = NEIGHBOURS,
    metric: Metric = "cosine",
    temperature: float | None = TEMPERATURE,
) -> Int64[Tensor, " m"]:
    """Class of each test sample (m, d) by its k nearest training samples (n, d); standardized as the latter are.

    Arguments and errors are those of ``neighbors_accuracy``; k is n where it is more.
    """
    features, labels, unseen = as_tensor(train_features), as_tensor(train_labels), as_tensor(test_features)
    check_samples(features, labels, classes)
    check_samples(unseen, torch.zeros(len(unseen), dtype=torch.int64), 1, features.shape[1])
    voting = _Voting(min(k, len(features)), metric, temperature)
    _check(voting, k, len(features))
    scaled = standardize(features)
    rows, queries = _prepared(scaled.values, metric), _prepared(scaled.apply(unseen), metric)
    return _votes(rows, labels.long(), queries, classes, voting, leave_out=False)


class _Voting(NamedTuple):
    k: int
    metric: Metric
    temperature: float | None


def _check(voting: _Voting, asked: int, others: int) -> None:
    if asked < 1:
        raise MeasureError(f"{asked} neighbors can't vote; choose k of 1 or more")
    if voting.metric not in get_args(Metric):
        raise MeasureError(f'no metric "{voting.metric}"; choose "cosine" or "euclidean"')
    if voting.temperature is not None and not voting.temperature > 0:
        raise MeasureError(f"temperature must be above 0, not {voting.temperature}; None gives every neighbor one vote")
    if others < 1:
        raise MeasureError("too few samples: there are no neighbors to ask; give more images")


def _prepared(values: Float[Tensor, "n d"], metric: Metric) -> Float[Tensor, "n d"]:
    """Rows whose inner product is the cosine; for distances as they are. A row of zeros is at right angles to all."""
    if metric == "euclidean":
        return values
    norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64, keepdim=True)
    return values.div_(norms.clamp(min=torch.finfo(values.dtype).tiny).to(values.dtype))


def _votes(
    rows: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    classes: int,
    voting: _Voting,
    leave_out: bool,
) -> Int64[Tensor, " m"]:
    """Class of each query; ``leave_out``: query i is row i, and does not count."""
    halves = rows.square().sum(1) / 2 if voting.metric == "euclidean" else 0.0
    candidates = min(voting.k + SPARE, len(rows) - leave_out)
    step = max(1, BLOCK_BYTES // (4 * max(len(rows), classes)))
    predicted = torch.empty(len(queries), dtype=torch.int64, device=rows.device)
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        likeness = block @ rows.T - halves  # falls with the distance, for one query
        if leave_out:
            own = torch.arange(len(block), device=rows.device)
            likeness[own, start + own] = -torch.inf
        near = likeness.topk(candidates, dim=1).indices.sort(1).values
        order, similarity = _ordered(block, rows, near, voting)
        predicted[start : start + step] = _elected(labels[order], similarity, classes, voting.temperature)
    return predicted


def _ordered(
    block: Float[Tensor, "b d"], rows: Float[Tensor, "n d"], near: Int64[Tensor, "b c"], voting: _Voting
) -> tuple[Int64[Tensor, "b k"], Float64[Tensor, "b k"]]:
    """The k nearest of the candidates, the nearest first (of equally near ones the earlier), and their similarity."""
    step = max(1, CACHED // max(near.shape[1] * rows.shape[1], 1))
    parts = zip(block.split(step), near.split(step), strict=True)
    similarity = torch.cat([_similarities(part, rows[found], voting.metric) for part, found in parts])
    similarity, order = similarity.sort(dim=1, descending=True, stable=True)
    return near.gather(1, order)[:, : voting.k], similarity[:, : voting.k]


def _similarities(
    block: Float[Tensor, "b d"], others: Float[Tensor, "b c d"], metric: Metric
) -> Float64[Tensor, "b c"]:
    """Similarity of each row of ``block`` to its own ``others``, in float64."""
    if metric == "cosine":
        return (block[:, None].double() * others.double()).sum(2)
    squares = (block[:, None].double() - others.double()).square().sum(2)
    return squares / (-2 * max(block.shape[1], 1))


def _elected(
    labels: Int64[Tensor, "b k"], similarity: Float64[Tensor, "b k"], classes: int, temperature: float | None
) -> Int64[Tensor, " b"]:
    """The class with most votes, then with the largest sum of similarities, then the lowest."""
    nearest, farthest = similarity[:, :1], similarity[:, -1:]
    if temperature is not None:
        votes = torch.exp((similarity - nearest) / temperature)
    else:  # similarities, between 0 and 1, count less than one vote all together
        share = (similarity - farthest) / (nearest - farthest).clamp(min=torch.finfo(torch.float64).tiny)
        votes = 1 + share / (1 + labels.shape[1])
    return votes.new_zeros(len(labels), classes).scatter_add_(1, labels, votes).argmax(1)
