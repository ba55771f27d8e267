"""Views: the same again for the same number, and what they say they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tightframe import load_images
from tightframe.backbone import PENULTIMATE, Backbone, Layer, Preprocessing
from tightframe.errors import SettingsError
from tightframe.features.augment import Augment, Distort
from tightframe.features.inputs import PixelInputs
from tightframe.features.pixels import Pixels
from tightframe.features.workspace import Workspace

IMAGE = torch.randint(0, 256, (3, 24, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["flip", "crop", "randaugment"])
def test_a_view_depends_on_seed_image_and_number_only(kind):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    views = [Augment(kind, 1)(IMAGE, 3, view) for view in range(12)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(9)
    for view, expected in enumerate(views):
        again = Augment(kind, 1)(IMAGE, 3, view)
        assert torch.equal(again, expected)
        assert (again.dtype, again.shape) == (torch.uint8, IMAGE.shape)
    assert torch.equal(views[0], IMAGE)
    assert any(not torch.equal(Augment(kind, 2)(IMAGE, 3, v), view) for v, view in enumerate(views))
    assert any(not torch.equal(Augment(kind, 1)(IMAGE, 4, v), view) for v, view in enumerate(views))


def test_a_flip_is_one_half_of_the_time():
    flips = [torch.equal(Augment("flip", 0)(IMAGE, i, 1), IMAGE.flip(2)) for i in range(200)]
    kept = [torch.equal(Augment("flip", 0)(IMAGE, i, 1), IMAGE) for i in range(200)]
    assert sum(flips) + sum(kept) == 200
    assert 70 < sum(flips) < 130


def test_an_unknown_kind_is_refused():
    with pytest.raises(SettingsError, match="randaugment"):
        Augment("cutout", 0)


def test_views_are_kept_view_by_view():
    data = load_images("digits", max_per_class=2).train
    looks = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear", "center")
    augment = Augment("flip", 0)
    images = PixelInputs(Pixels(data, looks), augment)
    layer = Layer(PENULTIMATE, "vector", 768, 0)
    backbone = Backbone("pixels", torch.nn.Flatten(1).eval(), looks, (), layer, None)
    found = Workspace(device="cpu").block_inputs(backbone, data, [PENULTIMATE], augment=augment, views=3)
    kept = found[PENULTIMATE]
    order, views = np.array([4, 0, 4]), np.array([2, 0, 1])
    (_, found), *_ = kept.batches(order, 8, views)
    (_, plain), *_ = kept.batches(order, 8)
    (_, expected), *_ = images.batches(order, 8, views)
    torch.testing.assert_close(found, expected.flatten(1))
    (_, expected), *_ = images.batches(order, 8)
    torch.testing.assert_close(plain, expected.flatten(1))


def seen_by(strength, view=1, seed=0, count=64):
    images = IMAGE.expand(count, 3, 24, 20).contiguous()
    return images, Distort(strength, seed).of(images, list(range(count)), np.full(count, view))


def test_distortions_depend_on_seed_image_and_view_only():
    images, views = seen_by(0.6)
    assert (views.dtype, views.shape) == (torch.uint8, images.shape)
    chosen = [5, 40]
    again = Distort(0.6, 0).of(images[chosen], chosen, np.array([1, 1]))
    assert torch.equal(again, views[chosen])
    for other in (seen_by(0.6, view=2)[1], seen_by(0.6, seed=1)[1]):
        assert not any(torch.equal(a, b) for a, b in zip(views, other, strict=True))
    assert torch.equal(seen_by(0.6, view=0)[1], images)
    assert torch.equal(seen_by(0.0)[1], images)


def test_distortions_grow_with_strength():
    smooth = torch.nn.functional.interpolate(torch.rand(64, 3, 4, 4), (24, 24), mode="bicubic")
    images = (smooth * 255).clamp(0, 255).to(torch.uint8)
    views = [Distort(s, 0).of(images, list(range(64)), np.full(64, 3)) for s in (0.01, 0.3, 0.6, 1.0)]
    apart = [
        torch.minimum(
            (view.float() - images.float()).abs().mean((1, 2, 3)),
            (view.float() - images.flip(3).float()).abs().mean((1, 2, 3)),
        ).mean()
        for view in views
    ]
    assert apart == sorted(apart)
    assert apart[0] < 3


def test_a_fifth_turns_gray_at_full_strength():
    _, views = seen_by(1.0, count=400)
    gray = (views.float().std(1).amax((1, 2)) < 1).float().mean()
    assert 0.13 < gray < 0.27


def test_strength_is_checked():
    with pytest.raises(SettingsError, match="0 to 1"):
        Distort(1.2, 0)
