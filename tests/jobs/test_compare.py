"""Several methods, one table: judged on images held out from training, resumable, and one failure ends nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tightframe import TrainConfig, compare, load_backbone, load_images, load_tuned, tune
from tightframe.data.selection import stratified
from tightframe.errors import BadImage, LayerNotFound, ModelError, SettingsError
from tightframe.features.workspace import Workspace
from tightframe.jobs.compare import verdict
from tightframe.probes.results import interval
from tightframe.tuning.methods import METHODS

SMALL = f"{Path(__file__).with_name('small_model.py')}:make"
PLAN = TrainConfig(epochs=3, search_epochs=2, lr=(1.0, 0.3), weight_decay=(1e-4,), batch_size=8)
NAMES = ("linear", "layer", "scl", "full")


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-9", max_per_class=20, test_share=0.2)


@pytest.fixture(scope="module")
def small():
    return load_backbone(SMALL)


@pytest.fixture(scope="module")
def finished(data, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "run"
    return compare(data, small, NAMES, config=PLAN, out=folder), folder


@pytest.fixture
def broken(monkeypatch):
    """A method that no model can be tuned by."""

    def owns(base, layer):
        raise ModelError("nothing here can be tuned so")

    monkeypatch.setitem(METHODS, "broken", dataclasses.replace(METHODS["full"], name="broken", owns=owns))
    return "broken"


def untimed(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_a_row_a_method_and_a_saved_folder_each(data, finished):
    compared, folder = finished
    assert [row["method"] for row in compared.rows] == list(compared.tuned) == list(NAMES)
    assert [row["block"] for row in compared.rows] == [None, compared.block, compared.block, None]
    assert compared.result.settings["block"] == compared.block
    json.loads(compared.result.to_json())
    for row in compared.rows:
        logits, _ = load_tuned(folder / row["method"], SMALL).logits_and_features(data.test)
        assert (logits.argmax(1).numpy() == data.test.labels).mean() == row["test_accuracy"]


@pytest.mark.slow
def test_each_is_what_tune_alone_makes_of_the_same_block(data, small, finished):
    compared, _ = finished
    for row in untimed(compared.rows):
        alone = tune(data, small, method=row["method"], block=compared.block or "auto", config=PLAN).metrics
        assert untimed([alone])[0] == {key: row[key] for key in alone if key != "seconds"}


def test_validation_is_that_of_the_chosen_trial(data, finished):
    compared, _ = finished
    held_out = len(stratified(data.train.labels, PLAN.validation_share, PLAN.seed)[1])
    assert {row["lr"] for row in compared.rows} == {1.0, 0.3}
    assert len({row["validation_accuracy"] for row in compared.rows}) > 1
    for row in compared.rows:
        history = compared.tuned[row["method"]].history
        last = [r for r in history if r["phase"] == "search" and r["epoch"] == PLAN.search_epochs]
        assert len(last) == 2
        assert row["validation_accuracy"] == min(last, key=lambda r: r["validation_loss"])["validation_accuracy"]
        right = row["validation_accuracy"] * held_out
        assert right == pytest.approx(round(right))
        assert (row["validation_low"], row["validation_high"]) == interval(round(right), held_out)


def test_the_method_to_use_is_named_and_comes_next(finished):
    compared, folder = finished
    assert "validates best" in compared.result.notes[0]
    assert compared.best in NAMES
    assert compared.result.next_steps == [compared.tuned[compared.best].predict_command(folder / compared.best)]


@pytest.mark.slow
def test_test_images_choose_nothing(data, small, finished, tmp_path):
    compared, _ = finished
    again = compare(dataclasses.replace(data, test=None), small, NAMES, config=PLAN, out=tmp_path / "run")
    assert "test_accuracy" not in again.rows[0]
    assert (again.best, again.block, again.result.notes) == (compared.best, compared.block, compared.result.notes)
    seen = ("validation_accuracy", "validation_low", "validation_high", "train_accuracy", "lr", "weight_decay")
    for one, other in zip(compared.rows, again.rows, strict=True):
        assert [one[key] for key in seen] == [other[key] for key in seen]


def row(method, right, parameters, total=100):
    low, high = interval(right, total)
    judged = {"validation_accuracy": right / total, "validation_low": low, "validation_high": high}
    return {"method": method, "trainable_parameters": parameters, "test_accuracy": 1 - right / total} | judged


def test_of_methods_alike_the_smallest_is_used():
    rows = [row("full", 92, 9000), row("scl", 90, 500), row("linear", 60, 50)]
    best, told = verdict(rows, 100)
    assert best == "scl"
    assert told.startswith("full validates best: 92.0 % of 100 training images held out; intervals overlap with scl,")
    assert "linear" not in told


def test_of_methods_apart_the_best_is_used():
    best, told = verdict([row("linear", 60, 50), {"method": "norm", "error": "none"}, row("full", 92, 9000)], 100)
    assert best == "full"
    assert "overlap" not in told


def test_at_the_same_accuracy_the_smaller_is_the_best():
    best, told = verdict([row("full", 100, 9000), row("linear", 100, 50)], 100)
    assert best == "linear"
    assert told.startswith("linear validates best")


@pytest.mark.parametrize("few", [False, True])
def test_where_nothing_was_held_out_none_is_chosen(data, small, tmp_path, few):
    plan = PLAN if few else dataclasses.replace(PLAN, lr=(0.3,))
    if few:
        firsts = np.unique(data.train.labels, return_index=True)[1]
        data = dataclasses.replace(data, train=data.train.subset(firsts))
    compared = compare(data, small, ["linear", "full"], config=plan, out=tmp_path / "run")
    assert [row["validation_accuracy"] for row in compared.rows] == [None, None]
    assert all("test_accuracy" in row for row in compared.rows)
    assert compared.best is None
    assert compared.result.next_steps == []
    assert "no method is chosen" in compared.result.notes[0]


def test_a_method_that_fails_says_why_and_the_others_go_on(data, small, finished, broken, tmp_path):
    compared = compare(data, small, [broken, "linear"], config=PLAN, out=tmp_path / "run")
    assert compared.rows[0] == {"method": broken, "error": "nothing here can be tuned so"}
    assert untimed(compared.rows[1:]) == untimed(finished[0].rows[:1])
    assert list(compared.tuned) == [compared.best] == ["linear"]


@pytest.mark.parametrize(("methods", "by"), [(("layer", "scl"), "scl"), (("linear", "layer"), "layer")])
def test_the_block_is_chosen_once_by_scl_or_the_first_that_needs_one(data, small, tmp_path, monkeypatch, methods, by):
    asked = []

    def choose(images, backbone, block, method, config, workspace):
        asked.append(method.name)
        return "0", []

    monkeypatch.setattr("tightframe.jobs.compare.chosen_block", choose)
    compared = compare(data, small, methods, config=PLAN, out=tmp_path / "run")
    assert asked == [by]
    assert compared.block == "0"
    assert {row["block"] for row in compared.rows} <= {None, "0"}


def test_without_a_block_the_methods_that_need_none_go_on(data, small, tmp_path, monkeypatch):
    def none(*arguments):
        raise ModelError("no block is small enough")

    monkeypatch.setattr("tightframe.jobs.compare.chosen_block", none)
    compared = compare(data, small, ["scl", "linear", "layer"], config=PLAN, out=tmp_path / "run")
    assert [row.get("error") for row in compared.rows] == ["no block is small enough", None, "no block is small enough"]
    assert compared.block is None


def test_if_all_fail_it_fails(data, small, broken, tmp_path):
    with pytest.raises(ModelError, match="broken failed with: nothing here can be tuned so"):
        compare(data, small, [broken], config=PLAN, out=tmp_path / "run")


def test_images_that_can_not_be_read_end_it(data, small, tmp_path, monkeypatch):
    def bad(*arguments, **options):
        raise BadImage("a.png", "cut short")

    monkeypatch.setattr("tightframe.jobs.compare.tune", bad)
    with pytest.raises(BadImage, match="--skip-bad"):
        compare(data, small, ["linear", "full"], config=PLAN, out=tmp_path / "run")


@pytest.mark.slow
def test_stopped_again_and_again_it_goes_on_to_the_same_result(data, small, finished, tmp_path, often_stopped):
    def run(progress):
        workspace = Workspace(progress=progress)
        return compare(data, small, NAMES, config=PLAN, out=tmp_path, resume=True, workspace=workspace)

    compared, stops = often_stopped(run)
    assert stops > 5
    assert untimed(compared.rows) == untimed(finished[0].rows)
    assert compared.result.notes == finished[0].result.notes
    assert not list(tmp_path.rglob("*unfinished*"))


def test_resumed_when_finished_it_trains_nothing(data, small, finished, steps):
    compared, folder = finished
    again = compare(data, small, NAMES, config=PLAN, out=folder, resume=True)
    assert steps == []
    assert again.rows == compared.rows  # times included
    assert again.best == compared.best


def test_a_folder_is_one_comparisons_own(data, small, finished, tmp_path):
    _, folder = finished
    with pytest.raises(SettingsError, match="--resume"):
        compare(data, small, NAMES, config=PLAN, out=folder)
    with pytest.raises(SettingsError, match="other settings"):
        compare(data, small, ["linear"], config=PLAN, out=folder, resume=True)
    (tmp_path / "thesis.tex").write_text("do not lose me")
    with pytest.raises(SettingsError, match="no run"):
        compare(data, small, NAMES, config=PLAN, out=tmp_path, resume=True)


def test_names_are_checked_before_anything_is_done(data, small, tmp_path):
    for methods in (["linear", "magic"], []):
        with pytest.raises(SettingsError, match="linear, layer, scl"):
            compare(data, small, methods, config=PLAN, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(LayerNotFound, match="nearest"):
        compare(data, small, ["scl"], block="9", config=PLAN, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    twice = compare(data, small, ["scl", "scl"], block="0", config=PLAN, out=tmp_path / "twice")
    assert [(row["method"], row["block"]) for row in twice.rows] == [("scl", "0")]
