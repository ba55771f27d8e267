"""The reading of all layers: against naive formulas, and on cases where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tightframe.errors import MeasureError
from tightframe.probes import discriminant
from tightframe.probes.discriminant import LEAST_LOG, SHRINKAGES, read_layers

CLASSES = 3


def drawn(counts=(6, 7, 8), widths=(5, 40), gap=1.5, seed=0):
    """Labels (n,), and features (n, d) of two layers whose class means lie apart."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    features = {
        f"layer{place}": 30.0
        + (generator.normal(size=(len(counts), width)) * gap)[labels]
        + generator.normal(size=(len(labels), width)) * generator.uniform(0.5, 2, width)
        for place, width in enumerate(widths)
    }
    return features, labels


def naive(train, labels, unseen, ridge, samples, noise_of=None):
    """Scores (m, K) as METHOD says, with a plain inverse, and no covariance from anyone else."""
    means = np.stack([train[labels == k].mean(0) for k in range(CLASSES)])
    scatter = sum((x - means[k])[:, None] * (x - means[k])[None] for x, k in zip(train, labels, strict=True))
    inverse = np.linalg.inv(scatter + ridge * np.eye(train.shape[1]))
    counts = np.bincount(labels)
    spread = np.trace(inverse @ (scatter if noise_of is None else noise_of[0])) if noise_of is None else noise_of[1]
    noise = spread / counts
    return samples * (unseen @ inverse @ means.T - 0.5 * (np.diag(means @ inverse @ means.T) - noise)), spread


def standardized(values):
    centered = values - values.mean(0)
    return centered / np.sqrt((centered**2).sum(1).mean())


def tried_on(features, labels):
    parts = [
        discriminant._Scaled.of([torch.from_numpy(values)], torch.from_numpy(labels), CLASSES)
        for values in features.values()
    ]
    return list(discriminant._tried(parts, discriminant.Grouping.of(torch.from_numpy(labels), CLASSES)))


@pytest.mark.parametrize("widths", [(2, 3), (5, 40)], ids=["more images than values", "fewer images than values"])
def test_each_discriminant_is_the_formula_and_each_image_is_left_out(widths):
    features, labels = drawn(widths=widths)
    n = len(labels)
    for one in tried_on(features, labels):
        read = list(features.values())[-one.depth :]
        inputs = np.concatenate([standardized(values) for values in read], 1)
        around = inputs - np.stack([inputs[labels == k].mean(0) for k in range(CLASSES)])[labels]
        ridge = one.shrinkage * (around**2).sum() / (n - 1)
        expected, spread = naive(inputs, labels, inputs, ridge, n)
        # The noise of class means is in units of the scatter's n − K degrees of freedom.
        counts = np.bincount(labels)
        expected += 0.5 * n * (spread / (n - CLASSES) - spread) / counts
        found = sum(w.numpy() @ v.T for w, v in zip(one.weights, read, strict=True)).T + one.bias.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())
        for out in range(n):
            rest = np.arange(n) != out
            means = np.stack([inputs[rest][labels[rest] == k].mean(0) for k in range(CLASSES)])
            within = inputs[rest] - means[labels[rest]]
            inverse = np.linalg.inv(within.T @ within + ridge * np.eye(inputs.shape[1]))
            gaps = inputs[out] - means
            others = np.bincount(labels[rest])
            wanted = -0.5 * (n - 1) * (np.einsum("kd,de,ke->k", gaps, inverse, gaps) - spread / (n - CLASSES) / others)
            scores = one.held_out[out].numpy()
            np.testing.assert_allclose(scores - scores[0], wanted - wanted[0], rtol=1e-6, atol=1e-6)


def test_candidates_are_depths_times_shrinkages_and_their_weights_add_up_to_one():
    features, labels = drawn(widths=(4, 5, 6))
    found = read_layers(features, labels, CLASSES)
    assert {(one.depth, one.shrinkage) for one in found.candidates} == {
        (depth, shrinkage) for depth in (1, 2, 3) for shrinkage in SHRINKAGES
    }
    assert sum(one.weight for one in found.candidates) == pytest.approx(1)
    best = min(found.candidates, key=lambda one: one.log_loss)
    assert found.candidates[0] == best


def test_a_layer_and_its_spread_are_one_layer_in_two_parts():
    features, labels = drawn(widths=(4, 5, 6))
    first, second, third = features.values()
    whole = read_layers({"a": np.concatenate([first, second], 1), "b": third}, labels, CLASSES)
    parts = read_layers({"a": first, "a:std": second, "b": third}, labels, CLASSES)
    torch.testing.assert_close(parts.held_out, whole.held_out)
    assert {name: weight.shape[1] for name, weight in parts.weights.items()} == {"a": 4, "a:std": 5, "b": 6}
    torch.testing.assert_close(torch.cat([parts.weights["a"], parts.weights["a:std"]], 1), whole.weights["a"])
    told = parts.logits({"a": first, "a:std": second, "b": third})
    torch.testing.assert_close(told, whole.logits({"a": np.concatenate([first, second], 1), "b": third}))


