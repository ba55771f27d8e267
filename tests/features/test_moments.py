"""``ClassMoments`` against two passes in extended precision, and the algebra that makes batches and folds one thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tightframe.errors import MeasureError, SavedError
from tightframe.features import moments as module
from tightframe.features.moments import FORMAT, ClassMoments

PROMISE = 1e-9
PROMISES = {"float32": 1e-5, "float16": 1e-5}
FIELDS = ("counts", "means", "scatter", "variances", "third", "fourth")
KINDS = ("plain", "float32 far from zero", "collapsed")


def sample(seed: int, count: int, classes: int, dimension: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    means = generator.normal(size=(classes, dimension))
    noise = generator.normal(size=(count, dimension))
    if kind == "plain":
        return means[labels] + noise, labels
    if kind == "float32 far from zero":
        return (1e3 + means[labels] + noise).astype(np.float32), labels
    return means[labels] + 1e-6 * noise, labels


def two_passes(features: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """The definition, term by term, with 64 bits of mantissa."""
    rows, dimension = features.astype(np.longdouble), features.shape[1]
    means, variances = (np.zeros((classes, dimension), np.longdouble) for _ in range(2))
    scatter = np.zeros((dimension, dimension), np.longdouble)
    for label in range(classes):
        members = rows[labels == label]
        if len(members):
            means[label] = members.sum(0) / len(members)
            spread = members - means[label]
            variances[label] = (spread**2).mean(0)
            scatter += np.einsum("ni,nj->ij", spread, spread)
    counts = np.array([(labels == label).sum() for label in range(classes)])
    around = rows - rows.mean(0) if len(rows) else rows
    third, fourth = ((around**2).sum(1)[:, None] * around).sum(0), ((around**2).sum(1) ** 2).sum()
    found = {"means": means, "scatter": scatter, "variances": variances, "third": third, "fourth": fourth}
    return {"counts": counts} | {name: np.asarray(value, float) for name, value in found.items()}


def assert_moments(found: ClassMoments, features: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Every entry as promised of its own scale: a variance of itself, a covariance of both deviations."""
    truth, promise = two_passes(features, labels, classes), PROMISES.get(np.asarray(features).dtype.name, PROMISE)
    np.testing.assert_array_equal(found.counts.numpy(), truth["counts"])
    np.testing.assert_allclose(found.means.numpy(), truth["means"], rtol=PROMISE, atol=promise)
    rounding = 4 * np.finfo(float).eps * np.abs(truth["means"]) * np.sqrt(truth["variances"])  # of the means merged
    off = np.abs(found.variances.numpy() - truth["variances"])
    assert (off <= promise * truth["variances"] + rounding + 1e-25).all()
    np.testing.assert_allclose(found.class_variances.numpy(), truth["variances"].sum(1), rtol=promise, atol=1e-25)
    deviations = np.sqrt(np.diag(truth["scatter"]))
    off = np.abs(found.scatter.numpy() - truth["scatter"])
    assert (off <= promise * np.outer(deviations, deviations) + 1e-25).all()
    assert float(found.fourth) == pytest.approx(truth["fourth"], rel=10 * promise, abs=1e-25)
    scale = float(truth["fourth"]) ** 0.75 * max(len(labels), 1) ** 0.25
    np.testing.assert_allclose(found.third.numpy(), truth["third"], rtol=0, atol=10 * promise * scale + 1e-25)


def assert_same(one: ClassMoments, other: ClassMoments) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)


def of(kind: str = "plain", seed: int = 0, count: int = 30) -> ClassMoments:
    return ClassMoments.from_features(*sample(seed, count, 3, 4, kind), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_definition_in_one_batch(kind: str) -> None:
    features, labels = sample(1, 400, 4, 6, kind)
    assert_moments(ClassMoments.zero(4, 6).update(features, labels), features, labels, 4)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32), count=st.integers(0, 60), classes=st.integers(1, 4))
