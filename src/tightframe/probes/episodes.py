"""Few-shot episodes on features that are there already: drawing them, four classifiers, hundreds of episodes at once.

An episode draws K classes, of each a few images to learn from (the support, n in all) and others to be judged on
(queries). Every classifier here is linear with weights in the span of the support, so all that is solved is
n-dimensional, batched over episodes, and starts from the Gram matrix G of the support:

- logistic: scikit-learn's LogisticRegression at C = 1 on L2-normalized features (Tian et al., ECCV 2020).
- ridge: least squares on one-hot targets with penalty 1 and a free intercept, on L2-normalized features.
- cosine: the class whose mean of L2-normalized features is nearest by angle.
- center: the class whose mean is nearest, features as they are (prototypical models, Snell et al. 2017). On
  L2-normalized features it would be the same as cosine where there is one shot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tightframe.errors import MeasureError, SettingsError
from tightframe.features.samples import as_tensor, check_samples, group_numbers
from tightframe.probes.apart import can_part, draw_apart
from tightframe.probes.logistic import softmax_regression
from tightframe.progress import Progress, silent

STRENGTH = 1.0
"""scikit-learn's C, of the protocol."""
PENALTY = 1.0
"""Of ridge regression, on features of length 1."""
TOLERANCE = 1e-5
"""Change of every logit in one step below which logistic regression counts as solved."""
BATCH_BYTES = 2**25
"""What the episodes that are solved at a time may take, about."""
USUAL = 1e12
"""Size of features up to which, and from the inverse of which on, their products hold in single precision."""
NORMAL = 1.96
"""Standard errors within which 95 % of a normal distribution lies."""


@dataclass(frozen=True, eq=False)
class Episodes:
    """Which features take part in each of e episodes of k classes: row numbers, class after class.

    Attributes:
        support: n a class, to learn from.
        queries: q a class, to be judged on.
    """

    support: Int64[Tensor, "e k n"]
    queries: Int64[Tensor, "e k q"]

    def with_shots(self, shots: int) -> Episodes:
        """The same classes and queries, and the first ``shots`` of the support."""
        return Episodes(self.support[..., :shots], self.queries)

    def split(self, size: int) -> Iterator[Episodes]:
        """``size`` of them at a time."""
        for support, queries in zip(self.support.split(size), self.queries.split(size), strict=True):
            yield Episodes(support, queries)

    def __len__(self) -> int:
        return len(self.support)


