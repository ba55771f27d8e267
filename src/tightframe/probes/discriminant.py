"""A classifier read off all layers at once, in closed form: shrunk linear discriminants and their average.

For features h of the last q layers (of each the mean over space and, where they are given, the standard deviations,
``SPREAD``, as one vector), each centered and scaled to mean square 1, put side by side, with class means μ_k
and scatter S around them, the discriminant of class k is

    s_k(h) = hᵀ A μ_k − ½ μ_kᵀ A μ_k,   A = n (S + λ I)⁻¹,   λ = c · tr S / (n − 1)

with μ_kᵀ A μ_k freed of what the noise of the mean adds to it. λ at c = 1 is the estimator of Kubokawa and Srivastava
(2008), which Wang et al. (ICLR 2024, arXiv 2402.04087) found hard to beat on few images. Depths q and factors c are
not chosen but averaged, by the log loss of each on images left out in turn; the average of linear classifiers is one
linear classifier on all layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional

from tightframe.backbone import SPREAD
from tightframe.errors import MeasureError
from tightframe.features.samples import as_tensor, check_samples, group_numbers
from tightframe.probes.calibration import LEAST_LOG, NEVER, temperature
from tightframe.probes.left_out import Grouping, Narrow, Wide, groups_left_out, noise

SHRINKAGES = (0.1, 0.3, 1.0)
"""Factors c of the shrinkage λ."""
SHARPNESS = 0.3
"""How fast the weight of a candidate falls with its log loss: it is exp(−SHARPNESS · n · loss)."""
USUAL = (8, 0.3)
"""Depth and shrinkage where no class has two images to judge by."""
LARGEST = 4096
"""Dimensions, of features or of images, that are factored at most: deeper readings are left out beyond it."""
SAME = 1e-4
"""Mean squared distance, where the mean square is 1, below which two layers are one, in half precision too."""


class Candidate(NamedTuple):
    """A discriminant that had a part in the average.

    Attributes:
        depth: how many of the last layers it reads.
        shrinkage: the factor c.
        log_loss: on images left out, in nats an image.
        weight: its share in the average.
    """

    depth: int
    shrinkage: float
    log_loss: float
    weight: float


@dataclass(frozen=True, eq=False)
class LayerReading:
    """A linear classifier on the features of several layers.

    Attributes:
        weights: (K, d) of each layer that it reads, in the order of depth.
        bias: (K,).
        held_out: log-probabilities (n, K) of the images it was fitted to, each as predicted without that image, or,
            where there are groups, without its group.
        candidates: what was averaged, the heaviest first.
    """

    weights: Mapping[str, Float64[Tensor, "k d"]]
    bias: Float64[Tensor, " k"]
    held_out: Float64[Tensor, "n k"]
    candidates: tuple[Candidate, ...]

    def logits(self, features: Mapping[str, Any]) -> Float64[Tensor, "n k"]:
        """Logits (n, K), whose softmax are probabilities, of features (n, d) of each layer."""
        total = self.bias[None]
        for layer, weight in self.weights.items():
            total = total + as_tensor(features[layer]).double() @ weight.T
        return total


def read_layers(
    features: Mapping[str, Any], labels: Any, classes: int, *, balanced: bool = False, groups: Any = None
) -> LayerReading:
    """The average of shrunk discriminants of the last 1, 2, 4, … and all layers.

    Args:
        features: (n, d) of each layer, in the order of depth. What is called like a layer with ``SPREAD`` after it is
            part of that layer; it is left out where there are more than ``LARGEST`` images.
        labels: integers 0 … classes − 1, shape (n,).
        classes: K; one without images is never predicted.
        balanced: take all classes for equally frequent, instead of as frequent as their images are.
        groups: of each image, shape (n,): images of the same group are left out together. ``None``: one by one.

    Raises:
        MeasureError: there is no layer, shapes, labels or groups don't fit, a feature is not finite, or fewer than two
            classes have images.
    """
    labels = as_tensor(labels).cpu()
    names = _by_layer([name for name in features if len(labels) <= LARGEST or not name.endswith(SPREAD)])
    wide = {layer: [as_tensor(features[name]).cpu() for name in parts] for layer, parts in names.items()}
    parts = _distinct({layer: _Scaled.of(values, labels, classes) for layer, values in wide.items()})
    if not parts:
        raise MeasureError("no layer to read; give features of one or more")
    labels = labels.long()
    numbers = group_numbers(groups, len(labels))
    grouping = Grouping.of(labels, classes, numbers)
    prior = torch.zeros(classes, dtype=torch.float64) if balanced else (grouping.counts / grouping.samples).log()
    prior = torch.where(grouping.counts > 0, prior, NEVER)
    tried = list(_tried(list(parts.values()), grouping))
    gone = grouping.gone
    judged = (grouping.counts[labels] > 1) & ~gone[torch.arange(len(labels)), labels]
    sure = int(judged.sum()) if numbers is None else len(np.unique(numbers[judged.numpy()]))
    factors, told = _averaged(tried, labels, prior, judged, sure) if sure else _usual(tried)
    scores = torch.stack([factor * one.held_out for factor, one in zip(factors, tried, strict=True)]).sum(0)
    held_out = (scores + prior).masked_fill(gone, NEVER).log_softmax(1)
    held_out[~judged, labels[~judged]] = LEAST_LOG
    whole, bias = _joined(list(parts), tried, factors, prior)
    weights = {
        name: part
        for layer, weight in whole.items()
        for name, part in zip(names[layer], weight.split([one.shape[1] for one in wide[layer]], 1), strict=True)
    }
    return LayerReading(weights, bias, held_out.clamp(min=LEAST_LOG), tuple(sorted(told, key=lambda one: -one.weight)))


def _by_layer(names: Sequence[str]) -> dict[str, list[str]]:
    """The names of each layer's parts."""
    found = dict[str, list[str]]()
    for name in names:
        found.setdefault(name.removesuffix(SPREAD), []).append(name)
    return found


