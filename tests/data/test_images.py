from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tightframe.data.items import unlabeled
from tightframe.errors import BadImage, DataError
from tightframe.images import Images, ImageSplits, undecodable

SIZE = 4 * 6 * 5  # bytes of one decoded image


@dataclass(frozen=True)
class Counted:
    name: str
    opened: list[str]

    def digest(self) -> str:
        return self.name

    def open(self) -> Image.Image:
        self.opened.append(self.name)
        return Image.new("RGB", (6, 5), f"#0000{int(self.name):02x}")


def counted(count: int = 4) -> tuple[Images, list[str]]:
    opened: list[str] = []
    items = tuple(Counted(str(index), opened) for index in range(count))
    return Images("pets/train", ("cat", "dog"), np.arange(count) % 2, items), opened


def test_it_says_what_it_is() -> None:
    train, _ = counted()
    assert repr(train) == "Images pets/train: 4 images of 2 classes"
    splits = ImageSplits("pets", train, train.subset([0, 1]))
    assert repr(splits) == "ImageSplits pets: 2 classes, 4 training images, 2 test images"
    assert repr(ImageSplits("pets", train, None, ("x: bad",))).endswith("no test images, 1 files left out")


def test_labels_are_one_an_image() -> None:
    with pytest.raises(DataError, match=r"pets/train: labels of shape \(3,\) for 4 images"):
        Images("pets/train", ("cat",), np.zeros(3), counted()[0].items)


def test_joined() -> None:
    one, other = counted()[0].subset([3, 0]), counted()[0].subset([1], "pets/test")
    both = one.joined(other)
    assert (both.name, both.identifiers, both.labels.tolist()) == ("pets/train + pets/test", ("3", "0", "1"), [1, 0, 1])
    assert both.fingerprint == counted()[0].subset([3, 0, 1]).fingerprint


def test_each_image_is_decoded_once_whoever_asks() -> None:
    plain, opened = counted()
    images = plain.decoded_once(4 * SIZE)
    assert images.fingerprint == plain.fingerprint
    for part in (images, images.subset([2, 1]), images):
        for index, name in enumerate(part.identifiers):
            assert part[index].getpixel((0, 0)) == (0, 0, int(name))
    assert sorted(opened) == ["0", "1", "2", "3"]


def test_memory_for_decoded_images_is_bounded() -> None:
    plain, opened = counted()
    images = plain.decoded_once(3 * SIZE - 1)
    for _ in range(3):
        assert [image.size for image in images] == [(6, 5)] * 4
    assert sorted(opened) == ["0", "1", *["2"] * 3, *["3"] * 3]


def test_threads_share_what_is_decoded() -> None:
    plain, opened = counted(50)
    images = plain.decoded_once(25 * SIZE)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(images.__getitem__, list(range(50)) * 20))
    opened.clear()
    list(images)
    assert len(opened) == 25


def test_another_process_decodes_anew() -> None:
    images = counted()[0].decoded_once(4 * SIZE)
    list(images)
    back = pickle.loads(pickle.dumps(images))
    assert back.fingerprint == images.fingerprint
    assert back.items[0].image is None
    assert back[3].getpixel((0, 0)) == (0, 0, 3)


def test_images_of_all_kinds_without_labels(tmp_path: Path) -> None:
    shown = Image.new("RGB", (3, 2), "red")
    shown.save(tmp_path / "a.png")
    data = unlabeled([tmp_path / "a.png", str(tmp_path / "a.png"), shown, np.asarray(shown), np.zeros((2, 3), "u1")])
    assert data.identifiers == (*[str(tmp_path / "a.png")] * 2, "image 2", "image 3", "image 4")
    assert [image.getpixel((0, 0)) for image in data] == [(255, 0, 0)] * 4 + [(0, 0, 0)]
    digests = [item.digest() for item in data.items]
    assert digests[0] == digests[1]
    assert digests[2] == digests[3] != digests[4]


def test_faults_are_told_by_index(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    data = unlabeled([tmp_path / "a.png", tmp_path / "none.png"])
    assert undecodable(data.items) == {1: "there is no such file"}
    with pytest.raises(BadImage, match=r"none\.png: there is no such file"):
        _ = data[1]


def test_groups_go_with_their_images() -> None:
    plain = counted()[0]
    images = replace(plain, groups=np.arange(len(plain)) // 2)

    def groups(of: Images) -> list[int]:
        assert of.groups is not None
        return of.groups.tolist()

    assert images.fingerprint != plain.fingerprint
    assert groups(images.subset([3, 0])) == [1, 0]
    assert groups(images.subset([3]).joined(plain.subset([0, 1]))) == [1, 2, 3]
    assert groups(images.subset([3]).joined(images.subset([2]))) == [1, 1]
    with pytest.raises(DataError, match="groups of shape"):
        replace(plain, groups=np.zeros(1))
