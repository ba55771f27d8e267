"""Every study, run whole on tiny models and digits: rows, evidence, files, and that it resumes."""

from __future__ import annotations

import csv
import json
import math
import runpy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tightframe.errors import DataError, ModelError, SettingsError
from tightframe.studies import STUDIES, run_study
from tightframe.studies.evidence import NOT_SUPPORTED, SUPPORTED, UNCLEAR
from tightframe.studies.layers import distinct
from tightframe.studies.source_collapse import _threshold, turning_point
from tightframe.studies.study import Lab, Point, Scale, _rows

DIGITS = ("digits:0-4", "digits:5-9")
SHORT = {"max_per_class": 8, "precision": "float32"}
PRETRAINING = [name for name, study in STUDIES.items() if study.pretrains]
GIVEN = [name for name in STUDIES if name not in PRETRAINING]


def plain(study):
    """The study without the parts of its scale that only take time."""
    scale = replace(
        study.scales["small"], episodes=10, blocks=2, shots=study.scales["small"].shots and (3,), images=100
    )
    least = {"epochs": min(scale.epochs, 1), "seeds": min(scale.seeds, 1)}
    return replace(study, scales={"small": replace(scale, **least)})


@pytest.fixture(scope="module", params=STUDIES)
def done(request, names, tmp_path_factory):
    """A study that was run, and where."""
    study = plain(STUDIES[request.param])
    out = tmp_path_factory.mktemp("study") / "out"
    models = () if study.pretrains else list(names.values())
    return study, out, run_study(study, out, models=models, data=DIGITS, **SHORT)


