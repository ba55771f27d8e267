from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tightframe.data.selection import at_most, stratified
from tightframe.errors import DataError, SettingsError
from tightframe.images import Images

LABELS = st.lists(st.integers(0, 6), max_size=80).map(lambda labels: np.array(labels, dtype=np.int64))
SHARES = st.floats(0, 0.99)
SEEDS = st.integers(0, 2**40)


@dataclass(frozen=True)
class Gray:
    """Image i is uniformly i."""

    value: int
    content: str = "gray"

    @property
    def name(self) -> str:
        return f"gray{self.value}"

    def digest(self) -> str:
        return self.content

    def open(self) -> Image.Image:
        return Image.new("RGB", (2, 2), (self.value,) * 3)


def grays(labels: np.ndarray, content: str = "gray") -> Images:
    return Images("grays", tuple("abcdefg"), labels, tuple(Gray(index, content) for index in range(len(labels))))


def counts(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels, minlength=7)


@given(LABELS, SHARES, SEEDS)
def test_the_two_sides_are_a_partition_in_order(labels: np.ndarray, share: float, seed: int) -> None:
    kept, held_out = stratified(labels, share, seed)
    assert kept.dtype == held_out.dtype == np.int64
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held_out) > 0).all()


@given(LABELS, SHARES, SEEDS)
def test_every_class_has_its_share_on_both_sides(labels: np.ndarray, share: float, seed: int) -> None:
    kept, held_out = stratified(labels, share, seed)
    for total, left, out in zip(counts(labels), counts(labels[kept]), counts(labels[held_out]), strict=True):
        if share == 0 or total < 2:
            assert (left, out) == (total, 0)
        else:
            assert left >= 1
            assert out >= 1
            assert abs(out - share * total) <= 0.5 + 1e-9 or out in (1, total - 1)


@given(LABELS, SHARES, SEEDS)
def test_the_same_seed_draws_the_same(labels: np.ndarray, share: float, seed: int) -> None:
    for one, other in zip(stratified(labels, share, seed), stratified(labels.copy(), share, seed), strict=True):
        np.testing.assert_array_equal(one, other)


@given(LABELS, SHARES, SHARES, SEEDS)
def test_a_larger_share_holds_the_smaller(labels: np.ndarray, one: float, other: float, seed: int) -> None:
    small, large = (set(stratified(labels, share, seed)[1]) for share in sorted((one, other)))
    assert small <= large


@given(LABELS, SHARES, SEEDS)
def test_a_class_does_not_depend_on_the_others(labels: np.ndarray, share: float, seed: int) -> None:
    with_more = np.concatenate([labels, np.full(5, 7)])
    kept, _ = stratified(with_more, share, seed)
    np.testing.assert_array_equal(kept[kept < len(labels)], stratified(labels, share, seed)[0])


def test_the_rule_by_example() -> None:
    labels = np.repeat([0, 1, 2, 3], [10, 6, 2, 1])
    _, held_out = stratified(labels, 0.25, 0)
    assert counts(labels[held_out])[:4].tolist() == [3, 2, 1, 0]  # 2.5 and 1.5 round up
    _, held_out = stratified(labels, 0.99, 0)
    assert counts(labels[held_out])[:4].tolist() == [9, 5, 1, 0]


def test_what_a_seed_draws_does_not_change_between_releases() -> None:
    assert stratified(np.repeat([0, 1], 10), 0.3, 0)[1].tolist() == GOLDEN
    assert stratified(np.repeat([0, 1], 10), 0.3, 1)[1].tolist() != GOLDEN


# The three least of default_rng((0, 0)).random(10) and of default_rng((0, 1)).random(10), computed once.
GOLDEN = [1, 2, 3, 14, 15, 17]


def test_draws_are_fair() -> None:
    labels = np.zeros(10, dtype=np.int64)
    drawn = np.bincount(np.concatenate([stratified(labels, 0.3, seed)[1] for seed in range(400)]), minlength=10)
    assert drawn.min() > 80  # 120 expected each; 80 is five standard deviations off
    assert drawn.max() < 160


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_shares_out_of_range(share: float) -> None:
    with pytest.raises(SettingsError, match="share"):
        stratified(np.array([0, 1]), share, 0)