def draw(
    labels: np.ndarray,
    ways: int,
    shots: int,
    queries: int,
    episodes: int,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Episodes:
    """Episodes of ``ways`` classes, each from a generator of its own: asking for more changes none of the first.

    Classes with fewer than ``shots`` + ``queries`` images take no part. Queries are drawn before the support, so
    ``with_shots`` compares numbers of shots on the same classes and queries.

    Args:
        labels: class of each image, shape (n,).
        ways: classes an episode, 2 or more.
        shots: images a class to learn from.
        queries: images a class to be judged on.
        episodes: how many, 2 or more.
        seed: 0 or more.
        groups: of each image, shape (n,): in an episode, none has images both in the support and among the queries.

    Raises:
        SettingsError: a number is out of range.
        MeasureError: fewer than ``ways`` classes have images enough, of different groups.
    """
    for name, value, least in (
        ("ways", ways, 2),
        ("shots", shots, 1),
        ("queries", queries, 1),
        ("episodes", episodes, 2),
        ("seed", seed, 0),
    ):
        if value < least:
            raise SettingsError(f"{name} must be {least} or more, not {value}")
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    large, numbers = [rows for rows in members if len(rows) >= shots + queries], group_numbers(groups, len(labels))
    if numbers is not None:
        large = [rows for rows in large if can_part(np.unique(numbers[rows], return_counts=True)[1], shots, queries)]
    other = "of other groups " if numbers is not None else ""
    if len(large) < ways:
        raise MeasureError(
            f"{len(large)} of {len(members)} classes have the {shots + queries} images that {shots} shots and "
            f"{queries} queries {other}take, and an episode needs {ways} such classes; ask for fewer ways, shots or "
            "queries, or give more images"
        )
    seeds = [(seed, episode) for episode in range(episodes)]
    if numbers is None:
        found = [_one(large, ways, shots + queries, seed) for seed in seeds]
    else:
        found = [draw_apart(large, numbers, ways, shots, queries, seed) for seed in seeds]
    drawn = torch.from_numpy(np.stack(found))
    return Episodes(drawn[..., queries:], drawn[..., :queries])


def _one(members: list[np.ndarray], ways: int, images: int, seed: tuple[int, int]) -> np.ndarray:
    """Rows (ways, images) of one episode; classes in a random order, so that ties favor none."""
    generator = np.random.default_rng(seed)
    # Sorting plain uniform numbers, for how Generator.permutation draws may change between NumPy releases.
    chosen = np.argsort(generator.random(len(members)), kind="stable")[:ways]
    return np.stack(
        [members[one][np.argsort(generator.random(len(members[one])), kind="stable")[:images]] for one in chosen]
    )


class Support(NamedTuple):
    """What classifiers know of the support of e episodes: k classes, n images in all."""

    gram: Float64[Tensor, "e n n"]
    """Products of L2-normalized features."""
    lengths: Float64[Tensor, "e n"]
    """Of the features before that."""
    targets: Float64[Tensor, "k n"]
    """One-hot labels."""


class Heads(NamedTuple):
    """Linear classifiers of e episodes, written as sums over the support's L2-normalized features."""

    weights: Float64[Tensor, "e k n"]
    bias: Float64[Tensor, "e k"]
    normalized: bool = True
    """Whether queries are L2-normalized, too."""


def logistic(support: Support) -> Heads:
    """Multinomial logistic regression, the optimum of scikit-learn's objective at C = 1.

    It is solved in coordinates in which the support has the Gram matrix given. At the optimum the coefficients of
    weights in the support are C times one-hot minus probabilities.
    """
    values, vectors = torch.linalg.eigh(support.gram)
    rows = vectors * values.clamp(min=0).sqrt()[:, None]
    inputs = torch.cat([rows, torch.ones_like(rows[..., :1])], 2)
    start = inputs.new_zeros(len(inputs), len(support.targets), inputs.shape[2])
    weights, logits = softmax_regression(inputs, support.targets, STRENGTH, start, TOLERANCE)
    strength = STRENGTH / 2 if len(support.targets) == 2 else STRENGTH
    return Heads(strength * (support.targets - logits.softmax(1)), weights[..., -1])


def ridge(support: Support) -> Heads:
    """Ridge regression on one-hot targets with a free intercept."""
    inverse, intercept = _bordered(support.gram, PENALTY)
    return Heads(support.targets @ inverse, intercept @ support.targets.T)


def cosine(support: Support) -> Heads:
    """The class mean at the smallest angle."""
    lengths = _squared(support.targets.expand(len(support.gram), -1, -1), support.gram).sqrt()
    weights = support.targets / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)[..., None]
    return Heads(weights, torch.zeros_like(lengths))


def center(support: Support) -> Heads:
    """The nearest class mean, features as they are."""
    weights = support.targets / support.targets.sum(1, keepdim=True) * support.lengths[:, None]
    return Heads(weights, -_squared(weights, support.gram) / 2, normalized=False)


CLASSIFIERS: dict[str, Callable[[Support], Heads]] = {
    "logistic": logistic,
    "ridge": ridge,
    "center": center,
    "cosine": cosine,
}
"""By the names under which they are reported."""


