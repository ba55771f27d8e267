"""What people's folders and files really hold: outputs of ours among images, odd formats, sizes and depths."""

from __future__ import annotations

import resource
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, features

from tightframe import load_images
from tightframe.backbone import Preprocessing
from tightframe.checks.check import check
from tightframe.cli import main
from tightframe.data import decoding
from tightframe.data.decoding import Decoding, open_image
from tightframe.data.items import unlabeled
from tightframe.errors import BadImage, DataError, SettingsError
from tightframe.features.pixels import Pixels

CENTER = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def folder(tmp_path):
    """Two classes of four images each."""
    for label in ("oak", "elm"):
        (tmp_path / "trees" / label).mkdir(parents=True)
        for index in range(4):
            colors = np.random.default_rng((index, len(label), ord(label[0]))).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(colors).save(tmp_path / "trees" / label / f"{index}.png")
    return tmp_path / "trees"


def test_what_we_write_among_the_images_is_left_out_and_the_second_run_goes_on(folder, names, monkeypatch):
    monkeypatch.chdir(folder)
    model = names["narrow"]
    before = load_images(folder).train.fingerprint
    runs = [
        ["transfer", ".", "--models", model, "--methods", "linear", "--epochs", "1", "--lr", "0.1", "--folds", "0"],
        ["measure", ".", "--model", model, "--feature-cache", "kept/features"],
        ["tune", ".", "--model", model, "--method", "linear", "--epochs", "1", "--out", "oak/saved", "--resume"],
        ["check", ".", "--model", model],
    ]
    for run in (*runs, *runs):
        assert main(run) == 0, run
    seen = load_images(folder)
    assert seen.classes == ("elm", "oak")
    assert seen.train.fingerprint == before
    assert [line.partition(":")[0] for line in seen.skipped] == ["kept", "oak/saved", "runs"]
    assert not any("written by" in row["words"] for row in check(seen).rows)


def test_a_class_is_not_taken_for_what_we_write(folder):
    """Though its folder holds files of the names that we use."""
    for name in ("run.txt", "manifest.json", "report.html"):
        (folder / "oak" / name).write_text("my own")
    assert sum(load_images(folder, test_share=0.0).train.labels) == 4


def test_large_images(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 10_000)
    usual, more = Decoding(10_000), Decoding(50_000)
    Image.new("RGB", (300, 150), "red").save(tmp_path / "a.png")
    Image.new("RGB", (300, 150), "red").save(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg", usual).size == (75, 38)  # a quarter: half of it is too much
    assert open_image(tmp_path / "a.jpg", usual).getpixel((9, 9))[0] > 250
    with pytest.raises(BadImage, match=r"300 x 150 pixels; at most 10,000 are read.*--max-pixels"):
        open_image(tmp_path / "a.png", usual)
    assert open_image(tmp_path / "a.png", more).size == (300, 150)


def test_more_pixels_are_read_where_asked_for(folder):
    Image.new("RGB", (300, 150), "red").save(folder / "oak" / "large.png")
    with pytest.raises(BadImage, match=r"large\.png"):
        load_images(folder, max_pixels=44_999, test_share=0.0).train[-1]
    data = load_images(folder, max_pixels=45_000, test_share=0.0).train
    assert data[-1].size == (300, 150)
    assert len(load_images(folder, max_pixels=44_999, skip_bad=True).skipped) == 1
    archive = shutil.make_archive(str(folder.parent / "trees"), "zip", folder)
    assert len(load_images(archive, max_pixels=44_999, skip_bad=True).skipped) == 1
    (folder / "list.csv").write_text("path,class\noak/large.png,oak\nelm/0.png,elm\n")
    assert len(load_images(folder / "list.csv", max_pixels=45_000, skip_bad=True).skipped) == 0
    with pytest.raises(SettingsError, match="--max-pixels is 0"):
        load_images(folder, max_pixels=0)


def test_what_pillow_reads_is_an_image(folder):
    suffixes = [suffix for suffix, there in (("avif", _has_avif()), ("jp2", features.check_codec("jpg_2000"))) if there]
    if not suffixes:
        pytest.skip("this Pillow reads neither AVIF nor JPEG 2000")
    for suffix in suffixes:
        Image.new("RGB", (32, 32), (250, 10, 10)).save(folder / "oak" / f"x.{suffix}")
        assert open_image(folder / "oak" / f"x.{suffix}").getpixel((3, 3))[0] > 240
    assert int((load_images(folder, test_share=0.0).train.labels == 1).sum()) == 4 + len(suffixes)


def _has_avif() -> bool:
    if not find_spec("PIL.AvifImagePlugin"):
        return False
    from PIL import AvifImagePlugin

    return bool(AvifImagePlugin.SUPPORTED)


def test_heic_says_how_it_can_be_read(folder):
    if find_spec("pillow_heif"):
        pytest.skip("its plugin is installed")
    (folder / "oak" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(BadImage, match="pip install pillow-heif"):
        load_images(folder)


def test_white_of_twelve_bits(folder):
    values = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(folder / "oak" / "deep.png")
    place = folder / "oak" / "deep.png"
    assert np.asarray(open_image(place)).max() == 16
    seen = np.asarray(open_image(place, Decoding(white_level=4095)))[..., 0].astype(int)
    assert np.abs(seen - values / 4095 * 255).max() <= 0.5
    assert np.asarray(open_image(place, Decoding(white_level=1000))).max() == 255  # beyond white is white
    usual, asked = (load_images(folder, white_level=level, test_share=0.0).train for level in (65535, 4095))
    assert usual.fingerprint != asked.fingerprint  # features kept of the one are not those of the other
    assert any(row["finding"] == "narrow range" for row in check(usual).rows)
    with pytest.raises(SettingsError, match="--white-level is 70000"):
        load_images(folder, white_level=70_000)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 60_000)])