def test_any_split_into_batches_in_any_order_of_merging(
    kind: str, data: st.DataObject, seed: int, count: int, classes: int
) -> None:
    features, labels = sample(seed, count, classes, 3, kind)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=6)))
    rows = np.split(np.random.default_rng(seed).permutation(count), cuts)
    parts = [ClassMoments.zero(classes, 3).update(features[part], labels[part]) for part in rows]
    while len(parts) > 1:  # any bracketing, in any order
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(first.merge(second))
    assert_moments(parts[0], features, labels, classes)


def test_a_long_run_of_small_batches_does_not_drift() -> None:
    features, labels = sample(2, 3000, 3, 2, "collapsed")
    moments = ClassMoments.zero(3, 2)
    for start in range(0, 3000, 7):
        moments = moments.update(features[start : start + 7], labels[start : start + 7])
    assert_moments(moments, features, labels, 3)


@pytest.mark.parametrize("count", [0, 1, 30])
def test_zero_is_the_identity_on_both_sides(count: int) -> None:
    moments, zero = of(count=count), ClassMoments.zero(3, 4)
    assert_same(moments.merge(zero), moments)
    assert_same(zero.merge(moments), moments)
    assert_same(moments.update(np.zeros((0, 4)), np.zeros(0, dtype=int)), moments)


def joined_by_merge(one: ClassMoments, other: ClassMoments) -> ClassMoments:
    return one.merge(other)


def joined_by_update(one: ClassMoments, other: ClassMoments) -> ClassMoments:
    return one.update(other.means.clone(), torch.arange(other.classes))


@pytest.mark.parametrize("join", [joined_by_merge, joined_by_update])
@pytest.mark.parametrize(("one", "other"), [("full", "full"), ("full", "zero"), ("zero", "full"), ("zero", "zero")])
def test_results_share_no_memory_with_what_they_were_made_of(
    join: Callable[[ClassMoments, ClassMoments], ClassMoments], one: str, other: str
) -> None:
    made = {"full": lambda: of(), "zero": lambda: ClassMoments.zero(3, 4)}
    inputs = made[one](), made[other]()
    kept = [{name: getattr(peer, name).clone() for name in FIELDS} for peer in inputs]
    result = join(*inputs)
    before = {name: getattr(result, name).clone() for name in FIELDS}
    for name in FIELDS:
        getattr(result, name).add_(1)
        for peer, was in zip(inputs, kept, strict=True):
            assert torch.equal(getattr(peer, name), was[name])
        getattr(result, name).sub_(1)
        getattr(result, name).copy_(before[name])
        for peer in inputs:
            getattr(peer, name).fill_(7)
        assert torch.equal(getattr(result, name), before[name])


def test_features_and_labels_given_are_neither_changed_nor_kept() -> None:
    features, labels = sample(3, 30, 3, 4, "plain")
    given_features, given_labels = torch.from_numpy(features.copy()), torch.from_numpy(labels.copy())
    moments = ClassMoments.from_features(given_features, given_labels, 3)
    assert torch.equal(given_features, torch.from_numpy(features))
    assert torch.equal(given_labels, torch.from_numpy(labels))
    given_features.zero_()
    given_labels.zero_()
    assert_moments(moments, features, labels, 3)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "form",
    [
        torch.from_numpy,
        read_only,
        np.asfortranarray,
        lambda array: array[::-1].copy()[::-1],
        lambda array: np.repeat(array, 2, axis=0)[::2],
        np.ndarray.tolist,
    ],
    ids=["tensor", "read-only", "by columns", "backwards", "strided", "list"],
)
def test_from_features_takes_what_people_have(form: Callable[[np.ndarray], Any]) -> None:
    features, labels = sample(4, 30, 3, 4, "plain")
    assert_moments(ClassMoments.from_features(form(features), form(labels), 3), features, labels, 3)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int32, np.uint8])
def test_features_of_any_number_type_are_taken_at_their_value(kind: type) -> None:
    features = (np.random.default_rng(0).random((20, 3)) * 200).astype(kind)
    labels = np.arange(20, dtype=np.uint8) % 2
    assert_moments(ClassMoments.from_features(features, labels, 2), features, labels, 2)