def _distinct(parts: dict[str, _Scaled]) -> dict[str, _Scaled]:
    """The layers without those that say the same as the next: pooling the last map again, say."""
    following = dict(zip(parts, [*parts.values()][1:], strict=False))
    return {name: part for name, part in parts.items() if name not in following or not part.repeats(following[name])}


def _averaged(
    tried: Sequence[_Tried], labels: Tensor, prior: Tensor, judged: Tensor, sure: int
) -> tuple[list[float], list[Candidate]]:
    """The factor of each candidate's scores in the average, by the log loss of the images ``judged`` (n,).

    These count as so many independent ones as ``sure`` says: as they are images, or groups.
    """
    known = labels[judged]
    temperatures = [temperature(one.held_out[judged], known, prior) for one in tried]
    losses = [
        _loss(factor * one.held_out[judged] + prior, known) for factor, one in zip(temperatures, tried, strict=True)
    ]
    shares = torch.softmax(-SHARPNESS * sure * torch.tensor(losses, dtype=torch.float64), 0).tolist()
    factors = [share * temperature for share, temperature in zip(shares, temperatures, strict=True)]
    average = torch.stack([factor * one.held_out[judged] for factor, one in zip(factors, tried, strict=True)]).sum(0)
    last = temperature(average, known, prior)
    told = [
        Candidate(one.depth, one.shrinkage, loss, share) for one, loss, share in zip(tried, losses, shares, strict=True)
    ]
    return [last * factor for factor in factors], told


def _usual(tried: Sequence[_Tried]) -> tuple[list[float], list[Candidate]]:
    """The one candidate that does best elsewhere, where nothing can be left out; scores are brought to spread 1."""
    chosen = min(tried, key=lambda one: (abs(one.depth - USUAL[0]), abs(one.shrinkage - USUAL[1])))
    spread = float(chosen.held_out.std(1).mean())
    factors = [(1 / spread if spread > 0 else 1.0) if one is chosen else 0.0 for one in tried]
    return factors, [Candidate(chosen.depth, chosen.shrinkage, math.nan, 1.0)]


