"""What duplicates mean for splits and classes, and which copy stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tightframe.checks.duplicates import Pair, identical, joined, near_duplicates
from tightframe.checks.finding import Finding
from tightframe.checks.looks import Looks
from tightframe.images import Images


def duplicate_findings(
    images: Images, held_out: np.ndarray, looks: Looks, digests: Sequence[str] | None = None
) -> list[Finding]:
    """One finding for each copy that should go.

    Of copies with one label in both splits the test image stays; of copies inside a split the first one stays; of
    copies with several labels none does.

    Args:
        images: all images, of both splits.
        held_out: which are test images, (n,).
        looks: at all of them.
        digests: hashes of contents of the images in ``looks.good``; those of ``images`` if ``None``.
    """
    good = looks.good
    digests = images.subset(good).digests if digests is None else digests
    same = {(group[0], other): Pair(group[0], other, 1.0, False) for group in identical(digests) for other in group[1:]}
    distinct = np.setdiff1d(np.arange(len(good)), [other for _, other in same])
    alike = near_duplicates(looks.thumbnails[good[distinct]], looks.sizes[good[distinct]])
    near = {(int(distinct[one.first]), int(distinct[one.second])): one for one in alike}
    told = dict.fromkeys(same, "the same contents as")
    told |= {pair: _likeness(one) for pair, one in near.items()}
    known = {**same, **near}
    found = []
    for group in joined(list(known), len(good)):
        found += _group_findings([int(good[i]) for i in group], _pairs(group, good, known, told), images, held_out)
    return found


_Told = dict[tuple[int, int], tuple[str, float]]


def _pairs(
    group: Sequence[int], good: np.ndarray, known: dict[tuple[int, int], Pair], told: dict[tuple[int, int], str]
) -> _Told:
    """Words and likeness for the known pairs of a group, both ways, by index among all images."""
    inside = {pair: one for pair, one in known.items() if pair[0] in group}
    pairs: _Told = {}
    for (first, second), one in inside.items():
        for a, b in ((first, second), (second, first)):
            pairs[int(good[a]), int(good[b])] = told[first, second], one.likeness
    return pairs


def _group_findings(group: list[int], pairs: _Told, images: Images, held_out: np.ndarray) -> list[Finding]:
    labels, tests = images.labels[group], held_out[group]
    if len(set(labels.tolist())) > 1:
        kind, staying = "duplicate across classes", None
    elif tests.any() and not tests.all():
        kind, staying = "duplicate across splits", next(i for i in group if held_out[i])
    else:
        kind, staying = "duplicate", group[0]
    return [_finding(kind, index, staying, group, pairs, images, held_out) for index in group if index != staying]


def _finding(
    kind: str, index: int, staying: int | None, group: list[int], pairs: _Told, images: Images, held_out: np.ndarray
) -> Finding:
    partners = [other for other in group if other != index]
    clashing = [other for other in partners if images.labels[other] != images.labels[index]]
    preferred = [other for other in (clashing or partners) if (index, other) in pairs]
    other = staying if (index, staying) in pairs else (preferred or clashing or partners)[0]
    words, likeness = pairs.get((index, other or 0), ("a copy, by way of other copies, of", None))
    assert other is not None
    where = f"a {'test' if held_out[other] else 'training'} image of {images.classes[images.labels[other]]}"
    return Finding(kind, f"{words} {where}", index, other, strength=likeness, remove=True)


def _likeness(pair: Pair) -> str:
    return "the mirror image of" if pair.mirrored else "a copy (changed in size, compression, color or crop) of"
