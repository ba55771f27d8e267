"""Views: the same again for the same number, and what they say they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tightframe import load_images
from tightframe.errors import SettingsError
from tightframe.features.pixels import Pixels
from tightframe.protocols import Preprocessing
from tightframe.tuning.augment import Augment
from tightframe.tuning.inputs import PixelInputs
from tightframe.tuning.prefix import features_of_views

PICTURE = torch.randint(0, 256, (3, 24, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["flip", "crop", "randaugment"])
def test_a_view_depends_on_seed_picture_and_number_only(kind):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    views = [Augment(kind, 1)(PICTURE, 3, view) for view in range(12)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(9)
    for view, expected in enumerate(views):
        again = Augment(kind, 1)(PICTURE, 3, view)
        assert torch.equal(again, expected)
        assert (again.dtype, again.shape) == (torch.uint8, PICTURE.shape)
    assert torch.equal(views[0], PICTURE)
    assert any(not torch.equal(Augment(kind, 2)(PICTURE, 3, v), view) for v, view in enumerate(views))
    assert any(not torch.equal(Augment(kind, 1)(PICTURE, 4, v), view) for v, view in enumerate(views))


def test_a_flip_is_one_half_of_the_time():
    flips = [torch.equal(Augment("flip", 0)(PICTURE, i, 1), PICTURE.flip(2)) for i in range(200)]
    kept = [torch.equal(Augment("flip", 0)(PICTURE, i, 1), PICTURE) for i in range(200)]
    assert sum(flips) + sum(kept) == 200
    assert 70 < sum(flips) < 130


def test_an_unknown_kind_is_refused():
    with pytest.raises(SettingsError, match="randaugment"):
        Augment("cutout", 0)


def test_views_are_kept_view_by_view():
    data = load_images("digits", shots=2).train
    looks = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear", "center")
    pictures = PixelInputs(Pixels(data, looks), Augment("flip", 0))
    kept = features_of_views(
        lambda batch: batch.flatten(1), pictures, len(data), 3, device=torch.device("cpu"), precision="float32"
    )
    order, views = np.array([4, 0, 4]), np.array([2, 0, 1])
    (_, found), *_ = kept.batches(order, 8, views)
    (_, plain), *_ = kept.batches(order, 8)
    (_, expected), *_ = pictures.batches(order, 8, views)
    torch.testing.assert_close(found, expected.flatten(1))
    (_, expected), *_ = pictures.batches(order, 8)
    torch.testing.assert_close(plain, expected.flatten(1))
