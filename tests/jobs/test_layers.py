"""Probes at every layer agree with their own functions; test images recommend nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tightframe import layers, load_backbone, load_images
from tightframe.errors import MeasureError
from tightframe.features.workspace import Workspace
from tightframe.jobs.layers import JUDGES, recommended
from tightframe.probes.knn import neighbors_predict
from tightframe.probes.linear import nearest_center


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-9", max_per_class=10, test_share=0.5)


@pytest.fixture(scope="module")
def backbone(names):
    return load_backbone(names["narrow"])


@pytest.fixture(scope="module")
def found(data, backbone):
    return layers(data, backbone)


@pytest.mark.slow
def test_every_layer_has_every_probe(found, backbone):
    assert [row["layer"] for row in found.rows] == [*(layer.name for layer in backbone.layers), "penultimate"]
    for row in found.rows:
        for probe in JUDGES:
            assert all(0 <= row[f"{probe}_{of}"] <= 1 for of in ("held_out", "train", "test"))
            assert len(row[f"{probe}_per_class"]) == 5
        assert 0 <= row["logistic_calibration_error"] <= 1
    assert sum(row["recommended"] for row in found.rows) == 1


def test_probes_are_those_of_their_functions(found, data, backbone):
    workspace = Workspace()
    train, test = workspace.features(backbone, data.train), workspace.features(backbone, data.test)
    row = found.rows[-1]
    head = nearest_center(train.moments("penultimate"))
    assert row["center_train"] == head.accuracy(train["penultimate"], train.labels)
    assert row["center_test"] == head.accuracy(test["penultimate"], test.labels)
    said = neighbors_predict(train["penultimate"], train.labels, test["penultimate"], 5).numpy()
    assert row["knn_test"] == (said == test.labels).mean()
    assert row["knn_per_class"][2] == (said[test.labels == 2] == 2).mean()


def test_the_test_images_recommend_nothing(found, data, backbone):
    blind = layers(dataclasses.replace(data, test=None), backbone)
    assert [row["recommended"] for row in blind.rows] == [row["recommended"] for row in found.rows]
    assert blind.notes == found.notes
    assert "ridge_test" not in blind.rows[0]


def row(name, dimension, nc1):
    return {"layer": name, "dimension": dimension, "nc1": nc1}


def test_the_most_accurate_layer_is_recommended_and_among_its_like_the_most_collapsed():
    good, same, bad = (np.arange(100) < right for right in (80, 79, 40))
    rows = [row("a", 8, 1.0), row("b", 16, 5.0), row("c", 16, 3.0), row("d", 16, 0.1)]
    chosen, why = recommended(rows, [bad, good, same, bad])
    assert chosen == 2
    assert "recommended: c, where probes are right on 79.0 %" in why
    assert "1 other layer can't be told" in why
    assert "most collapsed" in why
    chosen, why = recommended(rows[:2], [bad, good])
    assert chosen == 1
    assert why.endswith("more than at any other layer")


def test_no_layers():
    with pytest.raises(MeasureError, match="--layers"):
        recommended([], [])


@pytest.mark.parametrize("place", [0, -1])
def test_the_next_step_tunes_the_block_that_was_recommended(data, backbone, monkeypatch, place):
    chosen = range(len(backbone.layers) + 1)[place]
    monkeypatch.setattr("tightframe.jobs.layers.recommended", lambda *given: (chosen, "since the test says so"))
    (command,) = layers(dataclasses.replace(data, test=None), backbone).next_steps
    assert command.endswith("--out DIR" if place else f" --block {backbone.layers[0].name}")