def test_it_gives_rows_a_table_an_image_a_page_and_a_verdict(done):
    study, out, found = done
    assert found.rows
    assert not [row for row in found.rows if "error" in row]
    known = {key for row in found.rows for key in row}
    assert set(study.columns) <= known | {"source_accuracy", "source_train_accuracy"}
    for row in found.rows:
        accuracy = row.get("test_accuracy", row.get("accuracy", row.get("ridge_test")))
        assert 0 <= accuracy <= 1
        assert row["nc1"] is None or row["nc1"] > 0
    for row in found.tables["evidence"]:
        assert row["verdict"] in (SUPPORTED, NOT_SUPPORTED, UNCLEAR)
    with (out / "rows.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(found.rows)
    with Image.open(out / "plot.png") as image:
        assert min(image.size) > 300
    page = (out / "report.html").read_text()
    assert f"Study: {study.name}" in page
    assert escape(found.tables["evidence"][0]["question"]) in page
    kept = json.loads((out / "result.json").read_text())
    assert kept["settings"]["scale"] == "small"
    assert kept["further"]["evidence"] == found.tables["evidence"]


def test_what_is_done_is_not_done_again(done, names, monkeypatch):
    study, out, found = done

    def again(lab):
        for point in study.points(lab):
            yield Point(point.labels, lambda: pytest.fail("computed again"))

    models = () if study.pretrains else list(names.values())
    assert run_study(replace(study, points=again), out, models=models, data=DIGITS, **SHORT).rows == found.rows
    with pytest.raises(SettingsError, match="other settings"):
        run_study(study, out, models=models, data=DIGITS, **(SHORT | {"max_per_class": 7}))


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
        runs = [pool.submit(_rows, study, Lab(Scale(), (), (), tmp_path, {})) for _ in range(2)]
    found = [[(row["number"], row["square"]) for row in run.result()] for run in runs]
    assert sorted(computed) == [0, 1, 2, 3]
    assert found == [[(0, 0), (1, 1), (2, 4), (3, 9)]] * 2


def test_sets_and_models_of_one_name_are_told_apart(names, tmp_path):
    study, twice = STUDIES["downstream-collapse"], [names["wide"], names["wide"]]
    found = run_study(study, tmp_path / "out", models=twice, data=["digits:5-9", "digits:5-9"], **SHORT)
    assert len({(row["data"], row["model"]) for row in found.rows}) == 4
    assert "wide #2" in {row["model"] for row in found.rows}


def test_a_stopped_study_goes_on(names, tmp_path):
    study, computed = plain(STUDIES["downstream-collapse"]), []
    asked = {"models": list(names.values()), "data": DIGITS, **SHORT}

    def counted(lab):
        for point in study.points(lab):
            yield Point(point.labels, lambda point=point: computed.append(point.labels) or point.compute())

    counting = replace(study, points=counted)

    def stopping(items, title, total):
        for at, item in enumerate(items):
            if title == study.name and at == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        run_study(counting, tmp_path / "out", progress=stopping, **asked)
    assert len(computed) == 2
    found = run_study(counting, tmp_path / "out", **asked)
    assert len(computed) == 4 == len(found.rows)


def test_a_point_that_fails_is_a_row_that_says_so(names, tmp_path):
    def points(lab):
        def fail():
            raise ModelError("it is broken")

        first, *rest = STUDIES["downstream-collapse"].points(lab)
        yield Point(first.labels, fail)
        yield from rest

    study = replace(STUDIES["downstream-collapse"], points=points)
    asked = {"models": list(names.values()), "data": ["digits:5-9"], **SHORT}
    found = run_study(study, tmp_path / "out", **asked)
    assert found.rows[0]["error"] == "it is broken"
    assert found.rows[1]["test_accuracy"] > 0
    assert "1 of 2 rows failed and are not counted; the first: it is broken" in found.notes
    assert "it is broken" in (tmp_path / "out" / "report.html").read_text()
    mended = run_study(STUDIES["downstream-collapse"], tmp_path / "out", **asked)  # what failed is not remembered
    assert [row["test_accuracy"] > 0 for row in mended.rows] == [True, True]


def test_a_study_of_which_all_failed_is_an_error(names, tmp_path):
    def points(lab):
        for point in STUDIES["layers"].points(lab):
            yield Point(point.labels, lambda: (_ for _ in ()).throw(ModelError("it is broken")))

    study = replace(STUDIES["layers"], points=points)
    with pytest.raises(ModelError, match=r"every point of layers failed; the first: it is broken"):
        run_study(study, tmp_path / "out", models=[names["wide"]], data=["digits:5-9"], **SHORT)


def test_other_layers_are_other_settings(names, tmp_path):
    asked = {"models": [names["wide"]], "data": ["digits:5-9"], **SHORT}
    run_study(STUDIES["layers"], tmp_path / "out", **asked)
    with pytest.raises(SettingsError, match="other settings"):
        run_study(STUDIES["layers"], tmp_path / "out", model_options={"layers": ["layer1"]}, **asked)


def test_a_layer_that_is_the_last_features_counts_once(names, tmp_path):
    found = run_study(STUDIES["layers"], tmp_path / "out", models=[names["wide"]], data=["digits:5-9"], **SHORT)
    layers = [row["layer"] for row in found.rows]
    assert layers[-2:] == ["layer4.0", "penultimate"]
    assert [row["layer"] for row in distinct(found.rows)] == layers[:-1]


def test_built_in_models_are_made_inside_the_folder(tmp_path):
    run_study(STUDIES["few-shot"], tmp_path / "out", **SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def images(folder, count):
    """A set of two classes of so many images."""
    for name in ("a", "b"):
        for part in ("train", "test"):
            (folder / part / name).mkdir(parents=True)
            for at in range(count):
                Image.new("RGB", (8, 8), (at * 20, 0, 0)).save(folder / part / name / f"{at}.png")
    return str(folder)


def test_a_set_that_fails_takes_no_other_with_it(tmp_path):
    study, broken = plain(STUDIES["projection-head"]), images(tmp_path / "broken", 4)
    whole = (tmp_path / "broken/train/a/0.png").read_bytes()
    (tmp_path / "broken/train/a/0.png").write_bytes(whole[:40])
    found = run_study(study, tmp_path / "out", data=["digits:0-4", broken, "digits:5-9"], **SHORT)
    assert {row["data"] for row in found.rows if "error" in row} == {"broken"}
    assert len([row for row in found.rows if row.get("test_accuracy")]) == 4
    assert found.tables["evidence"][2]["units"] == "1 seed: too few for an interval"


def test_a_set_too_small_for_episodes_is_refused_before_anything_is_trained(tmp_path):
    small = images(tmp_path / "small", 2)
    with pytest.raises(DataError, match="small: 5-shot episodes need 2 classes of 6 images"):
        run_study(plain(STUDIES["projection-head"]), tmp_path / "out", data=["digits:0-4", small], **SHORT)
    assert not (tmp_path / "out" / "models").exists()


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("layers", {"scale": "huge"}, "small or paper"),
        ("layers", {"scale": "paper"}, "--data"),
        ("methods", {"epochs": 0}, "1 or more"),
        ("layers", {"epochs": 3}, "--epochs"),
        ("few-shot", {"seeds": 3}, "--seeds"),
        ("augmentation", {"model_options": {"input_size": 16}}, "input_size"),
        ("augmentation", {"models": ["timm/resnet18"]}, "leave out --models"),
        ("augmentation", {"data": ["digits:0-4"]}, "two datasets"),
    ],
)
def test_what_can_not_be_asked_is_said(name, asked, said, tmp_path):
    with pytest.raises(SettingsError, match=said):
        run_study(STUDIES[name], tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_images_to_test_on_are_needed(tmp_path, names):
    folder = tmp_path / "images"
    for at in range(2):
        (folder / f"class{at}").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / f"class{at}" / "one.png")
    with pytest.raises(DataError, match="no test images"):
        run_study(STUDIES["layers"], tmp_path / "out", models=[names["wide"]], data=[str(folder)])