def test_among_many_images_means_alone_are_read(monkeypatch):
    features, labels = drawn(widths=(4, 5, 6))
    monkeypatch.setattr(discriminant, "LARGEST", len(labels) - 1)
    assert (
        "a:std"
        not in read_layers(dict(zip(["a", "a:std", "b"], features.values(), strict=True)), labels, CLASSES).weights
    )
    monkeypatch.setattr(discriminant, "LARGEST", len(labels))
    assert (
        "a:std" in read_layers(dict(zip(["a", "a:std", "b"], features.values(), strict=True)), labels, CLASSES).weights
    )


def test_a_layer_that_tells_nothing_counts_for_less():
    features, labels = drawn(counts=(30, 30, 30), widths=(8, 8), gap=2.0)
    noise = np.random.default_rng(1).normal(size=(90, 300))
    last_is_noise = read_layers({"layer1": features["layer1"], "noise": noise}, labels, CLASSES)
    shares = {one.depth: 0.0 for one in last_is_noise.candidates}
    for one in last_is_noise.candidates:
        shares[one.depth] += one.weight
    assert shares[1] < 0.01
    assert shares[2] > 0.99


def test_probabilities_left_out_are_calibrated_on_new_images():
    found, told = [], []
    for seed in range(40):
        features, labels = drawn(counts=(8, 8, 108), widths=(4, 12), gap=0.9, seed=seed)
        order = np.random.default_rng(seed).permutation(len(labels))
        labels, features = labels[order], {name: values[order] for name, values in features.items()}
        seen = np.concatenate([np.flatnonzero(labels == k)[:8] for k in range(CLASSES)])
        unseen = np.setdiff1d(np.flatnonzero(labels == 2), seen)
        reading = read_layers({name: values[seen] for name, values in features.items()}, labels[seen], CLASSES)
        told.append(float((reading.held_out.argmax(1).numpy() == labels[seen])[labels[seen] == 2].mean()))
        said = reading.logits({name: values[unseen] for name, values in features.items()}).argmax(1).numpy()
        found.append(float((said == 2).mean()))
    assert abs(np.mean(told) - np.mean(found)) < 0.05  # 40 × 8 images left out: a standard error of about 0.025


def test_frequent_classes_are_expected_more_often_unless_balanced():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 4])
    features = {"layer": generator.normal(size=(44, 3))}
    biased = read_layers(features, labels, 2).logits(features).softmax(1).mean(0)
    fair = read_layers(features, labels, 2, balanced=True).logits(features).softmax(1).mean(0)
    assert biased[0] == pytest.approx(40 / 44, abs=0.05)
    assert fair[0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("counts", [(5, 1, 6), (1, 1, 1), (2, 2, 2), (4, 5, 0)])
def test_rare_and_missing_classes(counts):
    features, labels = drawn(counts=counts)
    found = read_layers(features, labels, CLASSES)
    logits = found.logits(features)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(found.held_out).all()
    assert (found.held_out >= LEAST_LOG).all()
    if 0 in counts:
        assert logits[:, counts.index(0)].max() < logits.amax(1).min() - 100
    for label in np.flatnonzero(np.array(counts) == 1):
        (rows,) = np.nonzero(labels == label)
        assert (found.held_out[rows, label] == LEAST_LOG).all()


def test_features_that_do_not_vary():
    labels = np.repeat([0, 1], 4)
    flat = np.ones((8, 3))
    assert torch.isfinite(read_layers({"flat": flat}, labels, 2).logits({"flat": flat})).all()
    collapsed = np.eye(2)[labels]
    found = read_layers({"flat": flat, "collapsed": collapsed}, labels, 2)
    assert (found.held_out.argmax(1).numpy() == labels).all()


def test_nothing_changes_with_offset_scale_or_rotation_of_a_layer():
    features, labels = drawn()
    expected = read_layers(features, labels, CLASSES).held_out
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(40, 40)))[0]
    moved = {"layer0": features["layer0"] * 1e3 - 7, "layer1": features["layer1"] @ turn + 100}
    torch.testing.assert_close(read_layers(moved, labels, CLASSES).held_out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("features", "labels", "told"),
    [
        ({}, [0, 1], "no layer"),
        ({"layer": np.ones((3, 2))}, [0, 0, 0], "two classes"),
        ({"layer": np.full((2, 2), np.nan)}, [0, 1], "NaN"),
        ({"layer": np.ones((3, 2))}, [0, 1], "3"),
    ],
)
def test_what_can_not_be_read(features, labels, told):
    with pytest.raises(MeasureError, match=told):
        read_layers(features, np.array(labels), 2)