class _Scaled(NamedTuple):
    """Features (n, d) of one layer, its parts side by side, around their mean, times what makes their mean square 1."""

    values: Float64[Tensor, "n d"]
    mean: Float64[Tensor, " d"]
    factor: float

    @classmethod
    def of(cls, parts: Sequence[Tensor], labels: Tensor, classes: int) -> _Scaled:
        for given in parts:
            check_samples(given, labels, classes)
        wide = torch.cat([given.double() for given in parts], 1)
        mean = wide.mean(0)
        centered = wide - mean
        square = float(centered.square().sum(1).mean())
        factor = square**-0.5 if square > 0 else 0.0
        return cls(centered * factor, mean, factor)

    def repeats(self, other: _Scaled) -> bool:
        """Whether the two are the same but for rounding."""
        same_shape = self.values.shape == other.values.shape
        return same_shape and bool((self.values - other.values).square().sum(1).mean() < SAME)


class _Tried(NamedTuple):
    """One discriminant: scores (n, K) of images left out, and how it reads each of its layers."""

    depth: int
    shrinkage: float
    held_out: Float64[Tensor, "n k"]
    weights: list[Float64[Tensor, "k d"]]
    bias: Float64[Tensor, " k"]


def _tried(parts: list[_Scaled], grouping: Grouping) -> Iterator[_Tried]:
    """Discriminants of the last 1, 2, 4, … and all layers, at each shrinkage."""
    gram, added = torch.zeros(1, 1, dtype=torch.float64), 0
    for depth in [depth for depth in (2**power for power in range(32)) if depth < len(parts)] + [len(parts)]:
        read = parts[-depth:]
        dimension = sum(part.values.shape[1] for part in read)
        if depth > 1 and min(grouping.samples, dimension) > LARGEST:
            return
        if dimension < grouping.samples:
            solver: Narrow | Wide = Narrow.of(torch.cat([part.values for part in read], 1), grouping)
        else:
            for part in parts[len(parts) - depth : len(parts) - added]:
                gram = gram + part.values @ part.values.T
            added = depth
            solver = Wide.of(gram, grouping)
        for shrinkage in SHRINKAGES:
            yield _discriminant(solver, shrinkage, read, grouping)


def _discriminant(solver: Narrow | Wide, shrinkage: float, read: list[_Scaled], grouping: Grouping) -> _Tried:
    ridge = shrinkage * solver.trace / max(grouping.samples - 1, 1)
    ridge = ridge if ridge > 0 else 1.0
    products, values = solver.at(ridge), [part.values for part in read]
    bias = -0.5 * grouping.samples * (products.means.diagonal() - noise(products, grouping, grouping.counts))
    weights = [
        grouping.samples * part.factor * weight for part, weight in zip(read, products.weights(values), strict=True)
    ]
    for weight, part in zip(weights, read, strict=True):
        bias -= weight @ part.mean
    held_out = groups_left_out(solver, ridge, products, grouping)
    return _Tried(len(read), shrinkage, held_out, weights, bias)


def _loss(logits: Tensor, labels: Tensor) -> float:
    return float(functional.cross_entropy(logits, labels))


def _joined(
    names: list[str], tried: list[_Tried], factors: list[float], prior: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """The weighted sum of discriminants: weights (K, d) of each layer that counts, and bias (K,)."""
    weights, bias = dict[str, Tensor](), prior.clone()
    for one, factor in zip(tried, factors, strict=True):
        bias += factor * one.bias
        for name, weight in zip(names[-one.depth :], one.weights, strict=True):
            weights[name] = weights[name] + factor * weight if name in weights else factor * weight
    empty = prior <= NEVER
    bias[empty] = NEVER
    for weight in weights.values():
        weight[empty] = 0
    return {name: weights[name] for name in names if name in weights}, bias
