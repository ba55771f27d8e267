"""Hard inputs: for each way in which other software went wrong, what is said or done here instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import Head, nc4
from tightframe.metrics.correction import corrected
from tightframe.metrics.folds import Folds
from tightframe.metrics.intervals import collapse_intervals
from tightframe.metrics.registry import MEASURES
from tightframe.metrics.summary import collapse_metrics, quick_collapse
from tightframe.probes.calibration import calibration_error, per_class_accuracy
from tightframe.probes.knn import neighbors_accuracy
from tightframe.probes.linear import cross_validated_center, cross_validated_lda, cross_validated_ridge
from tightframe.probes.logistic import cross_validated_logistic, logistic_path
from tightframe.scores.agreement import agreement
from tightframe.scores.transferability import transferability

PROBES: dict[str, Callable[..., Any]] = {
    "ridge": lambda *given: cross_validated_ridge(Folds.of(*given)),
    "lda": lambda *given: cross_validated_lda(Folds.of(*given)),
    "center": lambda *given: cross_validated_center(Folds.of(*given)),
    "logistic": lambda *given: cross_validated_logistic(Folds.of(*given)).result,
    "neighbors": neighbors_accuracy,
}
OFFSETS = pytest.mark.parametrize("offset", [0.0, 10.0, 100.0, 1000.0])
EACH = pytest.mark.parametrize("name", MEASURES)
EACH_PROBE = pytest.mark.parametrize("probe", PROBES)


def sample(
    samples: int = 90, dimension: int = 5, classes: int = 3, apart: float = 1.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    means = apart * generator.normal(size=(classes, dimension))
    return means[labels] + generator.normal(size=(samples, dimension)), labels


def evidence(features: Any, labels: Any, classes: int = 3, heads: int = 5) -> dict[str, Any]:
    """Of all kinds; the head looks at the first ``heads`` values, the source head's classes are 0 … ``classes``."""
    generator = np.random.default_rng(1)
    weight = np.zeros((classes, features.shape[1]))
    weight[:, :heads] = generator.normal(size=(classes, heads))
    source = 0.2 / (classes + 1) + 0.8 * np.eye(classes + 1)[(labels + generator.integers(0, 2, 90)[labels]) % classes]
    return {
        "moments": ClassMoments.from_features(features, labels, classes),
        "features": features,
        "labels": labels,
        "classes": classes,
        "head": Head(torch.from_numpy(weight), torch.zeros(classes, dtype=torch.float64)),
        "source": source,
    }


def values(given: dict[str, Any]) -> dict[str, float]:
    found = {name: measure.of(given) for name, measure in MEASURES.items()}
    assert None not in found.values()
    return {name: value for name, value in found.items() if value is not None}


def moved(before: dict[str, float], after: dict[str, float]) -> set[str]:
    return {name for name in before if after[name] != pytest.approx(before[name], rel=1e-6, abs=1e-9)}


