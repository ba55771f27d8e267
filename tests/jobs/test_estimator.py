"""The scikit-learn estimator: scikit-learn's own checks where they apply, and what is particular to images."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import check_estimator_cloneable, estimator_checks_generator
from sklearn.utils.validation import validate_data

from tightframe import TransferClassifier, load_images
from tightframe.errors import BadImage, ModelError, SavedError, SettingsError, TightframeError
from tightframe.jobs.estimator import UnusableInput

SMALL = f"{Path(__file__).with_name('small_model.py')}:make"
QUICK = {"epochs": 2, "lr": (0.05,), "weight_decay": (1e-4,)}


class Drawn(TransferClassifier):
    """Rows of numbers, which scikit-learn's checks are made of, drawn as images of 8 × 8 grays."""

    def fit(self, X, y):
        return super().fit(drawn(validate_data(self, X)), y)

    def predict_proba(self, X):
        tuned = self.tuned_  # before X is looked at: not fitted is what is said first
        assert tuned is not None
        return super().predict_proba(drawn(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = True, False, False
        return tags


def drawn(rows):
    gray = (255 / (1 + np.exp(-rows / 2))).round().astype(np.uint8)
    filled = np.tile(gray, (1, -(-64 // gray.shape[1])))[:, :64].reshape(-1, 8, 8)
    return np.repeat(filled[..., None], 3, axis=3)


TABLES = "about the columns of a table: number, type, order in memory, sparse, NaN or 1-d; images have their own tests"
WEIGHTS = "about sample weights, which fit does not take"
NOT_FOR_IMAGES = {
    "check_n_features_in": TABLES,
    "check_n_features_in_after_fitting": TABLES,
    "check_estimators_dtypes": TABLES,
    "check_estimators_nan_inf": TABLES,
    "check_complex_data": TABLES,
    "check_dtype_object": TABLES,
    "check_estimators_empty_data_messages": TABLES,
    "check_estimator_sparse_tag": TABLES,
    "check_estimator_sparse_array": TABLES,
    "check_estimator_sparse_matrix": TABLES,
    "check_f_contiguous_array_estimator": TABLES,
    "check_fit1d": TABLES,
    "check_fit2d_1feature": TABLES,
    "check_fit2d_predict1d": TABLES,
    "check_positive_only_tag_during_fit": TABLES,
    "check_classifier_data_not_an_array": TABLES,
    "check_estimators_partial_fit_n_features": TABLES,
    "check_array_api_input": TABLES,
    "check_classifiers_one_label_sample_weights": WEIGHTS,
    "check_do_not_raise_errors_in_init_or_set_params": "sets every parameter to -1, which the annotations enforced in "
    "this test suite, and nowhere else, refuse; test_nothing_is_checked_before_fit stands for it",
}


def name_of(check):
    return (check.func if isinstance(check, partial) else check).__name__


DRAWN = Drawn(SMALL, "discriminant", weight_decay=(0.0,), batch_size=16)
CHECKS = list(estimator_checks_generator(DRAWN))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "check"),
    [pair for pair in CHECKS if name_of(pair[1]) not in NOT_FOR_IMAGES],
    ids=lambda part: name_of(part) if callable(part) else "",
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_checks_left_out_are_checks_that_there_are():
    assert set(NOT_FOR_IMAGES) <= {name_of(check) for _, check in CHECKS}
    check_estimator_cloneable("TransferClassifier", TransferClassifier())


@pytest.fixture(scope="module")
def data():
    return load_images("digits:0-2", max_per_class=16)


@pytest.fixture(scope="module")
def arrays(data):
    return np.stack([np.asarray(data.train[index]) for index in range(len(data.train))])


@pytest.fixture(scope="module")
def words(data):
    return np.array(["zero", "one", "two"])[data.train.labels]


@pytest.fixture(scope="module")
def paths(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    for index in range(len(data.train)):
        data.train[index].save(folder / f"{index:03d}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def fitted(names, arrays, words):
    chosen = {"epochs": 40, "lr": (0.03,), "weight_decay": (1e-4,), "batch_size": 16}
    return TransferClassifier(names["wide"], "scl", "layer3.0", **chosen).fit(arrays, words)


def test_it_learns_names_and_says_them(fitted, arrays, words):
    assert fitted.classes_.tolist() == ["one", "two", "zero"]
    shares = fitted.predict_proba(arrays)
    assert shares.shape == (len(arrays), 3)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    said = fitted.predict(arrays)
    assert (said == fitted.classes_[shares.argmax(1)]).all()
    assert fitted.score(arrays, words) == np.mean(said == words) > 0.6
    assert is_classifier(fitted)
    assert fitted.tuned_.classes == ("one", "two", "zero")


def test_paths_are_the_same_as_arrays(fitted, names, paths, arrays, words):
    again = clone(fitted).fit(paths, words.tolist())
    np.testing.assert_array_equal(again.predict_proba(arrays), fitted.predict_proba(arrays))
    np.testing.assert_array_equal(again.predict_proba([str(path) for path in paths]), again.predict_proba(arrays))
    np.testing.assert_array_equal(again.predict(np.array(list(map(str, paths)))), fitted.predict(arrays))


@pytest.mark.slow
def test_cross_validation_and_grid_search(paths, words, arrays):
    estimator = TransferClassifier(SMALL, "full", epochs=6, lr=(0.2,), weight_decay=(0.0,), batch_size=8)
    scores = cross_val_score(estimator, paths, words, cv=3)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()
    grid = GridSearchCV(estimator, {"method": ["linear", "full"], "epochs": [1, 6]}, cv=2, error_score="raise")
    grid.fit(arrays, words)
    assert set(grid.best_params_) == {"method", "epochs"}
    assert grid.predict(arrays[:4]).shape == (4,)


def test_a_pickle_has_no_weights_of_the_base_model(fitted, arrays, model_folders):
    content = pickle.dumps(fitted)
    base = load_file(model_folders["wide"] / "model.safetensors")
    trained = fitted.tuned_.model.changed_state()
    for name, tensor in base.items():
        if tensor.is_floating_point() and tensor.unique().numel() > 8:
            inside = tensor.numpy().tobytes() in content
            assert not inside, name
    assert len(content) < sum(t.numel() * t.element_size() for t in trained.values()) + 10_000 + 320 * len(arrays)
    again = pickle.loads(content)
    assert again._tuned is None
    np.testing.assert_array_equal(again.predict_proba(arrays), fitted.predict_proba(arrays))
    twice = pickle.loads(pickle.dumps(pickle.loads(content)))
    np.testing.assert_array_equal(twice.predict_proba(arrays), fitted.predict_proba(arrays))
    np.testing.assert_array_equal(copy.deepcopy(fitted).predict(arrays), fitted.predict(arrays))


def test_an_unpickled_one_takes_its_own_base_model_only(fitted, arrays, words, names, model_folders, tmp_path):
    moving = shutil.copytree(model_folders["wide"], tmp_path / "net")
    content = pickle.dumps(clone(fitted).set_params(backbone=f"local-dir:{moving}", epochs=1).fit(arrays, words))
    shutil.rmtree(moving)
    again = pickle.loads(content)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        again.predict(arrays)
    with pytest.raises(SavedError, match="fetch those weights again"):
        again.set_params(backbone=names["narrow"]).predict(arrays)
    assert again.set_params(backbone=names["wide"]).predict(arrays).shape == (len(arrays),)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_another_does_not(fitted, arrays, words):
    shares = clone(fitted).fit(arrays, words).predict_proba(arrays)
    np.testing.assert_array_equal(shares, fitted.predict_proba(arrays))
    assert not np.array_equal(clone(fitted).set_params(seed=1).fit(arrays, words).predict_proba(arrays), shares)


def test_labels_of_any_kind(arrays, data):
    for labels in (data.train.labels - 1, data.train.labels > 0, data.train.labels.astype(float), data.train.labels):
        fitted = TransferClassifier(SMALL, "linear", **QUICK).fit(arrays, labels)
        assert fitted.predict(arrays).dtype == labels.dtype
        assert set(fitted.classes_) == set(labels)


def test_settings_reach_the_training(arrays, words):
    options = {"input_size": 12}
    fitted = TransferClassifier(SMALL, "layer", "1", **QUICK, backbone_options=options).fit(arrays, words)
    metrics = fitted.tuned_.metrics
    assert (metrics["method"], metrics["block"], metrics["epochs"], metrics["lr"]) == ("layer", "1", 2, 0.05)
    assert fitted.tuned_.backbone.preprocessing.input_size == (12, 12)


def test_nothing_is_checked_before_fit(arrays, words):
    strange = TransferClassifier(SMALL).set_params(epochs=-1, method="magic")
    assert strange.get_params()["epochs"] == -1
    with pytest.raises(SettingsError, match="epochs is -1"):
        strange.fit(arrays, words)
    with pytest.raises(SettingsError, match='no method "magic"'):
        strange.set_params(epochs=1).fit(arrays, words)
    with pytest.raises(SettingsError, match="give its name"):
        strange.set_params(backbone=3).fit(arrays, words)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((4, 8, 8, 3)), "array of float64"),
        (np.zeros((4, 8, 8), np.uint8), "height, width, 3"),
        (np.zeros((4, 3, 8, 8), np.uint8), "height, width, 3"),
        (np.zeros((4, 64)), "give paths"),
        ([1, 2, 3, 4], "is a int"),
        (np.arange(4.0), "is a float64"),
        ("one.png", "give a list"),
        ([], "X holds 0 images"),
        (np.zeros((0, 8, 8, 3), np.uint8), "X holds 0 images"),
        (7, "is a int"),
    ],
    ids=str,
)
def test_images_that_can_not_be_used(images, says):
    with pytest.raises(UnusableInput, match=says):
        TransferClassifier(SMALL).fit(images, ["a", "b", "a", "b"])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "y is None"),
        ([0.5, 1.5, 2.25, 3.0], "can't be labels"),
        ([0, 1, 0], "X has 4 images and y 3 labels"),
        ([1, 1, 1, 1], "y has 1 class"),
        ([[0, 1], [1, 0], [0, 1], [1, 1]], "can't be labels"),
        ([0.0, 1.0, np.nan, 1.0], "can't be labels"),
    ],
    ids=str,
)
def test_labels_that_can_not_be_used(labels, says):
    with pytest.raises(UnusableInput, match=says):
        TransferClassifier(SMALL).fit(np.zeros((4, 8, 8, 3), np.uint8), labels)
    assert issubclass(UnusableInput, ValueError)
    assert issubclass(UnusableInput, TightframeError)


def test_a_file_that_is_no_image_is_named(fitted, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(BadImage, match=r"bad\.png"):
        fitted.predict([tmp_path / "bad.png"])


def test_before_fit_it_says_so(arrays):
    with pytest.raises(NotFittedError):
        TransferClassifier(SMALL).predict(arrays)
    assert json.loads(json.dumps(TransferClassifier().get_params()))["backbone"] == "timm/resnet18"
