"""A model read off its layers: the head is the formula, and folds are left out whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import torch

from tightframe import load_tuned, transfer, tune
from tightframe.backbone import SPREAD
from tightframe.decide import reading
from tightframe.decide.reading import read_model
from tightframe.deploy.export import export_onnx
from tightframe.features.workspace import Workspace, read_in_closed_form
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
    features = workspace.features(wide, data.train, read_in_closed_form(wide))
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
    features = workspace.features(wide, data.train, read_in_closed_form(wide))
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


def test_how_maps_vary_is_read_saved_and_exported(data: ImageSplits, wide, tmp_path):
    tuned = tune(data, wide, method="discriminant", out=tmp_path / "tuned", config=CONFIG)
    assert any(name.endswith(SPREAD) for name in tuned.model.read)
    images = [data.test[index] for index in range(6)]
    again = load_tuned(tmp_path / "tuned")
    assert again.predict(images) == tuned.predict(images)
    export_onnx(again, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    pixels = torch.stack([wide.preprocessing.pixels(image) for image in images])
    (said,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
    np.testing.assert_allclose(said, tuned.probabilities(data.test)[:6], atol=1e-5)


def test_pool_mean_reads_means_alone(data: ImageSplits, wide):
    found = read(data.train, wide, workspace=Workspace(precision="float32", pool="mean"))
    assert found.model.read
    assert not any(name.endswith(SPREAD) for name in found.model.read)


def test_a_reading_is_made_once_for_all_jobs(data: ImageSplits, wide, tmp_path, monkeypatch):
    made, of = [], reading.read_layers
    monkeypatch.setattr(reading, "read_layers", lambda *given, **how: made.append(len(given[1])) or of(*given, **how))
    config = TrainConfig(folds=0)
    transfer(data, [wide], out=tmp_path / "run", methods=["discriminant"], config=config)
    assert made == [len(data.train)]