def test_negative_seed() -> None:
    with pytest.raises(SettingsError, match="seed -1"):
        stratified(np.array([0, 1]), 0.5, -1)


@given(LABELS, st.integers(1, 20), SEEDS)
def test_at_most_so_many_of_each_class_are_drawn_in_order(labels: np.ndarray, per_class: int, seed: int) -> None:
    few = at_most(grays(labels), per_class, seed)
    np.testing.assert_array_equal(counts(few.labels), np.minimum(counts(labels), per_class))
    assert (np.diff([item.value for item in few.items]) > 0).all()
    more = at_most(grays(labels), per_class + 1, seed)
    assert set(few.identifiers) <= set(more.identifiers)


def test_what_is_drawn_depends_on_the_seed() -> None:
    data = grays(np.zeros(50, dtype=np.int64))
    assert len({at_most(data, 5, seed).identifiers for seed in range(10)}) == 10


@pytest.mark.parametrize("per_class", [0, -3])
def test_none_of_a_class_is_refused(per_class: int) -> None:
    with pytest.raises(SettingsError, match=f"{per_class} images"):
        at_most(grays(np.array([0, 1])), per_class, 0)


def test_subset_shows_the_images_chosen_in_the_order_given() -> None:
    data = grays(np.array([3, 1, 4, 1, 5]))
    subset = data.subset(np.array([4, 0, 1]))
    assert (len(subset), subset.name, subset.classes) == (3, "grays", data.classes)
    assert subset.labels.tolist() == [5, 3, 1]
    assert subset.labels.dtype == np.int64
    assert subset.identifiers == ("gray4", "gray0", "gray1")
    assert [image.getpixel((0, 0))[0] for image in subset] == [4, 0, 1]
    assert data.subset(np.array([0]), "other").name == "other"


def test_subset_of_a_subset() -> None:
    inner = grays(np.array([3, 1, 4, 1, 5])).subset(np.array([4, 2, 0]))
    assert inner.subset(np.array([2, 0])).identifiers == ("gray0", "gray4")


def test_labels_do_not_follow_changes_to_the_array_given() -> None:
    labels = np.array([1, 0])
    data = grays(labels)
    labels[:] = 0
    assert data.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="read-only"):
        data.labels[0] = 0


def test_subset_fingerprints() -> None:
    data, other = grays(np.array([0, 1, 0])), grays(np.array([0, 1, 0]), content="others")
    choices = [(data, [0, 1]), (data, [1, 0]), (data, [0]), (data, []), (other, [0, 1])]
    prints = [source.subset(np.array(chosen, dtype=np.int64)).fingerprint for source, chosen in choices]
    assert len(set(prints)) == len(choices)
    assert prints[0] == data.subset(np.array([0, 1]), "another name").fingerprint


def test_subset_travels_to_workers() -> None:
    subset = grays(np.array([0, 1, 0])).subset(np.array([2, 1]))
    back = pickle.loads(pickle.dumps(subset))
    assert (back.identifiers, back.fingerprint) == (subset.identifiers, subset.fingerprint)


@pytest.mark.parametrize("indices", [[3], [-1], [[0]], [0.5], [True, False, True]])
def test_indices_that_cannot_be(indices: list[object]) -> None:
    with pytest.raises(DataError, match="ind"):
        grays(np.array([0, 1, 0])).subset(np.array(indices))


def test_of_classes_keeps_their_images_and_all_names():
    data = grays(np.array([3, 0, 1, 3, 2, 0]))
    chosen = data.of_classes(["d", "a", "g", "d"])
    assert chosen.labels.tolist() == [3, 0, 3, 0]
    assert chosen.identifiers == ("gray0", "gray1", "gray3", "gray5")
    assert chosen.classes == data.classes
    with pytest.raises(DataError, match=r"grays lacks 2 of 3 classes: tulip, x; correct their names.* It has a, b"):
        data.of_classes(["x", "a", "tulip"])
