"""Discriminants of images left out with their groups: against fitting all others anew, and on copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tightframe.probes import discriminant
from tightframe.probes.discriminant import LEAST_LOG, read_layers

CLASSES = 3


def drawn(widths, groups, labels, seed=0):
    generator = np.random.default_rng(seed)
    means = [generator.normal(size=(CLASSES, width)) * 1.5 for width in widths]
    return {
        f"layer{place}": 30.0 + mean[labels] + generator.normal(size=(len(labels), mean.shape[1]))
        + generator.normal(size=(groups.max() + 1, mean.shape[1]))[groups]
        for place, mean in enumerate(means)
    }  # fmt: skip


def by_hand(inputs, labels, rest, out, ridge, spread):
    """Scores (m, K) of the images ``out`` by the discriminant of ``rest``, with a plain inverse."""
    counts = np.bincount(labels[rest], minlength=CLASSES)
    means = np.stack([inputs[rest][labels[rest] == k].mean(0) if counts[k] else inputs[0] * 0 for k in range(CLASSES)])
    within = inputs[rest] - means[labels[rest]]
    inverse = np.linalg.inv(within.T @ within + ridge * np.eye(inputs.shape[1]))
    gaps = inputs[out][:, None] - means[None]
    noise = spread / np.maximum(counts, 1)
    scores = -0.5 * len(rest) * (np.einsum("mkd,de,mke->mk", gaps, inverse, gaps) - noise)
    scores[:, counts == 0] = scores[:, counts > 0].min(1, keepdims=True)
    return scores


GROUPS = {
    "of one class": ([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 5, 6, 6, 7, 7, 8, 8, 8], [0] * 6 + [1] * 6 + [2] * 7),
    "of several": ([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 3, 3, 4, 5, 5, 0, 2, 2, 2], [0] * 6 + [1] * 6 + [2] * 7),
    "one is a class": ([0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6, 6, 6, 6, 6], [0] * 6 + [1] * 6 + [2] * 7),
}


@pytest.mark.parametrize("widths", [(2, 3), (5, 40)], ids=["more images than values", "fewer images than values"])
@pytest.mark.parametrize("kind", GROUPS)
def test_leaving_out_a_group_is_fitting_the_others_anew(kind, widths):
    groups, labels = (np.array(values) for values in GROUPS[kind])
    features, n = drawn(widths, groups, labels), len(labels)
    parts = [
        discriminant._Scaled.of([torch.from_numpy(values)], torch.from_numpy(labels), CLASSES)
        for values in features.values()
    ]
    grouping = discriminant.Grouping.of(torch.from_numpy(labels), CLASSES, groups)
    for one in discriminant._tried(parts, grouping):
        inputs = torch.cat([part.values for part in parts[-one.depth :]], 1).numpy()
        around = inputs - np.stack([inputs[labels == k].mean(0) for k in range(CLASSES)])[labels]
        scatter, ridge = around.T @ around, one.shrinkage * (around**2).sum() / (n - 1)
        spread = np.trace(np.linalg.inv(scatter + ridge * np.eye(len(scatter))) @ scatter) / (n - CLASSES)
        for group in np.unique(groups):
            out, rest = np.flatnonzero(groups == group), np.flatnonzero(groups != group)
            wanted = by_hand(inputs, labels, rest, out, ridge, spread)
            found = one.held_out[torch.from_numpy(out)].numpy()
            known = np.bincount(labels[rest], minlength=CLASSES) > 0
            known |= len(out) > 1  # alone, an image of no one else's class is a matter of form
            found, wanted = found[:, known], wanted[:, known]
            np.testing.assert_allclose(found - found[:, :1], wanted - wanted[:, :1], rtol=1e-6, atol=1e-6)


def test_groups_of_one_are_no_groups():
    groups, labels = (np.array(values) for values in GROUPS["of one class"])
    features = drawn((5, 40), groups, labels)
    alone = read_layers(features, labels, CLASSES, groups=np.arange(len(labels))[::-1])
    assert torch.equal(alone.held_out, read_layers(features, labels, CLASSES).held_out)


def test_groups_change_what_is_left_out_and_little_else():
    groups, labels = (np.array(values) for values in GROUPS["of one class"])
    features = drawn((5, 40), groups, labels)
    plain, grouped = read_layers(features, labels, CLASSES), read_layers(features, labels, CLASSES, groups=groups)
    assert not torch.allclose(plain.held_out, grouped.held_out)
    assert set(plain.weights) == set(grouped.weights)
    renamed = read_layers(features, labels, CLASSES, groups=np.array(list("stuvwxyz!"))[groups])
    assert torch.equal(renamed.held_out, grouped.held_out) or torch.allclose(renamed.held_out, grouped.held_out)


def test_a_class_of_one_group_is_not_recognized_without_it():
    groups, labels = (np.array(values) for values in GROUPS["one is a class"])
    found = read_layers(drawn((5, 40), groups, labels), labels, CLASSES, groups=groups).held_out
    assert (found[labels == 2, 2] == LEAST_LOG).all()
    assert (found[labels != 2].exp().sum(1) - 1).abs().max() < 1e-9


@pytest.mark.parametrize("width", [10, 400])
def test_copies_tell_nothing_of_each_other(width):
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    labels = generator.permutation(np.arange(60) % CLASSES)[groups]
    features = {"layer": generator.normal(size=(60, width))[groups] + 1e-6 * generator.normal(size=(240, width))}

    def accuracy(groups):
        said = read_layers(features, labels, CLASSES, groups=groups).held_out.argmax(1).numpy()
        return float((said == labels).mean())

    assert accuracy(None) > (0.95 if width == 400 else 0.5)
    assert abs(accuracy(groups) - 1 / CLASSES) < 0.2
