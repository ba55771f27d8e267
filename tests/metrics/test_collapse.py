"""Every collapse metric against its formula written out in NumPy, and the table of what leaves each one unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import Head, cdnv
from tightframe.metrics.factors import between_factor
from tightframe.metrics.summary import CollapseMetrics, collapse_metrics

METRICS = ("nc1", "nc1_ratio", "cdnv", "numerical_rank", "vci", "nc2_norm", "nc2_angle", "nc2_etf", "nc3", "nc4")
WEIGHTINGS = ("class", "sample")
SHAPES = {  # samples of each class, dimension
    "balanced": ([12, 12, 12, 12], 6),
    "imbalanced": ([5, 20, 9, 14], 6),
    "balanced, d > N": ([4, 4, 4, 4], 30),
    "imbalanced, d > N": ([3, 5, 2, 4], 30),
    "two classes": ([7, 11], 5),
    "K > d": ([5, 9, 6, 7, 8, 6], 3),
    "a class of one": ([1, 9, 6], 4),
}


@dataclass(frozen=True)
class Sample:
    """What collapse is measured on; batches are cut before these rows."""

    features: Any
    labels: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    cuts: tuple[int, ...] = ()

    @property
    def moments(self) -> ClassMoments:
        moments = ClassMoments.zero(len(self.weight), self.weight.shape[1])
        pairs = zip(np.split(self.features, self.cuts), np.split(self.labels, self.cuts), strict=True)
        for features, labels in pairs:
            moments = moments.merge(ClassMoments.from_features(features, labels, len(self.weight)))
        return moments

    @property
    def head(self) -> Head:
        return Head(torch.from_numpy(self.weight), torch.from_numpy(self.bias))

    def metrics(self, weighting: str) -> CollapseMetrics:
        return collapse_metrics(self.moments, self.head, features=self.features, weighting=weighting)


def sample(shape: str, seed: int = 0) -> Sample:
    """Gaussian classes, values exact in float32, and a classifier a bit off the class means."""
    counts, dimension = SHAPES[shape]
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    means = generator.normal(size=(len(counts), dimension))
    spread = generator.normal(size=(dimension, dimension)) / dimension**0.5
    features = means[labels] + generator.normal(size=(len(labels), dimension)) @ spread
    weight = means + 0.5 * generator.normal(size=means.shape)
    return Sample(features.astype(np.float32).astype(float), labels, weight, generator.normal(size=len(counts)))


def formulas(given: Sample, weighting: str) -> dict[str, float]:
    """METHOD, section 2, line by line."""
    features, labels, classes = given.features, given.labels, len(given.weight)
    counts = np.bincount(labels, minlength=classes)
    means = np.stack([features[labels == k].mean(0) for k in range(classes)])
    spread = features - means[labels]
    within = spread.T @ spread / len(labels)
    weights = np.full(classes, 1 / classes) if weighting == "class" else counts / len(labels)
    centered = means - weights @ means
    between = (centered.T * weights) @ centered
    total = within + between
    variances = [(spread[labels == k] ** 2).sum() / counts[k] for k in range(classes)]
    pairs = list(combinations(range(classes), 2))
    lengths = [np.sqrt(mean @ mean) for mean in centered]
    simplex = (np.eye(classes) - 1 / classes) / np.sqrt(classes - 1)
    gram, aligned = centered @ centered.T, given.weight @ centered.T
    nearest = [int(np.argmin([((row - mean) ** 2).sum() for mean in means])) for row in features]
    chosen = [int(np.argmax([row @ w + b for w, b in zip(given.weight, given.bias, strict=True)])) for row in features]
    rank = np.linalg.matrix_rank(between, tol=1e-10)
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / classes,
        "nc1_ratio": np.trace(within) / np.trace(between),
        "cdnv": np.mean([(variances[i] + variances[j]) / (2 * ((means[i] - means[j]) ** 2).sum()) for i, j in pairs]),
        "numerical_rank": np.trace(within) ** 2 / (within**2).sum(),
        "vci": 1 - np.trace(np.linalg.pinv(total, rcond=1e-10) @ between) / rank,
        "nc2_norm": np.std(lengths) / np.mean(lengths),
        "nc2_angle": np.mean([abs(gram[i, j] / (lengths[i] * lengths[j]) + 1 / (classes - 1)) for i, j in pairs]),
        "nc2_etf": np.sqrt(((gram / np.sqrt((gram**2).sum()) - simplex) ** 2).sum()),
        "nc3": np.sqrt(((aligned / np.sqrt((aligned**2).sum()) - simplex) ** 2).sum()),
        "nc4": np.mean([one != other for one, other in zip(nearest, chosen, strict=True)]),
    }


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_metric_is_its_formula(shape: str, weighting: str) -> None:
    given = sample(shape)
    found, expected = given.metrics(weighting), formulas(given, weighting)
    assert tuple(found) == METRICS, "a new metric needs its name in METRICS and its formula in formulas()"
    for metric in METRICS:
        assert found[metric] == pytest.approx(expected[metric], rel=1e-9, abs=1e-12), metric


def test_samples_tell_metrics_and_weightings_apart() -> None:
    """Else the test above could not see one taken for another."""
    values = [list(formulas(sample("imbalanced"), weighting).values()) for weighting in WEIGHTINGS]
    assert 0 < values[0][-1] < 1
    assert len(set(np.round(values[0], 6))) == len(METRICS)
    differ = {m for m, one, other in zip(METRICS, *values, strict=True) if abs(one - other) > 1e-3 * abs(one)}
    assert differ == {"nc1", "nc1_ratio", "vci", "nc2_norm", "nc2_angle", "nc2_etf", "nc3"}


def mapped(given: Sample, matrix: np.ndarray) -> Sample:
    """Features through an invertible or embedding map; the classifier undoes it."""
    return replace(given, features=given.features @ matrix.T, weight=given.weight @ np.linalg.pinv(matrix))


def shifted(given: Sample, by: float) -> Sample:
    offset = by * np.linspace(0.5, 1, given.features.shape[1])
    return replace(given, features=given.features + offset, bias=given.bias - given.weight @ offset)


def permuted(given: Sample) -> Sample:
    order = np.random.default_rng(1).permutation(len(given.labels))
    return replace(given, features=given.features[order], labels=given.labels[order])


def renamed(given: Sample) -> Sample:
    names = np.roll(np.arange(len(given.weight)), 1)
    places = np.argsort(names)
    return replace(given, labels=names[given.labels], weight=given.weight[places], bias=given.bias[places])


def twice(given: Sample) -> Sample:
    return replace(given, features=np.repeat(given.features, 2, 0), labels=np.repeat(given.labels, 2))


def rotated(given: Sample) -> Sample:
    return mapped(given, np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0])


def sheared(given: Sample) -> Sample:
    return mapped(given, np.random.default_rng(3).normal(size=(6, 6)) + 2 * np.eye(6))


def tightened(given: Sample) -> Sample:
    """Half the spread within classes, about the same means."""
    means = np.stack([given.features[given.labels == k].mean(0) for k in range(len(given.weight))])[given.labels]
    return replace(given, features=(given.features + means) / 2)


EVERY = frozenset(METRICS)
OF_MEANS = frozenset({"nc2_norm", "nc2_angle", "nc2_etf", "nc3"})
CHANGES: dict[str, tuple[Callable[[Sample], Sample], frozenset[str]]] = {
    "split into batches": (lambda given: replace(given, cuts=(1, 2, 9, 9, 30)), EVERY),
    "permuted": (permuted, EVERY),
    "classes renamed": (renamed, EVERY),
    "every sample twice": (twice, EVERY),
    "rotated": (rotated, EVERY),
    "scaled up": (lambda given: mapped(given, 1e3 * np.eye(6)), EVERY),
    "scaled down": (lambda given: mapped(given, 1e-6 * np.eye(6)), EVERY),
    "far from zero": (lambda given: shifted(given, 1e4), EVERY),
    "three constant features more": (lambda given: shifted(mapped(given, np.eye(9, 6)), 7.0), EVERY),
    "float32": (lambda given: replace(given, features=given.features.astype(np.float32)), EVERY),
    "sheared": (sheared, frozenset({"vci", "nc3"})),
    "tightened": (tightened, OF_MEANS | {"numerical_rank"}),
    "another draw": (lambda _: sample("imbalanced", seed=1), frozenset()),
}


@cache
def measured(change: str, weighting: str) -> CollapseMetrics:
    function = CHANGES[change][0] if change else (lambda given: given)
    return function(sample("imbalanced")).metrics(weighting)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_leaves_each_metric_unchanged(change: str, metric: str) -> None:
    for weighting in WEIGHTINGS:
        before, after = measured("", weighting)[metric], measured(change, weighting)[metric]
        near = pytest.approx(before, rel=1e-5 if change == "float32" else 1e-8)  # its products are float32
        assert (after == near) == (metric in CHANGES[change][1]), weighting


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_half_the_spread_is_a_quarter_of_the_variability(weighting: str) -> None:
    before, after = (given.metrics(weighting) for given in (sample("balanced"), tightened(sample("balanced"))))
    for metric in ("nc1", "nc1_ratio", "cdnv"):
        assert after[metric] == pytest.approx(before[metric] / 4, rel=1e-9)
    assert after["vci"] < before["vci"]


def simplex(classes: int, dimension: int, samples: int, offset: float = 0.0) -> Sample:
    """Fully collapsed: every sample at its class's corner of a rotated simplex, the classifier along the corners."""
    basis = np.linalg.qr(np.random.default_rng(4).normal(size=(dimension, dimension)))[0][:, :classes]
    means = (np.eye(classes) - 1 / classes) @ basis.T
    labels = np.tile(np.arange(classes), samples)
    return Sample(means[labels] + offset, labels, means, -means.sum(1) * offset)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("classes", "offset"), [(2, 0.0), (5, 0.0), (5, 10.0)])
