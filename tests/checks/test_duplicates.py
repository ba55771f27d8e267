"""Copies are found and nothing else is; correlations are those of NumPy."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from tightframe.checks.duplicates import _correlation, descriptors, identical, joined, near_duplicates
from tightframe.checks.looks import SIDE, look_at, sizes_of, thumbnail
from tightframe.data.items import ImageArray, ImageFile, OpenImage
from tightframe.images import Images


def saved_again(image):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=60)
    return Image.open(stream).convert("RGB")


def cropped(image):
    width, height = image.size
    return image.crop((round(0.03 * width), round(0.01 * height), round(0.98 * width), round(0.96 * height)))


COPIES = {
    "JPEG": saved_again,
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped": cropped,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "squeezed": lambda image: image.resize((image.width, round(0.9 * image.height))),
}
OTHERS = {
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "the left half": lambda image: image.crop((0, 0, image.width // 2, image.height)),
}


def thumbnails(images):
    return np.stack([thumbnail(image) for image in images])


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_found_alone(change, scene):
    scenes = [scene(seed) for seed in range(12)]
    found = near_duplicates(thumbnails([*scenes, COPIES[change](scenes[5])]))
    assert [(one.first, one.second) for one in found] == [(5, 12)]
    assert found[0].mirrored == (change == "mirrored")
    assert 0.92 <= found[0].likeness <= 1 + 1e-5


@pytest.mark.parametrize("change", OTHERS)
def test_what_is_no_copy_is_not_found(change, scene):
    scenes = [scene(seed) for seed in range(12)]
    assert near_duplicates(thumbnails([*scenes, OTHERS[change](scenes[5])])) == []


def test_two_images_alone_can_be_compared(scene):
    assert len(near_duplicates(thumbnails([scene(1), saved_again(scene(1))]))) == 1
    assert near_duplicates(thumbnails([scene(1), scene(2)])) == []


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_compare(count, scene):
    assert near_duplicates(thumbnails([scene(1)] * count) if count else np.zeros((0, SIDE, SIDE), np.uint8)) == []


def test_blank_images_are_not_copies_of_each_other():
    blank = [Image.new("RGB", (64, 64), color) for color in ("white", "black", "gray")]
    assert near_duplicates(thumbnails(blank)) == []


def test_mirroring_changes_the_sign_of_odd_frequencies(scene):
    images = thumbnails([scene(seed) for seed in range(9)])
    plain, mirrored = (descriptors(torch.from_numpy(one.copy())) for one in (images, images[:, :, ::-1]))
    one = torch.cat([descriptors(torch.from_numpy(np.concatenate([images, images[:, :, ::-1]])))])
    assert plain.shape == mirrored.shape == (9, 80)
    assert torch.allclose(one[:9].abs(), one[9:].abs(), atol=1e-5)
    assert torch.allclose(one.square().sum(1), torch.ones(18))


def test_correlations_are_numpys():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 24, 24, generator=generator) for _ in range(2))
    second = second + first
    whole, tiles = _correlation(first, second, torch.ones(4, 24, 24))
    for index in range(4):
        assert float(whole[index]) == pytest.approx(
            np.corrcoef(first[index].ravel(), second[index].ravel())[0, 1], abs=1e-5
        )
    assert tiles.shape == (4, 9)
    assert float(_correlation(first, first, torch.ones(4, 24, 24))[1].min()) == pytest.approx(1, abs=1e-5)


def test_tiny_images_are_not_compared(scene):
    images = [scene(1), saved_again(scene(1))]
    assert near_duplicates(thumbnails(images), np.array([[12, 96], [96, 96]])) == []
    assert len(near_duplicates(thumbnails(images), np.array([[0, 0], [96, 96]]))) == 1


def test_sizes_are_known_without_decoding(tmp_path, scene):
    scene(0).resize((31, 20)).save(tmp_path / "file.png")
    items = (
        OpenImage("open", scene(0, side=24)),
        ImageArray("array", np.zeros((8, 9), np.uint8)),
        ImageFile("file.png", tmp_path),
        ImageFile("gone.png", tmp_path),
    )
    images = Images("made", ("a",), np.zeros(4, dtype=np.int64), items)
    assert sizes_of(images).tolist() == [[24, 24], [9, 8], [31, 20], [0, 0]]
    assert sizes_of(images.decoded_once(10**6)).tolist() == sizes_of(images).tolist()


def test_same_contents_are_grouped():
    assert identical(["a", "b", "a", "c", "b", "a"]) == [(0, 2, 5), (1, 4)]


def test_pairs_are_joined_to_groups():
    assert joined([(0, 2), (2, 5), (1, 4)], 7) == [(0, 2, 5), (1, 4)]
    assert joined([], 3) == []


def test_every_image_is_looked_at_once(scene):
    items = tuple(OpenImage(str(seed), scene(seed, side=40)) for seed in range(3))
    looks = look_at(Images("made", ("a",), np.zeros(3, dtype=np.int64), items))
    assert looks.sizes.tolist() == [[40, 40]] * 3
    assert np.array_equal(looks.thumbnails[1], thumbnail(scene(1, side=40)))
    assert looks.good.tolist() == [0, 1, 2]