@pytest.mark.parametrize("extra", [-1, 0, 1, 5])
def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    monkeypatch.setattr(module, "CHUNK", 16)
    features, labels = sample(5, 32 + extra, 3, 4, "collapsed")
    assert_moments(ClassMoments.from_features(features, labels, 3), features, labels, 3)


def test_a_class_without_samples_counts_zero_and_changes_nothing() -> None:
    features, labels = sample(6, 30, 3, 4, "plain")
    moments = ClassMoments.from_features(features, labels + (labels > 0), 5)
    assert moments.counts.tolist() == [*np.bincount(labels)[:1], 0, *np.bincount(labels)[1:], 0]
    assert moments.means[[1, 4]].abs().sum() == 0
    assert moments.class_variances[[1, 4]].tolist() == [0, 0]
    without = ClassMoments.from_features(features, labels, 3)
    for name in ("counts", "means", "variances"):
        assert torch.equal(getattr(moments, name)[[0, 2, 3]], getattr(without, name))
    torch.testing.assert_close(moments.scatter, without.scatter, rtol=0, atol=0)
    assert not moments.balanced


def test_what_is_read_off_directly() -> None:
    features, labels = sample(7, 40, 3, 4, "plain")
    moments = ClassMoments.from_features(features, labels, 3)
    assert (moments.samples, moments.classes, moments.dimension) == (40, 3, 4)
    np.testing.assert_allclose(moments.global_mean, features.mean(0), rtol=PROMISE)
    assert ClassMoments.from_features(features[:6], np.arange(6) % 3, 3).balanced
    assert not ClassMoments.from_features(features[:7], np.arange(7) % 3, 3).balanced


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_between_is_a_factor_of_the_covariance_of_means(weighting: str) -> None:
    features, labels = sample(8, 50, 4, 3, "plain")
    labels[:20] = 0
    weights = np.full(4, 1 / 4) if weighting == "class" else np.bincount(labels) / 50
    means = np.stack([features[labels == label].mean(0) for label in range(4)])
    centered = means - weights @ means
    factor = ClassMoments.from_features(features, labels, 4).between(weighting)
    np.testing.assert_allclose(factor @ factor.T, (centered.T * weights) @ centered, rtol=PROMISE, atol=PROMISE)


def test_no_other_weighting() -> None:
    with pytest.raises(MeasureError, match='no weighting "pairs"; choose "class" or "sample"'):
        of().between("pairs")


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros((3, 5)), [0, 1, 2], r"shape \(3, 5\); expected \(samples, 4\)"),
        (np.zeros(4), [0, 1, 2, 2], r"shape \(4,\); expected \(samples, 4\)"),
        (np.zeros((3, 4)), [0, 1], r"3 features need as many labels; labels have shape \(2,\)"),
        (np.zeros((3, 4)), [[0], [1], [2]], r"labels have shape \(3, 1\)"),
        (np.zeros((3, 4)), [0.0, 1.0, 2.0], r"integers from 0 to 2, not torch.float"),
        (np.zeros((3, 4)), [True, False, True], r"integers from 0 to 2, not torch.bool"),
        (np.zeros((3, 4)), [0, -1, 2], r"run from -1 to 2; with 3 classes they must be 0 to 2"),
        (np.zeros((3, 4)), [0, 1, 3], r"run from 0 to 3; with 3 classes they must be 0 to 2"),
        (
            [[0.0] * 4, [np.nan] * 4, [np.inf] * 4],
            [0, 1, 2],
            r"2 of 3 feature rows hold NaN or infinity \(first: row 1",
        ),
        ([[0.0] * 4, [0.0] * 4, [-np.inf, 0, 0, 0]], [0, 1, 2], r"1 of 3 feature rows .*\(first: row 2\)"),
    ],
)
def test_what_update_refuses(features: Any, labels: Any, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        of().update(features, labels)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1)])
def test_from_features_wants_rows(shape: tuple[int, ...]) -> None:
    with pytest.raises(MeasureError, match=r"expected \(samples, dimension\)"):
        ClassMoments.from_features(np.zeros(shape), np.zeros(shape[0], dtype=int), 1)


