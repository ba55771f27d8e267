"""Every study, run whole on small models and digits: rows, evidence, files; runs that resume, share points and fail."""

from __future__ import annotations

import csv
import json
import math
import re
import runpy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tightframe.errors import DataError, ModelError, SettingsError
from tightframe.features.workspace import Workspace
from tightframe.jobs import demo
from tightframe.report.fields import FIELDS
from tightframe.studies import STUDIES, evidence, run_study
from tightframe.studies.evidence import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from tightframe.studies.lab import Lab, Scale
from tightframe.studies.relations import distinct
from tightframe.studies.runner import _rows
from tightframe.studies.study import Point
from tightframe.studies.threshold import falling, rising, turning_point
from tightframe.studies.training import FORMS

SHORT = {"max_per_class": 8, "workspace": Workspace(precision="float32")}


@pytest.mark.slow
def test_it_gives_rows_a_table_a_plot_a_page_and_a_verdict(done):
    study, out, found = done.study, done.out, done.found
    assert found.rows
    assert not [row for row in found.rows if "error" in row]
    known = {key for row in found.rows for key in row}
    assert {*study.columns} <= known | {"source_accuracy", "source_train_accuracy"}
    for row in found.rows:
        accuracy = row.get("test_accuracy", row.get("accuracy", row.get("ridge_test")))
        assert 0 <= accuracy <= 1
        assert row["nc1"] is None or row["nc1"] > 0
    for row in found.tables["evidence"]:
        assert row["verdict"] in (SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE)
    with (out / "rows.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(found.rows)
    with Image.open(out / "plot.png") as image:
        assert min(image.size) > 300
    page = (out / "report.html").read_text()
    assert f"Study: {study.name}" in page
    assert found.tables["evidence"][0]["question"] in unescape(page)
    kept = json.loads((out / "result.json").read_text())
    assert kept["settings"]["scale"] == "small"
    assert kept["tables"]["evidence"] == found.tables["evidence"]


@pytest.mark.slow
def test_what_is_done_is_not_done_again(ran):
    done = ran("augmentation")

    def again(lab):
        for point in done.study.points(lab):
            yield Point(point.labels, lambda: pytest.fail("computed again"))

    assert run_study(replace(done.study, points=again), done.out, **done.how).rows == done.found.rows
    with pytest.raises(SettingsError, match="other settings"):
        run_study(done.study, done.out, **(done.how | {"max_per_class": 7}))


def test_runs_at_once_share_the_work(tmp_path):
    computed, both = [], threading.Barrier(2, timeout=60)

    def points(lab):
        for number in range(4):
            yield Point({"number": number}, partial(compute, number))

    def compute(number):
        computed.append(number)
        if len(computed) <= 2:
            both.wait()  # neither is done before the other has begun
        return [{"square": number**2}]

    study = replace(STUDIES["layers"], points=points)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(_rows, study, Lab(Scale(), (), (), tmp_path, Workspace())) for _ in range(2)]
    found = [[(row["number"], row["square"]) for row in run.result()] for run in runs]
    assert sorted(computed) == [0, 1, 2, 3]
    assert found == [[(0, 0), (1, 1), (2, 4), (3, 9)]] * 2


def test_datasets_and_models_of_one_name_are_told_apart(ran):
    rows = ran("downstream-collapse").found.rows
    assert len({(row["data"], row["model"]) for row in rows}) == 4
    assert "wide #2" in {row["model"] for row in rows}


@pytest.fixture
def squares(names, tmp_path):
    """Runs a study of four points that compute nothing but squares; ``computed`` lists them, ``broken`` fail."""
    computed, broken = [], set()

    def points(lab):
        for number in range(4):
            yield Point({"data": "d", "model": number, "side": 8}, partial(compute, number))

    def compute(number):
        computed.append(number)
        if number in broken:
            raise ModelError("it is broken")
        return [{"nc1": 1.0 + number, "test_accuracy": number**2 / 10}]

    def run(**how):
        study = replace(STUDIES["downstream-collapse"], points=points)
        return run_study(study, tmp_path / "out", models=[names["wide"]], data=["digits:5-9"], **SHORT | how)

    run.computed, run.broken, run.out = computed, broken, tmp_path / "out"
    return run