def test_the_turning_point_is_that_of_the_parabola():
    def row(log, accuracy):
        return {"source_nc1": math.exp(log), "test_accuracy": accuracy}

    top = [row(log, 0.7 - 0.1 * (log - 0.5) ** 2) for log in np.linspace(-2, 3, 9)]
    assert turning_point(top) == pytest.approx(math.exp(0.5))
    rising = [row(log, 0.1 * log) for log in np.linspace(-2, 3, 9)]
    assert turning_point(rising) is None
    assert turning_point(top[:3]) is None


def test_thresholds_are_not_found_in_noise_and_are_where_there_is_one():
    def rows(curve, seed):
        luck = np.random.default_rng(seed)
        for at, log in enumerate(np.linspace(-2, 3, 31)):
            for data in "abc":
                accuracy = curve(log) + 0.02 * luck.normal()
                labels = {"loss": "mse", "epochs": at, "seed": 0, "data": data}
                yield labels | {"source_nc1": math.exp(log), "test_accuracy": accuracy}

    def verdicts(curve, seed=0):
        return [one.verdict for one in _threshold(list(rows(curve, seed)))]

    assert verdicts(lambda log: 0.7 - 0.02 * (log - 0.5) ** 2) == [SUPPORTED, SUPPORTED]
    assert verdicts(lambda log: 0.5 + 0.05 * log) == [SUPPORTED, NOT_SUPPORTED]
    assert verdicts(lambda log: 0.5 - 0.05 * log) == [NOT_SUPPORTED, SUPPORTED]
    noise = [verdict for seed in range(20) for verdict in verdicts(lambda log: 0.5, seed)]
    assert noise.count(SUPPORTED) <= 5


def test_equal_samples_are_equal(names, tmp_path):
    study = plain(STUDIES["across-data"])
    found = run_study(study, tmp_path / "out", models=[names["wide"]], data=["digits:0-6", "digits:5-9"], **SHORT)
    equal = [row for row in found.rows if row["sample"] != "as it is"]
    assert {(row["classes"], row["images"]) for row in equal} == {(5, 40)}
    whole = [row for row in found.rows if row["sample"] == "as it is"]
    assert [(row["classes"], row["images"]) for row in whole] == [(7, 56), (5, 40)]


def test_scarce_numbers_are_the_papers_as_far_as_there_are_images(names, tmp_path):
    study = plain(STUDIES["scarce-data"])
    study = replace(study, scales={"small": Scale(epochs=1, seeds=1, images=50, methods=("linear",))})
    found = run_study(
        study, tmp_path / "out", models=[names["wide"]], data=["digits:5-9"], max_per_class=12, precision="float32"
    )
    assert [row["shots"] for row in found.rows] == [3, 10]


def test_every_paper_scale_is_named():
    for study in STUDIES.values():
        assert {"small", "paper"} <= set(study.scales) <= {"small", "medium", "paper"}
        assert study.pretrains or study.scales["paper"].models


def test_the_page_of_studies_is_up_to_date():
    docs = Path(__file__).parents[2] / "docs"
    page = runpy.run_path(str(docs / "make_studies.py"))["page"]()
    assert (docs / "studies.md").read_text(encoding="utf-8") == page, "run python docs/make_studies.py"
    assert all(f"## {name}\n" in page for name in STUDIES)