@pytest.mark.parametrize("labels", [5000, 4096, 4999, 0])
def test_from_features_wants_a_label_for_each_row_of_every_chunk(labels: int) -> None:
    with pytest.raises(MeasureError, match=f"5001 features need as many labels; labels have shape \\({labels},\\)"):
        ClassMoments.from_features(np.zeros((5001, 1)), np.zeros(labels, dtype=int), 1)


def test_a_broken_row_in_a_later_chunk_is_named_by_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    features = np.zeros((10, 2))
    features[9, 1] = np.nan
    with pytest.raises(MeasureError, match=r"1 of 10 feature rows .*\(first: row 9\)"):
        ClassMoments.from_features(features, np.zeros(10, dtype=int), 1)


@pytest.mark.parametrize(("classes", "dimension"), [(2, 4), (3, 5)])
def test_only_moments_alike_can_be_merged(classes: int, dimension: int) -> None:
    with pytest.raises(MeasureError, match=f"3 classes × 4 values can't be merged with {classes} × {dimension}"):
        of().merge(ClassMoments.zero(classes, dimension))


def test_saved_and_loaded_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    moments = of("collapsed")
    moments.save(tmp_path / "moments.safetensors")
    assert_same(ClassMoments.load(str(tmp_path / "moments.safetensors")), moments)


def test_files_that_hold_no_moments(tmp_path: Path) -> None:
    moments, path = of(), tmp_path / "moments"
    moments.save(path)
    whole = path.read_bytes()
    for broken in (b"", whole[:7], whole[:100], whole[:-1], whole + b"x", b"\xff" * 64, b'{"not": "safetensors"}'):
        path.write_bytes(broken)
        with pytest.raises(SavedError, match="can't be read as class moments"):
            ClassMoments.load(path)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(SavedError, match="can't be read as class moments"):
            ClassMoments.load(missing)


def parts(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    moments = of()
    return {name: getattr(moments, name) for name in FIELDS} | changes


WIDE = {"dtype": torch.float64}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (parts(), None, "holds no class moments; write one"),
        (parts(), {"format": "tightframe.Head/1"}, "holds no class moments; write one"),
        ({"means": torch.zeros(3, 4, **WIDE)}, {"format": FORMAT}, "can't be read"),
        (parts(means=torch.zeros(3, 4)), {"format": FORMAT}, "float"),
        (parts(counts=torch.zeros(3, **WIDE)), {"format": FORMAT}, "int64"),
        (parts(means=torch.zeros(12, **WIDE)), {"format": FORMAT}, "shape"),
        (parts(counts=torch.zeros(2, dtype=torch.int64)), {"format": FORMAT}, "shape"),
        (parts(scatter=torch.zeros(4, 5, **WIDE)), {"format": FORMAT}, "shape"),
        (parts(variances=torch.zeros(4, **WIDE)), {"format": FORMAT}, "shape"),
        (parts(counts=torch.tensor([3, -1, 2])), {"format": FORMAT}, "negative"),
        (parts(variances=torch.full((3, 4), -1e-9, **WIDE)), {"format": FORMAT}, "negative"),
        (parts(means=torch.full((3, 4), torch.nan, **WIDE)), {"format": FORMAT}, "NaN"),
        (parts(scatter=torch.full((4, 4), torch.inf, **WIDE)), {"format": FORMAT}, "infin"),
    ],
)
def test_files_made_up_to_look_like_moments(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, message: str
) -> None:
    path = tmp_path / "moments.safetensors"
    save_file(tensors, str(path), metadata)
    with pytest.raises(SavedError, match=message) as raised:
        ClassMoments.load(path)
    assert str(path) in str(raised.value)
