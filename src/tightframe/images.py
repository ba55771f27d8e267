"""The labeled images of one split, as everything that runs a model over them sees them; ``data`` makes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from threading import Lock
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from tightframe.errors import BadImage, DataError
from tightframe.progress import Progress, silent

THREADS = min(8, os.cpu_count() or 1)


@runtime_checkable
class Item(Protocol):
    """One image, wherever it is kept: a file, an array, an image that is open already."""

    @property
    def name(self) -> str:
        """What to call it in a message or a table, such as its path below the data folder."""
        ...

    def digest(self) -> str:
        """A hash of its contents. Raises ``BadImage`` when they can't be read."""
        ...

    def open(self) -> Image.Image:
        """The image decoded, upright, in mode RGB. Raises ``BadImage`` when it can't be decoded."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """The n labeled images of one split. ``images[index]`` decodes one; all else is known without decoding.

    Attributes:
        name: what to call them in a table, such as ``flowers5/train``.
        classes: class names; ``labels`` indexes them. A class may be left without an image.
        labels: shape (n,), int64, read-only.
        items: the n images.
        groups: shape (n,), int64, read-only: images with the same number belong together (frames of one film, slices
            of one patient), and no split or fold parts them; ``None`` where every image stands alone.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    items: tuple[Item, ...]
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        for what in ("labels", "groups"):
            values = getattr(self, what)
            if values is None:
                continue
            values = np.array(values, dtype=np.int64)
            values.flags.writeable = False
            if values.shape != (len(self.items),):
                raise DataError(
                    f"{self.name}: {what} of shape {values.shape} for {len(self.items)} images; give one each"
                )
            object.__setattr__(self, what, values)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Image.Image:
        """Image ``index``, upright, in mode RGB. Raises ``BadImage`` when it can't be decoded."""
        return self.items[index].open()

    def __repr__(self) -> str:
        return f"Images {self.name}: {len(self)} images of {len(self.classes)} classes"

    @cached_property
    def identifiers(self) -> tuple[str, ...]:
        """The images' names."""
        return tuple(item.name for item in self.items)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Hashes of the images' contents; reads every file, the first time. Raises as ``fingerprint``."""
        with ThreadPoolExecutor(THREADS) as pool:
            return tuple(pool.map(_digest, self.items))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of classes, labels, names, contents and groups in this order; reads every file, the first time.

        Raises:
            BadImage: a file is gone, or can't be read.
        """
        digest = blake2b(repr(self.classes).encode(), digest_size=16, person=b"tf-images")
        digest.update(self.labels.astype("<i8").tobytes())
        for item, content in zip(self.items, self.digests, strict=True):
            digest.update(repr((item.name, content)).encode())
        if self.groups is not None:
            digest.update(self.groups.astype("<i8").tobytes())
        return digest.hexdigest()

    def subset(self, indices: np.ndarray | Sequence[int], name: str = "") -> Images:
        """The images ``indices`` in that order, with the same classes.

        Args:
            indices: whole numbers in [0, n), shape (m,).
            name: what to call them; the present name if empty.

        Raises:
            DataError: ``indices`` are not of that shape, kind or range.
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
            raise DataError(f"indices must be a list of whole numbers; got {chosen.dtype} of shape {chosen.shape}")
        chosen = chosen.astype(np.int64)
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if outside.size:
            raise DataError(f"index {outside[0]}: {self.name} has {len(self)} images; count them from 0")
        items = tuple(self.items[index] for index in chosen)
        return Images(name or self.name, self.classes, self.labels[chosen], items, among(self.groups, chosen))

    def of_classes(self, names: Sequence[str]) -> Images:
        """The images of the classes ``names``; ``classes`` and the meaning of labels stay as they are.

        Raises:
            DataError: there is no class of such a name.
        """
        if unknown := sorted(set(names) - set(self.classes)):
            raise DataError(
                f"{self.name} lacks {len(unknown)} of {len(set(names))} classes: {', '.join(unknown)}; correct their "
                f"names, or add images. It has {', '.join(self.classes)}."
            )
        return self.subset(np.flatnonzero(np.isin(self.labels, [self.classes.index(name) for name in names])))

    def joined(self, others: Images) -> Images:
        """These images and then ``others``, which have the same classes, and the same groups if both have any."""
        labels = np.concatenate([self.labels, others.labels])
        groups = None
        if self.groups is not None or others.groups is not None:
            mine = np.arange(len(self)) if self.groups is None else self.groups
            first = 1 + max([-1, *mine.tolist()])
            theirs = first + np.arange(len(others)) if others.groups is None else others.groups
            groups = np.concatenate([mine, theirs])
        return Images(f"{self.name} + {others.name}", self.classes, labels, self.items + others.items, groups)

    def decoded_once(self, budget_bytes: int) -> Images:
        """The same images, each kept in memory after it was decoded first, as far as ``budget_bytes`` reach.

        What is kept is shared by subsets, is safe to use from several threads, and goes with the last of them. An
        image that is kept is given out again, not copied: it must not be changed in place.
        """
        memory = _Memory(budget_bytes)
        return replace(self, items=tuple(_Kept(item, memory) for item in self.items))


