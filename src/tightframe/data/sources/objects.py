"""Labeled images that Python has already: a PyTorch dataset, images with their labels, a data frame.

Nothing is decoded before it is needed, except to learn the labels of a PyTorch dataset that lists them nowhere. What is
given is kept, not copied.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset

from tightframe.data.decoding import as_opened
from tightframe.data.items import ImageArray, item_of
from tightframe.data.labeled import Faults
from tightframe.data.records import Gathered, Reading, Record
from tightframe.data.sources.rows import Table, found_columns, sorted_labels, text
from tightframe.data.sources.table import listed_images
from tightframe.errors import BadImage, DataError

ACCEPTED = (
    "give a path or a name, a PyTorch Dataset, (images, labels), a datasets.Dataset, a pandas DataFrame, or a "
    'dictionary of such by split: {"train": …, "test": …}'
)


@dataclass(frozen=True, eq=False)
class DatasetItem:
    """Image ``index`` of a PyTorch dataset, fetched from it whenever it is opened."""

    name: str
    dataset: Any
    index: int

    def digest(self) -> str:
        """A hash of size and colors. Raises ``BadImage`` when it can't be fetched."""
        return ImageArray(self.name, np.asarray(self.open())).digest()

    def open(self) -> Image.Image:
        """The image, upright and in RGB."""
        return as_opened(_as_image(self.pair()[0], self.name), self.name)

    def pair(self) -> Sequence[Any]:
        """Image and label as the dataset gives them. Raises ``BadImage`` when it can't."""
        try:
            pair = self.dataset[self.index]
        except Exception as error:  # whatever a dataset of others raises
            raise BadImage(self.name, f"its dataset raises {type(error).__name__}: {error}") from error
        if not isinstance(pair, Sequence) or len(pair) < 2:
            raise DataError(
                f"{type(self.dataset).__name__} gives a {type(pair).__name__}; it has to give (image, label)"
            )
        return pair


def from_dataset(dataset: Dataset[Any], reading: Reading, called: str = "image") -> Gathered:
    """The images of a map-style PyTorch dataset of (image, label), ``called`` so and numbered.

    Images are Pillow's, arrays of bytes (height, width[, 3]), or tensors ([3 or 1,] height, width), of bytes or of
    numbers from 0 to 1. Labels are whole numbers, which ``dataset.classes`` names if it has them, or text.

    Raises:
        DataError: it is not of that kind, or its images are changed at random or normalized.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError("an iterable dataset has no order to keep images apart by; give a map-style one, with __len__")
    count, name = len(dataset), type(dataset).__name__
    items = [DatasetItem(f"{called}-{index:06d}", dataset, index) for index in range(count)]
    if items and _changes(items[0]):
        raise DataError(
            f"{name} gives another image each time; take random transforms out of it (--augment makes them)"
        )
    faults = Faults(Path(), reading.skip_bad)
    labels = _labels(dataset, items, faults, reading)
    faults.check()
    kept = [(item, label) for item, label in zip(items, labels, strict=True) if label is not None]
    made = _labeled([item for item, _ in kept], [label for _, label in kept], _class_names(dataset))
    return Gathered(name, *made, faults.skipped)


def from_pair(images: Any, labels: Any, called: str = "image") -> Gathered:
    """``images``, a list or an array of ``ImageLike``, with a label each; those without a path are ``called`` so.

    Raises:
        DataError: there are not as many, or an image is of another kind.
    """
    listed, said = _listed(images), _listed(labels)
    if len(listed) != len(said):
        raise DataError(f"(images, labels): {len(listed)} images and {len(said)} labels; give each image one")
    items = [item_of(image, f"{called}-{index:06d}") for index, image in enumerate(listed)]
    return Gathered("images", *_labeled(items, said, None))


def from_frame(frame: Any, reading: Reading) -> Gathered:
    """The images that a pandas data frame lists by path, below ``root`` or else the working folder.

    Raises:
        BadImage, DataError: as for a table in a file.
    """
    columns = tuple(map(str, frame.columns))

    def values(names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        return zip(*(frame.iloc[:, columns.index(name)].tolist() for name in names), strict=True)

    table = Table("the data frame", columns, values)
    found = found_columns(table, reading.columns)
    if all(isinstance(one, str | Path) for (one,) in values([str(found.image)])):
        return listed_images(table, "frame", reading.root or Path(), reading)
    named = [one for one in (found.image, found.label, found.split, found.group) if one]
    records = []
    for index, row in enumerate(values(named)):
        said = dict(zip(named, row, strict=True))
        label, split, group = (text(said.get(name or "")) for name in (found.label, found.split, found.group))
        records.append(Record(item_of(said[named[0]], f"image-{index:06d}"), label, split, group))
    return Gathered("frame", records, sorted_labels({one.label for one in records}))


def is_frame(source: object) -> bool:
    """Whether ``source`` is a pandas data frame; pandas need not be there."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, pandas.DataFrame)


