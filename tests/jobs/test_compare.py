"""Several methods, one table: judged on images held out from training, resumable, and one failure ends nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tightframe import TrainConfig, compare, load_backbone, load_images, load_tuned, tune
from tightframe.decide.evidence import Evidence
from tightframe.errors import BadImage, LayerNotFound, ModelError, SettingsError
from tightframe.features.workspace import Workspace
from tightframe.jobs.compare import verdict
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


def test_what_to_expect_is_how_predictions_of_images_held_out_did(data, finished):
    compared, _ = finished
    assert {row["lr"] for row in compared.rows} == {1.0, 0.3}
    assert len({row["held_out_loss"] for row in compared.rows}) > 1
    for row in compared.rows:
        evidence = compared.tuned[row["method"]].evidence
        right = evidence.log_probabilities.argmax(1) == data.train.labels
        assert row["expected_accuracy"] == right.mean()
        assert row["expected_low"] < row["expected_accuracy"] < row["expected_high"]
        assert row["held_out_loss"] == evidence.log_loss


def test_the_method_to_use_is_named_and_comes_next(finished):
    compared, folder = finished
    evidence = {name: tuned.evidence for name, tuned in compared.tuned.items()}
    assert (compared.best, compared.result.notes[0]) == verdict(evidence)
    assert compared.result.next_steps == [compared.tuned[compared.best].predict_command(folder / compared.best)]


@pytest.mark.slow
def test_test_images_choose_nothing(data, small, finished, tmp_path):
    compared, _ = finished
    again = compare(dataclasses.replace(data, test=None), small, NAMES, config=PLAN, out=tmp_path / "run")
    assert "test_accuracy" not in again.rows[0]
    assert (again.best, again.block, again.result.notes) == (compared.best, compared.block, compared.result.notes)
    seen = ("expected_accuracy", "expected_low", "held_out_loss", "train_accuracy", "lr", "weight_decay")
    for one, other in zip(compared.rows, again.rows, strict=True):
        assert [one[key] for key in seen] == [other[key] for key in seen]


def sure_of(loss, images=100):
    """Evidence on two classes that loses so much on each image."""
    share = np.exp(-np.broadcast_to(loss, images))
    return Evidence(np.log(np.stack([share, 1 - share], 1)), np.zeros(images, dtype=int))


def test_discriminants_are_used_unless_another_clearly_loses_less():
    loss = np.random.default_rng(0).uniform(0.1, 0.5, 100)
    swings = np.where(np.arange(100) % 2, 0.06, -0.05)  # a mean of 0.005, within its standard error
    rivals = {"linear": sure_of(loss + 0.1), "scl": sure_of(loss - swings), "discriminant": sure_of(loss)}
    assert verdict(rivals)[0] == "discriminant"
    assert verdict(rivals | {"full": sure_of(loss - 0.05)})[0] == "full"
    assert verdict(rivals | {"auto": sure_of(loss - swings)})[0] == "auto"
    assert verdict(rivals | {"auto": sure_of(loss), "full": sure_of(loss - 0.05)})[0] == "full"


def test_without_them_what_loses_least_is_used():
    found, told = verdict({"full": sure_of(0.2), "linear": sure_of(0.3)})
    assert found == "full"
    assert "the log loss of linear is higher by 0.1 " in told


@pytest.mark.parametrize("few", [False, True])
def test_where_nothing_was_held_out_none_is_chosen(data, small, tmp_path, few):
    plan = PLAN if few else dataclasses.replace(PLAN, folds=0)
    if few:
        firsts = np.unique(data.train.labels, return_index=True)[1]
        data = dataclasses.replace(data, train=data.train.subset(firsts))
    compared = compare(data, small, ["linear", "full"], config=plan, out=tmp_path / "run")
    assert not [row for row in compared.rows if "expected_accuracy" in row]
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


def test_too_little_memory_for_one_method_ends_nothing(data, small, finished, tmp_path, monkeypatch):
    def too_much(base, layer):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(METHODS, "huge", dataclasses.replace(METHODS["full"], name="huge", owns=too_much))
    compared = compare(data, small, ["huge", "linear"], config=PLAN, out=tmp_path / "run")
    assert compared.rows[0]["error"] == "RuntimeError: out of memory"
    assert compared.best == "linear"


def test_images_that_can_not_be_read_end_it(data, small, tmp_path, monkeypatch):
    def bad(*arguments, **options):
        raise BadImage("a.png", "cut short")

    monkeypatch.setattr("tightframe.jobs.compare.tune_by", bad)
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
        with pytest.raises(SettingsError, match="auto, discriminant, linear, layer, scl, partial"):
            compare(data, small, methods, config=PLAN, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(LayerNotFound, match="nearest"):
        compare(data, small, ["scl"], block="9", config=PLAN, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    twice = compare(data, small, ["scl", "scl"], block="0", config=PLAN, out=tmp_path / "twice")
    assert [(row["method"], row["block"]) for row in twice.rows] == [("scl", "0")]
