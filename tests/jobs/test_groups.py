"""Groups whose images are copies of each other, with labels by chance: whatever is held out must be at chance.

Every place where images are held out from others is in ``HELD_OUT``; without groups the same numbers are far above
chance, which shows that each of them would betray a split that parts a group. ``test_every_split_is_known`` finds the
places in the source.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tightframe
from tightframe import TrainConfig, Workspace, compare, fewshot, layers, load_backbone, measure, rank, tune
from tightframe.data.items import ImageArray
from tightframe.data.selection import hold_out
from tightframe.decide.block import chosen_block
from tightframe.deploy.evaluate import evaluate
from tightframe.deploy.tuned import load_tuned
from tightframe.errors import DataError
from tightframe.images import Images, ImageSplits
from tightframe.jobs.estimator import LayerDiscriminant, TransferClassifier
from tightframe.tuning.methods import METHODS

SOURCE = Path(tightframe.__file__).parent
FILMS, COPIES, CLASSES = 60, 4, 3
CONFIG = TrainConfig(epochs=12, search_epochs=12, lr=(0.05, 0.1), weight_decay=(0.0,), folds=3, batch_size=16)


def copies(seed=0):
    """240 images of 8 × 8 pixels in 60 films, the frames of which differ in one pixel; each film has a random label."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(FILMS), COPIES)
    labels = generator.permutation(np.arange(FILMS) % CLASSES)[groups]
    films = generator.integers(0, 256, (FILMS, 8, 8, 3), dtype=np.uint8)
    items = []
    for index, group in enumerate(groups):
        pixels = films[group].copy()
        pixels[0, 0] = index
        items.append(ImageArray(f"film{group}_{index}.png", pixels))
    order = generator.permutation(len(items))
    return Images("films/train", ("a", "b", "c"), labels[order], tuple(items[i] for i in order), groups[order])


@pytest.fixture(scope="module")
def grouped():
    return copies()


@pytest.fixture(scope="module")
def plain(grouped):
    return replace(grouped, groups=None)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(f"{Path(__file__).with_name('wide_model.py')}:make")


def ranked(images, backbone, tmp_path):
    (row,) = rank(ImageSplits("films", images, None), [backbone]).rows
    return {name: row[name] for name in ("expected_accuracy", "probe_accuracy", "lda_accuracy", "knn_accuracy")}


def raced(images, backbone, tmp_path):
    other = load_backbone(f"{Path(__file__).with_name('wide_model.py')}:another")
    rows = rank(ImageSplits("films", images, None), [backbone, other], time_limit=5.0).rows
    assert all(row["images_seen"] == len(images) for row in rows)
    return {row["model"]: row["expected_accuracy"] for row in rows}


def measured(images, backbone, tmp_path):
    return {row["layer"]: row["probe_accuracy"] for row in measure(images, backbone).rows[-1:]}


def layered(images, backbone, tmp_path):
    (*_, row) = layers(images, backbone).rows
    return {name: row[f"{name}_held_out"] for name in ("ridge", "logistic", "center", "knn")}


def split(images, backbone, tmp_path):
    data = hold_out("films", images, 0.3, 0)
    tuned = tune(data, backbone, method="discriminant", config=CONFIG)
    return {"test": tuned.metrics["test_accuracy"], "left out": tuned.evidence.expected_accuracy.value}


def trained(images, backbone, tmp_path):
    found = compare(
        ImageSplits("films", images, None), backbone, ["linear", "scl"], out=tmp_path / "out", config=CONFIG
    )
    said = {}
    for row in found.rows:
        said[f"{row['method']} by folds"] = row["expected_accuracy"]
        search = [one for one in found.tuned[row["method"]].history if one["phase"] == "search"]
        said[f"{row['method']} in the search"] = max(one["validation_accuracy"] for one in search if one["epoch"] == 12)
    return said


def patient(images, backbone, tmp_path):
    config = replace(CONFIG, patience=4, lr=(0.1,), folds=0)
    tuned = tune(ImageSplits("films", images, None), backbone, method="linear", config=config)
    return {"early stop": tuned.history[-1]["validation_accuracy"]}


def blocks(images, backbone, tmp_path):
    config = replace(CONFIG, epochs=60)
    rows = chosen_block(images, backbone, "auto", METHODS["layer"], config, Workspace())[1]
    return {row["block"]: row["validation_accuracy"] for row in rows}


def shown(images, backbone, tmp_path):
    rows = fewshot(images, backbone, ways=3, shots=(40,), queries=15, episodes=20).rows
    return {row["classifier"]: row["accuracy"] for row in rows if row["classifier"] in ("ridge", "logistic")}


def learned(images, backbone, tmp_path):
    features = np.stack([item.values.reshape(-1) for item in images.items]).astype(float)
    wide = np.maximum(features @ np.random.default_rng(0).normal(size=(192, 500)), 0)
    reading = LayerDiscriminant().fit(wide, images.labels, groups=images.groups).reading_
    pixels = np.stack([item.values for item in images.items])
    name = f"{Path(__file__).with_name('wide_model.py')}:make"
    classifier = TransferClassifier(name, "discriminant").fit(pixels, images.labels, groups=images.groups)
    said = classifier.tuned_.evidence.expected_accuracy.value
    return {
        "discriminant": float((reading.held_out.argmax(1).numpy() == images.labels).mean()),
        "classifier": said,
    }