def covariances(
    features: np.ndarray, labels: np.ndarray, weighting: str = "class"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Σ_W, Σ_B and class means by METHOD, in two passes of float64."""
    rows = features.astype(np.float64)
    counts = np.bincount(labels)
    means = np.stack([rows[labels == k].mean(0) for k in range(len(counts))])
    spread = rows - means[labels]
    weights = np.full(len(counts), 1 / len(counts)) if weighting == "class" else counts / len(rows)
    centered = means - weights @ means
    return spread.T @ spread / len(rows), (centered.T * weights) @ centered, means


def nc1_of(within: np.ndarray, between: np.ndarray, classes: int) -> float:
    vectors, singular, _ = np.linalg.svd(between, hermitian=True)
    kept = slice(0, classes - 1)
    return float(((vectors[:, kept].T @ within @ vectors[:, kept]).diagonal() / singular[kept]).sum() / classes)


@pytest.mark.parametrize("each", [5, 20, 100])
def test_few_samples_look_collapsed_and_the_corrected_value_does_not(each: int) -> None:
    classes, dimension, generator = 20, 256, np.random.default_rng(0)
    means = 0.5 * generator.normal(size=(classes, dimension))
    truth = nc1_of(np.eye(dimension), np.cov(means.T, bias=True), classes)
    labels = np.arange(classes).repeat(each)
    moments = ClassMoments.from_features(
        means[labels] + generator.normal(size=(len(labels), dimension)), labels, classes
    )
    plain, better = collapse_metrics(moments), collapse_metrics(moments, correct=True)
    assert plain["nc1"] < {5: 0.55, 20: 0.85, 100: 0.98}[each] * truth
    assert better["nc1"] == pytest.approx(truth, rel=0.15)
    assert abs(better["nc1"] - truth) < abs(plain["nc1"] - truth)
    assert any("more collapsed than they are" in note for note in plain.notes) == (len(labels) - classes < dimension)
    assert any(f"corrected for {each} to {each} samples a class" in note for note in better.notes)


def test_what_few_samples_can_not_tell_is_no_number_but_a_bound() -> None:
    classes, dimension, generator = 20, 256, np.random.default_rng(0)
    means = 0.1 * generator.normal(size=(classes, dimension))
    truth = nc1_of(np.eye(dimension), np.cov(means.T, bias=True), classes)
    labels = np.arange(classes).repeat(5)
    moments = ClassMoments.from_features(means[labels] + generator.normal(size=(100, dimension)), labels, classes)
    found = collapse_metrics(moments, correct=True)
    assert np.isnan(found["nc1"])
    assert collapse_metrics(moments)["nc1"] < corrected(moments).nc1.lower * 2 < 2 * truth
    assert any("NC1 is not identifiable from these samples: it is at least" in note for note in found.notes)


@OFFSETS
def test_nc1_of_single_precision_needs_no_luck_with_a_cutoff(offset: float) -> None:
    features, labels = sample(3000, 300, 10, apart=0.3)
    features = (features + offset).astype(np.float32)
    means = np.stack([features[labels == k].mean(0) for k in range(10)])
    centered = means - means.mean(0)
    within, between, _ = covariances(features, labels)
    usual = np.trace(within.astype(np.float32) @ np.linalg.pinv(centered.T @ centered / 10)) / 10
    expected = nc1_of(within, between, 10)
    found = collapse_metrics(ClassMoments.from_features(features, labels, 10))
    assert found["nc1"] == pytest.approx(expected, rel=1e-5)
    assert found.rank_between == 9
    assert abs(usual / expected - 1) > 0.1


@OFFSETS
def test_covariances_do_not_cancel(offset: float) -> None:
    features, labels = sample(3000, 300, 10, apart=0.3)
    features = (features + offset).astype(np.float32)
    expected = covariances(features, labels)[0]
    halves = [ClassMoments.from_features(features[rows], labels[rows], 10) for rows in (slice(900), slice(900, None))]
    for found in (ClassMoments.from_features(features, labels, 10), halves[0].merge(halves[1])):
        error = np.linalg.norm(found.scatter.numpy() / 3000 - expected) / np.linalg.norm(expected)
        assert error < 1e-6
    sums = np.stack([features[labels == k].sum(0) for k in range(10)])
    one_pass = (features.T @ features - sums.T @ sums / 300) / 3000
    assert (np.linalg.norm(one_pass - expected) / np.linalg.norm(expected) > 1e-3) == (offset > 10)


def test_equal_means_are_flagged_where_a_pseudo_inverse_makes_them_look_better() -> None:
    noise = np.random.default_rng(0).normal(size=(30, 4))
    labels = np.arange(3).repeat(30)
    found = []
    for gap in (1.0, 1e-2, 1e-4, 0.0):
        means = np.array([[0, 0, 0, 0], [gap, 0, 0, 0], [0, 3, 0, 0]])
        found.append(collapse_metrics(ClassMoments.from_features(np.tile(noise, (3, 1)) + means[labels], labels, 3)))
    nc1, cdnv = ([one[name] for one in found] for name in ("nc1", "cdnv"))
    assert nc1[0] < nc1[1] < nc1[2] > nc1[3]
    assert cdnv[0] < cdnv[1] < cdnv[2] < cdnv[3] == np.inf
    assert [one.rank_between for one in found] == [2, 2, 2, 1]
    assert [any("some classes coincide" in note for note in one.notes) for one in found] == [False] * 3 + [True]


WRONG_LABELS: dict[str, Callable[[np.ndarray], Any]] = {
    "1 … K": lambda labels: labels + 1,
    "from −1": lambda labels: labels - 1,
    "floating point": lambda labels: labels.astype(float),
    "true or false": lambda labels: labels > 0,
    "one too few": lambda labels: labels[:-1],
    "in a column": lambda labels: labels[:, None],
}
NAMES = {"names": lambda labels: np.array(list("abc"))[labels], "objects": lambda labels: labels.astype(object)}
TAKES_LABELS: dict[str, Callable[[np.ndarray, Any], Any]] = {
    name: lambda features, labels, name=name: MEASURES[name].compute(features=features, labels=labels, classes=3)  # type: ignore[misc]
    for name, measure in MEASURES.items()
    if set(measure.needs) == {"features", "labels", "classes"}
} | {
    "moments": lambda features, labels: ClassMoments.from_features(features, labels, 3),
    "update": lambda features, labels: ClassMoments.zero(3, features.shape[1]).update(features, labels),
    "quick": lambda features, labels: quick_collapse(features, labels, 3),
    "folds": lambda features, labels: Folds.of(features, labels, 3),
    "logistic path": lambda features, labels: logistic_path(features, labels, 3),
    "neighbors": lambda features, labels: neighbors_accuracy(features, labels, 3),
    "transferability": lambda features, labels: transferability(features, labels),
    "leep": lambda features, labels: MEASURES["leep"].compute(np.eye(3)[np.arange(90) % 3], labels, 3),
    "nce": lambda features, labels: MEASURES["nce"].compute(np.eye(3)[np.arange(90) % 3], labels, 3),
    "calibration": lambda features, labels: calibration_error(np.full((90, 3), 1 / 3), labels),
    "each class": lambda features, labels: per_class_accuracy(np.arange(90) % 3, labels, 3),
    "each class, said": lambda features, labels: per_class_accuracy(labels, np.arange(90) % 3, 3),
}


@pytest.mark.parametrize("kind", WRONG_LABELS)
@pytest.mark.parametrize("entry", TAKES_LABELS)
def test_labels_that_are_no_classes_are_refused(entry: str, kind: str) -> None:
    features, labels = sample()
    with pytest.raises(MeasureError, match=r"labels|no samples for class 0"):
        TAKES_LABELS[entry](features, WRONG_LABELS[kind](labels))


@pytest.mark.parametrize("kind", NAMES)
def test_labels_that_are_names_are_refused(kind: str) -> None:
    features, labels = sample()
    with pytest.raises(MeasureError, match="labels"):
        ClassMoments.from_features(features, NAMES[kind](labels), 3)


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64", ">i4", ">i8"])
def test_labels_of_any_integer_type_are_read(kind: str) -> None:
    features, labels = sample()
    assert torch.equal(
        ClassMoments.from_features(features, labels.astype(kind), 3).scatter,
        ClassMoments.from_features(features, labels, 3).scatter,
    )


@EACH
def test_a_gap_in_the_labels_is_refused_or_makes_no_difference(name: str) -> None:
    features, labels = sample()
    whole = evidence(features, labels)
    gap = whole | {"labels": labels + (labels == 2), "classes": 4}
    head = Head(torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    gap |= {"moments": ClassMoments.from_features(features, gap["labels"], 4), "head": head}
    if name in ("leep", "nce"):
        assert MEASURES[name].of(gap) == pytest.approx(MEASURES[name].of(whole), rel=1e-12)
    else:
        with pytest.raises(MeasureError, match="no samples for class 2; leave empty classes out"):
            MEASURES[name].of(gap)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("entry", [name for name in TAKES_LABELS if name not in ("leep", "nce", "calibration")][:-2])
def test_one_broken_feature_is_refused(entry: str, broken: float) -> None:
    features, labels = sample()
    features[41, 3] = broken
    with pytest.raises(MeasureError, match=r"1 of 90 feature rows hold NaN or infinity \(first: row 41\)"):
        TAKES_LABELS[entry](features, labels)


@pytest.mark.parametrize("kind", ["NaN", "infinity", "another width", "none"])
def test_features_that_nc4_can_not_judge_are_refused(kind: str) -> None:
    features, labels = sample()
    given, wrong = evidence(features, labels), features.copy()
    wrong[41, 3] = np.nan if kind == "NaN" else np.inf
    wrong = {"another width": features[:, :4], "none": features[:0]}.get(kind, wrong)
    with pytest.raises(MeasureError):
        nc4(given["moments"], given["head"], wrong)


@pytest.mark.parametrize("classes", [2, 4])
def test_with_fewer_samples_than_dimensions_what_saturates_is_flagged(classes: int) -> None:
    features = np.random.default_rng(0).normal(size=(40, 60))
    labels = np.arange(40) % classes
    given = evidence(features, labels, classes)
    found = values(given)
    assert found["h_score"] == pytest.approx(classes - 1, rel=1e-9)
    assert found["vci"] == 0
    assert found["sfda"] > 0.99
    assert found["h_score_shrunk"] < 0.5 * (classes - 1)
    notes = collapse_metrics(given["moments"]).notes
    assert notes == ("40 samples in 60 dimensions: features look more collapsed than they are",)
    assert all("saturates" in (inspect.getdoc(MEASURES[name].compute) or "") for name in ("h_score", "sfda"))


@EACH_PROBE
def test_with_fewer_samples_than_dimensions_probes_are_honest(probe: str) -> None:
    features, labels = sample(60, 90, 3, apart=0.45)
    noise = np.random.default_rng(3).normal(size=(60, 90))
    folds = Folds.of(features, labels, 3)
    usual = np.zeros(60, dtype=int)
    for rows in folds.held:
        seen = np.setdiff1d(np.arange(60), rows)
        usual[rows] = (
            LinearDiscriminantAnalysis(solver="lsqr").fit(features[seen], labels[seen]).predict(features[rows])
        )
    assert PROBES[probe](features, labels, 3).accuracy > max(0.75, (usual == labels).mean() + 0.1)
    assert PROBES[probe](noise, labels, 3).low < 1 / 3


@EACH
def test_what_depends_on_the_scale_of_features_says_so(name: str) -> None:
    said = inspect.getdoc(MEASURES[name].compute) or ""
    module = inspect.getdoc(inspect.getmodule(MEASURES[name].compute)) or ""
    assert "scale" in MEASURES[name].unchanged_by or "scale of the features" in said + module


CHANGES: dict[str, Callable[[np.ndarray], Any]] = {
    "a thousand times larger": lambda features: 1e3 * features,
    "a thousand times smaller": lambda features: 1e-3 * features,
    "far from zero": lambda features: features + 1e3,
    "float32": lambda features: features.astype(np.float32),
    "float16": lambda features: features.astype(np.float16),
    "bfloat16": lambda features: torch.from_numpy(features).bfloat16(),
    "not contiguous": lambda features: np.repeat(np.repeat(features, 2, 0), 3, 1)[::2, ::3],
    "by columns": np.asfortranarray,
    "backwards": lambda features: features[:, ::-1][:, ::-1],
    "a list": lambda features: features.tolist(),
    "dead columns": lambda features: np.insert(features, [0, 3, 5], [0.0, 0.1, 1e4], axis=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@EACH_PROBE
def test_probes_are_unmoved_by_what_says_nothing(probe: str, change: str) -> None:
    features, labels = sample()
    features = torch.from_numpy(features).bfloat16().double().numpy()
    expected = PROBES[probe](features, labels, 3)
    kept = features.copy()
    found = PROBES[probe](CHANGES[change](features), labels, 3)
    np.testing.assert_array_equal(found.predicted, expected.predicted)
    np.testing.assert_array_equal(features, kept)
    assert 0.6 < expected.accuracy < 1


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_ninety_per_cent_in_one_class_is_weighted_as_it_says(weighting: str) -> None:
    features, _ = sample(200, 6)
    labels = np.arange(3).repeat([180, 10, 10])
    features = features + 2 * np.random.default_rng(1).normal(size=(3, 6))[labels]
    within, between, _ = covariances(features, labels, weighting)
    found = collapse_metrics(ClassMoments.from_features(features, labels, 3), weighting=weighting)  # type: ignore[arg-type]
    assert found.weighting == weighting
    assert found.samples_per_class == (180, 10, 10)
    assert found["nc1"] == pytest.approx(nc1_of(within, between, 3), rel=1e-9)
    assert found["nc1_ratio"] == pytest.approx(np.trace(within) / np.trace(between), rel=1e-9)
    assert found["vci"] == pytest.approx(1 - np.trace(np.linalg.solve(within + between, between)) / 2, rel=1e-9)
    other = collapse_metrics(
        ClassMoments.from_features(features, labels, 3), weighting="sample" if weighting == "class" else "class"
    )
    assert max(found["nc1"], other["nc1"]) > 2 * min(found["nc1"], other["nc1"])


@EACH
def test_measures_neither_read_nor_move_the_common_random_state(name: str) -> None:
    given, found = evidence(*sample()), []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        found.append(MEASURES[name].of(given))
        after = np.random.random(), float(torch.rand(()))
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert after == (np.random.random(), float(torch.rand(())))
    assert found[0] == found[1]


def test_more_classes_than_dimensions_leave_everything_in_bounds() -> None:
    features, labels = sample(160, 3, 8)
    given = evidence(features, labels, 8, heads=3)
    found = values(given)
    assert np.isfinite(list(found.values())).all()
    within, between, _ = covariances(features, labels)
    assert found["h_score"] == pytest.approx(np.trace(np.linalg.solve(within + between, between)), rel=1e-9)
    assert 0 < found["h_score_shrunk"] < found["h_score"] < 3
    assert found["nc1"] == pytest.approx(np.trace(np.linalg.solve(between, within)) / 8, rel=1e-9)
    assert 0 < found["vci"] < 1


def test_more_classes_than_dimensions_do_not_coincide() -> None:
    features, labels = sample(160, 3, 8, apart=9.0)
    found = collapse_metrics(ClassMoments.from_features(features, labels, 8))
    assert found["cdnv"] < 0.1
    assert any("3 of 7 directions" in note for note in found.notes)
    assert not any("coincide" in note for note in found.notes)


def test_every_sample_twice_moves_only_what_counts_samples() -> None:
    features, labels = sample()
    once = evidence(features, labels)
    twice = evidence(features.repeat(2, 0), labels.repeat(2)) | {"source": once["source"].repeat(2, 0)}
    assert moved(values(once), values(twice)) == {"h_score_shrunk", "logme", "parc"}
    folds, more = Folds.of(features, labels, 3), Folds.of(features.repeat(2, 0), labels.repeat(2), 3)
    widths = [np.log(one.high / one.low) for one in (collapse_intervals(f)["cdnv"] for f in (folds, more))]
    assert widths[1] < widths[0]


@pytest.mark.parametrize(("constant", "more"), [(0.0, set()), (0.1, {"logme"}), (-40.0, {"logme"})])
def test_dead_columns_move_only_what_averages_over_columns(constant: float, more: set[str]) -> None:
    features, labels = sample()
    dead = np.hstack([features, np.full((90, 3), constant)])
    before, after = (values(evidence(rows, labels)) for rows in (features, dead))
    assert moved(before, after) - {"nc4"} == {"gbc", "h_score_shrunk", "sfda"} | more


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("unit", [1.0, 0.1, 1e3])
def test_perfect_collapse_is_the_end_of_every_scale(unit: float, kind: type) -> None:
    labels = np.arange(90) % 3
    corners = (unit * (np.eye(3, 5) + np.array([0.3, 0.3, 0.3, 0.7, 0.0]))).astype(kind)
    given = evidence(corners[labels], labels)
    centered = torch.from_numpy(corners.astype(float) - corners.astype(float).mean(0))
    biases = -(centered * torch.from_numpy(corners.astype(float) + corners.astype(float).mean(0))).sum(1) / 2
    given |= {"head": Head(centered, biases), "source": np.eye(3)[labels]}
    ends = dict.fromkeys(("nc1", "nc1_ratio", "cdnv", "vci", "nc2_norm", "nc2_angle", "nc2_etf", "nc3", "nc4"), 0.0)
    ends |= dict.fromkeys(("leep", "nce", "nleep"), 0.0)
    ends |= {"gbc": 0.0, "gbc_of_features": 0.0, "h_score": 2.0, "sfda": 1.0}
    rate = np.log1p(np.linalg.svdvals(centered) ** 2 / (3 * 1e-4)).sum() / 2
    rate -= np.mean([np.log1p(row @ row / 1e-4) / 2 for row in centered.numpy()])
    found = values(given)
    near = 1e-12 if kind is np.float64 else 4 * float(np.finfo(kind).eps)
    assert {name: found[name] for name in ends} == pytest.approx(ends, abs=max(near, 1e-8))
    assert found["transrate"] == pytest.approx(rate, rel=1e-6)
    assert 1.9 < found["h_score_shrunk"] < 2
    assert found["logme"] > 5
    assert 0 < found["parc"] <= 1
    assert all(PROBES[probe](corners[labels], labels, 3).accuracy == 1 for probe in PROBES)


@pytest.mark.parametrize("rows", [np.full((3, 5), 0.1), np.eye(3, 5) + 0.3])
def test_rounding_is_no_spread_to_count_directions_of(rows: np.ndarray) -> None:
    labels = np.arange(90) % 3
    assert collapse_metrics(ClassMoments.from_features(rows[labels], labels, 3))["numerical_rank"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_memory_mapped_features_are_features(kind: type, mode: str, tmp_path: Path) -> None:
    features, labels = sample()
    features = features.astype(kind)
    for name, array in {"features": features, "labels": labels}.items():
        stored = np.memmap(tmp_path / name, dtype=array.dtype, mode="w+", shape=array.shape)
        stored[:] = array
        stored.flush()
    mapped = np.memmap(tmp_path / "features", dtype=kind, mode=mode, shape=features.shape)  # type: ignore[call-overload]
    which = np.memmap(tmp_path / "labels", dtype=labels.dtype, mode=mode, shape=labels.shape)  # type: ignore[call-overload]
    assert values(evidence(mapped, which)) == values(evidence(features, labels))
    for probe in PROBES:
        np.testing.assert_array_equal(
            PROBES[probe](mapped, which, 3).predicted, PROBES[probe](features, labels, 3).predicted
        )
    np.testing.assert_array_equal(np.fromfile(tmp_path / "features", dtype=kind).reshape(features.shape), features)


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "with a gradient": lambda features: torch.from_numpy(features).requires_grad_(),
    "of the other byte order": lambda features: features.astype(">f8"),
    "long double": lambda features: features.astype(np.longdouble),
}


@pytest.mark.parametrize("form", FORMS)
def test_features_of_unusual_forms_are_read(form: str) -> None:
    features, labels = sample()
    assert transferability(FORMS[form](features), labels) == pytest.approx(transferability(features, labels))
    assert (
        neighbors_accuracy(FORMS[form](features), labels, 3).accuracy
        == neighbors_accuracy(features, labels, 3).accuracy
    )


SCALE_FREE = [
    name
    for name, measure in MEASURES.items()
    if "scale" in measure.unchanged_by and not {"head", "source"} & set(measure.needs) and name not in ("nleep", "parc")
]


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e12, 1e18, 1e30])
def test_single_precision_neither_overflows_nor_vanishes_without_a_word(scale: float) -> None:
    features, labels = sample(900, 300)
    halves = [
        [ClassMoments.from_features((s * features[rows]).astype(np.float32), labels[rows], 3) for s in (1.0, scale)]
        for rows in (slice(450), slice(450, None))
    ]
    plain, scaled = (first.merge(second) for first, second in zip(*halves, strict=True))
    for name in ("nc1", "nc1_ratio", "cdnv", "numerical_rank", "vci", "h_score", "h_score_shrunk", "gbc", "logme"):
        try:
            found = MEASURES[name].compute(scaled)
        except MeasureError:
            continue
        assert found == pytest.approx(MEASURES[name].compute(plain), rel=1e-4), name


@pytest.mark.parametrize("scale", [1e-60, 1e-30, 1e30, 1e60])
@pytest.mark.parametrize("name", SCALE_FREE)
def test_double_precision_measures_any_scale(name: str, scale: float) -> None:
    features, labels = sample()
    expected = MEASURES[name].of(evidence(features, labels))
    assert MEASURES[name].of(evidence(scale * features, labels)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_corrected_values_do_not_see_the_scale(scale: float) -> None:
    features, labels = sample()
    plain, scaled = (corrected(ClassMoments.from_features(s * features, labels, 3)) for s in (1.0, scale))
    for name in ("nc1", "cdnv", "vci"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9)


def test_squares_that_overflow_are_refused_rather_than_corrected_for_ever() -> None:
    features, labels = sample()
    with pytest.raises(MeasureError, match="so large that their squares overflow; divide"):
        corrected(ClassMoments.from_features(1e160 * features, labels, 3))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_intervals_do_not_see_the_scale(scale: float) -> None:
    features, labels = sample()
    plain, scaled = (collapse_intervals(Folds.of(s * features, labels, 3)) for s in (1.0, scale))
    for name, one in plain.items():
        assert tuple(scaled[name]) == pytest.approx(tuple(one), rel=1e-6, abs=1e-12), name


def test_one_dimension_costs_only_the_score_that_needs_two() -> None:
    features, labels = sample(dimension=1)
    found = transferability(features, labels, source=np.eye(3)[labels])
    assert set(found) == set(transferability(*sample(), source=np.eye(3)[labels])) - {"parc"}
    assert np.isfinite(list(found.values())).all()
    with pytest.raises(MeasureError, match="needs two or more"):
        transferability(features, labels, only=["parc"])
    with pytest.raises(MeasureError, match="softmax"):
        transferability(features, labels, source=features + np.zeros(3))
    with pytest.raises(MeasureError, match="one sample a class"):
        transferability(features[:3], labels[:3])
    assert transferability(features, labels, only="nc1") == transferability(features, labels, only=["nc1"])


@pytest.mark.parametrize("kind", ["negative", "short of 1", "NaN", "logits"])
@pytest.mark.parametrize("entry", ["leep", "nce", "calibration"])
def test_rows_that_are_no_probabilities_are_refused(entry: str, kind: str) -> None:
    labels = np.arange(90) % 3
    given = np.random.default_rng(0).dirichlet(np.ones(3), 90)
    given[41] = {"negative": [-0.1, 0.6, 0.5], "NaN": [np.nan, 0.5, 0.5], "logits": [4, -1, 2]}.get(kind, given[41] / 2)
    with pytest.raises(MeasureError, match=r"probabilities"):
        calibration_error(given, labels) if entry == "calibration" else MEASURES[entry].compute(given, labels, 3)
    with pytest.raises(MeasureError, match="0 bins"):
        calibration_error(np.full((90, 3), 1 / 3), labels, bins=0)


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_a_model_that_can_not_be_scored_does_not_spoil_the_ranking(infinite: float) -> None:
    truth = np.array([0.5, 0.6, 0.7, 0.8])
    found = agreement([1.0, infinite, 3.0, 4.0], truth)
    finite = agreement([1.0, 1e9 * np.sign(infinite), 3.0, 4.0], truth)
    assert {name: found[name] for name in ("weighted_tau", "tau", "spearman", "regret")} == {
        name: finite[name] for name in ("weighted_tau", "tau", "spearman", "regret")
    }
    assert np.isnan(found["pearson"].value)
    for scores, known in (([1.0, np.nan, 3.0, 4.0], truth), (truth, [1.0, np.nan, 3.0, 4.0])):
        assert np.isnan([tuple(one) for one in agreement(scores, known).values()]).all()
    for scores in (np.zeros(0), np.ones(1), truth[None]):
        with pytest.raises(MeasureError, match="one of each a model"):
            agreement(scores, truth)