def test_a_simplex_is_zero_on_every_scale(classes: int, offset: float, weighting: str) -> None:
    found = simplex(classes, 8, 3, offset).metrics(weighting)
    for metric in set(METRICS) - {"numerical_rank"}:
        assert found[metric] == pytest.approx(0, abs=1e-12), metric
    assert found.rank_between == classes - 1


def test_numerical_rank_runs_from_one_to_d_and_is_zero_without_spread() -> None:
    def rank(features: np.ndarray) -> float:
        return collapse_metrics(ClassMoments.from_features(features, np.arange(len(features)) % 2, 2))["numerical_rank"]

    corners = np.repeat(np.vstack([np.eye(4), -np.eye(4)]), 2, axis=0)  # both classes at each
    assert rank(corners) == pytest.approx(4)
    assert rank(corners * [1, 0, 0, 0]) == pytest.approx(1)
    assert rank(np.tile([[1.0, 0], [0, 1.0]], (3, 1))) == 0


COINCIDE = {"nc1": np.inf, "nc1_ratio": np.inf, "cdnv": np.inf, "vci": 1.0} | dict.fromkeys(
    ("nc2_norm", "nc2_angle", "nc2_etf", "nc3"), np.nan
)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("offset", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_class_means_that_coincide(offset: float, weighting: str, kind: type) -> None:
    cloud = np.random.default_rng(5).normal(size=(300, 4)) + offset
    rows = np.concatenate([np.random.default_rng(k).permutation(cloud) for k in range(3)])  # rounded differently
    rows = rows.astype(kind)
    given = Sample(rows, np.repeat(np.arange(3), 300), np.eye(3, 4), np.zeros(3))
    found = given.metrics(weighting)
    assert {metric: found[metric] for metric in COINCIDE} == pytest.approx(COINCIDE, nan_ok=True)
    assert found.rank_between == 0
    assert any("0 of 2 directions" in note for note in found.notes)


def test_two_of_three_class_means_coincide() -> None:
    rows = np.array([[1.0, 1], [1, -1], [2, 0], [0, 0], [-3, 5], [-3, 4]])
    found = collapse_metrics(ClassMoments.from_features(rows, np.array([0, 0, 1, 1, 2, 2]), 3))
    assert found.rank_between == 1
    assert found["cdnv"] == np.inf
    assert np.isfinite([found["nc1"], found["nc1_ratio"], found["vci"], found["nc2_angle"]]).all()
    assert any("span 1 of 2 directions: some classes coincide" in note for note in found.notes)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize(("classes", "spanned", "dimension"), [(5, 2, 20), (5, 4, 20), (2, 1, 20), (8, 3, 3)])
def test_a_large_offset_does_not_add_directions(
    classes: int, spanned: int, dimension: int, offset: float, weighting: str
) -> None:
    generator = np.random.default_rng(6)
    means = generator.normal(size=(classes, spanned)) @ generator.normal(size=(spanned, dimension))
    labels = np.repeat(np.arange(classes), 2)
    rows = means[labels] + 1e-3 * np.tile([[1.0], [-1.0]], (classes, 1)) + offset
    factor = between_factor(ClassMoments.from_features(rows, labels, classes), weighting)
    assert factor.rank == spanned
    assert (factor.singular > factor.cutoff).all()
    torch.testing.assert_close(factor.directions.T @ factor.directions, torch.eye(spanned, dtype=torch.float64))


def test_cdnv_of_close_classes_far_from_zero() -> None:
    rows = np.random.default_rng(7).normal(size=(40, 30)) * 1e-4
    labels = np.arange(40) % 4
    near = cdnv(ClassMoments.from_features(rows, labels, 4))
    assert cdnv(ClassMoments.from_features(rows + 1e4, labels, 4)) == pytest.approx(near, rel=1e-5)


def test_cdnv_of_two_close_classes_beside_a_distant_one() -> None:
    rows = np.array([[0.0, 0], [0, 2e-7], [1e-7, 0], [1e-7, 2e-7], [1e3, 0], [1e3, 2e-7]])
    assert cdnv(ClassMoments.from_features(rows, np.array([0, 0, 1, 1, 2, 2]), 3)) == pytest.approx(1 / 3, rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 0, 0, 0], 1, "1 class given.*at least two"),
        ([0, 0, 2, 2], 4, "no samples for class 1, 3; leave empty classes out"),
        ([0, 1, 2, 3], 4, "one sample a class.*give two or more"),
    ],
)
def test_what_has_no_collapse(labels: list[int], classes: int, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        collapse_metrics(ClassMoments.from_features(np.eye(4), labels, classes))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (4, 2)])
def test_a_head_of_other_classes_or_features(shape: tuple[int, int]) -> None:
    head = Head(torch.ones(shape, dtype=torch.float64), torch.ones(shape[0], dtype=torch.float64))
    moments = ClassMoments.from_features(np.random.default_rng(8).normal(size=(6, 4)), np.arange(6) % 2, 2)
    with pytest.raises(MeasureError, match=f"the head maps {shape[1]} values to {shape[0]} classes, .* 4 and 2"):
        collapse_metrics(moments, head)


