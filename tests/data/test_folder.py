from __future__ import annotations

import os
import pickle
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tightframe.data import folder
from tightframe.data.folder import load_folder
from tightframe.data.loading import load_images
from tightframe.errors import BadImage, DataError, SettingsError
from tightframe.images import ImageSplits


def put(path: Path, gray: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (gray, gray, gray)).save(path)
    return path


def tree(root: Path, *folders: str, each: int = 2) -> Path:
    for number, name in enumerate(folders):
        for image in range(each):
            put(root / name / f"{image}.png", 10 * number + image)
    return root


def load(root: Path, **settings: Any) -> ImageSplits:
    return load_folder(root, **{"test_share": 0.25, "seed": 0, "skip_bad": False, **settings})


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return tree(tmp_path / "pets", "train/cat", "train/dog", "test/cat", "test/dog")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return tree(tmp_path / "flat", "cat", "dog", each=8)


# Layouts


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation", "Test", "VAL"])
def test_train_and_held_out(tmp_path: Path, held_out: str) -> None:
    root = tree(tmp_path / "pets", "train/dog", "train/cat", f"{held_out}/cat", f"{held_out}/dog")
    splits = load(root)
    assert splits.test is not None
    assert (splits.name, splits.train.name, splits.test.name) == ("pets", "pets/train", "pets/test")
    assert splits.classes == splits.test.classes == ("cat", "dog")
    assert splits.train.identifiers == ("train/cat/0.png", "train/cat/1.png", "train/dog/0.png", "train/dog/1.png")
    assert splits.test.identifiers[0] == f"{held_out}/cat/0.png"
    assert splits.train.labels.tolist() == [0, 0, 1, 1]
    assert splits.train.labels.dtype == np.int64
    assert splits.skipped == ()
    assert splits.train[2].getpixel((0, 0)) == (0, 0, 0)  # dog was written first
    assert splits.train[1].getpixel((0, 0)) == (11, 11, 11)


def test_test_goes_before_val(tmp_path: Path) -> None:
    splits = load(tree(tmp_path, "train/a", "train/b", "val/a", "val/b", "test/a", "test/b"))
    assert splits.test is not None
    assert all(name.startswith("test/") for name in splits.test.identifiers)


def test_classes_alone_are_split(flat: Path) -> None:
    splits = load(flat)
    assert splits.test is not None
    assert np.bincount(splits.train.labels).tolist() == [6, 6]
    assert np.bincount(splits.test.labels).tolist() == [2, 2]
    assert not set(splits.train.identifiers) & set(splits.test.identifiers)
    assert (splits.train.name, splits.test.name) == ("flat/train", "flat/test")
    assert load(flat, seed=0).test.identifiers == splits.test.identifiers  # type: ignore[union-attr]
    assert load(flat, seed=1).test.identifiers != splits.test.identifiers  # type: ignore[union-attr]


def test_train_alone_is_split_as_well(tmp_path: Path) -> None:
    splits = load(tree(tmp_path, "train/a", "train/b"), test_share=0.5)
    assert splits.test is not None
    assert splits.classes == ("a", "b")
    assert len(splits.train) == len(splits.test) == 2


def test_share_zero_means_no_test_set(flat: Path) -> None:
    splits = load(flat, test_share=0.0)
    assert splits.test is None
    assert len(splits.train) == 16


def test_share_is_not_needed_where_there_is_a_test_set(pets: Path) -> None:
    assert load(pets, test_share=0.0).test is not None


def test_classes_of_one_image_leave_nothing_to_hold_out(tmp_path: Path) -> None:
    assert load(tree(tmp_path, "a", "b", each=1)).test is None


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_two_images_go_one_to_each_side(tmp_path: Path, share: float) -> None:
    splits = load(tree(tmp_path, "a", "b"), test_share=share)
    assert splits.test is not None
    assert splits.train.labels.tolist() == splits.test.labels.tolist() == [0, 1]


def test_images_may_lie_deeper(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/2020/may", "a/2021", "a", "b")
    assert load(root, test_share=0.0).train.identifiers[:3] == ("a/0.png", "a/1.png", "a/2020/may/0.png")


def test_train_may_be_a_class(tmp_path: Path) -> None:
    assert load(tree(tmp_path, "bus", "train")).classes == ("bus", "train")


def test_test_may_lack_classes(tmp_path: Path) -> None:
    splits = load(tree(tmp_path, "train/a", "train/b", "train/c", "test/c"))
    assert splits.test is not None
    assert splits.test.classes == ("a", "b", "c")
    assert splits.test.labels.tolist() == [2, 2]


def test_order_does_not_depend_on_the_file_system(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(flat)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: Path) -> None:
            with scandir(path) as found:
                self.found = list(found)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return sorted(self.found, key=lambda entry: entry.name, reverse=True)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(folder.os, "scandir", Backwards)
    assert load(flat).train.identifiers == before.train.identifiers


def test_what_systems_leave_behind_is_passed_over(pets: Path) -> None:
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "train/.DS_Store",
        "train/cat/.hidden.png",
        "train/cat/Thumbs.db",
    ):
        (pets / name).write_bytes(b"x")
    tree(pets, ".git/x", "train/.cache", "train/cat/.thumbnails", "__MACOSX/train")
    (pets / "README.md").write_text("beside the classes")
    (pets / "train" / "labels.csv").write_text("beside the classes")
    splits = load(pets)
    assert len(splits.train) == 4
    assert splits.skipped == ()


