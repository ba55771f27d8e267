"""Whatever is wrong is found under its name, and nothing in images that nothing is wrong with."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tightframe as tf
from tightframe.checks.check import check
from tightframe.checks.finding import KINDS
from tightframe.cli import main
from tightframe.errors import DataError
from tightframe.report.fields import TABLES


def kinds(result):
    return Counter(row["finding"] for row in result.rows)


def of(result, kind):
    return [row for row in result.rows if row["finding"] == kind]


def test_nothing_is_found_in_sound_images(folder, load):
    result = check(load(folder))
    assert result.rows == []
    assert result.notes[0] == "nothing found in 36 images"
    assert "give --model" in result.notes[1]


def deep(path, top):
    ramp = np.linspace(0, top, 4096).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(path)


def animated(path, scene):
    scene(100).save(path, save_all=True, append_images=[scene(101)], format="GIF")


def turned(path, scene):
    exif = Image.Exif()
    exif[274] = 6
    scene(102).save(path, format="PNG", exif=exif)


def transparent(path, scene):
    image = scene(103).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 40, 96))
    image.save(path, format="PNG")


SINGLE = {
    "unreadable file": lambda path, scene: path.write_bytes(b"\x89PNG\r\n\x1a\n broken"),
    "narrow range": lambda path, scene: deep(path, 4095),
    "animation": animated,
    "turned": turned,
    "transparency": transparent,
    "CMYK": lambda path, scene: scene(104).convert("CMYK").save(path, format="TIFF"),
    "blank image": lambda path, scene: Image.new("RGB", (96, 96), "gray").save(path),
    "cropped ends": lambda path, scene: scene(105).resize((400, 60)).save(path),
    "tiny image": lambda path, scene: scene(106).resize((20, 20)).save(path),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_what_is_wrong_with_one_file_is_named(kind, folder, load, scene):
    SINGLE[kind](folder / "train" / "bark" / "odd.png", scene)
    result = check(load(folder))
    assert kinds(result) == {kind: 1}
    row = result.rows[0]
    assert row["path"] == "train/bark/odd.png"
    assert row["severity"] == KINDS[kind].severity
    assert row["words"]


def test_full_16_bits_lose_nothing_worth_a_word(folder, load):
    deep(folder / "train" / "bark" / "odd.png", 65535)
    assert check(load(folder)).rows == []


def test_what_befalls_all_is_said_once(tmp_path, load, scene):
    for subject, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        for seed in range(10):
            scene(seed, subject).resize((24, 24)).save(tmp_path / name / f"{seed}.png")
    (row,) = of(check(load(tmp_path)), "tiny image")
    assert row["words"].startswith("20 of 20 images")


PLACES = {
    "duplicate": ("train/bark/a.png", "train/bark/z.png"),
    "duplicate across splits": ("test/bark/i.png", "train/bark/z.png"),
    "duplicate across classes": ("train/bark/a.png", "train/tile/z.png"),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("again", [False, True])
def test_copies_are_named_by_what_they_spoil(kind, again, folder, load):
    first, copy = (folder / place for place in PLACES[kind])
    if again:
        Image.open(first).resize((60, 60)).save(copy)
    else:
        shutil.copy(first, copy)
    rows = check(load(folder)).rows
    assert {row["finding"] for row in rows} == {kind}
    gone = {row["path"] for row in rows if row["remove"]}
    assert gone == (set(PLACES[kind]) if kind == "duplicate across classes" else {PLACES[kind][1]})
    assert {row["other"] for row in rows} <= set(PLACES[kind])
    assert ("same contents" in rows[0]["words"]) == (not again)


def test_copies_of_copies_leave_one(folder, load):
    for name in ("x", "y", "z"):
        shutil.copy(folder / "train" / "bark" / "a.png", folder / "train" / "bark" / f"{name}.png")
    rows = check(load(folder)).rows
    assert [row["path"] for row in rows] == [f"train/bark/{name}.png" for name in "xyz"]
    assert {row["other"] for row in rows} == {"train/bark/a.png"}


def test_series_that_lie_in_both_splits_are_named(tmp_path, load, scene):
    for subject, name in enumerate(("a", "b")):
        for film in range(6):
            one, two = np.asarray(scene(film, subject), float), np.asarray(scene(film + 50, subject), float)
            for frame in range(6):
                place = tmp_path / ("test" if frame in (2, 5) else "train") / name
                place.mkdir(parents=True, exist_ok=True)
                mixed = one + (two - one) * frame / 5
                Image.fromarray(mixed.astype(np.uint8)).save(place / f"film{film}_{100 * film + frame:04d}.png")
    (row,) = of(check(load(tmp_path)), "leaking sequence")
    assert "film#_#" in row["words"]
    assert row["words"].startswith("24 test images")


def test_numbers_alone_are_no_series(folder, load):
    for split in ("train", "test"):
        for place in (folder / split).iterdir():
            for path in place.iterdir():
                path.rename(place / f"image_{ord(path.stem) % 7:02d}{ord(path.stem):03d}.png")
    assert check(load(folder)).rows == []


def test_classes_too_small_to_learn_from(folder, load, scene):
    (folder / "train" / "empty").mkdir()
    (folder / "train" / "lonely").mkdir()
    scene(200).save(folder / "train" / "lonely" / "one.png")
    for seed in range(20, 30):
        scene(seed, 1).save(folder / "train" / "cloud" / f"more{seed}x.png")
    found = check(load(folder))
    assert kinds(found) == {"empty class": 1, "class of one image": 1, "imbalance": 1}
    assert {row["class"] for row in found.rows} == {"empty", "lonely"}


@pytest.fixture(scope="module")
def digits():
    """Digits of which every twentieth has another label, and which."""
    data = tf.load_images("digits", test_share=0.3, max_per_class=60)
    labels, wrong = data.train.labels.copy(), np.arange(0, len(data.train), 20)
    labels[wrong] = (labels[wrong] + 1 + np.arange(len(wrong)) % 9) % 10
    train = tf.Images("digits/train", data.classes, labels, data.train.items)
    return tf.ImageSplits("digits", train, data.test), {train.identifiers[index] for index in wrong}


def test_wrong_labels_are_named_first(digits, wide):
    data, wrong = digits
    result = check(data, wide)
    named = [row["path"] for row in of(result, "wrong label")]
    assert len(named) >= len(wrong) / 2
    assert sum(name in wrong for name in named) >= 0.7 * len(named)
    assert all(row["likely"] != row["class"] for row in of(result, "wrong label"))
    assert any(note.startswith("test images can't be told") for note in result.notes)


def test_the_table_without_what_was_found_is_read_by_every_command(folder, load):
    shutil.copy(folder / "train" / "bark" / "a.png", folder / "train" / "bark" / "z.png")
    (folder / "train" / "tile" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    result = check(load(folder), write_clean=folder / "clean.csv")
    with (folder / "clean.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["filename", "label", "split"]
    assert Counter(row["split"] for row in rows) == {"train": 24, "test": 12}
    assert not {"train/bark/z.png", "train/tile/bad.png"} & {row["filename"] for row in rows}
    again = tf.load_images(folder / "clean.csv")
    assert len(again.train) + len(again.test) == 36
    assert again.classes == ("bark", "cloud", "tile")
    assert any("clean.csv" in step for step in result.next_steps)


def test_no_table_for_images_that_lie_elsewhere(folder, load, tmp_path, digits):
    (tmp_path / "beside").mkdir()
    with pytest.raises(DataError, match="Write it into the folder of the images"):  # before anything is decoded
        check(load(folder), write_clean=tmp_path / "beside" / "clean.csv")
    assert not (tmp_path / "beside" / "clean.csv").exists()
    with pytest.raises(DataError, match="are not files"):
        check(digits[0], write_clean=tmp_path / "clean.csv")


def test_names_are_shown_and_never_run(folder, load):
    name = "<img src=x onerror=alert(1)>.png"
    shutil.copy(folder / "train" / "bark" / "a.png", folder / "train" / "bark" / name)
    check(load(folder), out=folder.parent / "page")
    page = (folder.parent / "page" / "report.html").read_text()
    assert "onerror=alert" in page
    assert "<img src=x" not in page


def test_findings_go_to_a_file_line_by_line(folder, load, tmp_path):
    shutil.copy(folder / "train" / "bark" / "a.png", folder / "train" / "bark" / 'z, or "z".png')
    result = check(load(folder), csv=tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [row["path"] for row in result.rows]
    assert set(rows[0]) == {*TABLES["check"].columns, *TABLES["check"].others}


def test_the_command_says_what_it_found(folder, names, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "train" / "tile" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert main(["check", str(folder), "--model", names["wide"], "--csv", "found.csv"]) == 0
    said = capsys.readouterr().out
    assert "unreadable file" in said
    assert "1 serious finding" in said
    assert (tmp_path / "runs" / "check" / "report.html").is_file()
    assert (tmp_path / "found.csv").is_file()


def test_the_command_goes_on_without_a_model_that_was_not_asked_for(folder, tmp_path, capsys, monkeypatch, offline):
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "could not be loaded" in said
    assert "labels, outliers, confused classes and shift were not checked" in said


def test_a_model_that_was_asked_for_has_to_be_there(folder, tmp_path, capsys):
    assert main(["check", str(folder), "--model", f"local-dir:{tmp_path / 'nowhere'}", "--out", str(tmp_path)]) == 1


def test_images_of_which_none_can_be_read(unreadable_images, wide):
    result = check(unreadable_images, wide)
    assert kinds(result) == {"unreadable file": 3, "empty class": 2}


def test_a_notebook_shows_what_was_found(folder, load):
    (folder / "train" / "tile" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    result = check(load(folder))
    assert "unreadable file" in result._repr_html_()
    assert "unreadable file" in repr(result)


def test_images_that_nothing_split_are_checked(folder, load, wide):
    result = tf.check(load(folder).train, wide)
    assert kinds(result)["shift"] == kinds(result)["leaking sequence"] == 0
    assert Path(str(result.settings["data"])).name == "train"
