"""The part of the check that costs next to nothing where a model was just transferred: three lines at most.

It decodes nothing and runs no model: near duplicates come from the pixels that the model was given, labels from what
the discriminants of all layers said of training images left out, and shift from that and what they said of test images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tightframe.checks.duplicates import identical, near_duplicates
from tightframe.checks.labels import suspects
from tightframe.checks.looks import sizes_of, thumbnails_of
from tightframe.checks.shift import shift_between, shift_words
from tightframe.decide.evidence import Evidence
from tightframe.features.pixels import Pixels
from tightframe.images import Images, ImageSplits, counted
from tightframe.probes.discriminant import LayerReading

BATCH = 256


def quick_notes(
    data: ImageSplits,
    pixels: Mapping[str, Pixels],
    reading: Callable[[], LayerReading],
    test_logits: Any = None,
    *,
    seed: int = 0,
) -> list[str]:
    """Near duplicates, wrong labels and shift, a line each where there is something to say.

    Args:
        data: training and test images.
        pixels: what the model was given of each split, by ``train`` and ``test``.
        reading: gives the discriminants of all layers fitted to all training images, where two classes have images.
        test_logits: of the test images (m, K), by these.
        seed: of draws.
    """
    labels = data.train.labels
    notes = _copies(data, pixels)
    if np.bincount(labels).max() < 2 or len(np.unique(labels)) < 2:
        return notes
    groups = data.train.groups
    held_out = reading().held_out.numpy()
    notes += _wrong_labels(data.train, Evidence(held_out, labels, groups))
    if test_logits is not None and data.test is not None:
        notes += _shift(held_out, np.asarray(test_logits, dtype=np.float64), data, seed)
    return notes


def _copies(data: ImageSplits, pixels: Mapping[str, Pixels]) -> list[str]:
    """What near duplicates there are; those with the same contents are said elsewhere."""
    images = data.train if data.test is None else data.train.joined(data.test)
    groups = identical(images.digests)
    distinct = np.setdiff1d(np.arange(len(images)), [index for group in groups for index in group[1:]])
    seen = [
        thumbnails_of(batch.numpy() for _, batch in pixels[split].batches(range(len(pixels[split])), BATCH))
        for split in ("train", "test")
        if split in pixels
    ]
    pairs = near_duplicates(np.concatenate(seen)[distinct], sizes_of(images)[distinct])
    found = [(int(distinct[one.first]), int(distinct[one.second])) for one in pairs]
    if not found:
        return []
    first, second = found[0]
    across = sum(a < len(data.train) <= b for a, b in found)
    clashing = sum(images.labels[a] != images.labels[b] for a, b in found)
    parts = [f"{across} across splits"] if across else []
    parts += [f"{clashing} across classes"] if clashing else []
    told = f" ({', '.join(parts)})" if parts else ""
    number = "1 pair of images is" if len(found) == 1 else f"{len(found)} pairs of images are"
    names = f"{images.identifiers[first]} and {images.identifiers[second]}"
    return [f"{number} nearly the same{told}, such as {names}; `tightframe check` shows them"]


def _wrong_labels(images: Images, evidence: Evidence) -> list[str]:
    wrong = [one for one in suspects(evidence) if one.wrong]
    if not wrong:
        return []
    first, number = wrong[0], counted(len(wrong), "training image")
    said = f"{images.classes[images.labels[first.place]]}, more likely {images.classes[first.likely]}"
    return [
        f"{number} probably labeled wrong; the first: {images.identifiers[first.place]} ({said}). "
        "`tightframe check` shows them"
    ]


def _shift(held_out: np.ndarray, logits: np.ndarray, data: ImageSplits, seed: int) -> list[str]:
    """By predictions, each scaled to length 1, so that temperature has no part (Rabanser et al., NeurIPS 2019)."""
    if data.test is None:
        return []
    groups = data.train.joined(data.test).groups
    both = np.concatenate([data.train.labels, data.test.labels])
    found = shift_between(_directions(held_out), _directions(logits), both, groups, seed)
    return [shift_words(found, by="predictions")] if found is not None and found.found else []


def _directions(scores: np.ndarray) -> np.ndarray:
    centered = scores - scores.mean(1, keepdims=True)
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-9)
