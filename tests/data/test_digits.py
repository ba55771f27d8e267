from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tightframe.data.digits import load_digit_images
from tightframe.data.loading import load_images
from tightframe.errors import DataError, SettingsError


def test_all_ten_split_in_two() -> None:
    splits = load_digit_images(None, test_share=0.25, seed=0)
    assert splits.test is not None
    assert (splits.name, splits.train.name, splits.test.name) == ("digits", "digits/train", "digits/test")
    assert splits.classes == splits.test.classes == tuple("0123456789")
    assert len(splits.train) + len(splits.test) == 1797
    assert not set(splits.train.identifiers) & set(splits.test.identifiers)
    held, total = np.bincount(splits.test.labels), np.bincount(load_digits().target)
    assert np.abs(held - total / 4).max() <= 0.5


def test_images_are_those_of_scikit_learn() -> None:
    source, data = load_digits(), load_digit_images(None, test_share=0.0, seed=0).train
    assert data.labels.tolist() == source.target.tolist()
    for index in (0, 700, 1796):
        image = data[index]
        assert (image.mode, image.size) == ("RGB", (8, 8))
        gray = np.asarray(image)
        assert (gray == gray[..., :1]).all()
        assert np.abs(gray[..., 0] - source.images[index] * 255 / 16).max() <= 0.5
    assert max(np.asarray(data[index]).max() for index in range(9)) == 255


def test_no_test_set_where_none_is_wanted() -> None:
    splits = load_digit_images("0-4", test_share=0.0, seed=0)
    assert splits.test is None
    assert len(splits.train) == int((load_digits().target < 5).sum())


@pytest.mark.parametrize(
    ("selection", "classes"),
    [("0-4", "01234"), ("5-9", "56789"), ("1,3,8", "138"), ("8,3,1", "138"), ("0-2, 7", "0127"), ("1,1,2", "12")],
)
def test_selections(selection: str, classes: str) -> None:
    splits = load_digit_images(selection, test_share=0.5, seed=0)
    source = load_digits()
    assert splits.classes == tuple(classes)
    assert splits.name == f"digits:{selection}"
    for name, label in zip(splits.train.identifiers, splits.train.labels, strict=True):
        assert str(source.target[int(name.removeprefix("digit-"))]) == classes[label]
    assert set(splits.train.labels.tolist()) == set(range(len(classes)))


@pytest.mark.parametrize(
    "selection",
    ["", "x", "4-0", "10", "1,", "0-4-5", "-1", "0..4", "٣,4", "1;3", "3", "3,3", "5-5", "10,1", "3-12", "1,2,5-4"],
)
def test_selections_not_understood(selection: str) -> None:
    with pytest.raises(DataError, match=r"digits:.*accepted are digits") as caught:
        load_digit_images(selection, test_share=0.25, seed=0)
    assert f"digits:{selection}" in str(caught.value)


def test_fingerprints_and_seeds() -> None:
    def prints(selection: str | None, seed: int) -> str:
        return load_digit_images(selection, test_share=0.25, seed=seed).train.fingerprint

    assert prints("0-4", 0) == prints("0-4", 0)
    assert len({prints("0-4", 0), prints("0-4", 1), prints("5-9", 0), prints(None, 0)}) == 4


def test_load_images_knows_digits() -> None:
    splits = load_images("digits:0-4", test_share=0.5, max_per_class=3)
    assert splits.test is not None
    assert np.bincount(splits.train.labels).tolist() == [3] * 5
    assert len(splits.test) > 400  # the test set stays whole
    assert len(load_images("digits").classes) == 10


@pytest.mark.parametrize("test_share", [-0.1, 1.0, 2.0])
def test_load_images_checks_the_share(test_share: float) -> None:
    with pytest.raises(SettingsError, match="share"):
        load_images("digits", test_share=test_share)


def test_load_images_checks_its_settings_before_it_looks_for_images() -> None:
    with pytest.raises(SettingsError, match="0 images"):
        load_images("no/such/folder", max_per_class=0)
