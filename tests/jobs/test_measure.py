"""Measuring: a row a layer in order of depth, from one pass, agreeing with the functions that it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from tightframe import collapse_metrics, load_backbone, load_images, measure
from tightframe.errors import MeasureError
from tightframe.features.workspace import Workspace
from tightframe.metrics.correction import corrected
from tightframe.metrics.folds import Folds
from tightframe.metrics.intervals import collapse_intervals, corrected_intervals


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-9", max_per_class=12, test_share=0.5)


@pytest.fixture(scope="module")
def measured(data, wide):
    return measure(data, wide)


@pytest.fixture(scope="module")
def uneven(data):
    """Half as many images of the first class as of the others."""
    firsts, others = (np.flatnonzero((data.train.labels == 0) == first) for first in (True, False))
    return data.train.subset(np.concatenate([firsts[::2], others]))


@pytest.fixture(scope="module")
def by_sample(uneven, narrow):
    return measure(uneven, narrow, weighting="sample")


@pytest.mark.slow
def test_a_row_for_every_block_and_the_penultimate_features(data, wide, measured):
    rows = measured.rows
    assert [row["layer"] for row in rows] == ["layer1.0", "layer2.0", "layer3.0", "layer4.0", "penultimate"]
    assert [row["dimension"] for row in rows] == [8, 8, 16, 16, 16]
    assert [row["position"] for row in rows] == [1, 2, 3, 4, 5]
    features = Workspace().features(wide, data.train)
    for row in rows:
        expected = collapse_metrics(features.moments(row["layer"]))
        assert {name: row[name] for name in expected} == pytest.approx(dict(expected))
        assert row["probe_low"] <= row["probe_accuracy"] <= row["probe_high"]


@pytest.mark.slow
def test_the_model_runs_over_the_training_images_once(data, names):
    backbone = load_backbone(names["wide"])
    seen = []
    backbone.module.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    measure(data, backbone, workspace=Workspace(batch_size=16, precision="float32"))
    assert sum(seen) == len(data.train)


@pytest.mark.slow
def test_one_split_is_enough(data, wide, measured):
    assert measure(data.train, wide).rows == measured.rows


@pytest.mark.slow
def test_the_weighting_is_passed_on_and_told(uneven, narrow, by_sample):
    assert measure(uneven, narrow).rows[-1]["nc1"] != by_sample.rows[-1]["nc1"]
    assert by_sample.settings["weighting"] == "sample"


def test_notes_read_the_numbers(measured):
    lowest = min(measured.rows, key=lambda row: row["nc1"])
    assert lowest["layer"] in measured.notes[0] or "where the head sees them" in measured.notes[0]


def test_one_image_a_class_can_not_be_measured(names):
    with pytest.raises(MeasureError):
        measure(load_images("digits:5-9", max_per_class=1), load_backbone(names["wide"]))


def test_metrics_come_with_intervals_and_corrections_with_bounds(data, wide):
    rows, features = measure(data, wide, seed=3).rows, Workspace().features(wide, data.train)
    for row in rows:
        folds = Folds.of(features[row["layer"]], features.labels, 5, seed=3)
        for name, interval in collapse_intervals(folds, seed=3).items():
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(interval[1:])
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        many = corrected(folds.total)
        assert row["nc1_corrected"] == (None if many.nc1.value is None else pytest.approx(many.nc1.value))
        if row["nc1_corrected"] is None:
            assert row["nc1_corrected_low"] <= many.nc1.lower
    around = corrected_intervals(folds, draws=12, seed=3)["cdnv"]
    assert (rows[-1]["cdnv_corrected_low"], rows[-1]["cdnv_corrected_high"]) == pytest.approx(around[1:])


def test_intervals_follow_the_weighting(by_sample):
    row = by_sample.rows[-1]
    for name in ("nc1", "vci", "nc2_etf", "numerical_rank"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_the_command_suggested_next_loads_the_same_model(data, names):
    backbone = load_backbone(names["wide"], input_size=24, layers=["layer2.0"])
    following = measure(data, backbone).next_steps[0]
    assert following == f"tightframe tune DATA --model {names['wide']} --layers layer2.0 --input-size 24 --out DIR"