def test_results_say_what_they_were_made_of() -> None:
    found = sample("a class of one").metrics("sample")
    assert found.weighting == "sample"
    assert found.samples_per_class == (1, 9, 6)
    assert found.notes == ("1 of 3 classes have one sample; their spread counts as 0",)
    assert 0 < found.cutoff < 1e-12
    few = sample("balanced, d > N").metrics("class")
    assert few.notes == ("16 samples in 30 dimensions: features look more collapsed than they are",)
    assert sample("balanced").metrics("class").notes == ()


def test_metrics_need_what_they_are_made_of() -> None:
    given = sample("balanced")
    assert tuple(collapse_metrics(given.moments)) == METRICS[:-2]
    assert tuple(collapse_metrics(given.moments, features=given.features)) == METRICS[:-2]
    assert tuple(collapse_metrics(given.moments, given.head)) == METRICS[:-1]
    assert len(given.metrics("class")) == len(METRICS)


def test_head_logits_and_accuracy() -> None:
    head = Head(torch.tensor([[1.0, 0], [0, 2]], dtype=torch.float64), torch.tensor([0.5, 0], dtype=torch.float64))
    rows = np.array([[1.0, 1], [1, 0.5], [-1, 0]], dtype=np.float32)
    assert head.logits(rows).tolist() == [[1.5, 2], [1.5, 1], [-0.5, 0]]
    assert head.accuracy(rows, np.array([1, 0, 0])) == pytest.approx(2 / 3)
