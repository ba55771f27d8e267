"""Pre-training: what it leaves is a model for every command; stopped, it goes on to the same."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tightframe import Pretraining, collapse_metrics, load_backbone, load_images, pretrain
from tightframe.errors import ModelError, SettingsError
from tightframe.features.moments import ClassMoments
from tightframe.features.workspace import Workspace
from tightframe.files import write_tensors
from tightframe.jobs.pretrain import _collapse, _reading
from tightframe.metrics.collapse import Head
from tightframe.pretraining.losses import LOSSES
from tightframe.pretraining.model import PretrainedModel
from tightframe.tuning.loop import Diverged

HOW = Pretraining("cifar_resnet8", augment=0.0, epochs=2, lr=0.05, batch_size=32)


@pytest.fixture(scope="module")
def data():
    return load_images("digits:0-4", max_per_class=40, test_share=0.5)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "net"
    return folder, pretrain(
        data, folder, dataclasses.replace(HOW, epochs=8, batch_size=16), workspace=Workspace(precision="float32")
    )


@pytest.mark.slow
def test_it_learns_and_what_it_leaves_is_a_model(trained, data):
    folder, found = trained
    assert found.rows[-1]["train_accuracy"] > found.rows[0]["train_accuracy"] + 0.2
    assert found.rows[-1]["test_accuracy"] > 0.5
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "stages", "run.txt", "log.jsonl",
    }  # fmt: skip
    backbone = load_backbone(f"local-dir:{folder}")
    assert (backbone.head, backbone.preprocessing.input_size) == ("fc", (32, 32))
    features = Workspace(precision="float32").features(backbone, data.test, ["penultimate"])
    logits = torch.from_numpy(features["penultimate"]) @ backbone.module.fc.weight.T + backbone.module.fc.bias
    right = (logits.argmax(1).numpy() == data.test.labels).mean()
    assert right == pytest.approx(found.rows[-1]["test_accuracy"])
    moments = features.moments("penultimate")
    known = collapse_metrics(moments, Head(backbone.module.fc.weight, backbone.module.fc.bias))
    for name, measure in (("test_nc1", "nc1"), ("test_nc2", "nc2_etf"), ("test_nc3", "nc3")):
        assert found.rows[-1][name] == pytest.approx(known[measure], rel=1e-3)


@pytest.mark.slow
def test_others_may_read_what_it_leaves(trained):
    folder, _ = trained
    modes = {path.stat().st_mode for path in folder.iterdir() if path.is_file()}
    assert len(modes) == 1


@pytest.mark.slow
def test_images_are_standardised_by_the_training_images(trained, data):
    folder, _ = trained
    wants = load_backbone(f"local-dir:{folder}").preprocessing
    pixels = np.stack([np.asarray(wants.pixels(data.train[i])) for i in range(len(data.train))]) / 255
    assert wants.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-4)
    assert wants.std == pytest.approx(pixels.std((0, 2, 3)), abs=1e-4)


@pytest.mark.slow
def test_collapse_is_that_of_all_dimensions(trained):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 8)
    features = torch.from_numpy(random.normal(size=(40, 30)) + random.normal(size=(5, 30))[labels])
    head = torch.nn.Linear(30, 5).double()
    expected = collapse_metrics(ClassMoments.from_features(features, labels, 5), Head(head.weight, head.bias))
    found = _collapse(features, labels, head)
    assert found == pytest.approx({"nc1": expected["nc1"], "nc2": expected["nc2_etf"], "nc3": expected["nc3"]})
    assert _collapse(features[:8], labels[:8], head) == {"nc1": None, "nc2": None, "nc3": None}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross-entropy", "supcon"])
def test_what_was_stopped_goes_on_to_the_same_weights(data, tmp_path, stopping_at, monkeypatch, loss):
    monkeypatch.setattr("tightframe.tuning.state.SAVE_SECONDS", 0.0)
    how = dataclasses.replace(HOW, loss=loss, projector=1, augment=0.5, epochs=3)
    whole = pretrain(data, tmp_path / "whole", how)
    with pytest.raises(KeyboardInterrupt):
        pretrain(data, tmp_path / "parts", how, workspace=Workspace(progress=stopping_at(2)))
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    with pytest.raises(SettingsError, match="--resume"):
        pretrain(data, tmp_path / "parts", how)
    parts = pretrain(data, tmp_path / "parts", how, resume=True)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    told = [[{k: v for k, v in row.items() if k != "seconds"} for row in found.rows] for found in (whole, parts)]
    assert told[0] == told[1]
    again = pretrain(data, tmp_path / "parts", how, resume=True)
    assert again.rows == parts.rows
    with pytest.raises(SettingsError, match="other settings"):
        pretrain(data, tmp_path / "parts", dataclasses.replace(how, seed=1), resume=True)


def test_a_projection_head_is_dropped(data, tmp_path):
    pretrain(data, tmp_path / "net", dataclasses.replace(HOW, projector=2, epochs=1))
    names = set(load_file(tmp_path / "net" / "model.safetensors"))
    assert "fc.weight" in names
    assert not any("projector" in name for name in names)


def test_other_sizes_and_transformers(data, tmp_path):
    how = dataclasses.replace(HOW, arch="cifar_vit", arguments={"depth": 2, "embed_dim": 48}, input_size=16, epochs=1)
    pretrain(data, tmp_path / "net", how)
    backbone = load_backbone(f"local-dir:{tmp_path / 'net'}")
    assert backbone.preprocessing.input_size == (16, 16)
    assert [layer.name for layer in backbone.layers] == ["blocks.0", "blocks.1"]
    assert json.loads((tmp_path / "net" / "config.json").read_text())["model_args"]["img_size"] == 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": "hinge"}, "supcon"),
        ({"augment": 1.5}, "0 to 1"),
        ({"projector": 4}, "0 to 3"),
        ({"epochs": 0}, "1 or more"),
        ({"lr": float("nan")}, "learning rate"),
        ({"loss": "supcon", "batch_size": 33}, "2 views"),
        ({"loss": "supcon", "batch_size": 2}, "4 or more"),
        ({"loss": "supcon", "grad_accum_steps": 2}, "--grad-accum-steps 1"),
        ({"seed": -1}, "0 or more"),
        ({"lr": 1e300}, "learning rate"),
        ({"arguments": {"channels": "wide"}}, "can't be made"),
    ],
)
def test_what_can_not_be_done_is_said_before_anything_is(data, tmp_path, change, said):
    with pytest.raises((SettingsError, ModelError), match=said):
        pretrain(data, tmp_path / "net", dataclasses.replace(HOW, **change))
    assert not (tmp_path / "net" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_mistake_leaves_the_folder_free(data, tmp_path):
    with pytest.raises(SettingsError):
        pretrain(data, tmp_path / "net", HOW, workspace=Workspace(device="abacus"))
    with pytest.raises(Diverged):
        pretrain(data, tmp_path / "net", dataclasses.replace(HOW, loss="mse", lr=1e6))
    assert pretrain(data, tmp_path / "net", HOW).rows


def test_the_terminal_phase_begins_where_it_lasts():
    accuracies = [0.2, 1.0, 0.3, 1.0, 1.0]
    rows = [{"epoch": at, "train_accuracy": accuracy, "nc1": 0.5} for at, accuracy in enumerate(accuracies, 1)]
    assert _reading(rows)[0].startswith("from epoch 4 on")
    assert "not all training images" in _reading(rows[:3])[0]


def test_weights_that_share_memory_can_be_written(data, tmp_path):
    tied = {"channels": (8, 16, 32)}
    model = PretrainedModel("cifar_resnet8", 2, LOSSES["mse"], 0, tied, 0)
    model.base.extra = model.base.conv1
    write_tensors(tmp_path / "all.safetensors", model.weights("fc"))
    assert "extra.weight" in load_file(tmp_path / "all.safetensors")


def test_an_unknown_architecture_is_told_its_neighbors(data, tmp_path):
    with pytest.raises(ModelError, match="cifar_resnet20"):
        pretrain(data, tmp_path / "net", dataclasses.replace(HOW, arch="cifar_resnet21"))
