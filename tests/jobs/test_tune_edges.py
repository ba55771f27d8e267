"""Tuning where something is wrong at the edge: an output folder that takes no files, numbers that are none, damage."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tightframe import TrainConfig, load_backbone, load_tuned, tune
from tightframe.errors import LayerNotFound, ModelError, SavedError, SettingsError
from tightframe.features.workspace import Workspace
from tightframe.tuning.loop import Diverged

PLAN = TrainConfig(epochs=2, lr=(0.05,), weight_decay=(1e-4,))
ONE_STEP = dataclasses.replace(PLAN, epochs=1, search_epochs=1, batch_size=64)


def weights(tuned):
    return tuned.model.changed_state()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_that_can_not_be_made_is_said_before_training(data, narrow, tmp_path, steps):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="another --out"):
        tune(data, narrow, method="linear", config=PLAN, out=tmp_path / "file" / "out")
    assert steps == []


def test_a_folder_that_takes_no_files_is_said_before_training(data, narrow, tmp_path, steps, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tightframe.engine.stages.write_text", refuse)
    with pytest.raises(SettingsError, match=r"out can't be written to \(Permission denied\)"):
        tune(data, narrow, method="linear", config=PLAN, out=tmp_path / "out")
    assert steps == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_rates_and_decays_are_finite(name, value):
    with pytest.raises(SettingsError, match="finite"):
        dataclasses.replace(PLAN, **{name: (value,)})


@pytest.mark.parametrize("method", ["scl", "full"])
def test_divergence_in_the_last_step_is_said(data, narrow, method, tmp_path):
    plan = dataclasses.replace(ONE_STEP, lr=(1e38,))
    for resume in (False, True):  # never taken for finished
        with pytest.raises(Diverged, match="--lr"):
            tune(
                data,
                narrow,
                method=method,
                config=plan,
                workspace=Workspace(precision="float32"),
                out=tmp_path / "out",
                resume=resume,
            )


def test_a_rate_that_diverges_in_its_last_step_is_not_chosen(data, narrow):
    plan = dataclasses.replace(ONE_STEP, lr=(1e38, 0.05))
    assert (
        tune(data, narrow, method="full", config=plan, workspace=Workspace(precision="float32")).metrics["lr"] == 0.05
    )


@pytest.mark.parametrize("spoil", [lambda whole: [], lambda whole: None, lambda whole: {"scope": whole["scope"]}])
def test_a_damaged_history_is_made_again(data, narrow, tmp_path, spoil):
    first = tune(data, narrow, method="linear", config=PLAN, out=tmp_path / "out")
    path = tmp_path / "out" / "history.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    again = tune(data, narrow, method="linear", config=PLAN, out=tmp_path / "out", resume=True)
    assert same(weights(again), weights(first))
    assert len(json.loads(path.read_text())["history"]) == PLAN.epochs


def test_a_result_that_lost_its_description_is_made_again(data, narrow, tmp_path):
    tune(data, narrow, method="linear", config=PLAN, out=tmp_path / "out")
    (tmp_path / "out" / "tightframe.json").unlink()
    tune(data, narrow, method="linear", config=PLAN, out=tmp_path / "out", resume=True)
    assert load_tuned(tmp_path / "out").classes == data.classes


def test_resuming_in_a_folder_of_the_users_own_touches_nothing(data, narrow, tmp_path):
    (tmp_path / "own" / "unfinished").mkdir(parents=True)
    (tmp_path / "own" / "unfinished" / "draft.txt").write_text("thesis")
    with pytest.raises(SettingsError, match="no run of tightframe"):
        tune(data, narrow, method="linear", config=PLAN, out=tmp_path / "own", resume=True)
    assert [str(file.relative_to(tmp_path)) for file in (tmp_path / "own").rglob("*")] == [
        "own/unfinished",
        "own/unfinished/draft.txt",
    ]


def test_without_room_for_what_goes_into_the_block_the_whole_model_is_trained(data, narrow, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    tuned = tune(data, narrow, method="layer", block="layer3.0", config=PLAN)
    assert any("trained whole" in note and "No space left" in note for note in tuned.notes)


@pytest.mark.parametrize("room", [0.0, 1e-9])
def test_without_room_for_augmented_features_the_whole_model_makes_them(data, narrow, room):
    plan = dataclasses.replace(PLAN, augment="flip", prefix_cache_gb=room)
    assert tune(data, narrow, method="linear", config=plan).metrics["epochs"] == 2


@pytest.mark.parametrize("block", ["layr3.0", "penultimate", "output"])
def test_a_block_that_is_none_is_said_before_the_folder_is_taken(data, narrow, tmp_path, block):
    with pytest.raises((LayerNotFound, SettingsError), match="measure` lists"):
        tune(data, narrow, method="layer", block=block, config=PLAN, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_block_chosen_among_others_is_not_taken_for_this_one(data, names, narrow, tmp_path):
    chosen = tune(data, narrow, method="layer", config=PLAN, out=tmp_path / "out").model.block
    others = [block.name for block in narrow.layers if block.name != chosen]
    with pytest.raises(SettingsError, match="other settings"):
        tune(
            data,
            load_backbone(names["narrow"], layers=others),
            method="layer",
            config=PLAN,
            out=tmp_path / "out",
            resume=True,
        )


def test_other_test_images_give_the_same_model(data, narrow):
    assert data.test is not None
    swapped = dataclasses.replace(data, test=data.test.subset(np.arange(7)))
    plan = dataclasses.replace(PLAN, lr=(0.05, 0.01))
    first, second = (tune(each, narrow, method="layer", config=plan) for each in (data, swapped))
    assert same(weights(first), weights(second))
    assert first.metrics["test_low"] != second.metrics["test_low"]


@pytest.mark.parametrize("uri", ["local-dir:" + "a" * 5000, "local-dir:\0", "local-dir:/etc", "../../etc", ""])
def test_a_saved_folder_that_names_an_odd_place(data, narrow, tmp_path, uri):
    tune(data, narrow, method="linear", config=PLAN, out=tmp_path / "out")
    path = tmp_path / "out" / "tightframe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone": {"uri": uri, "pretrained": True}}))
    with pytest.raises((SavedError, ModelError)):
        load_tuned(tmp_path / "out")