def accuracies(
    features: Any,
    episodes: Episodes,
    classifiers: Sequence[str] = tuple(CLASSIFIERS),
    progress: Progress = silent,
) -> dict[str, Float64[Tensor, " e"]]:
    """Share of the queries that each classifier gets right, by episode.

    Memory: about ``BATCH_BYTES`` beside the features, however many episodes there are.

    Args:
        features: shape (n, d), as the model gives them.
        episodes: rows of ``features``, from ``draw``.
        classifiers: names from ``CLASSIFIERS``.
        progress: shown batch by batch.

    Raises:
        MeasureError: features are not of shape (n, d), or not finite.
    """
    pool = Pool.of(features)
    size = _batch(episodes, pool.features.shape[1])
    parts = progress(episodes.split(size), f"{episodes.support.shape[2]}-shot episodes", -(-len(episodes) // size))
    right = torch.cat([pool.right(part, classifiers) for part in parts], 1)
    return dict(zip(classifiers, right, strict=True))


def mean_and_margin(values: Float64[Tensor, " e"]) -> tuple[float, float]:
    """Mean over episodes, and half the length of its 95 % interval, 1.96 s / √e, as few-shot results are reported."""
    return float(values.mean()), NORMAL * float(values.std()) / len(values) ** 0.5


def support_of(rows: Float[Tensor, "e n d"], lengths: Float64[Tensor, "e n"], ways: int) -> Support:
    """The support whose features are ``rows``, class after class."""
    safe = _safe(lengths)
    gram = (rows @ rows.mT).double() / (safe[:, :, None] * safe[:, None])
    return Support(gram, lengths, torch.eye(ways).to(gram).repeat_interleave(rows.shape[1] // ways, dim=1))


@dataclass(frozen=True, eq=False)
class Pool:
    """The features that episodes draw from, and their lengths. A few episodes' are read at a time."""

    features: Float[Tensor, "n d"]
    lengths: Float64[Tensor, " n"]

    @classmethod
    def of(cls, features: Any) -> Pool:
        """Features (n, d). Raises as ``accuracies``."""
        rows = as_tensor(features, device="cpu")
        check_samples(rows, torch.zeros(len(rows), dtype=torch.int64), 1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        largest = max(abs(float(end)) for end in torch.aminmax(rows))
        if largest and not 1 / USUAL < largest < USUAL:
            rows = rows / largest
        return cls(rows, torch.linalg.vector_norm(rows, dim=1).double())

    def rows(self, which: Int64[Tensor, "e m"]) -> Float[Tensor, "e m d"]:
        """Features by row number."""
        return self.features.index_select(0, which.flatten()).view(*which.shape, -1)

    def support(self, episodes: Episodes) -> Support:
        """What classifiers learn from."""
        learned = episodes.support.flatten(1)
        return support_of(self.rows(learned), self.lengths[learned], episodes.support.shape[1])

    def right(self, episodes: Episodes, classifiers: Sequence[str]) -> Float64[Tensor, "h e"]:
        """Share of right queries, a row a classifier."""
        ways, queries = episodes.queries.shape[1:]
        support = self.support(episodes)
        heads = [CLASSIFIERS[name](support) for name in classifiers]
        weights = torch.cat([head.weights for head in heads], 1) / _safe(support.lengths)[:, None]
        learned, asked = self.rows(episodes.support.flatten(1)), self.rows(episodes.queries.flatten(1))
        products = (asked @ (weights.to(learned.dtype) @ learned).mT).split(ways, dim=2)
        unit = _safe(self.lengths[episodes.queries.flatten(1)])[..., None]
        labels = torch.arange(ways).repeat_interleave(queries)
        said = [
            ((found / unit if head.normalized else found) + head.bias[:, None]).argmax(2)
            for found, head in zip(products, heads, strict=True)
        ]
        return torch.stack(said).eq(labels).double().mean(2)


def _bordered(
    gram: Float64[Tensor, "e n n"], penalty: float
) -> tuple[Float64[Tensor, "e n n"], Float64[Tensor, "e n"]]:
    """What gives, of targets t, coefficients a and intercept b with (G + penalty) a + b = t and a summing to 0."""
    inverse = torch.linalg.inv(gram + penalty * torch.eye(gram.shape[-1]).to(gram))
    ones = inverse.sum(2)
    intercept = ones / ones.sum(1, keepdim=True)
    return inverse - intercept[:, :, None] * ones[:, None], intercept


def _squared(weights: Float64[Tensor, "e k n"], gram: Float64[Tensor, "e n n"]) -> Float64[Tensor, "e k"]:
    """Squared lengths of sums over the support, rounding taken off below 0."""
    return (weights @ gram * weights).sum(2).clamp(min=0)


def _safe(lengths: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """Lengths to divide by: features that are 0 stay so."""
    return torch.where(lengths > 0, lengths, 1.0)


def _batch(episodes: Episodes, dimension: int) -> int:
    """How many episodes are solved at a time in ``BATCH_BYTES``."""
    ways, shots = episodes.support.shape[1:]
    learned, asked = ways * shots, ways * episodes.queries.shape[2]
    solving = 8 * (learned * (4 * learned + 10 * ways) + 6 * ways * asked)
    return max(1, BATCH_BYTES // (solving + 4 * (learned + asked) * dimension))
