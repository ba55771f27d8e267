"""Real images and a real model: what is planted is found. Skipped where they are not at hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import tightframe as tf
from tightframe.checks.duplicates import near_duplicates
from tightframe.checks.looks import look_at
from tightframe.data.items import OpenImage

pytestmark = pytest.mark.slow


def test_copies_of_photographs_are_found_and_nothing_else(shared):
    images = tf.load_images(shared / "data" / "flowers5").train
    planted = (
        images[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        images[250].resize((images[250].width // 2, images[250].height // 2)),
        images[499].crop((4, 2, images[499].width - 2, images[499].height - 4)),
    )
    copies = replace(
        images.subset([0, 250, 499]), items=tuple(OpenImage(f"copy {i}", one) for i, one in enumerate(planted))
    )
    looks = look_at(images.joined(copies))
    found = near_duplicates(looks.thumbnails, looks.sizes)
    assert sorted((one.first, one.second) for one in found) == [(0, 500), (250, 501), (499, 502)]


def test_wrong_labels_of_photographs_are_found(shared, zoo):
    data = tf.load_images(shared / "data" / "sign_digits", max_per_class=40)
    backbone = tf.load_backbone(zoo + "mobilenetv1_050", input_size=128)
    labels = data.train.labels.copy()
    labels[::20] = (labels[::20] + 3) % 10
    wrong = set(data.train.identifiers[::20])
    result = tf.check(replace(data, train=replace(data.train, labels=labels), test=None), backbone)
    named = [row["path"] for row in result.rows if row["finding"] == "wrong label"]
    assert np.mean([name in wrong for name in named]) >= 0.7
    assert len(wrong & set(named)) >= len(wrong) / 2
