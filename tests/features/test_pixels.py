from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tightframe.backbone import Preprocessing
from tightframe.errors import BadImage
from tightframe.features import pixels as module
from tightframe.features.pixels import AHEAD, Pixels

WANTS = Preprocessing((8, 6), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)
Make = Callable[..., Any]


def cropped(image: Image.Image) -> np.ndarray:
    """14 × 12 to 8 × 6, by hand: the short side of each scaled to fit, then the middle."""
    small = image.resize((8, 9), Image.Resampling.BILINEAR)
    return np.asarray(small)[:8, 1:7].transpose(2, 0, 1)


@pytest.mark.parametrize("size", [1, 3, 11, 50])
@pytest.mark.parametrize("keep_bytes", [0, 10**6])
def test_batches_follow_the_order_given(noise: Make, size: int, keep_bytes: int) -> None:
    data = noise()
    order = np.random.default_rng(0).permutation(11)[:9]
    batches = list(Pixels(data, WANTS, keep_bytes).batches(order, size))
    assert [len(indices) for indices, _ in batches] == [min(size, 9 - start) for start in range(0, 9, size)]
    assert [index for indices, _ in batches for index in indices] == order.tolist()
    assert all(pixels.dtype == torch.uint8 for _, pixels in batches)
    found = torch.cat([pixels for _, pixels in batches])
    assert torch.equal(found, torch.stack([WANTS.pixels(data[int(index)]) for index in order]))


def test_an_image_of_the_right_size_is_its_own_bytes(noise: Make) -> None:
    data = noise()
    ((_, pixels),) = Pixels(data, Preprocessing((14, 12), (0.5,) * 3, (0.5,) * 3, 1.0)).batches(range(11), 11)
    assert pixels.shape == (11, 3, 14, 12)
    expected = np.stack([np.asarray(data[index]).transpose(2, 0, 1) for index in range(11)])
    np.testing.assert_array_equal(pixels, expected)


def test_a_larger_image_is_scaled_and_cropped_in_the_middle() -> None:
    ramp = np.tile(np.arange(16, dtype=np.uint8)[:, None, None] * 10, (1, 16, 3))
    pixels = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, crop_pct=0.5).pixels(Image.fromarray(ramp))
    np.testing.assert_array_equal(pixels, ramp[4:12, 4:12].transpose(2, 0, 1))


@pytest.mark.parametrize(("keep_bytes", "times"), [(0, 2), (11 * 3 * 8 * 6 - 1, 2), (11 * 3 * 8 * 6, 1)])
def test_images_are_kept_only_if_all_fit(noise: Make, keep_bytes: int, times: int) -> None:
    data = noise()
    pixels = Pixels(data, WANTS, keep_bytes)
    assert len(pixels) == 11
    first = torch.cat([batch for _, batch in pixels.batches(range(11), 4)])
    kept = first.clone()
    first.zero_()  # a batch is the caller's own
    second = torch.cat([batch.clone() for _, batch in pixels.batches(range(11), 5)])
    assert torch.equal(second, kept)
    assert sorted(data.items[0].decoded) == sorted(list(range(11)) * times)


def test_one_batch_is_the_callers_own(noise: Make) -> None:
    pixels = Pixels(noise(), WANTS)
    before = [batch.clone() for _, batch in pixels.batches(range(11), 1)]
    for _, batch in pixels.batches(range(11), 1):
        batch.zero_()
    assert all(torch.equal(one, batch) for one, (_, batch) in zip(before, pixels.batches(range(11), 1), strict=True))


@pytest.mark.parametrize("keep_bytes", [0, 10**6])
def test_a_bad_image_is_named_when_its_batch_comes(noise: Make, keep_bytes: int) -> None:
    batches = Pixels(noise(bad=(7,)), WANTS, keep_bytes).batches(range(11), 3)
    assert [next(batches)[0] for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(BadImage, match=r"noise7\.png: it is noise"):
        next(batches)
    assert next(batches, None) is None


def test_decoding_runs_no_further_ahead_than_it_says(noise: Make) -> None:
    data = noise(count=60)
    batches = Pixels(data, WANTS, 0).batches(range(60), 2)
    next(batches)
    batches.close()
    assert set(data.items[0].decoded) <= set(range(2 * (AHEAD + 1)))


def test_a_bad_image_stops_what_was_to_be_decoded_next(noise: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(count=40, bad=(0,))
    decode = type(data).__getitem__

    def slowly(self: Any, index: int) -> Image.Image:
        time.sleep(0.02 if index else 0)
        return decode(self, index)

    monkeypatch.setattr(type(data), "__getitem__", slowly)
    monkeypatch.setattr(module, "THREADS", 2)
    with pytest.raises(BadImage, match="noise0"):
        next(Pixels(data, WANTS, 0).batches(range(40), 20))
    once_to_name_the_bad = len(data)
    assert len(data.items[0].decoded) < once_to_name_the_bad + 20


def test_no_images_no_batches(noise: Make) -> None:
    assert list(Pixels(noise(), WANTS).batches([], 4)) == []