def test_a_stopped_study_goes_on(squares):
    def stopping(items, title, total):
        for index, item in enumerate(items):
            if title == "downstream-collapse" and index == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        squares(workspace=Workspace(precision="float32", progress=stopping))
    assert squares.computed == [0, 1]
    assert len(squares().rows) == 4
    assert squares.computed == [0, 1, 2, 3]


def test_a_point_that_fails_is_a_row_that_says_so(squares):
    squares.broken.add(0)
    found = squares()
    assert found.rows[0]["error"] == "it is broken"
    assert found.rows[1]["test_accuracy"] > 0
    assert "1 of 4 rows failed and are not counted; the first: it is broken" in found.notes
    assert "it is broken" in (squares.out / "report.html").read_text()
    squares.broken.clear()
    assert not [row for row in squares().rows if "error" in row]
    assert squares.computed == [0, 1, 2, 3, 0]  # what failed is not kept, all else is


def test_a_study_of_which_all_failed_is_an_error(squares):
    squares.broken |= {0, 1, 2, 3}
    with pytest.raises(ModelError, match=r"every point of downstream-collapse failed; the first: it is broken"):
        squares()


def test_other_layers_are_other_settings(squares):
    squares()
    with pytest.raises(SettingsError, match="other settings"):
        squares(model_options={"layers": ["layer1"]})


def test_a_layer_that_is_the_last_features_counts_once(ran):
    rows = ran("layers").found.rows
    layers = [row["layer"] for row in rows]
    assert layers[-2:] == ["layer4.0", "penultimate"]
    assert [row["layer"] for row in distinct(rows)] == layers[:-1]


@pytest.mark.slow
def test_built_in_models_are_made_inside_the_folder(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PRETRAINING", replace(demo.PRETRAINING, epochs=1))
    found = run_study(plain("few-shot"), tmp_path / "out", **SHORT)
    assert len({row["model"] for row in found.rows}) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def images(folder, count):
    """A dataset of two classes with so many images each."""
    for name in ("a", "b"):
        for part in ("train", "test"):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (index * 20, 0, 0)).save(folder / part / name / f"{index}.png")
    return str(folder)


@pytest.mark.slow
def test_a_dataset_that_fails_takes_no_other_with_it(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "DRAWS", 20)
    broken = images(tmp_path / "broken", 4)
    whole = (tmp_path / "broken/train/a/0.png").read_bytes()
    (tmp_path / "broken/train/a/0.png").write_bytes(whole[:40])
    found = run_study(plain("projection-head"), tmp_path / "out", data=["digits:0-4", broken, "digits:5-9"], **SHORT)
    assert {row["data"] for row in found.rows if "error" in row} == {"broken"}
    assert len([row for row in found.rows if row.get("test_accuracy")]) == 4
    assert found.tables["evidence"][2]["units"] == "1 seed: too few for an interval"


def test_a_dataset_too_small_for_episodes_is_refused_before_anything_is_trained(plain, tmp_path):
    small = images(tmp_path / "small", 2)
    with pytest.raises(DataError, match="small: 5-shot episodes need 2 classes of 6 images"):
        run_study(plain("projection-head"), tmp_path / "out", data=["digits:0-4", small], **SHORT)
    assert not (tmp_path / "out" / "models").exists()


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("layers", {"scale": "huge"}, "small or paper"),
        ("layers", {"scale": "paper"}, "--data"),
        ("methods", {"epochs": 0}, "1 or more"),
        ("layers", {"epochs": 3}, "--epochs"),
        ("few-shot", {"seeds": 3}, "--seeds"),
        ("augmentation", {"model_options": {"input_size": 16}}, "leave out --input-size"),
        ("augmentation", {"models": ["timm/resnet18"]}, "leave out --models"),
        ("augmentation", {"data": ["digits:0-4"]}, "two datasets"),
    ],
)
def test_what_can_not_be_asked_is_said(name, how, message, tmp_path):
    with pytest.raises(SettingsError, match=message):
        run_study(STUDIES[name], tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_test_images_are_needed(tmp_path, names):
    folder = tmp_path / "images"
    for index in range(2):
        (folder / f"class{index}").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / f"class{index}" / "one.png")
    with pytest.raises(DataError, match="no test images"):
        run_study(STUDIES["layers"], tmp_path / "out", models=[names["wide"]], data=[str(folder)])


