"""Random choices of images: so many of each class, or a share of each class held out.

Each class is put into an order drawn from the seed, the class's label and its size alone; whatever is drawn is taken
from the front of that order. So the same seed always draws the same images, what happens to one class does not
depend on the others, and a smaller draw is contained in a larger one. Images that belong together in groups are held
out together: groups, not images, are put into an order then.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tightframe.errors import SettingsError
from tightframe.features.samples import group_numbers
from tightframe.images import Images, ImageSplits
from tightframe.metrics.folds import tallied


def stratified(
    labels: np.ndarray, share: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``(kept, held_out)`` that split ``labels`` in two, with about ``share`` of each class held out.

    Of a class with n members, share · n rounded (halves up) are held out, but at least one and at most n - 1; a class
    with a single member is kept whole. With ``share`` 0 nothing is held out. Both arrays ascend, int64; together they
    hold every index once.

    Groups are held out whole or not at all, as many as come nearest to ``share`` of each class. Every class keeps one
    group at least, and has one held out where it has two and that leaves no other class without any.

    Args:
        labels: class of each sample, non-negative whole numbers, shape (n,).
        share: how much to hold out, in [0, 1).
        seed: which samples are drawn, 0 or more.
        groups: of each sample, shape (n,): those of the same number are not parted. ``None``: there are no groups.

    Raises:
        SettingsError: ``share`` or ``seed`` is out of range.
    """
    check_share(share)
    numbers = group_numbers(groups, len(labels))
    held = np.zeros(len(labels), dtype=bool) if numbers is None else _held_whole(labels, numbers, share, seed)
    for members in _drawn(labels, seed):
        if numbers is None and share > 0 and len(members) > 1:
            count = min(max(int(share * len(members) + 0.5), 1), len(members) - 1)
            held[members[:count]] = True
    return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)


def hold_out(name: str, images: Images, share: float, seed: int, skipped: tuple[str, ...] = ()) -> ImageSplits:
    """Split ``images`` into training and test images, groups whole; without a test set where nothing is held out."""
    kept, held_out = stratified(images.labels, share, seed, images.groups)
    if not len(held_out):
        return ImageSplits(name, images, None, skipped)
    return ImageSplits(name, images.subset(kept), images.subset(held_out, f"{name}/test"), skipped)


def at_most(images: Images, per_class: int, seed: int) -> Images:
    """At most ``per_class`` images of each class, drawn by ``seed``, in the order they have in ``images``.

    Of a group, some images may be drawn and others not: none is held out from the others here.

    Raises:
        SettingsError: ``per_class`` is below 1, or ``seed`` below 0.
    """
    check_per_class(per_class)
    chosen = [members[:per_class] for members in _drawn(images.labels, seed)]
    return images.subset(np.sort(np.concatenate([np.empty(0, dtype=np.int64), *chosen])))


def check_share(share: float) -> None:
    """Raise ``SettingsError`` unless ``share`` is in [0, 1)."""
    if not 0 <= share < 1:
        raise SettingsError(f"a held-out share of {share}: it must be at least 0 (none) and below 1; try 0.25")


def check_per_class(count: int) -> None:
    """Raise ``SettingsError`` unless ``count`` is at least 1."""
    if count < 1:
        raise SettingsError(f"{count} images per class leave nothing to learn from; ask for 1 or more")


def check_seed(seed: int) -> None:
    """Raise ``SettingsError`` unless ``seed`` is at least 0."""
    if seed < 0:
        raise SettingsError(f"seed {seed}: a seed is a whole number, 0 or more")


def _drawn(labels: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """For each label that occurs, ascending, the indices that bear it, in the order that the seed draws."""
    check_seed(seed)
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(np.asarray(labels)[order], return_index=True)
    for label, members in zip(values, np.split(order, starts)[1:], strict=True):
        # Plain uniform numbers are sorted: how Generator.permutation draws may change between NumPy releases.
        luck = np.random.default_rng((seed, int(label))).random(len(members))
        yield members[np.argsort(luck, kind="stable")]


def _held_whole(labels: np.ndarray, numbers: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mask (n,) of the samples whose groups, 0 … G − 1, are held out: see ``stratified``."""
    check_seed(seed)
    parts = tallied(labels, numbers)
    kept = np.bincount(np.concatenate([classes for classes, _ in parts])).astype(float)  # groups of each class
    several, held, chosen = np.flatnonzero(kept > 1), np.zeros(len(kept)), np.zeros(len(parts), dtype=bool)

    def cost(group: int) -> float:
        """How much farther from ``share`` classes are with this group held out, squared; infinite if it must stay."""
        classes, shares = parts[group]
        if chosen[group] or (kept[classes] < 2).any():
            return np.inf
        return float(np.square(held[classes] + shares - share).sum() - np.square(held[classes] - share).sum())

    def hold(group: int) -> None:
        classes, shares = parts[group]
        held[classes] += shares
        kept[classes] -= 1
        chosen[group] = True

    order = np.argsort(np.random.default_rng(seed).random(len(parts)), kind="stable").tolist() if share > 0 else []
    for group in order:
        if cost(group) < 0:
            hold(group)
    for label in several if share > 0 else ():
        costs = {group: cost(group) for group in order if label in parts[group][0]} if held[label] == 0 else {}
        best = min(costs, key=lambda group: costs[group], default=None)
        if best is not None and costs[best] < np.inf:
            hold(best)
    return chosen[numbers]
