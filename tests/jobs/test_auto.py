"""``tune(method="auto")``: what reads all layers, or its mean with what was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from tightframe import TrainConfig, compare, load_tuned, merge, tune
from tightframe.decide.choice import Choice
from tightframe.deploy.merge import NotPlain
from tightframe.features.workspace import Workspace
from tightframe.jobs import tune as job
from tightframe.tuning.config import Clock
from tightframe.tuning.loop import Diverged
from tightframe.tuning.methods import METHODS
from tightframe.tuning.surgery import joined

PLAN = TrainConfig(epochs=2, lr=(0.05,), weight_decay=(1e-4,), folds=2)


@pytest.fixture
def favoring(monkeypatch):
    """Makes the rule take the first or the other of two."""
    seen = {}

    def favor(mean: bool):
        def choose(evidence, first, errors):
            seen.update(evidence, first=first, errors=errors)
            return Choice(list(evidence)[mean], "the test says so")

        monkeypatch.setattr(job, "choose", choose)
        return seen

    return favor


@pytest.mark.parametrize("mean", [False, True])
def test_what_the_rule_takes_is_saved_and_returned(data, wide, tmp_path, favoring, mean):
    seen = favoring(mean)
    tuned = tune(data, wide, block="layer3.0", config=PLAN, out=tmp_path / "run")
    assert seen["first"] == "discriminant"
    assert seen["errors"] == 1
    assert set(seen) == {"discriminant", "the mean of discriminant and partial", "first", "errors"}
    assert tuned.model.title == ("partial and discriminant" if mean else "discriminant")
    took = "the mean of discriminant and partial" if mean else "discriminant"
    assert tuned.notes[0] == f"auto is {took}: the test says so"
    assert not (tmp_path / "run" / "unfinished").exists()
    series = [json.loads(line)["series"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {one.partition(" ")[0] for one in series} == {"fold", "final"}
    again = load_tuned(tmp_path / "run", wide)
    assert again.model.title == tuned.model.title
    np.testing.assert_array_equal(again.evidence.log_probabilities, tuned.evidence.log_probabilities)
    assert again.trained_on == data.train.digests
    torch.testing.assert_close(again.logits_and_features(data.test)[0], tuned.logits_and_features(data.test)[0])


def test_the_mean_is_of_both_models_and_of_what_they_said(data, wide, favoring):
    favoring(True)
    both = tune(data, wide, block="layer3.0", config=PLAN)
    reading, trained = (
        tune(data, wide, method=name, block="layer3.0", config=PLAN) for name in ("discriminant", "partial")
    )
    logits = [one.logits_and_features(data.test)[0] for one in (reading, trained)]
    factor = 1 / both.metrics["temperature"]
    torch.testing.assert_close(both.logits_and_features(data.test)[0], factor * (logits[0] + logits[1]) / 2)
    said = [one.evidence.log_probabilities for one in (reading, trained)]
    wanted = torch.tensor(factor * (said[0] + said[1]) / 2).log_softmax(1)
    torch.testing.assert_close(torch.tensor(both.evidence.log_probabilities), wanted)
    assert both.metrics["trainable_parameters"] == both.model.trainable_parameters
    assert both.model.all_parameters < 2 * trained.model.all_parameters, "what is not trained is there once"


def test_the_mean_runs_no_image_that_both_were_shown(data, wide, favoring, monkeypatch):
    favoring(True)
    anew, run = [], job._seen_anew
    monkeypatch.setattr(job, "_seen_anew", lambda model, *given: anew.append(model.title) or run(model, *given))
    both = tune(data, wide, block="layer3.0", config=PLAN)
    assert sorted(anew) == ["discriminant", "partial"], "the test images of each"
    logits, features = both.logits_and_features(data.test)
    torch.testing.assert_close(both.test_logits, logits, rtol=1e-3, atol=1e-3)
    assert both.metrics["test_accuracy"] == float((logits.argmax(1).numpy() == data.test.labels).mean())
    seen = job._seen_anew(both.model, data.train, Workspace(precision="float32"))
    assert both.metrics["train_accuracy"] == float(
        (job.logits_of(both.model, seen).argmax(1).numpy() == data.train.labels).mean()
    )
    assert seen.shape[1] == features.shape[1]


@pytest.mark.parametrize(("recipe", "folds", "told"), [("steady", 2, True), ("paper", 2, False), ("steady", 0, False)])
def test_a_method_by_name_is_kept_and_told_beside_the_discriminant(data, wide, recipe, folds, told, tmp_path):
    config = replace(PLAN, recipe=recipe, folds=folds)
    tuned = tune(data, wide, method="scl", block="layer3.0", config=config, out=tmp_path / "run")
    assert tuned.model.title == "scl"
    saying = [note for note in tuned.notes if "discriminant, which trains nothing" in note]
    assert len(saying) == told
    again = tune(data, wide, method="scl", block="layer3.0", config=config, out=tmp_path / "run", resume=True)
    assert [note for note in again.notes if "discriminant, which trains nothing" in note] == saying


def test_what_is_made_already_is_not_made_again(data, wide, tmp_path, steps):
    names = ["discriminant", "partial", "auto"]
    first = compare(data, wide, names[:2], block="layer3.0", config=PLAN, out=tmp_path / "two")
    taken = len(steps)
    steps.clear()
    found = compare(data, wide, names, block="layer3.0", config=PLAN, out=tmp_path / "three")
    assert len(steps) == taken
    assert found.rows[:2] == [row | {"seconds": ANY} for row in first.rows]
    assert found.rows[2]["method"] == "auto"


def test_its_time_is_that_of_what_it_is_made_of(data, wide):
    run = job.Run(data, wide, "layer3.0", PLAN, (), Workspace(), Clock())
    made = {name: job.tune_by(METHODS[name], run, None, False) for name in ("discriminant", "linear", "partial")}
    made = {name: replace(one, metrics=one.metrics | {"seconds": 1e6}) for name, one in made.items()}
    assert 2e6 <= job.tune_auto(run, None, False, made).metrics["seconds"] < 3e6


@pytest.mark.parametrize("method", ["scl", "lora", "full", "partial"])
def test_any_tuned_model_has_a_mean_with_a_reading(data, wide, tmp_path, method):
    config = replace(PLAN, folds=0, lr=(0.01,))
    block = {"block": "layer3.0"} if METHODS[method].needs_block else {}
    reading, trained = (tune(data, wide, method=name, config=config, **block) for name in ("discriminant", method))
    mean = replace(trained, model=joined(trained.model, reading.model), familiar=None)
    wanted = (reading.logits_and_features(data.test)[0] + trained.logits_and_features(data.test)[0]) / 2
    torch.testing.assert_close(mean.logits_and_features(data.test)[0], wanted)
    mean.save(tmp_path / "mean")
    torch.testing.assert_close(load_tuned(tmp_path / "mean", wide).logits_and_features(data.test)[0], wanted)
    with pytest.raises(NotPlain, match="reads"):
        merge(mean, tmp_path / "plain")


def test_resumed_it_gives_the_same_and_trains_nothing(data, wide, tmp_path, steps):
    first = tune(data, wide, block="layer3.0", config=PLAN, out=tmp_path / "run")
    steps.clear()
    again = tune(data, wide, block="layer3.0", config=PLAN, out=tmp_path / "run", resume=True)
    assert steps == []
    assert again.metrics == json.loads(json.dumps(first.metrics))
    assert again.notes == first.notes


def test_without_time_nothing_is_trained(data, wide, steps):
    tuned = tune(data, wide, config=TrainConfig(time_limit=1e-6))
    assert steps == []
    assert tuned.model.method.name == "discriminant"
    assert "no time to train partial" in tuned.notes[0]


def test_training_that_fails_leaves_the_reading(data, wide, monkeypatch):
    def fit(*given, **more):
        raise Diverged("the loss became nan")

    monkeypatch.setattr("tightframe.decide.training.fit", fit)
    tuned = tune(data, wide, block="layer3.0", config=PLAN)
    assert tuned.model.method.name == "discriminant"
    assert "partial could not be trained (the loss became nan" in tuned.notes[0]


def test_two_images_a_class_are_enough(data, wide):
    few = np.concatenate([np.flatnonzero(data.train.labels == label)[:2] for label in range(5)])
    some = type(data)(data.name, data.train.subset(few), data.test)
    assert tune(some, wide, block="layer3.0", config=PLAN).metrics["test_accuracy"] >= 0


@pytest.mark.parametrize("why", ["no folds", "one image a class"])
def test_where_nothing_says_whether_training_helps_nothing_is_trained(data, wide, steps, why):
    firsts = np.unique(data.train.labels, return_index=True)[1]
    few = why != "no folds"
    some = type(data)(data.name, data.train.subset(firsts), data.test) if few else data
    tuned = tune(some, wide, config=TrainConfig() if few else TrainConfig(folds=0))
    assert steps == []
    assert tuned.model.method.name == "discriminant"
    assert "without folds" in tuned.notes[0]
    assert ("expected_accuracy" in tuned.metrics) == (not few)