# Layouts that can't be


@pytest.mark.parametrize(
    "folders",
    [
        ["."],
        ["train"],
        ["train", "test"],
        ["Training", "Testing"],
        ["test/a", "test/b"],
        ["train/a", "train/b", "test"],
    ],
)
def test_images_without_class_folders(tmp_path: Path, folders: list[str]) -> None:
    with pytest.raises(DataError, match="ROOT/train/CLASS/image"):
        load(tree(tmp_path, *folders))


def test_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds nothing.*ROOT/CLASS/image"):
        load(tmp_path)


def test_test_without_any_class(tmp_path: Path) -> None:
    tree(tmp_path, "train/a", "train/b")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="test holds no usable images"):
        load(tmp_path)


def test_an_image_beside_the_classes(flat: Path) -> None:
    put(flat / "stray.png")
    with pytest.raises(BadImage, match=r"stray\.png: it lies in no class folder"):
        load(flat)
    assert load(flat, skip_bad=True).skipped[0].startswith("stray.png: ")


def test_one_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only one class, 'cat'.*ROOT/CLASS"):
        load(tree(tmp_path, "cat"))


def test_missing_folder_suggests_its_neighbor(pets: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder.*Did you mean .*pets\?"):
        load(pets.parent / "petz")
    with pytest.raises(DataError, match=r"no such folder\. Check the path"):
        load(pets.parent / "quite-another")
    with pytest.raises(DataError, match="no such folder"):
        load(pets / "no" / "such")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a file"):
        load(put(tmp_path / "a.png"))


def test_unknown_test_classes_are_named(pets: Path) -> None:
    tree(pets, "test/cow", "test/emu")
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=r"training lacks: cow, emu.*training has cat, dog"):
            load(pets, skip_bad=skip_bad)


def test_empty_classes_are_all_named(pets: Path) -> None:
    for name in ("train/emu", "train/cow", "test/cow"):
        (pets / name).mkdir()
    with pytest.raises(DataError, match=r"train/cow, .*train/emu, .*test/cow\. Put images there or remove"):
        load(pets)
    splits = load(pets, skip_bad=True)
    assert splits.classes == ("cat", "dog")
    assert [line.split(":")[0] for line in splits.skipped] == ["train/cow", "train/emu", "test/cow"]


def test_a_class_dropped_from_training_goes_from_testing_too(pets: Path) -> None:
    (pets / "train" / "cow").mkdir()
    tree(pets, "test/cow")
    splits = load(pets, skip_bad=True)
    assert splits.test is not None
    assert len(splits.test) == 4
    assert "test/cow: training has no usable image of this class" in splits.skipped


# Files and links that can't be


def bad_files(root: Path) -> dict[str, str]:
    """Make one of each; where they lie, and what the reason says."""
    (root / "cat/scan.heic").write_text("x")
    (root / "cat/empty.png").write_bytes(b"")
    (root / "cat/broken.png").symlink_to("nowhere.png")
    (root / "cat/circle.png").symlink_to("circle.png")
    (root / "cat/escape.png").symlink_to(put(root.parent / "outside" / "a.png"))
    (root / "cat/elsewhere").symlink_to(root.parent / "outside")
    (root / "cat/loop").symlink_to("..")
    os.mkfifo(root / "cat/pipe.png")
    return {
        "cat/scan.heic": ".heic files are not read",
        "cat/empty.png": "empty",
        "cat/broken.png": "leads nowhere",
        "cat/circle.png": "leads nowhere",
        "cat/escape.png": "out of the data folder",
        "cat/elsewhere": "out of the data folder",
        "cat/loop": "back to a folder above",
        "cat/pipe.png": "neither",
    }


def test_bad_files_are_skipped_and_listed(flat: Path) -> None:
    expected = bad_files(flat)
    splits = load(flat, skip_bad=True, test_share=0.0)
    assert len(splits.train) == 16
    found = dict(line.split(": ", 1) for line in splits.skipped)
    assert found.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in found[name]


