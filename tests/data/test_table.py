"""Tables of images, as miniImageNet comes, and folders whose splits differ in classes, as tieredImageNet's."""

from __future__ import annotations

import pytest
from PIL import Image

from tightframe.data.loading import load_images
from tightframe.errors import BadImage, DataError


@pytest.fixture
def mini(tmp_path):
    """``images/`` and two tables whose classes differ."""
    (tmp_path / "images").mkdir()
    for split, classes in (("train", ("n01", "n02")), ("test", ("n08", "n09"))):
        lines = ["filename,label"]
        for number, name in enumerate(classes):
            for at in range(4):
                Image.new("RGB", (8, 8), (60 * number, 30 * at, 0)).save(tmp_path / "images" / f"{name}0{at}.jpg")
                lines.append(f"{name}0{at}.jpg,{name}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_table_is_a_split_with_its_own_classes(mini):
    data = load_images(mini / "test.csv", test_share=0.25)
    assert data.classes == ("n08", "n09")
    assert (len(data.train), len(data.test)) == (6, 2)
    assert data.name.endswith("/test")
    whole = load_images(str(mini / "train.csv"), test_share=0.0)
    assert whole.test is None
    assert whole.train.identifiers == tuple(f"images/{name}0{at}.jpg" for name in ("n01", "n02") for at in range(4))
    assert whole.train.labels.tolist() == [0] * 4 + [1] * 4
    assert whole.train[7].getpixel((0, 0))[1] == pytest.approx(90, abs=8)


def test_an_image_that_is_listed_in_many_ways_is_one(mini, monkeypatch):
    whole = load_images(mini / "test.csv", test_share=0.0).train
    with (mini / "test.csv").open("a") as file:
        file.write(f"n0800.jpg,n08\n./n0800.jpg,n08\nimages/n0800.jpg,n08\n{mini}/images/n0801.jpg,n08\n")
    monkeypatch.chdir(mini)
    again = load_images("test.csv", test_share=0.0).train
    assert again.identifiers == whole.identifiers
    assert again.fingerprint == whole.fingerprint


def test_the_same_table_is_the_same_data_and_another_is_not(mini):
    first, again = (load_images(mini / "test.csv").train.fingerprint for _ in range(2))
    assert first == again != load_images(mini / "train.csv").train.fingerprint


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("n0899.jpg,n08", "neither in images/"),
        ("../../secret.jpg,n08", "leads out of the data folder"),
        ("notes.txt,n08", "not an image"),
        ("empty.jpg,n08", "empty"),
        ("n0800.jpg,n09", "listed as n08 and as n09"),
        ("x" * 300 + ".jpg,n08", "can't be looked for"),
    ],
)
def test_what_can_not_be_used_is_named_or_left_out(mini, line, said):
    Image.new("RGB", (8, 8)).save(mini.parent / "secret.jpg")
    (mini / "images" / "notes.txt").write_text("none")
    (mini / "images" / "empty.jpg").touch()
    with (mini / "test.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadImage, match=said):
        load_images(mini / "test.csv")
    data = load_images(mini / "test.csv", skip_bad=True)
    assert len(data.skipped) == 1
    assert said in data.skipped[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column of images"),
        ("photo,species\na,b\n", r"no column of images.*--image-column.*columns are: photo, species"),
        ("file,path,label\na,b,c\n", r"more than one column that may be the image \(file, path\)"),
        ("file,label,label\na,b,c\n", r"more than one column that may be the label"),
        ("filename,label\na.jpg,\n", "no file name or label"),
    ],
)
def test_other_tables_are_refused(mini, text, said):
    (mini / "test.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        load_images(mini / "test.csv")
    with pytest.raises(DataError, match="can't be read"):
        load_images(mini / "no.csv")


def test_splits_that_differ_in_classes_are_named_one_by_one(tmp_path):
    for split, name in (("train", "n01"), ("train", "n02"), ("test", "n08"), ("test", "n09")):
        folder = tmp_path / split / name
        folder.mkdir(parents=True)
        for at in range(3):
            Image.new("RGB", (8, 8)).save(folder / f"{at}.png")
    with pytest.raises(DataError, match=r"few-shot evaluation, name one of them: .*test"):
        load_images(tmp_path)
    assert load_images(tmp_path / "test").classes == ("n08", "n09")
