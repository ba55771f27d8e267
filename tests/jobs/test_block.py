"""Choosing the block: who takes part, that the better half goes on, and what happens where no race can be held."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tightframe import load_images
from tightframe.decide import block as racing
from tightframe.decide.block import candidates, chosen_block, readings
from tightframe.decide.layers import Reading, recommend_layer
from tightframe.features.capture import CannotCut
from tightframe.features.workspace import Workspace
from tightframe.tuning.config import TrainConfig
from tightframe.tuning.methods import METHODS

PLAN = TrainConfig(epochs=6, batch_size=16, validation_share=0.3, prefix_cache_gb=1.0)
DEPTH = [Reading(f"b{depth}", spread, 10) for depth, spread in enumerate([1, 9, 2, 8, 3, 7, 6, 5])]


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-9", max_per_class=10, test_share=0.3)


def choose(data, backbone, config=PLAN, method="scl"):
    return chosen_block(data.train, backbone, "auto", METHODS[method], config, Workspace())


def test_the_most_collapsed_and_the_deepest_take_part_in_their_order():
    assert candidates(DEPTH, 10, 1000) == ["b0", "b2", "b4", "b5", "b6", "b7"]
    assert candidates(DEPTH[:2], 10, 1000) == ["b0", "b1"]


def test_one_that_is_small_enough_needs_no_race():
    assert candidates([Reading("a", 1.0, 500), Reading("b", 2.0, 5)], 10, 1000) == ["b"]


def test_the_better_half_goes_on_for_twice_as_long(data, wide, monkeypatch):
    blocks = candidates(*readings(wide, Workspace().features(wide, data.train)))
    monkeypatch.setattr(racing, "candidates", lambda *_: ["layer1.0", "layer2.0", "layer3.0", "layer4.0"])
    chosen, rows = choose(data, wide)
    assert [row["epochs"] for row in rows] == [1, 1, 1, 1, 2, 2]
    first = sorted(rows[:4], key=lambda row: row["validation_loss"])
    assert {row["block"] for row in rows[4:]} == {row["block"] for row in first[:2]}
    assert chosen == min(rows[4:], key=lambda row: row["validation_loss"])["block"]
    assert choose(data, wide) == (chosen, rows), "the same again"
    assert blocks


@pytest.mark.parametrize("method", ["layer", "scl"])
def test_a_block_that_helps_wins(data, wide, method, monkeypatch):
    """All but one candidate diverge."""
    fitted = racing.fit

    def fit(model, inputs, split, recipe, **options):
        if model.block != "layer2.0":
            raise racing.Diverged("no")
        return fitted(model, inputs, split, recipe, **options)

    monkeypatch.setattr(racing, "candidates", lambda *_: ["layer1.0", "layer2.0", "layer3.0"])
    monkeypatch.setattr(racing, "fit", fit)
    chosen, rows = choose(data, wide, method=method)
    assert chosen == "layer2.0"
    assert [np.isfinite(row["validation_loss"]) for row in rows] == [False, True, False]


@pytest.mark.parametrize("start", ["zeros", "probe"])
def test_candidates_are_judged_on_images_that_neither_block_nor_head_was_trained_on(data, wide, start, monkeypatch):
    fitted, made, splits, probed = racing.fit, racing.start_of, [], []

    def fit(model, inputs, split, recipe, **options):
        splits.append((set(split.training), set(split.validation)))
        return fitted(model, inputs, split, recipe, **options)

    def start_of(*given, **options):
        begin = made(*given, **options)
        return begin and (lambda training: probed.append(set(training)) or begin(training))

    monkeypatch.setattr(racing, "candidates", lambda *_: ["layer3.0", "layer4.0"])
    monkeypatch.setattr(racing, "fit", fit)
    monkeypatch.setattr(racing, "start_of", start_of)
    choose(data, wide, replace(PLAN, head_init=start))
    (training, validation), other = splits
    assert other == (training, validation), "the same images for both"
    assert not training & validation
    assert training | validation == set(range(len(data.train)))
    assert probed == ([training, training] if start == "probe" else [])


def test_without_room_for_any_there_is_one_pass(data, wide, monkeypatch):
    passes, one = [], Workspace._pass
    monkeypatch.setattr(Workspace, "_pass", lambda *given: passes.append(given) or one(*given))
    monkeypatch.setattr(racing, "candidates", lambda *_: ["layer1.0", "layer2.0"])
    choose(data, wide, replace(PLAN, prefix_cache_gb=0.0))
    assert len(passes) == 1


@pytest.mark.parametrize("why", ["cut", "budget", "images", "diverged"])
def test_without_a_race_the_most_collapsed_small_block_is_taken(data, wide, why, monkeypatch):
    features = Workspace().features(wide, data.train)
    usual = recommend_layer(*readings(wide, features))
    monkeypatch.setattr(racing, "candidates", lambda *_: ["layer1.0", "layer2.0"])
    config = replace(PLAN, prefix_cache_gb=1e-9 if why == "budget" else 1.0)
    if why == "cut":
        monkeypatch.setattr(racing, "_ready", lambda *_, **__: (_ for _ in ()).throw(CannotCut("no")))
    if why == "images":
        monkeypatch.setattr(racing, "stratified", lambda labels, *_: (np.arange(len(labels)), np.arange(0)))
    if why == "diverged":
        monkeypatch.setattr(racing, "fit", lambda *_, **__: (_ for _ in ()).throw(racing.Diverged("no")))
    assert choose(data, wide, config)[0] == usual
