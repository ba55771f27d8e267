"""Few-shot episodes whose support and queries have no group in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tightframe.errors import MeasureError
from tightframe.probes.apart import can_part
from tightframe.probes.episodes import accuracies, draw


def films(classes=6, groups=4, mixed=False, seed=0):
    generator = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(classes * groups), generator.integers(2, 12, classes * groups))
    labels = generator.integers(0, classes, len(numbers)) if mixed else numbers % classes
    return labels, numbers


@pytest.mark.parametrize("mixed", [False, True])
def test_no_group_is_learned_from_and_asked_about(mixed):
    labels, groups = films(mixed=mixed)
    drawn = draw(labels, 3, 4, 5, 200, groups=groups)
    assert drawn.support.shape == (200, 3, 4)
    assert drawn.queries.shape == (200, 3, 5)
    for support, queries in zip(drawn.support.flatten(1).numpy(), drawn.queries.flatten(1).numpy(), strict=True):
        assert not set(groups[support]) & set(groups[queries])
        assert len(set(support) | set(queries)) == 27
    for rows in (drawn.support, drawn.queries):
        known = torch.from_numpy(labels)[rows]
        assert (known == known[..., :1]).all()
    classes = torch.from_numpy(labels)[drawn.support[..., 0]]
    assert (classes == torch.from_numpy(labels)[drawn.queries[..., 0]]).all()
    assert len(classes.unique()) == 6
    again = draw(labels, 3, 4, 5, 300, groups=groups)
    assert torch.equal(again.support[:200], drawn.support)


@pytest.mark.parametrize(
    ("sizes", "shots", "queries", "possible"),
    [
        ([5, 5], 5, 5, True),
        ([5, 5], 5, 6, False),
        ([20], 1, 1, False),
        ([14, 3], 3, 14, True),
        ([14, 3], 4, 13, False),
        ([6, 6, 6], 7, 6, True),
        ([6, 6, 6], 7, 7, False),
        ([1] * 20, 5, 15, True),
    ],
)
def test_a_class_takes_part_if_its_groups_can_be_parted(sizes, shots, queries, possible):
    assert can_part(sizes, shots, queries) == possible
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.concatenate([np.zeros(len(groups)), np.ones(len(groups))]).astype(int)
    both = np.concatenate([groups, groups + len(sizes)])
    if possible:
        assert len(draw(labels, 2, shots, queries, 20, groups=both)) == 20
    else:
        with pytest.raises(MeasureError, match=r"0 of 2 classes have the .* of other groups take"):
            draw(labels, 2, shots, queries, 20, groups=both)


def test_an_episode_that_can_not_be_is_told_from_one_that_is_only_rare():
    labels = np.tile([0, 1], 20)
    groups = np.where(np.arange(40) < 20, 0, 1)
    assert len(draw(labels, 2, 5, 5, 20, groups=groups)) == 20
    crossed = np.where(labels == 0, np.arange(40) // 20, 0)
    crossed[(labels == 1) & (np.arange(40) >= 36)] = 1  # class 1: 18 in group 0, 2 in group 1
    assert len(draw(labels, 2, 2, 10, 20, groups=crossed)) == 20
    crossed[labels == 1] = np.where(np.arange(20) < 10, 2, 0)  # nothing stands against anything
    assert len(draw(labels, 2, 5, 5, 20, groups=crossed)) == 20


def test_groups_of_one_are_no_groups_and_copies_teach_nothing():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 15)
    labels = (generator.permutation(20) % 4)[groups]
    features = generator.normal(size=(20, 50))[groups]
    plain, alone = draw(labels, 4, 10, 5, 100), draw(labels, 4, 10, 5, 100, groups=np.arange(300))
    assert torch.equal(plain.support, alone.support)
    known = accuracies(features, plain)["ridge"].mean()
    blind = accuracies(features, draw(labels, 4, 10, 5, 100, groups=groups))["ridge"].mean()
    assert known > 0.8
    assert abs(blind - 0.25) < 0.15