def test_a_very_long_image_is_cropped_before_it_is_enlarged(tmp_path, size):
    colors = np.zeros((*size[::-1], 3), np.uint8)
    colors[size[1] // 4 : -(size[1] // 4) or None, size[0] // 4 : -(size[0] // 4) or None] = 200
    Image.fromarray(colors).save(tmp_path / "long.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ((_, seen),) = Pixels(unlabeled(tmp_path / "long.png"), CENTER).batches([0], 1)
    assert seen.shape == (1, 3, 32, 32)
    assert (seen == 200).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB; whole it would take 250 MB


@pytest.mark.parametrize("size", [(30, 900), (900, 30), (64, 48)])
def test_the_middle_of_a_long_image_is_what_it_was(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8))
    assert (CENTER.pixels(image) == CENTER._transform(image)).all()


def test_all_bad_files_are_named_at_once(folder, names):
    for name in ("oak/a.png", "elm/b.png", "elm/c.jpg"):
        (folder / name).write_bytes(b"no image")
    data = load_images(folder, test_share=0.0).train
    with pytest.raises(BadImage, match=r"(?s)3 files.*elm/b\.png.*elm/c\.jpg.*oak/a\.png"):
        list(Pixels(data, CENTER).batches(range(len(data)), 4))


def test_names_with_line_breaks_stay_on_their_line(tmp_path):
    error = BadImage("a\nb.png", "it is bad", ("c\nd.png", "so is this"))
    assert str(error).splitlines()[1:3] == ["  a b.png: it is bad", "  c d.png: so is this"]


def test_header_with_quotes_and_spaces(folder):
    lines = [f'"{path.relative_to(folder)}", "{path.parent.name}"' for path in sorted(folder.glob("*/*.png"))]
    (folder / "list.csv").write_text("\n".join(['"filename", "label"', *lines]))
    assert load_images(folder / "list.csv").classes == ("elm", "oak")


def test_classes_spelled_in_two_ways_are_named(folder):
    shutil.copytree(folder / "oak", folder / "Oak ")
    assert load_images(folder).notes[0] == "classes that may be one, spelled in two ways: 'Oak ' and 'oak'"


def test_tables_of_training_and_test_images_in_one_folder(folder):
    lists = {"train": ("0", "1", "2"), "test": ("3",)}
    shutil.move(folder, folder.parent / "images")
    for split, numbers in lists.items():
        lines = [f"{label}/{number}.png,{label}" for label in ("oak", "elm") for number in numbers]
        (folder.parent / f"{split}.csv").write_text("\n".join(["path,class", *lines]))
    data = load_images(folder.parent)
    assert [len(data.train), len(data.test)] == [6, 2]
    assert [name.rpartition("/")[2] for name in data.test.identifiers] == ["3.png", "3.png"]
    assert len(load_images(folder.parent / "train.csv").train) < 6  # by itself, a share of it is held out


def test_one_class_is_enough_to_judge_a_model(folder, tuned_by, tmp_path):
    model = tuned_by("linear")[1]
    (tmp_path / "one").mkdir()
    shutil.copytree(folder / "oak", tmp_path / "one" / "5")
    with pytest.raises(DataError, match="only one class"):
        load_images(tmp_path / "one")
    assert main(["evaluate", str(model), str(tmp_path / "one"), "--model", _base(tuned_by)]) == 0


def _base(tuned_by) -> str:
    return str(tuned_by("linear")[0].backbone.origin["uri"])


def test_rare_classes_are_named(folder):
    for index in range(1, 4):
        (folder / "elm" / f"{index}.png").unlink()
    told = " | ".join(load_images(folder).notes)
    assert "1 of 2 classes have one training image only: elm" in told
    assert "1 of 2 classes have no test image" in told
