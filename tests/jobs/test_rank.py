"""Ranking: every score agrees with its own function, failures are rows, ties are ties, tests choose nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tightframe import load_backbone, load_images, rank, transferability
from tightframe.decide.ranking import CORRECT, EXPECTED, PROBABLE, ordered, orders, quality
from tightframe.errors import DataError, SettingsError
from tightframe.features.workspace import Workspace
from tightframe.metrics.folds import Folds
from tightframe.metrics.summary import collapse_metrics
from tightframe.probes.knn import neighbors_accuracy
from tightframe.probes.linear import cross_validated_ridge
from tightframe.scores.from_moments import h_score, logme


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-9", max_per_class=12, test_share=0.5)


def test_rows_hold_what_each_score_says_of_the_features(data, names):
    row = rank(data, [names["wide"]]).rows[0]
    backbone = load_backbone(names["wide"])
    workspace = Workspace()
    train, test = workspace.features(backbone, data.train), workspace.features(backbone, data.test)
    moments = train.moments("penultimate")
    probe = cross_validated_ridge(Folds.of(train["penultimate"], train.labels, 5))
    assert row["nc1"] == pytest.approx(collapse_metrics(moments)["nc1"], rel=1e-3)
    assert row["h_score"] == pytest.approx(h_score(moments), rel=1e-3)
    assert row["logme"] == pytest.approx(logme(moments), rel=1e-3)
    assert row["probe_accuracy"] == probe.accuracy
    assert row["probe_low"] < row["probe_accuracy"] < row["probe_high"]
    assert row["test_accuracy"] == probe.head.accuracy(test["penultimate"], test.labels)
    assert row["parameters"] == sum(p.numel() for p in backbone.module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("by", [EXPECTED, "probe_accuracy", "nc1", "logme", "leep", "parameters"])
def test_best_first_by_any_score(data, names, by):
    values = [row[by] for row in rank(data, list(names.values()), sort_by=by).rows]
    assert values == sorted(values, reverse=orders()[by])


def test_a_model_that_fails_is_a_row_at_the_end_and_the_rest_goes_on(data, names, tmp_path):
    builder = tmp_path / "mine.py"
    builder.write_text("def broken():\n    raise RuntimeError('no such disk')\n")
    result = rank(data, [f"{builder}:broken", names["narrow"], "timm/resnett18"])
    assert [row["model"] for row in result.rows] == ["narrow", "broken", "resnett18"]
    assert "no such disk" in result.rows[1]["error"]
    assert "resnet18" in result.rows[2]["error"]
    assert "narrow" in result.next_steps[0]


def test_a_model_that_fails_while_running_is_a_row_too(data, names):
    backbone = load_backbone(names["wide"])

    def overflow(module, inputs, output):
        return output * float("nan")

    backbone.module.layer2.register_forward_hook(overflow)
    result = rank(data, [backbone, names["narrow"]])
    assert result.rows[0]["model"] == "narrow"
    assert "NaN" in result.rows[1]["error"]


def test_what_is_wrong_with_the_images_is_said_at_once(data, names, unreadable):
    one_each = dataclasses.replace(data, train=data.train.subset(np.unique(data.train.labels, return_index=True)[1]))
    rows = rank(one_each, [names["wide"]]).rows
    assert "two training images of a class" in rows[0]["error"]

    with pytest.raises(DataError, match="disk gone"):
        rank(dataclasses.replace(data, train=unreadable(data.train)), [names["wide"]])


@pytest.mark.parametrize(("models", "by", "says"), [([], "nc1", "--models"), (["x"], "beauty", "choose")])
def test_settings_that_make_no_sense(data, models, by, says):
    with pytest.raises(SettingsError, match=says):
        rank(data, models, sort_by=by)


@pytest.mark.slow
def test_the_test_images_decide_nothing(data, names):
    def told(result):
        return [{k: v for k, v in row.items() if k not in ("seconds", "test_accuracy")} for row in result.rows]

    blind = dataclasses.replace(data, test=None)
    assert told(rank(data, list(names.values()))) == told(rank(blind, list(names.values())))
    assert "test_accuracy" not in rank(blind, [names["wide"]]).rows[0]


def test_ties_are_found_on_the_same_images():
    def row(name, right):
        known = {CORRECT: right, PROBABLE: [float(one) for one in right]}
        return {"model": name, "probe_accuracy": float(np.mean(right)), "parameters": 10, **known}

    best = [1] * 90 + [0] * 10
    nearly = [1] * 88 + [0] * 12  # differs on two images: 2 % ± 1.4 %
    worse = [1] * 60 + [0] * 40
    rows = ordered([row("worse", worse), row("nearly", nearly), row("best", best), {"error": "no"}], "probe_accuracy")
    assert [(r.get("model"), r.get("tied")) for r in rows] == [
        ("best", False),
        ("nearly", True),
        ("worse", False),
        (None, None),
    ]


def test_the_same_weights_in_two_places_keep_their_names(data, tmp_path):
    uris = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        shutil.copy(Path(__file__).with_name("small_model.py"), folder)
        uris.append(f"{folder / 'small_model.py'}:make")
    rows = rank(data, uris).rows
    assert [row["uri"] for row in rows] == [uris[row["given"]] for row in rows]


def test_features_kept_in_a_store_are_used_again(data, names, tmp_path, monkeypatch):
    first = rank(data, [names["wide"]], workspace=Workspace(tmp_path, precision="float32"))
    monkeypatch.setattr("tightframe.features.pixels.Pixels.batches", None)  # running the model would fail
    second = rank(data, [names["wide"]], workspace=Workspace(tmp_path, precision="float32"))
    assert second.rows[0] | {"seconds": 0} == first.rows[0] | {"seconds": 0}


def test_the_result_is_json_that_any_parser_reads(data, names, tmp_path):
    rank(data, [names["wide"], "timm/nope"]).to_json(tmp_path / "rank.json")
    read = json.loads((tmp_path / "rank.json").read_text(), parse_constant=pytest.fail)
    assert read["job"] == "rank"
    assert len(read["rows"]) == 2
    assert {"torch", "timm", "tightframe"} <= set(read["versions"])
    assert read["settings"]["images"] == 60


def test_the_source_head_and_the_baselines_are_there(data, names):
    row = rank(data, [names["wide"]]).rows[0]
    backbone = load_backbone(names["wide"])
    read = Workspace().features(backbone, data.train, ["penultimate", "output"])
    source = torch.from_numpy(read["output"]).double().softmax(1)
    expected = transferability(read["penultimate"], read.labels, source=source)
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert row["knn_accuracy"] == neighbors_accuracy(read["penultimate"], read.labels, 5).accuracy
    assert row["macs"] == backbone.macs > 0
    assert row["source_accuracy"] is None
    assert 0 <= row["expected_low"] <= row["expected_accuracy"] <= row["expected_high"] <= 1
    assert row["p_best"] == 1


ROWS = [
    {"model": name, "expected_accuracy": value, "nc1": -value, "test_accuracy": accuracy}
    for name, value, accuracy in [("a", 0.9, 0.8), ("b", 0.7, 0.9), ("c", 0.5, 0.3), ("d", 0.3, 0.1)]
]


@pytest.mark.slow
def test_quality_of_every_column_against_what_is_known():
    by_probe = {row["score"]: row for row in quality(ROWS, None)}
    assert by_probe["nc1"]["tau"] == by_probe["expected_accuracy"]["tau"] == pytest.approx(4 / 6)
    assert by_probe["nc1"]["regret"] == pytest.approx(0.1)
    told = {row["score"]: row for row in quality(ROWS, {"a": 0.9, "b": 0.8, "c": 0.7})}
    assert (told["nc1"]["models"], told["nc1"]["tau"]) == (3, pytest.approx(1))
    with pytest.raises(SettingsError, match="three models or more"):
        quality(ROWS, {"a": 0.9})


def test_truth_from_a_file(data, names, tmp_path):
    truth = tmp_path / "truth.csv"
    truth.write_text("model,accuracy\nwide,0.9\nnarrow,0.4\n")
    with pytest.raises(SettingsError, match="three models"):
        rank(data, list(names.values()), truth=str(truth))
    for content in ("name,accuracy\nwide,1\n", "model,accuracy\nwide,good\n"):
        truth.write_text(content)
        with pytest.raises(SettingsError, match="model,accuracy"):
            rank(data, [names["wide"]], truth=str(truth))
    with pytest.raises(SettingsError, match="truth probe needs test images"):
        rank(dataclasses.replace(data, test=None), [names["wide"]], truth="probe")


def test_a_model_named_twice_is_measured_once_and_one_that_cannot_be_pooled_so_is_a_row(data, names):
    result = rank(data, [names["wide"], names["narrow"], names["wide"]])
    assert sorted(row["given"] for row in result.rows) == [0, 1]
    assert sum(row["p_best"] for row in result.rows) == pytest.approx(1)
    (row,) = rank(data, [names["wide"]], workspace=Workspace(pool="cls")).rows
    assert "no class token" in row["error"]


def test_models_that_are_too_large_are_left_out(data, names, wide, narrow):
    between = (wide.parameters + narrow.parameters) / 2e6
    for options in ({}, {"time_limit": 5.0}):
        result = rank(data, [names["wide"], names["narrow"]], max_params=between, **options)
        assert [row["model"] for row in result.rows] == ["narrow", "wide"]
        assert "--max-params" in result.rows[1]["error"]
    result = rank(data, [names["wide"], names["narrow"]], max_macs=(wide.macs + narrow.macs) / 2e6)
    assert [row["model"] for row in result.rows] == ["narrow", "wide"]
    assert "million MACs" in result.rows[1]["error"]


def test_models_that_are_too_slow_are_left_out(data, names, narrow, monkeypatch):
    def slowly(module, inputs):
        time.sleep(0.05)

    handle = narrow.module.register_forward_pre_hook(slowly)
    try:
        slow, fast = rank(data, [narrow, names["wide"]], max_latency_ms=40.0).rows[::-1]
    finally:
        handle.remove()
    assert "error" not in fast
    assert re.search(r"5\d(\.\d)? ms an image, more than the 40 allowed \(--max-latency-ms\)", slow["error"])
