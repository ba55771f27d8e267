"""``tune(method="auto")``: what reads all layers, unless training is better beyond doubt."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tightframe import TrainConfig, load_tuned, tune
from tightframe.decide.choice import Choice
from tightframe.jobs import tune as job
from tightframe.tuning.loop import Diverged

PLAN = TrainConfig(epochs=2, lr=(0.05,), weight_decay=(1e-4,), folds=2)


@pytest.fixture
def favoring(monkeypatch):
    """Makes the rule take the method named; the evidence that it was given."""
    seen = {}

    def favor(name):
        def choose(evidence, first):
            seen.update(evidence, first=first)
            return Choice(name, f"{name} is used: the test says so")

        monkeypatch.setattr(job, "choose", choose)
        return seen

    return favor


@pytest.mark.parametrize("name", ["discriminant", "scl"])
def test_what_the_rule_takes_is_saved_and_returned(data, wide, tmp_path, favoring, name):
    seen = favoring(name)
    tuned = tune(data, wide, block="layer3.0", config=PLAN, out=tmp_path / "run")
    assert seen["first"] == "discriminant"
    assert set(seen) == {"discriminant", "scl", "first"}
    assert tuned.model.method.name == name
    assert tuned.notes[0] == f"{name} is used: the test says so"
    assert not (tmp_path / "run" / "unfinished").exists()
    series = [json.loads(line)["series"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {one.partition(" ")[0] for one in series} == {"fold", "final"}
    again = load_tuned(tmp_path / "run", wide)
    assert again.model.method.name == name
    np.testing.assert_array_equal(again.evidence.log_probabilities, tuned.evidence.log_probabilities)
    assert again.trained_on == data.train.digests
    torch.testing.assert_close(again.logits_and_features(data.test)[0], tuned.logits_and_features(data.test)[0])
    alone = tune(data, wide, method=name, block="layer3.0", config=PLAN)
    for tensor in alone.model.changed_state():
        assert torch.equal(alone.model.changed_state()[tensor], tuned.model.changed_state()[tensor]), tensor


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
    assert "no time to train scl" in tuned.notes[0]


def test_training_that_fails_leaves_the_reading(data, wide, monkeypatch):
    def fit(*given, **more):
        raise Diverged("the loss became nan")

    monkeypatch.setattr("tightframe.decide.training.fit", fit)
    tuned = tune(data, wide, block="layer3.0", config=PLAN)
    assert tuned.model.method.name == "discriminant"
    assert "scl could not be trained (the loss became nan" in tuned.notes[0]


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
