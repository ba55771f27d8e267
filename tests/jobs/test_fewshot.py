"""Few-shot evaluation from images: the episodes of ``metrics.episodes`` on the features of all images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tightframe import ClassMoments, Workspace, fewshot, load_backbone, load_images, measure
from tightframe.data.class_lists import class_list
from tightframe.errors import DataError, MeasureError, SettingsError
from tightframe.probes.episodes import accuracies, draw, mean_and_margin

SMALL = {"ways": 3, "shots": (1, 4), "episodes": 30, "queries": 5}


@pytest.fixture(scope="module")
def data():
    return load_images("digits:4-9", max_per_class=15, test_share=0.05)


@pytest.fixture(scope="module")
def backbone(names):
    return load_backbone(names["wide"])


@pytest.fixture(scope="module")
def found(data, backbone):
    return fewshot(data, backbone, **SMALL)


@pytest.fixture(scope="module")
def pool(data, backbone):
    return _pool(backbone, [data.train, data.test])


def test_rows_are_what_episodes_come_to(found, pool):
    drawn = draw(pool[0], 3, 4, 5, 30)
    rows = iter(found.rows)
    for shots in (1, 4):
        for classifier, right in accuracies(pool[1], drawn.with_shots(shots)).items():
            row = next(rows)
            assert (row["shots"], row["classifier"], row["episodes"]) == (shots, classifier, 30)
            assert (row["accuracy"], row["margin"]) == mean_and_margin(right)
            assert row["accuracy_high"] - row["accuracy_low"] == pytest.approx(2 * row["margin"])
    assert next(rows, None) is None


@pytest.mark.slow
def test_collapse_is_that_of_all_images(found, data, backbone, pool):
    alone = measure(data.train, backbone).rows[-1]
    assert found.rows[0]["nc1"] != alone["nc1"]
    whole = fewshot(data.train, backbone, **SMALL).rows[0]
    assert whole["nc1"] == pytest.approx(alone["nc1"])
    assert whole["nc1_corrected"] == pytest.approx(alone["nc1_corrected"])
    assert ClassMoments.from_features(pool[1], pool[0], 6).samples == found.settings["images"]


def test_a_bound_stands_where_collapse_can_not_be_told(backbone):
    few = load_images("digits:5-9", max_per_class=3, test_share=0.0)
    row = fewshot(few, backbone, ways=2, shots=[1], queries=1, episodes=5).rows[0]
    assert row["nc1_corrected"] is None
    assert row["nc1_corrected_low"] > 0


def test_the_seed_decides(found, data, backbone):
    assert fewshot(data, backbone, **SMALL).rows == found.rows
    assert fewshot(data, backbone, **SMALL, seed=1).rows != found.rows


def test_classes_by_name(data, backbone):
    named = fewshot(data, backbone, **SMALL, classes=["5", "7", "9", "8"])
    assert named.settings["classes"] == ["5", "7", "8", "9"]
    assert named.settings["images"] == sum(np.isin(part.labels, [1, 3, 4, 5]).sum() for part in (data.train, data.test))
    with pytest.raises(DataError, match=r"lacks 2 of 3 classes: 10, ten"):
        fewshot(data, backbone, **SMALL, classes=["ten", "5", "10"])


def test_classes_with_too_few_images_are_left_out_and_named(data, backbone):
    small = data.train.labels.tolist().index(2)
    kept = np.flatnonzero((data.train.labels != 2) | (np.arange(len(data.train)) == small))
    fewer = fewshot(data.train.subset(kept), backbone, **SMALL)
    assert "1 of 6 classes have fewer than 9 images and are in no episode: 6" in fewer.notes
    with pytest.raises(MeasureError, match=r"0 of 6 classes have the 104 images that 4 shots and 100 queries take"):
        fewshot(data, backbone, **SMALL | {"queries": 100})


@pytest.mark.parametrize("shots", [(), (0, 1)])
def test_shots_out_of_range(data, backbone, shots):
    with pytest.raises(SettingsError, match="try 1 and 5"):
        fewshot(data, backbone, **SMALL | {"shots": shots})


def test_settings_are_checked_before_any_image_is_read(data, backbone):
    def no_images(*arguments):
        raise AssertionError("images were read")

    with pytest.raises(SettingsError, match="ways must be 2 or more"):
        fewshot(data, backbone, **SMALL | {"ways": 1}, workspace=Workspace(progress=no_images))


@pytest.mark.slow
def test_features_that_measure_kept_are_used_and_progress_is_told(data, backbone, tmp_path, found):
    told = []
    measure(data.train, backbone, workspace=Workspace(tmp_path))

    def progress(items, description, total):
        told.append((description, total))
        return items

    assert fewshot(data, backbone, **SMALL, workspace=Workspace(tmp_path, progress=progress)).rows == found.rows
    assert [description for description, _ in told] == [
        f"{backbone.name} on {data.test.name}",
        "1-shot episodes",
        "4-shot episodes",
    ]


def test_a_real_model_on_a_published_split(shared, zoo):
    data = load_images(shared / "data" / "cifar100")
    backbone = load_backbone(f"{zoo}resnet20_cifar10")
    classes = class_list("cifar-fs:test")
    result = fewshot(data, backbone, episodes=60, classes=classes)
    one, five = ({row["classifier"]: row for row in result.rows if row["shots"] == shots} for shots in (1, 5))
    assert all(five[name]["accuracy"] > one[name]["accuracy"] + 0.05 > 0.4 for name in one)
    labels, features = _pool(backbone, [part.of_classes(classes) for part in (data.train, data.test)])
    drawn = draw(np.unique(labels, return_inverse=True)[1], 5, 5, 15, 60)
    right = accuracies(features, drawn, ["logistic"])["logistic"]
    assert five["logistic"]["accuracy"] == pytest.approx(float(right.mean()))
    scaled = features / np.linalg.norm(features, axis=1, keepdims=True)
    episodes = zip(drawn.support.flatten(1).numpy(), drawn.queries.flatten(1).numpy(), right.tolist(), strict=True)
    for support, queries, share in list(episodes)[:10]:
        peer = LogisticRegression(tol=1e-8, max_iter=1000).fit(scaled[support].astype(float), np.arange(25) // 5)
        assert peer.score(scaled[queries], np.arange(75) // 15) == pytest.approx(share)


def _pool(backbone, parts):
    """Labels and features of all images in ``parts``, in their order."""
    features = [Workspace().features(backbone, part, ["penultimate"])["penultimate"] for part in parts]
    return np.concatenate([part.labels for part in parts]), np.concatenate(features)