def among(groups: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    """The ``groups`` (n,) of the images at ``rows``, indices or a mask; ``None`` where there are none."""
    return None if groups is None else groups[rows]


def counted(number: int, what: str = "training image") -> str:
    """Such as "3 training images are"."""
    return f"1 {what} is" if number == 1 else f"{number} {what}s are"


def _few(names: Sequence[str]) -> str:
    """The first five."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def undecodable(items: Sequence[Item], progress: Progress = silent) -> dict[int, str]:
    """Decode all ``items``; of those that can't be decoded, the reasons by index."""
    with ThreadPoolExecutor(THREADS) as pool:
        reasons = progress(pool.map(_fault, items), "decoding images", len(items))
        return {index: reason for index, reason in enumerate(reasons) if reason}


def _digest(item: Item) -> str:
    return item.digest()


def _fault(item: Item) -> str:
    try:
        item.open()
    except BadImage as error:
        return error.reason
    return ""


class _Memory:
    """Bytes that decoded images may take in memory; images are kept one thread at a time."""

    def __init__(self, budget: int):
        self.budget = self.left = budget
        self._lock = Lock()

    def keep(self, item: _Kept, image: Image.Image) -> Image.Image:
        """The image that ``item`` keeps from now on, or ``image`` where memory does not reach."""
        size = 4 * image.width * image.height  # Pillow keeps RGB in four bytes a pixel
        with self._lock:
            if item.image is None and size <= self.left:
                item.image = image
                self.left -= size
        return item.image or image

    def __reduce__(self) -> tuple[type[_Memory], tuple[int]]:
        return _Memory, (self.budget,)  # another process has a memory of its own


class _Kept:
    """An item that is decoded once, if memory allows."""

    def __init__(self, item: Item, memory: _Memory):
        self.item, self.memory = item, memory
        self.image: Image.Image | None = None

    @property
    def name(self) -> str:
        return self.item.name

    def digest(self) -> str:
        return self.item.digest()

    def open(self) -> Image.Image:
        return self.image or self.memory.keep(self, self.item.open())

    def __reduce__(self) -> tuple[type[_Kept], tuple[Item, _Memory]]:
        return _Kept, (self.item, self.memory)


@dataclass(frozen=True, eq=False, repr=False)
class ImageSplits:
    """Training images, held-out test images with the same ``classes``, and the files that were left out, with why."""

    name: str
    train: Images
    test: Images | None
    skipped: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same for both splits."""
        return self.train.classes

    @property
    def notes(self) -> list[str]:
        """What a reader should know of how the data came about, in plain words."""
        told = []
        if self.skipped:
            files = "1 file was" if len(self.skipped) == 1 else f"{len(self.skipped)} files were"
            told.append(f"{files} left out; the first: {self.skipped[0]}")
        return [*told, *self._alike, *self._rare, *self._grouping, *self.leaks]

    @property
    def _alike(self) -> list[str]:
        """Classes whose names differ in case, spaces, hyphens and underscores alone."""
        spelled: dict[str, list[str]] = {}
        for name in self.classes:
            spelled.setdefault("".join(filter(str.isalnum, name.casefold())) or name, []).append(name)
        same = [" and ".join(map(repr, names)) for names in spelled.values() if len(names) > 1]
        return [f"classes that may be one, spelled in two ways: {_few(same)}"] if same else []

    @property
    def _rare(self) -> list[str]:
        """Classes of which no accuracy says anything, or next to nothing."""
        told, counts = [], np.bincount(self.train.labels, minlength=len(self.classes))
        if single := [self.classes[label] for label in np.flatnonzero(counts == 1)]:
            held = "" if self.test is None else " (--test-share 0 holds none out for testing)"
            told.append(
                f"{len(single)} of {len(self.classes)} classes have one training image only: {_few(single)}. Nothing "
                f"held out tells how well they are known; add images{held}"
            )
        tested = counts if self.test is None else np.bincount(self.test.labels, minlength=len(self.classes))
        if unseen := [self.classes[label] for label in np.flatnonzero(tested == 0)]:
            told.append(
                f"{len(unseen)} of {len(self.classes)} classes have no test image, so test accuracy says nothing of "
                f"them: {_few(unseen)}"
            )
        return told

    @property
    def _grouping(self) -> list[str]:
        """How many groups there are, and which classes can't be held out because they are in one group only."""
        groups = self.train.groups
        if groups is None:
            return []
        pairs = np.unique(np.stack([self.train.labels, groups], 1), axis=0)
        count, spread = len(np.unique(groups)), np.bincount(pairs[:, 0], minlength=len(self.classes))
        if count == len(groups):
            return ["every training image is in a group of its own, as if there were no groups"]
        told = [
            f"training images: {len(groups)} in {count} groups; no split or fold parts one, intervals are over groups"
        ]
        single = [self.classes[label] for label in np.flatnonzero(spread == 1)]
        if single:
            told.append(
                f"{len(single)} of {len(self.classes)} classes are in one group only, so none can be held out: "
                f"{_few(single)}. Add images of other groups"
            )
        return told

    @cached_property
    def leaks(self) -> list[str]:
        """What is wrong with the images themselves: the same one in both splits, or under two classes."""
        told, known = [], dict(zip(self.train.digests, self.train.labels.tolist(), strict=True))
        twice = [
            index
            for index, (digest, label) in enumerate(zip(self.train.digests, self.train.labels.tolist(), strict=True))
            if known[digest] != label
        ]
        if twice:
            told.append(
                f"{counted(len(twice))} under two classes, with the same contents; the first: "
                f"{self.train.identifiers[twice[0]]}. At most one of them is right"
            )
        shared = [] if self.test is None else [i for i, digest in enumerate(self.test.digests) if digest in known]
        if self.test is not None and shared:
            told.append(
                f"{counted(len(shared), 'test image')} among the training images, with the same contents; the first: "
                f"{self.test.identifiers[shared[0]]}. Take them out of one of the two"
            )
        return [*told, *self._straddling]

    @property
    def _straddling(self) -> list[str]:
        """What is wrong with groups: the same one in both splits."""
        if self.test is None or self.train.groups is None or self.test.groups is None:
            return []
        inside = np.isin(self.test.groups, self.train.groups)
        if not inside.any():
            return []
        groups, total = len(np.unique(self.test.groups[inside])), len(np.unique(self.test.groups))
        return [
            f"{groups} of {total} groups of test images are among the training images, too: "
            f"{counted(int(inside.sum()), 'test image')} of a group trained on, the first being "
            f"{self.test.identifiers[int(inside.argmax())]}. Test accuracies flatter; put each group into one split"
        ]

    def __repr__(self) -> str:
        test = "no test images" if self.test is None else f"{len(self.test)} test images"
        left_out = f", {len(self.skipped)} files left out" if self.skipped else ""
        size = f"{len(self.classes)} classes, {len(self.train)} training images"
        return f"ImageSplits {self.name}: {size}, {test}{left_out}"
