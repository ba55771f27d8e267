"""Folds and splits that keep groups whole: against scikit-learn's, and by what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from tightframe.data.selection import stratified
from tightframe.errors import MeasureError
from tightframe.metrics.folds import can_hold_out, fold_of, known_without


def films(classes=4, groups=12, seed=0, mixed=False):
    """Labels and groups (n,): groups of 1 to 20 images, of one class each or, ``mixed``, of any."""
    generator = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(classes * groups), generator.integers(1, 21, classes * groups))
    labels = generator.integers(0, classes, len(numbers)) if mixed else numbers % classes
    order = generator.permutation(len(numbers))
    return labels[order], numbers[order] * 7 - 20


def unevenness(labels, fold):
    """Largest distance of a class's share in a fold from that of folds of equal size."""
    counts = np.array([np.bincount(labels[fold == one], minlength=labels.max() + 1) for one in np.unique(fold)])
    return float(np.abs(counts / counts.sum(0) - 1 / len(counts)).max())


@pytest.mark.parametrize("mixed", [False, True])
def test_folds_keep_groups_whole_and_are_as_even_as_scikit_learns(mixed):
    ours, theirs = [], []
    for seed in range(10):
        labels, groups = films(seed=seed, mixed=mixed)
        fold = fold_of(labels, 5, seed, groups)
        assert all(len(np.unique(fold[groups == group])) == 1 for group in np.unique(groups))
        assert sorted(np.unique(fold)) == list(range(5))
        ours.append(unevenness(labels, fold))
        peer, splitter = np.empty_like(labels), StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for number, (_, held) in enumerate(splitter.split(labels, labels, groups)):
            peer[held] = number
        theirs.append(unevenness(labels, peer))
    assert np.mean(ours) <= np.mean(theirs) + 0.005


def test_folds_depend_on_the_seed_alone_and_not_on_how_groups_are_numbered():
    labels, groups = films()
    np.testing.assert_array_equal(fold_of(labels, 5, 3, groups), fold_of(labels, 5, 3, groups * 11 + 5))
    assert (fold_of(labels, 5, 3, groups) != fold_of(labels, 5, 4, groups)).any()


def test_groups_of_one_image_are_no_groups():
    labels, _ = films()
    alone = np.random.default_rng(0).permutation(len(labels))
    np.testing.assert_array_equal(fold_of(labels, 5, 0, alone), fold_of(labels, 5, 0))
    for one, other in zip(stratified(labels, 0.3, 0, alone), stratified(labels, 0.3, 0), strict=True):
        np.testing.assert_array_equal(one, other)


def test_there_are_as_many_folds_as_the_class_of_fewest_groups_allows():
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5])
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2])
    fold = fold_of(labels, 5, 0, groups)
    assert fold.max() == 1
    assert len({fold[groups == group][0] for group in (3, 4)}) == 2
    np.testing.assert_array_equal(known_without(labels, groups), labels < 2)


@pytest.mark.parametrize("groups", [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 2]])
def test_folds_that_leave_less_than_two_classes_to_learn_are_refused(groups):
    labels, numbers = np.array([0, 0, 1, 1]), np.array(groups)
    assert not can_hold_out(labels, numbers)
    with pytest.raises(MeasureError, match="two groups of each of two classes"):
        fold_of(labels, 2, 0, numbers)


def test_one_group_each_is_asked_for():
    with pytest.raises(MeasureError, match=r"shape \(3,\) for 4 samples"):
        fold_of(np.array([0, 0, 1, 1]), 2, 0, np.arange(3))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_share_is_held_out_in_whole_groups(mixed, share):
    found = []
    for seed in range(20):
        labels, groups = films(seed=seed, mixed=mixed)
        kept, held = stratified(labels, share, seed, groups)
        assert not set(groups[kept]) & set(groups[held])
        np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(labels)))
        assert set(labels[kept]) == set(labels[held]) == set(labels)
        found.append(np.bincount(labels[held], minlength=4) / np.bincount(labels))
    assert np.abs(np.mean(found) - share) < 0.04
    assert np.abs(np.array(found) - share).max() < 0.2


def test_every_class_keeps_a_group_and_has_one_held_out_where_it_can():
    groups = np.repeat(np.arange(5), [1, 9, 50, 50, 6])
    labels = np.repeat([0, 0, 1, 1, 2], [1, 9, 50, 50, 6])
    for seed in range(10):
        kept, held = stratified(labels, 0.05, seed, groups)
        assert set(labels[kept]) == {0, 1, 2}
        assert set(labels[held]) == {0, 1}
        assert 0 in groups[held]
    assert not len(stratified(labels, 0.0, 0, groups)[1])