def _labeled(
    items: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
) -> tuple[list[Record], Sequence[str]]:
    """Records, and class names in order: those given, else numbers by value, else names by name."""
    plain = [_plain_label(label) for label in labels]
    if names is not None and all(isinstance(label, int) for label in plain):
        if plain and not 0 <= min(plain) <= max(plain) < len(names):
            raise DataError(f"labels run from {min(plain)} to {max(plain)}, and there are {len(names)} class names")
        texts = [names[label] for label in plain]
    else:
        texts, names = [str(label) for label in plain], None
    records = [Record(item, label) for item, label in zip(items, texts, strict=True)]
    return records, names or sorted_labels(set(texts))


def _plain_label(label: Any) -> Any:
    if isinstance(label, np.generic) or (isinstance(label, torch.Tensor | np.ndarray) and label.ndim == 0):
        label = label.item()
    if isinstance(label, bool | int | str):
        return int(label) if isinstance(label, bool) else label
    if isinstance(label, float) and label.is_integer():
        return int(label)
    raise DataError(f"{label!r:.60} is no label; give whole numbers or names")


def _changes(item: DatasetItem) -> bool:
    try:
        return item.digest() != item.digest()
    except BadImage:
        return False


def _labels(dataset: Any, items: Sequence[DatasetItem], faults: Faults, reading: Reading) -> Sequence[Any]:
    """All labels: from where such datasets usually keep them, if what they give agrees, else by going through it."""
    known, found = _known_labels(dataset), list[Any]()
    some = {0, len(items) // 2, len(items) - 1} if items else set()
    if known is not None and all(_agrees(items[index], known[index]) for index in some):
        return known
    for item in reading.progress(items, "reading labels", len(items)):
        try:
            found.append(item.pair()[1])
        except BadImage as error:
            found.append(None)
            faults.add(Path(item.name), error.reason)
    return found


def _agrees(item: DatasetItem, label: Any) -> bool:
    try:
        return bool(_plain_label(item.pair()[1]) == _plain_label(label))
    except BadImage:
        return True


def _known_labels(dataset: Any) -> Sequence[Any] | None:
    if isinstance(dataset, Subset):
        known = _known_labels(dataset.dataset)
        return known and [known[index] for index in dataset.indices]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ("targets", "labels", "_labels"):
        known = getattr(dataset, name, None)
        if isinstance(known, Sequence | np.ndarray | torch.Tensor) and len(known) == len(dataset):
            return _listed(known) if np.ndim(known) == 1 else None
    return None


def _class_names(dataset: Any) -> list[str] | None:
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset  # a subset's
    names = getattr(dataset, "classes", None)
    return None if names is None else [", ".join(one) if isinstance(one, tuple) else str(one) for one in names]


def _listed(values: Any) -> list[Any]:
    if isinstance(values, torch.Tensor | np.ndarray):
        return list(values.numpy() if isinstance(values, torch.Tensor) else values)
    if isinstance(values, str) or not isinstance(values, Iterable) or isinstance(values, Mapping):
        raise DataError(f"a {type(values).__name__} is not a list of images or labels; {ACCEPTED}")
    return list(values)


def _as_image(image: Any, name: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    values = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if values.ndim == 3 and values.shape[0] in (1, 3) and isinstance(image, torch.Tensor):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise BadImage(
                name, "its numbers are not from 0 to 1; leave Normalize out of the dataset, models bring theirs"
            )
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 3)):
        raise BadImage(
            name, f"it is {values.dtype} of shape {values.shape}; give an image, bytes, or numbers from 0 to 1"
        )
    return Image.fromarray(np.ascontiguousarray(values))
