"""A model read off its layers: the head is the formula, and folds are left out whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tightframe.decide.reading import read_model
from tightframe.features.workspace import Workspace
from tightframe.images import ImageSplits
from tightframe.metrics.folds import fold_of
from tightframe.probes.discriminant import read_layers
from tightframe.tuning.config import TrainConfig
from tightframe.tuning.methods import METHODS

CONFIG = TrainConfig(folds=3, seed=2)


def read(images, backbone, config=CONFIG, workspace=None):
    return read_model(images, backbone, METHODS["discriminant"], config, workspace or Workspace(precision="float32"))


def test_the_models_logits_are_those_of_the_reading(data: ImageSplits, wide):
    workspace = Workspace(precision="float32")
    found = read(data.train, wide, workspace=workspace)
    features = workspace.features(wide, data.train)
    expected = read_layers(features, data.train.labels, 5)
    assert found.model.read == list(expected.weights)
    assert len(found.model.read) > 1
    pixels = torch.stack([wide.preprocessing.pixels(data.train[index]) for index in range(8)])
    with torch.inference_mode():
        logits = found.model(wide.preprocessing.normalize(pixels))
    rows = {name: features[name][:8] for name in features}
    torch.testing.assert_close(logits.double(), expected.logits(rows), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.tensor(found.left_out.log_probabilities), expected.held_out)
    assert not [name for name, parameter in found.model.base.named_parameters() if parameter.requires_grad]


def test_each_fold_is_predicted_by_the_others_alone(data: ImageSplits, wide):
    workspace, labels = Workspace(precision="float32"), data.train.labels
    found = read(data.train, wide, workspace=workspace)
    features = workspace.features(wide, data.train)
    assigned = fold_of(labels, 3, 2)
    for fold in range(3):
        kept, held = np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)
        other = read_layers({name: features[name][kept] for name in features}, labels[kept], 5)
        said = other.logits({name: features[name][held] for name in features}).log_softmax(1)
        np.testing.assert_allclose(found.evidence.log_probabilities[held], said.numpy(), atol=1e-9)


def test_without_folds_images_are_left_out_one_by_one(data: ImageSplits, wide):
    found = read(data.train, wide, replace(CONFIG, folds=0))
    assert found.evidence is found.left_out


def test_balanced_classes_are_taken_for_equally_frequent(data: ImageSplits, wide):
    labels = data.train.labels
    few = data.train.subset(np.concatenate([np.flatnonzero(labels != 0), np.flatnonzero(labels == 0)[:2]]))
    plain = read(few, wide).model.head.bias[0]
    fair = read(few, wide, replace(CONFIG, class_weights="balanced")).model.head.bias[0]
    assert fair > plain


def test_a_layer_that_says_the_same_as_the_next_is_read_once():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 8)
    features = generator.normal(size=(16, 4)) + labels[:, None]
    again = {"early": features[:, :2] ** 2, "last": features, "pooled": 3 * features.astype(np.float32) + 1}
    assert list(read_layers(again, labels, 2).weights) == ["early", "pooled"]
