"""Part of some images: by index, by class, by so many a class, or cut in two with every class on both sides; or two.

Each class is put into an order drawn from the seed, the class's label and its size alone; a split or a few shots take
from the front of that order. So the same seed always picks the same images, what happens to one class does not
depend on the others, and a smaller choice is contained in a larger one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from PIL import Image

from tightframe.errors import DataError, SettingsError
from tightframe.images import ImageData


@dataclass(frozen=True, eq=False)
class Subset:
    """The images ``indices`` of ``data``, in that order; classes stay as they are, even those left without an image.

    Args:
        data: the images to choose from, n of them.
        indices: whole numbers in [0, n), shape (m,).
        name: what to call it; the name of ``data`` if not given.

    Raises:
        DataError: ``indices`` are not of that shape, kind or range.

    """

    data: ImageData
    indices: np.ndarray
    name: str = ""

    def __post_init__(self) -> None:
        indices = np.asarray(self.indices)
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise DataError(f"indices must be a list of whole numbers; got {indices.dtype} of shape {indices.shape}")
        indices = indices.astype(np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self.data)):
            outside = indices[(indices < 0) | (indices >= len(self.data))][0]
            raise DataError(f"index {outside}: {self.data.name} has {len(self.data)} images; count them from 0")
        indices.flags.writeable = False
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "name", self.name or self.data.name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, those of the whole."""
        return self.data.classes

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels, shape (m,), int64."""
        return self.data.labels[self.indices]

    @cached_property
    def identifiers(self) -> tuple[str, ...]:
        """The m images' names."""
        return tuple(self.data.identifiers[index] for index in self.indices)

    @cached_property
    def fingerprint(self) -> str:
        """Made of the whole's fingerprint and the indices."""
        digest = blake2b(digest_size=16, person=b"tf-subset")
        digest.update(self.data.fingerprint.encode())
        digest.update(self.indices.astype("<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Image.Image:
        return self.data[int(self.indices[index])]


@dataclass(frozen=True, eq=False)
class Joined:
    """The images of ``first`` and then those of ``second``, which have the same classes."""

    first: ImageData
    second: ImageData

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.first.name} + {self.second.name}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, of either."""
        return self.first.classes

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels, shape (n + m,), int64."""
        return np.concatenate([self.first.labels, self.second.labels])

    @cached_property
    def identifiers(self) -> tuple[str, ...]:
        """The images' names."""
        return (*self.first.identifiers, *self.second.identifiers)

    @property
    def fingerprint(self) -> str:
        """Made of both."""
        parts = f"{self.first.fingerprint}|{self.second.fingerprint}"
        return blake2b(parts.encode(), digest_size=16, person=b"tf-joined").hexdigest()

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int) -> Image.Image:
        return self.first[index] if index < len(self.first) else self.second[index - len(self.first)]


def stratified(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``(kept, held_out)`` that cut ``labels`` in two with about ``share`` of every class held out.

    Of a class with n members, share · n rounded (halves up) are held out, yet at least one and at most n - 1; a class
    with a single member is kept whole. With ``share`` 0 nothing is held out. Both arrays ascend, int64; together they
    hold every index once.

    Args:
        labels: class of each sample, non-negative whole numbers, shape (n,).
        share: how much to hold out, in [0, 1).
        seed: which samples are drawn, 0 or more.

    Raises:
        SettingsError: ``share`` or ``seed`` is out of range.

    """
    check_share(share)
    held = np.zeros(len(labels), dtype=bool)
    for members in _drawn(labels, seed):
        if share > 0 and len(members) > 1:
            count = min(max(int(share * len(members) + 0.5), 1), len(members) - 1)
            held[members[:count]] = True
    return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)


def shots(data: ImageData, per_class: int, seed: int) -> ImageData:
    """At most ``per_class`` images of every class, drawn by ``seed``, in the order they have in ``data``.

    Raises:
        DataError: ``per_class`` is below 1.
        SettingsError: ``seed`` is below 0.

    """
    check_shots(per_class)
    chosen = [members[:per_class] for members in _drawn(data.labels, seed)]
    return Subset(data, np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64))


def of_classes(data: ImageData, names: Sequence[str]) -> ImageData:
    """The images of these classes; ``classes`` and labels stay as they are.

    Raises:
        DataError: ``data`` has no class of such a name.

    """
    if unknown := sorted(set(names) - set(data.classes)):
        raise DataError(
            f"{data.name} lacks {len(unknown)} of {len(set(names))} classes: {', '.join(unknown)}; correct their names,"
            f" or add images. It has {', '.join(data.classes)}."
        )
    return Subset(data, np.flatnonzero(np.isin(data.labels, [data.classes.index(name) for name in names])))


def check_share(share: float) -> None:
    """Raise ``SettingsError`` unless ``share`` is in [0, 1)."""
    if not 0 <= share < 1:
        raise SettingsError(f"a held-out share of {share}: it must be at least 0 (none) and below 1; try 0.25")


def check_shots(per_class: int) -> None:
    """Raise ``DataError`` unless ``per_class`` is at least 1."""
    if per_class < 1:
        raise DataError(f"{per_class} images a class leave nothing to learn from; ask for 1 or more")


def _drawn(labels: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """For each label that occurs, ascending, the indices that bear it, in the order that the seed draws."""
    if seed < 0:
        raise SettingsError(f"seed {seed}: must be 0 or more")
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(np.asarray(labels)[order], return_index=True)
    for label, members in zip(values, np.split(order, starts)[1:], strict=True):
        # Sorting plain uniform numbers, for how Generator.permutation draws may change between NumPy releases.
        luck = np.random.default_rng((seed, int(label))).random(len(members))
        yield members[np.argsort(luck, kind="stable")]
