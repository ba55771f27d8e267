"""Images that belong together by their names: neighbors in a numbered series, on both sides of a split.

A name alone proves nothing, since most image sets number their files. What proves it is likeness: that the image with
the nearest number in the other split is more alike than images of the class from elsewhere are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

APART = 10
"""Numbers apart from which two images of a series are no neighbors."""
COMPARED = 50
"""Images of the class from elsewhere that a neighbor is compared with at most."""
LEAST = 5
"""Test images with neighbors from which a series is judged."""
ALIKE = 0.85
"""Mean share of the other images that a neighbor is more alike than: 0.5 by chance."""


class Series(NamedTuple):
    """A pattern of names whose neighbors lie in both splits and look alike.

    Attributes:
        pattern: such as ``frame_#``.
        pairs: of a test image and its neighbor among training images, the most alike first.
        alike: share of the other training images of its class that a neighbor is more alike than, on average.
    """

    pattern: str
    pairs: list[tuple[int, int]]
    alike: float


def leaking_series(
    names: Sequence[str], labels: np.ndarray, held_out: np.ndarray, vectors: np.ndarray, seed: int = 0
) -> list[Series]:
    """Patterns of names that leak from training into test images, the longest series first.

    Args:
        names: of all images, (n).
        labels: their classes, (n,).
        held_out: which are test images, (n,).
        vectors: of length 1, (n, d), whose products say how alike two images are.
        seed: of the draw of images to compare with.
    """
    generator = np.random.default_rng(seed)
    places = [_place(name) for name in names]
    trained: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    of_class: dict[int, list[int]] = defaultdict(list)
    for index in np.flatnonzero(~held_out).tolist():
        of_class[int(labels[index])].append(index)
        if places[index] is not None:
            prefix, number, _ = places[index] or ("", 0, "")
            trained[int(labels[index]), prefix].append((number, index))
    found: dict[str, list[tuple[float, float, int, int]]] = defaultdict(list)
    for index in np.flatnonzero(held_out).tolist():
        if places[index] is None:
            continue
        prefix, number, pattern = places[index] or ("", 0, "")
        near = trained[int(labels[index]), prefix]
        gap, neighbor = min(((abs(n - number), i) for n, i in near), default=(APART, -1))
        close = {i for n, i in near if abs(n - number) < APART}
        others = [i for i in of_class[int(labels[index])] if i not in close]
        if gap >= APART or not others:
            continue
        if len(others) > COMPARED:
            others = generator.choice(others, COMPARED, replace=False).tolist()
        alike = float(vectors[index] @ vectors[neighbor])
        share = float(((vectors[others] @ vectors[index]) < alike).mean())
        found[pattern].append((share, alike, index, neighbor))
    series = []
    for pattern, judged in found.items():
        mean = float(np.mean([share for share, *_ in judged]))
        if len(judged) >= LEAST and mean >= ALIKE:
            series.append(Series(pattern, [(i, n) for _, _, i, n in sorted(judged, reverse=True)], mean))
    return sorted(series, key=lambda one: -len(one.pairs))


def _place(name: str) -> tuple[str, int, str] | None:
    """What comes before the last number of a file's name, the number, and the name with # for numbers."""
    stem = PurePosixPath(name).stem
    numbered = re.fullmatch(r"(.*?)([0-9]{1,15})([^0-9]*)", stem)
    if numbered is None:
        return None
    before, number, after = numbered.groups()
    return f"{before}\0{after}", int(number), re.sub(r"[0-9]+", "#", stem)