HELD_OUT = {
    "rank": ranked,
    "a race": raced,
    "measure": measured,
    "layers": layered,
    "a share held out": split,
    "folds and search": trained,
    "patience": patient,
    "a race of blocks": blocks,
    "few-shot": shown,
    "scikit-learn": learned,
}


@pytest.mark.parametrize("job", HELD_OUT)
def test_copies_tell_nothing_of_each_other(job, grouped, plain, backbone, tmp_path):
    blind, seeing = HELD_OUT[job](grouped, backbone, tmp_path / "a"), HELD_OUT[job](plain, backbone, tmp_path / "b")
    assert blind
    for name, accuracy in blind.items():
        assert accuracy < 0.58, name  # a third, and three standard errors of 60 films, fewer where a share is held out
    for name, accuracy in seeing.items():
        assert accuracy > 0.75, name


SPLITTERS = {
    "stratified",
    "fold_of",
    "of:Folds",
    "read_layers",
    "neighbors_accuracy",
    "draw",
    "hold_out",
    "can_hold_out",
    "start_of",
    "Evidence",
    "expected",
    "standings",
    "student_interval",
    "accuracy_interval",
    "interval",
}
"""What holds images out, or says how sure something is."""
WITHOUT = {
    ("data/selection.py", "hold_out"): "its images know their groups",
    ("decide/race.py", "stratified"): "images that are seen in a round; they are judged with their groups left out",
    ("decide/race.py", "standings"): "outcomes know their groups",
    ("decide/ranking.py", "standings"): "outcomes know their groups",
    ("decide/start.py", "start_of"): "features know their groups",
    ("decide/evidence.py", "interval"): "of as many images as are independent",
    ("probes/results.py", "interval"): "of as many images as are independent",
    ("decide/training.py", "interval"): "of a note on overfitting",
    ("data/digits.py", "hold_out"): "its images know their groups",
    ("data/folder.py", "hold_out"): "its images know their groups",
    ("data/records.py", "hold_out"): "its images know their groups",
    ("data/loading.py", "hold_out"): "its images know their groups",
    ("studies/lab.py", "of:Folds"): "sets of the paper, in which images stand alone",
    ("studies/evidence.py", "Evidence"): "another, of claims",
    ("studies/evidence.py", "student_interval"): "over units of a study",
    ("studies/training.py", "draw"): "sets of the paper, in which images stand alone",
    ("metrics/folds.py", "can_hold_out"): "of groups as numbers",
    ("metrics/intervals.py", "draw"): "of another population",
    ("report/fields.py", "interval"): "how an interval is written",
}


def test_every_split_is_known():
    unknown = []
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        text = path.read_text(encoding="utf-8")
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name):
                name = call.func.id
            elif isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
                name = f"{call.func.attr}:{call.func.value.id}"
            else:
                continue
            given = ast.get_source_segment(text, call) or ""
            if name in SPLITTERS and "groups" not in given and (place, name) not in WITHOUT:
                unknown.append(f"{place}:{call.lineno} {given}")
    assert not unknown, "these hold images out without their groups"


def test_a_group_trained_on_is_not_evaluated_on(grouped, backbone, tmp_path):
    some = np.flatnonzero(
        np.isin(np.arange(len(grouped)), [int(np.flatnonzero(grouped.groups == g)[0]) for g in range(30)])
    )
    tuned = tune(
        ImageSplits("films", grouped.subset(some), None),
        backbone,
        method="discriminant",
        config=CONFIG,
        out=tmp_path / "saved",
    )
    loaded = load_tuned(tmp_path / "saved", backbone)
    for model in (tuned, loaded):
        found = evaluate(model, grouped)
        assert found.rows[0]["images"] == 120
        assert "30 images are left out: the model was trained on the same" in found.notes
        assert "90 images are left out: the model was trained on others of the same group" in found.notes
    assert evaluate(tuned, replace(grouped, groups=None)).rows[0]["images"] == 210
    with pytest.raises(DataError, match="or on others of their groups"):
        evaluate(tuned, grouped.subset(np.flatnonzero(grouped.groups < 30)))


def test_the_saved_folder_keeps_groups(grouped, backbone, tmp_path):
    tuned = tune(
        ImageSplits("films", grouped, None), backbone, method="discriminant", config=CONFIG, out=tmp_path / "s"
    )
    loaded = load_tuned(tmp_path / "s", backbone)
    np.testing.assert_array_equal(loaded.evidence.groups, grouped.groups)
    assert loaded.evidence.told() == tuned.evidence.told()


def test_intervals_of_evaluate_are_over_groups(grouped, plain, backbone):
    data = hold_out("films", grouped, 0.3, 0)
    tuned = tune(data, backbone, method="discriminant", config=CONFIG)
    wide, narrow = (evaluate(tuned, replace(data.test, groups=groups)).rows[0] for groups in (data.test.groups, None))
    assert wide["accuracy"] == narrow["accuracy"]
    assert wide["accuracy_high"] - wide["accuracy_low"] > 1.5 * (narrow["accuracy_high"] - narrow["accuracy_low"])
    assert tuned.metrics["test_low"] == wide["accuracy_low"]
