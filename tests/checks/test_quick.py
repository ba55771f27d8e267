"""What ``transfer`` says of the images in passing: three lines at most, from what it has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tightframe as tf
from tightframe.checks.quick import quick_notes
from tightframe.data.items import OpenImage
from tightframe.decide.reading import reading_of
from tightframe.features.workspace import read_in_closed_form


@pytest.fixture(scope="module")
def data():
    return tf.load_images("digits", max_per_class=20, test_share=0.05)


@pytest.fixture
def pictures(scene):
    """Images that are large enough to be told apart, of two classes in two splits."""
    items = tuple(OpenImage(f"scene {seed}", scene(seed, seed % 2)) for seed in range(30))
    labels = np.arange(30) % 2
    train = tf.Images("made/train", ("a", "b"), labels[:20], items[:20])
    return tf.ImageSplits("made", train, tf.Images("made/test", ("a", "b"), labels[20:], items[20:]))


def told(data, backbone, logits=None):
    workspace = tf.Workspace(precision="float32")
    pixels = {
        "train": workspace.pixels(data.train, backbone.preprocessing),
        "test": workspace.pixels(data.test, backbone.preprocessing),
    }
    return quick_notes(data, pixels, lambda: reading_of(data.train, backbone, workspace)[0], logits)


def test_copies_across_splits_are_named(pictures, wide):
    assert not any("nearly the same" in line for line in told(pictures, wide))
    twin = OpenImage("twin", pictures.train[3].resize((70, 70)))
    test = replace(pictures.test, items=(twin, *pictures.test.items[1:]))
    (line,) = [line for line in told(replace(pictures, test=test), wide) if "nearly the same" in line]
    assert line.startswith("1 pair of images is nearly the same (1 across splits, 1 across classes), such as scene 3")


def test_digits_are_too_small_to_tell_copies_from_likeness(data, wide):
    assert not any("nearly the same" in line for line in told(data, wide))


def test_wrong_labels_are_named(data, wide):
    whole = tf.load_images("digits", max_per_class=60, test_share=0.05)
    labels = whole.train.labels.copy()
    labels[::20] = (labels[::20] + 5) % 10
    lines = told(replace(whole, train=replace(whole.train, labels=labels)), wide)
    (line,) = [line for line in lines if "labeled wrong; the first: " in line]
    assert any(f": {name} (" in line for name in whole.train.identifiers[::20])


def test_predictions_that_differ_are_named_whatever_their_temperature(data, wide):
    workspace = tf.Workspace(precision="float32")
    features = workspace.features(wide, data.train, read_in_closed_form(wide))
    reading = tf.read_layers(features, data.train.labels, 10)
    unseen = workspace.features(wide, data.test, read_in_closed_form(wide))
    logits = reading.logits(unseen)
    assert not any("test images" in line for line in told(data, wide, 3 * logits))
    swapped = logits.clone()
    swapped[:, :5] = logits[:, :5].mean(1, keepdim=True)
    assert any("test images differ" in line for line in told(data, wide, swapped))


def test_nothing_to_say_of_one_image_a_class(wide, data):
    few = [int(np.flatnonzero(data.train.labels == label)[0]) for label in range(10)]
    assert told(replace(data, train=data.train.subset(few)), wide, torch.zeros(len(data.test), 10)) == []
