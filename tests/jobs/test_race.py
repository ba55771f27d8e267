"""Racing: images go to those that can still win, nobody sees an image twice, and time is kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tightframe import load_backbone, load_images, rank
from tightframe.decide.race import STAYING, Contender, race
from tightframe.decide.recommendation import Outcome
from tightframe.errors import DataError, SettingsError
from tightframe.features.extract import Features
from tightframe.features.workspace import Workspace
from tightframe.jobs import rank as ranking


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-9", max_per_class=64, test_share=0.3)


class Runner:
    """A model of known strength: right on a share of the images that grows by ``gain`` with each doubling."""

    def __init__(self, strength, gain=0.0):
        self.strength, self.gain, self.parameters, self.seen = strength, gain, 1000, []


def field(runners):
    return [
        Contender(name, lambda runner=runner: runner, lambda _: ["penultimate"], lambda _: None)
        for name, runner in runners.items()
    ]


@pytest.fixture
def track(data):
    """Runners in place of models: what they have seen is noted down."""

    def features(runner, images, layers):
        assert layers == ["penultimate"]
        indices = np.array([data.train.identifiers.index(name) for name in images.identifiers])
        runner.seen.append(indices)
        rows = np.array([(index, runner.strength, runner.gain) for index in indices], np.float32)
        return Features({"penultimate": lambda: rows}, images, precision="float32", pool="auto", seconds=0.0)

    def judge(features):
        indices, strengths, gains = features["penultimate"].T
        luck = np.random.default_rng(0).permutation(len(data.train))[indices.astype(int)]
        strength = strengths[0] + gains[0] * np.log2(len(luck) / 20)
        right = luck < strength * len(data.train)
        return Outcome(right, right.astype(float))

    workspace = Workspace()
    workspace.features = features
    return lambda runners, minutes=60.0: race(field(runners), data.train, judge, minutes, 0, workspace)


def test_the_best_wins_with_a_third_of_the_passes_and_no_image_is_seen_twice(track, data):
    runners = {f"n{place}": Runner(0.9 - 0.03 * place) for place in range(12)}
    finalists = track(runners)
    assert finalists[0].name == "n0"
    assert len(finalists) <= STAYING[-1] * 12 + 1
    passes = 0
    for runner in runners.values():
        seen = np.concatenate(runner.seen)
        assert len(seen) == len(np.unique(seen))
        passes += len(seen)
    assert passes <= 12 * len(data.train) / 3
    assert len(np.concatenate(runners["n0"].seen)) == len(data.train)


def test_equals_are_told_apart_by_all_images_only(track, data):
    runners = {"a": Runner(0.8), "b": Runner(0.8), "c": Runner(0.2)}
    finalists = track(runners)
    assert {c.name for c in finalists} <= {"a", "b"}
    assert len(np.concatenate(runners["c"].seen)) < len(data.train) / 4
    assert len(np.concatenate(runners["a"].seen)) == len(data.train)


def test_one_that_gains_by_images_is_not_given_up_early(track):
    """Behind by nine points at first, ahead by three in the end."""
    finalists = track({"early": Runner(0.80), "late": Runner(0.71, gain=0.03), "poor": Runner(0.3)})
    assert finalists[0].name == "late"


def test_without_time_the_race_ends_after_its_first_round(track, data):
    runners = {"a": Runner(0.7), "b": Runner(0.8), "c": Runner(0.72)}
    finalists = track(runners, minutes=1e-12)
    assert finalists[0].name == "b"
    assert {len(runner.seen) for runner in runners.values()} == {1}


def test_features_are_put_back_into_the_order_of_the_images(track, data):
    runners = {"a": Runner(0.8), "b": Runner(0.8)}
    winner = track(runners)[0]
    features = winner.features(data.train)
    np.testing.assert_array_equal(features["penultimate"][:, 0], np.arange(len(data.train)))
    np.testing.assert_array_equal(features.labels, data.train.labels)


@pytest.mark.slow
def test_a_race_of_models_ends_in_rows_like_those_of_a_ranking(data, names, tmp_path):
    builder = tmp_path / "mine.py"
    builder.write_text("def broken():\n    raise RuntimeError('no such disk')\n")
    models = [names["narrow"], f"{builder}:broken", names["wide"]]
    result = rank(data, models, time_limit=5.0)
    plain = {row["model"]: row for row in rank(data, [names["narrow"], names["wide"]]).rows}
    assert [row["model"] for row in result.rows][-1] == "broken"
    assert "no such disk" in result.rows[-1]["error"]
    for row in result.rows[:-1]:
        assert 0 < row["images_seen"] <= len(data.train)
        if row["images_seen"] == len(data.train):
            for name in ("nc1", "probe_accuracy", "logme"):
                assert row[name] == pytest.approx(plain[row["model"]][name], rel=1e-3)
    assert "forward passes in place of" in " ".join(result.notes)
    assert "test_accuracy" not in result.rows[0]


@pytest.mark.slow
def test_the_winner_is_that_of_the_whole_ranking_and_each_image_runs_once(data, names):
    wide = load_backbone(names["wide"])
    seen = []
    wide.module.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    result = rank(data, [wide, names["narrow"]], time_limit=5.0, workspace=Workspace(precision="float32"))
    assert sum(n for n in seen if n > 1) == {row["model"]: row for row in result.rows}["wide"]["images_seen"]
    assert result.rows[0]["model"] == rank(data, list(names.values())).rows[0]["model"]


@pytest.mark.parametrize("test", [True, False])
def test_with_everything_kept_nothing_is_run_loaded_twice_or_read_again(data, names, test, tmp_path, monkeypatch):
    data = data if test else dataclasses.replace(data, test=None)
    models = list(names.values())
    plain = rank(data, models, workspace=Workspace(tmp_path))
    passes, loads, readings, load = [], [], [], ranking.load_backbone
    monkeypatch.setattr(Workspace, "_pass", lambda *given: passes.append(given))
    monkeypatch.setattr(ranking, "load_backbone", lambda model, **how: loads.append(model) or load(model, **how))
    monkeypatch.setattr(ranking, "read_layers", lambda *given, **how: readings.append(given))
    raced = rank(data, models, time_limit=5.0, workspace=Workspace(tmp_path))
    assert (passes, readings, sorted(loads)) == ([], [], sorted(models))
    assert "nothing to race for" in " ".join(raced.notes)
    assert [row | {"images_seen": 0} for row in plain.rows] == raced.rows


def test_a_model_whose_features_are_kept_races_without_a_pass(data, names):
    wide, narrow = load_backbone(names["wide"]), load_backbone(names["narrow"])
    workspace, seen = Workspace(precision="float32"), []
    rank(data, [wide], workspace=workspace)
    wide.module.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    raced = rank(data, [wide, narrow], time_limit=5.0, workspace=workspace)
    assert [n for n in seen if n > 1] == []
    plain = rank(data, [wide, narrow], workspace=workspace)
    assert raced.rows[0]["model"] == plain.rows[0]["model"]


def test_what_is_wrong_with_the_images_ends_the_race(data, names, unreadable):
    broken = dataclasses.replace(data, train=unreadable(data.train))
    with pytest.raises(DataError, match="disk gone"):
        rank(broken, list(names.values()), time_limit=5.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"time_limit": 0.0}, "above 0"),
        ({"time_limit": 1.0, "sort_by": "nc1"}, "--sort-by"),
        ({"time_limit": 1.0, "truth": "probe"}, "--truth"),
    ],
)
def test_races_that_make_no_sense(data, names, settings, says):
    with pytest.raises(SettingsError, match=says):
        rank(data, list(names.values()), **settings)