@pytest.mark.parametrize("name", ["scan.heic", "empty.png", "broken.png", "circle.png", "escape.png", "loop"])
def test_each_bad_file_is_an_error_without(tmp_path: Path, flat: Path, name: str) -> None:
    reasons = bad_files(flat)
    for other in reasons:
        if other != f"cat/{name}":
            (flat / other).unlink()
    with pytest.raises(BadImage, match=reasons[f"cat/{name}"]) as caught:
        load(flat)
    assert caught.value.path == str(flat / "cat" / name)


def test_bad_files_are_all_named_at_once(flat: Path) -> None:
    expected = bad_files(flat)
    with pytest.raises(BadImage, match="8 files can't be used") as caught:
        load(flat)
    lines = str(caught.value).splitlines()
    for name, reason in expected.items():
        assert any(f"{flat / name}: " in line and reason in line for line in lines)
    assert "Repair or remove them, or pass --skip-bad" in lines[-1]
    for index in range(30):
        (flat / f"dog/empty{index}.png").touch()
    with pytest.raises(BadImage, match="and 18 more"):
        load(flat)


def test_what_is_no_image_by_name_and_content_is_left_out_with_a_note(flat: Path) -> None:
    (flat / "cat/notes.txt").write_text("x")
    (flat / "cat/noext").write_bytes(b"")
    (flat / "dog/0.png").rename(flat / "dog/photo")  # an image nonetheless
    for skip_bad in (False, True):
        splits = load(flat, skip_bad=skip_bad, test_share=0.0)
        assert len(splits.train) == 16
        assert "dog/photo" in splits.train.identifiers
        assert splits.notes == ["2 files were left out; the first: cat/noext: not an image, by name or content"]


def test_reasons_end_with_one_full_stop(flat: Path) -> None:
    put(flat / "stray.png")
    with pytest.raises(BadImage, match=r"[^.]\. Repair"):
        load(flat)


def test_class_and_split_folders_that_lead_out(tmp_path: Path, flat: Path) -> None:
    (flat / "emu").symlink_to(tree(tmp_path / "outside", "x"))
    with pytest.raises(BadImage, match=r"emu: a link that leads out"):
        load(flat)
    splits = load(flat, skip_bad=True)
    assert splits.classes == ("cat", "dog")
    assert splits.skipped[0].startswith("emu: ")
    tree(tmp_path / "pets", "train/a", "train/b")
    (tmp_path / "pets" / "test").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="test: a link that leads out"):
        load(tmp_path / "pets", skip_bad=True)


def test_links_inside_the_root_are_followed(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "a", "b", "c/real")
    put(root / ".store" / "x.png")
    (root / "a" / "x.png").symlink_to("../.store/x.png")
    (root / "b" / "more").symlink_to("../c/real")
    (root / "d").symlink_to("c")
    found = load(root, test_share=0.0).train.identifiers
    assert {"a/x.png", "b/more/0.png", "d/real/0.png"} <= set(found)
    (tmp_path / "link").symlink_to(root)
    assert load(tmp_path / "link", test_share=0.0).train.identifiers == found
    assert load(tmp_path / "link").name == "link"


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    names = [f"x{number}" for number in range(9)]  # 9! ways through, if each were followed
    root = tree(tmp_path, *(f"a/{name}" for name in names), "b", each=1)
    for name in names:
        for other in names:
            if other != name:
                (root / "a" / name / f"to-{other}").symlink_to(f"../{other}")
    assert load(root, test_share=0.0).train.identifiers == (*(f"a/{name}/0.png" for name in names), "b/0.png")


def test_undecodable_images_wait_until_they_are_asked_for(flat: Path) -> None:
    (flat / "cat" / "0.png").write_text("no image")
    data = load(flat, test_share=0.0).train
    data[1]
    with pytest.raises(BadImage, match=r"cat/0\.png: it is not an image"):
        data[0]


def test_skip_bad_decodes_all_and_shows_progress(pets: Path) -> None:
    for name in ("train/cat/0.png", "test/dog/1.png"):
        (pets / name).write_bytes((pets / name).read_bytes()[:45])
    shown: list[Any] = []

    def progress(iterable: Iterable[Any], description: str, total: int) -> Iterable[Any]:
        shown.append((description, total))
        for item in iterable:
            shown.append(item)
            yield item

    splits = load(pets, skip_bad=True, progress=progress)
    assert splits.train.identifiers == ("train/cat/1.png", "train/dog/0.png", "train/dog/1.png")
    assert [line.split(": ")[0] for line in splits.skipped] == ["test/dog/1.png", "train/cat/0.png"]
    assert shown[0] == ("decoding images", 8)
    assert len(shown) == 9


