"""Tuning: better than chance, chosen on validation images only, judged once, resumable, never overwriting."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tightframe import TrainConfig, load_backbone, load_images, tune
from tightframe.decide.block import chosen_block
from tightframe.errors import LayerNotFound, SettingsError
from tightframe.features.workspace import Workspace
from tightframe.tuning.loop import Diverged
from tightframe.tuning.methods import METHODS

PLAN = TrainConfig(epochs=3, search_epochs=2, lr=(0.05, 0.01), weight_decay=(1e-4, 1e-3), folds=2)


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-9", max_per_class=8, test_share=0.2)


@pytest.fixture(scope="module")
def finished(data, wide, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "scl"
    return tune(data, wide, method="scl", config=PLAN, out=folder), folder


def weights(tuned):
    return {name: tensor.clone() for name, tensor in tuned.model.changed_state().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def untimed(row):
    return {key: value for key, value in row.items() if key != "seconds"}


@pytest.mark.slow
def test_a_pretrained_model_learns_new_classes(tmp_path, data, monkeypatch):
    from tightframe.jobs import demo

    monkeypatch.setattr(demo, "MODELS", {"narrow": (4, 8, 16, 16)})
    backbone = load_backbone(demo.candidates(tmp_path)[0])
    for method in ("linear", "layer", "scl", "full"):
        accuracy = tune(
            data, backbone, method=method, config=TrainConfig(epochs=8, lr=(0.02,), weight_decay=(1e-4,))
        ).metrics
        assert accuracy["test_low"] > 0.25, method  # chance is 0.2
        assert accuracy["train_accuracy"] > 0.4, method


def test_metrics_are_what_they_say(data, finished):
    tuned, _ = finished
    metrics = tuned.metrics
    logits, _ = tuned.logits_and_features(data.test)
    assert metrics["test_accuracy"] == float((logits.argmax(1).numpy() == data.test.labels).mean())
    assert metrics["test_low"] < metrics["test_accuracy"] < metrics["test_high"]
    assert metrics["trainable_share"] == metrics["trainable_parameters"] / metrics["all_parameters"]
    assert metrics["trainable_parameters"] == sum(p.numel() for p in tuned.model.parameters() if p.requires_grad)
    assert metrics["nc1"] > 0
    assert metrics["lr"] in PLAN.lr
    assert metrics["weight_decay"] in PLAN.weight_decay
    assert metrics["epochs"] == 3


def test_rates_are_tried_first_then_decays_at_the_best_of_them(finished):
    tuned, _ = finished
    search = [row for row in tuned.history if row["phase"] == "search"]
    last = {(row["initial_lr"], row["weight_decay"]): row for row in search if row["epoch"] == PLAN.search_epochs}
    assert len(search) == PLAN.search_epochs * 3
    assert set(last) == {(0.05, 1e-4), (0.01, 1e-4), (tuned.metrics["lr"], 1e-3)}

    def merit(choice):
        return -last[choice]["validation_loss"]

    assert (tuned.metrics["lr"], tuned.metrics["weight_decay"]) == max(last, key=merit)
    final = [row for row in tuned.history if row["phase"] == "final"]
    assert [row["epoch"] for row in final] == [1, 2, 3]
    assert {row["validation_accuracy"] for row in final} == {None}


def test_test_images_decide_nothing(data, wide, finished, steps):
    blind = dataclasses.replace(data, test=None)
    tuned = tune(blind, wide, method="scl", config=PLAN)
    assert steps
    assert same(weights(tuned), weights(finished[0]))
    assert "test_accuracy" not in tuned.metrics


def test_auto_is_the_block_that_won_the_race(data, wide, finished):
    trials = [row for row in finished[0].history if row["phase"] == "block"]
    chosen, rows = chosen_block(data.train, wide, "auto", METHODS["scl"], PLAN, Workspace())
    assert finished[0].model.block == chosen
    assert trials == rows


def test_stopped_again_and_again_it_goes_on_to_the_same(data, wide, finished, tmp_path, often_stopped):
    def run(progress):
        return tune(
            data, wide, method="scl", config=PLAN, out=tmp_path, resume=True, workspace=Workspace(progress=progress)
        )

    tuned, stops = often_stopped(run)
    assert stops > 3
    assert same(weights(tuned), weights(finished[0]))
    assert untimed(tuned.metrics) == untimed(finished[0].metrics)
    assert not (tmp_path / "unfinished").exists()


def test_a_finished_run_is_loaded_not_repeated(data, wide, finished, steps):
    tuned, folder = finished
    again = tune(data, wide, method="scl", config=PLAN, out=folder, resume=True)
    assert steps == []
    assert same(weights(again), weights(tuned))
    assert again.metrics == tuned.metrics
    assert again.history == json.loads(json.dumps(tuned.history))


def test_nothing_is_overwritten(data, wide, finished, tmp_path):
    _, folder = finished
    before = (folder / "tuned.safetensors").read_bytes()
    with pytest.raises(SettingsError, match="--resume"):
        tune(data, wide, method="scl", config=PLAN, out=folder)
    with pytest.raises(SettingsError, match="other settings"):
        tune(data, wide, method="scl", config=dataclasses.replace(PLAN, seed=1), out=folder, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="is a file"):
        tune(data, wide, method="scl", config=PLAN, out=tmp_path / "file")
    assert (folder / "tuned.safetensors").read_bytes() == before


def test_too_few_images_to_choose_with_is_said(data, wide):
    two = np.concatenate([np.flatnonzero(data.train.labels == k)[:1] for k in range(5)])
    few = dataclasses.replace(data, train=data.train.subset(two))
    tuned = tune(few, wide, method="full", config=PLAN)
    assert any("too few" in note for note in tuned.notes)
    assert {row["phase"] for row in tuned.history} == {"final"}


def test_images_left_out_are_counted_in_the_notes(data, wide):
    skipped = dataclasses.replace(data, skipped=("a.jpg: empty", "b.jpg: empty"))
    plan = TrainConfig(epochs=1, lr=(0.05,), weight_decay=(0.0,))
    notes = tune(skipped, wide, method="linear", config=plan).notes
    assert notes.count("2 files were left out; the first: a.jpg: empty") == 1


def test_every_rate_too_high(data, wide):
    plan = TrainConfig(epochs=2, search_epochs=2, lr=(1e30, 1e31), weight_decay=(1e-4,))
    with pytest.raises(Diverged, match="--lr"):
        tune(data, wide, method="full", config=plan, workspace=Workspace(precision="float32"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"search_epochs": -1},
        {"batch_size": 1},
        {"search_epochs": 0},
        {"validation_share": 1.0},
        {"lr": (0.0,)},
        {"weight_decay": (-1e-4,)},
    ],
    ids=str,
)
def test_plans_out_of_range(data, wide, wrong):
    with pytest.raises(SettingsError):
        tune(data, wide, config=TrainConfig(**wrong))


def test_names_that_are_not_there(data, wide):
    with pytest.raises(SettingsError, match="auto, discriminant, linear, layer, scl, partial, full"):
        tune(data, wide, method="magic", config=PLAN)
    with pytest.raises(LayerNotFound, match="nearest"):
        tune(data, wide, block="layer7", config=PLAN)


def test_choices_by_kind_of_model(wide):
    plain, paper, scl = TrainConfig(), TrainConfig(recipe="paper"), METHODS["scl"]
    rates, decays = paper.choices(wide.module, scl)
    assert {0.05} <= set(rates)
    assert decays == (1e-4, 5e-4)
    assert (
        plain.choices(wide.module, METHODS["linear"]) == plain.choices(wide.module, METHODS["lora"]) == (rates, decays)
    )
    assert plain.choices(wide.module, scl) == ((0.03,), (1e-4,))
    assert plain.choices(wide.module, METHODS["partial"]) == ((0.005,), (1e-4,))
    transformer = torch.nn.Sequential(torch.nn.LayerNorm(3))
    rates, decays = plain.choices(transformer, scl)
    assert {1e-2, 1e-3} <= set(rates)
    assert decays == (1e-4, 0.0)
    assert TrainConfig(lr=(3e-3,), recipe="paper").choices(wide.module, scl) == ((3e-3,), (1e-4, 5e-4))
    assert max(plain.choices(wide.module, METHODS["lp-ft"])[0]) < max(rates)
