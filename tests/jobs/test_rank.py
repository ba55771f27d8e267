"""Ranking: every score agrees with its own function, failures are rows, ties are ties, tests choose nothing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tightframe import extract, load_backbone, load_images, rank
from tightframe.errors import DataError, SettingsError
from tightframe.features.store import FeatureStore
from tightframe.jobs.rank import ORDERS, ordered
from tightframe.metrics.collapse import collapse_metrics
from tightframe.metrics.probes import cross_validated_ridge
from tightframe.metrics.scores import h_score, logme
from tightframe.sources.selection import Subset


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-9", shots=12, test_share=0.5)


def test_rows_hold_what_each_score_says_of_the_features(data, names):
    row = rank(data, [names["wide"]]).rows[0]
    backbone = load_backbone(names["wide"])
    train, test = extract(backbone, data.train), extract(backbone, data.test)
    moments = train.moments("penultimate")
    probe = cross_validated_ridge(train["penultimate"], train.labels, 5)
    assert row["nc1"] == pytest.approx(collapse_metrics(moments)["nc1"])
    assert row["h_score"] == pytest.approx(h_score(moments))
    assert row["logme"] == pytest.approx(logme(moments))
    assert row["probe_accuracy"] == probe.accuracy
    assert row["probe_low"] < row["probe_accuracy"] < row["probe_high"]
    assert row["test_accuracy"] == probe.head.accuracy(test["penultimate"], test.labels)
    assert row["parameters"] == sum(p.numel() for p in backbone.module.parameters())


@pytest.mark.parametrize("by", ORDERS)
def test_best_first_by_any_score(data, names, by):
    values = [row[by] for row in rank(data, list(names.values()), by=by).rows]
    assert values == sorted(values, reverse=ORDERS[by])


def test_a_network_that_fails_is_a_row_at_the_end_and_the_rest_goes_on(data, names, tmp_path):
    builder = tmp_path / "mine.py"
    builder.write_text("def broken():\n    raise RuntimeError('no such disk')\n")
    result = rank(data, [f"{builder}:broken", names["narrow"], "timm/resnett18"])
    assert [row["network"] for row in result.rows] == ["narrow", "broken", "resnett18"]
    assert "no such disk" in result.rows[1]["error"]
    assert "resnet18" in result.rows[2]["error"]
    assert "narrow" in result.following[0]


def test_a_network_that_fails_while_running_is_a_row_too(data, names):
    backbone = load_backbone(names["wide"])

    def overflow(module, inputs, output):
        return output * float("nan")

    backbone.module.layer2.register_forward_hook(overflow)
    result = rank(data, [backbone, names["narrow"]])
    assert result.rows[0]["network"] == "narrow"
    assert "NaN" in result.rows[1]["error"]


def test_what_is_wrong_with_the_pictures_is_said_at_once(data, names, tmp_path):
    one_each = dataclasses.replace(data, train=Subset(data.train, np.array([0, 12, 24, 36, 48])))
    rows = rank(one_each, [names["wide"]]).rows
    assert "two samples" in rows[0]["error"] or "one sample" in rows[0]["error"]

    class Unreadable(Subset):
        def __getitem__(self, index):
            raise DataError("disk gone")

    with pytest.raises(DataError, match="disk gone"):
        rank(dataclasses.replace(data, train=Unreadable(data.train, np.arange(20))), [names["wide"]])


@pytest.mark.parametrize(("models", "by", "says"), [([], "nc1", "--models"), (["x"], "beauty", "choose")])
def test_settings_that_make_no_sense(data, models, by, says):
    with pytest.raises(SettingsError, match=says):
        rank(data, models, by=by)


def test_the_test_pictures_decide_nothing(data, names):
    def told(result):
        return [{k: v for k, v in row.items() if k not in ("seconds", "test_accuracy")} for row in result.rows]

    blind = dataclasses.replace(data, test=None)
    assert told(rank(data, list(names.values()))) == told(rank(blind, list(names.values())))
    assert "test_accuracy" not in rank(blind, [names["wide"]]).rows[0]


def test_ties_are_found_on_the_same_pictures():
    def row(name, right):
        return {"network": name, "probe_accuracy": float(np.mean(right)), "correct": right}

    best = [1] * 90 + [0] * 10
    nearly = [1] * 88 + [0] * 12  # differs on two pictures: 2 % ± 1.4 %
    worse = [1] * 60 + [0] * 40
    rows = ordered([row("worse", worse), row("nearly", nearly), row("best", best), {"error": "no"}], "probe_accuracy")
    assert [(r.get("network"), r.get("tied")) for r in rows] == [
        ("best", False),
        ("nearly", True),
        ("worse", False),
        (None, None),
    ]


def test_features_kept_in_a_store_are_used_again(data, names, tmp_path, monkeypatch):
    first = rank(data, [names["wide"]], store=FeatureStore(tmp_path), precision="float32")
    monkeypatch.setattr("tightframe.features.pixels.Pixels.batches", None)  # running the network would fail
    second = rank(data, [names["wide"]], store=FeatureStore(tmp_path), precision="float32")
    assert second.rows[0] | {"seconds": 0} == first.rows[0] | {"seconds": 0}


def test_the_result_is_json_that_any_parser_reads(data, names, tmp_path):
    rank(data, [names["wide"], "timm/nope"]).save(tmp_path / "rank.json")
    read = json.loads((tmp_path / "rank.json").read_text(), parse_constant=pytest.fail)
    assert read["job"] == "rank"
    assert len(read["rows"]) == 2
    assert {"torch", "timm", "tightframe"} <= set(read["versions"])
    assert read["settings"]["pictures"] == 60