def test_a_class_of_nothing_but_bad_images_is_dropped(flat: Path) -> None:
    (flat / "emu").mkdir()
    (flat / "emu" / "a.png").write_text("x")
    splits = load(flat, skip_bad=True)
    assert splits.classes == ("cat", "dog")
    assert [line.split(": ")[0] for line in splits.skipped] == ["emu/a.png", "emu"]


def test_unreadable_folder(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def guarded(path: Path) -> Any:  # and no chmod, for root may read everything
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", guarded)
    with pytest.raises(DataError, match=r"cat can't be read \(Permission denied\)"):
        load(flat)


# Names


@pytest.mark.parametrize(
    "name", ["猫", "قطة", "🐈", "<script>alert(1)</script>".replace("/", "∕"), "a b", "%s{0}", "-rf"]
)
def test_class_names_in_any_script(tmp_path: Path, name: str) -> None:
    splits = load(tree(tmp_path, f"train/{name}", "train/zz", f"test/{name}"))
    assert splits.test is not None
    assert name in splits.classes
    assert {splits.classes[label] for label in splits.test.labels} == {name}
    assert splits.test[0].size == (4, 3)


def test_composed_and_decomposed_names_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    assert composed != decomposed
    root = tree(tmp_path, f"train/{composed}", "train/tea", f"test/{decomposed}", f"train/{decomposed}")
    splits = load(root)
    assert splits.test is not None
    assert splits.classes == (composed, "tea")
    assert splits.train.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert splits.test.labels.tolist() == [0, 0]
    assert splits.test[0].size == (4, 3)  # found on disk by the name it has there


def test_names_that_are_not_text(flat: Path) -> None:
    nameless = flat / os.fsdecode(b"\xff\xfe")
    nameless.mkdir()
    with pytest.raises(DataError, match=r"not text \(UTF-8\)") as caught:
        load(flat, skip_bad=True)
    str(caught.value).encode()  # can be printed
    nameless.rmdir()
    put(flat / "cat" / os.fsdecode(b"\xff.png"))
    with pytest.raises(BadImage, match="not text") as caught:
        load(flat)
    str(caught.value).encode()
    skipped = load(flat, skip_bad=True).skipped
    assert len(skipped) == 1
    skipped[0].encode()


# Fingerprints and the rest of the protocol


def test_fingerprint_follows_what_it_should(pets: Path) -> None:
    first = load(pets).train.fingerprint
    assert load(pets).train.fingerprint == first
    moved = pets.rename(pets.parent / "renamed")
    assert load(moved).train.fingerprint == first  # not where it lies
    splits = load(moved)
    assert splits.test is not None
    assert splits.test.fingerprint != first
    put(moved / "train/cat/0.png", 99)
    content = load(moved).train.fingerprint
    (moved / "train/cat/0.png").rename(moved / "train/cat/00.png")
    name = load(moved).train.fingerprint
    tree(moved, "train/emu")
    assert len({first, content, name, load(moved).train.fingerprint}) == 4


def test_fingerprint_is_lazy_and_kept(pets: Path) -> None:
    data = load(pets).train
    first = data.fingerprint
    put(pets / "train/cat/0.png", 99)
    assert data.fingerprint == first
    fresh, gone = load(pets).train, load(pets).train
    assert fresh.fingerprint != first
    (pets / "train/cat/0.png").unlink()
    with pytest.raises(BadImage, match=r"cat/0\.png: it can't be read"):
        _ = gone.fingerprint


def test_labels_cannot_be_written_by_mistake(pets: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        load(pets).train.labels[0] = 1


def test_data_travels_to_workers(flat: Path) -> None:
    data = load(flat).train
    back = pickle.loads(pickle.dumps(data))
    assert back.identifiers == data.identifiers
    assert back[0].size == (4, 3)


def test_a_relative_folder_outlives_a_change_of_directory(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flat)
    splits = load(Path())
    monkeypatch.chdir("/")
    assert splits.name == "flat"
    assert splits.train[0].size == (4, 3)


def test_load_images_on_folders(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load_images(str(flat), max_per_class=3)
    assert splits.test is not None
    assert np.bincount(splits.train.labels).tolist() == [3, 3]
    assert len(splits.test) == 4
    flat.rename(flat.parent / "digits")
    monkeypatch.chdir(flat.parent)
    for uri in ("./digits", Path("digits")):
        assert load_images(uri).classes == ("cat", "dog")
    assert len(load_images("digits").classes) == 10


@pytest.mark.parametrize("settings", [{"test_share": 1.0}, {"test_share": -0.5}, {"seed": -1}])
def test_settings_out_of_range(flat: Path, settings: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        load(flat, **settings)
