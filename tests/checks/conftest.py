"""Small made images in folders, one class a subject, so that what is wrong with them is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import tightframe as tf
from tightframe.data.items import ImageFile
from tightframe.images import ImageSplits

CLASSES = ("bark", "cloud", "tile")


def _scene(seed: int, subject: int = 0, side: int = 96) -> Image.Image:
    """Colored noise with details of every size, of a color and grain that the subject decides."""
    generator = np.random.default_rng((seed, subject))
    layers = np.zeros((side, side, 3))
    for size in (3, 6, 12, 24, 48):
        noise = generator.normal(size=(size, size, 3)) * (1.5 if size == (3, 12, 48)[subject] else 1.0)
        layers += np.stack(
            [np.asarray(Image.fromarray(noise[..., c].astype(np.float32)).resize((side, side))) for c in range(3)], 2
        )
    tint = np.eye(3)[subject] * 50
    return Image.fromarray((128 + 28 * layers + tint).clip(0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(0.5)
    )


@pytest.fixture(scope="session")
def scene() -> Callable[..., Image.Image]:
    """Makes an image from a seed, a subject (0 to 2) and a side."""
    return _scene


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``train/CLASS`` with 8 and ``test/CLASS`` with 4 images each, nothing wrong with any."""
    root = tmp_path / "made"
    for split, seeds in (("train", range(8)), ("test", range(8, 12))):
        for subject, name in enumerate(CLASSES):
            place = root / split / name
            place.mkdir(parents=True)
            for seed in seeds:
                _scene(seed, subject).save(place / f"{'abcdefghijkl'[seed]}.png")
    return root


@pytest.fixture
def load() -> Callable[[Path], ImageSplits]:
    """Loads a folder with what can't be read left out."""
    return lambda root: tf.load_images(root, skip_bad=True)


@pytest.fixture
def unreadable_images(tmp_path: Path) -> tf.Images:
    """Three files of two classes, none of which is an image."""
    for name in "abc":
        (tmp_path / name).write_text("nothing")
    items = tuple(ImageFile(name, tmp_path) for name in "abc")
    return tf.Images("broken", ("x", "y"), np.array([0, 1, 1]), items)