def test_the_turning_point_is_that_of_the_parabola():
    def row(log, accuracy):
        return {"source_nc1": math.exp(log), "test_accuracy": accuracy}

    top = [row(log, 0.7 - 0.1 * (log - 0.5) ** 2) for log in np.linspace(-2, 3, 9)]
    assert turning_point(top) == pytest.approx(math.exp(0.5))
    assert turning_point([row(log, 0.1 * log) for log in np.linspace(-2, 3, 9)]) is None
    assert turning_point(top[:3]) is None


@pytest.mark.slow
def test_thresholds_are_not_found_in_noise_and_are_where_there_is_one(monkeypatch):
    monkeypatch.setattr(evidence, "DRAWS", 100)

    def rows(curve, seed):
        luck = np.random.default_rng(seed)
        for index, log in enumerate(np.linspace(-2, 3, 31)):
            for data in "abc":
                accuracy = curve(log) + 0.02 * luck.normal()
                labels = {"loss": "mse", "epochs": index, "seed": 0, "data": data}
                yield labels | {"source_nc1": math.exp(log), "test_accuracy": accuracy}

    def verdicts(curve, seed=0):
        return [claim(list(rows(curve, seed))).verdict for claim in (rising(FORMS), falling(FORMS))]

    assert verdicts(lambda log: 0.7 - 0.02 * (log - 0.5) ** 2) == [SUPPORTED, SUPPORTED]
    assert verdicts(lambda log: 0.5 + 0.05 * log) == [SUPPORTED, NOT_SUPPORTED]
    assert verdicts(lambda log: 0.5 - 0.05 * log) == [NOT_SUPPORTED, SUPPORTED]
    noise = [verdict for seed in range(20) for verdict in verdicts(lambda log: 0.5, seed)]
    assert noise.count(SUPPORTED) <= 5


def test_equal_samples_are_equal(ran):
    rows = ran("across-data").found.rows
    equal = [row for row in rows if row["sample"] == "equal size"]
    assert {(row["classes"], row["images"]) for row in equal} == {(5, 40)}
    whole = [row for row in rows if row["sample"] == "whole dataset"]
    assert [(row["classes"], row["images"]) for row in whole] == [(7, 56), (5, 40)]


def test_scarce_numbers_are_the_papers_as_far_as_there_are_images(plain, names, tmp_path):
    lab = []
    study = replace(plain("scarce-data"), points=lambda given: lab.append(given) or iter(()))
    with pytest.raises(ModelError, match="there are none"):
        run_study(study, tmp_path / "out", models=[names["wide"]], data=["digits:5-9"], max_per_class=12)
    (lab,) = (replace(one, scale=replace(one.scale, max_images=50)) for one in lab)
    assert [point.labels["shots"] for point in STUDIES["scarce-data"].points(lab)] == [3, 10]


def test_every_study_is_declared_whole():
    for study in STUDIES.values():
        assert {"small", "paper"} <= set(study.scales) <= {"small", "medium", "paper"}
        assert study.pretrains or study.scales["paper"].models
        shown = {*study.columns, study.plot.x, study.plot.y, *study.plot.tips}
        assert shown <= set(FIELDS)
        assert all("\n" not in words for words in (study.claim, study.paper, study.small))


def test_the_page_of_studies_is_up_to_date():
    docs = Path(__file__).parents[2] / "docs"
    page = runpy.run_path(str(docs / "make_studies.py"))["page"]()
    assert (docs / "studies.md").read_text(encoding="utf-8") == page, "run python docs/make_studies.py"
    assert all(f"## {name}\n" in page for name in STUDIES)


def test_a_set_of_torchvisions_is_looked_for_below_the_root_that_is_named(names, tmp_path):
    with pytest.raises(DataError, match=rf"{re.escape(str(tmp_path))}.*--download"):
        run_study(
            STUDIES["layers"], tmp_path / "out", data=["torchvision/CIFAR10"], models=[names["wide"]], root=tmp_path
        )
