"""torchvision's datasets for classification, by name, with their official splits: ``torchvision/NAME[/VARIANT]``.

torchvision's own classes read what lies in ``root``, in torchvision's layout, and fetch it only where asked to.
Training and validation sets are joined. Sets of files stay files, in the order of their names; sets of arrays keep
their order. CIFAR comes as pickles, of which torchvision opens none but those whose checksum is the official one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from tightframe.data.items import ImageArray, ImageFile
from tightframe.data.records import Gathered, Reading, Record
from tightframe.data.sources.cache import cache_folder
from tightframe.data.sources.objects import DatasetItem
from tightframe.errors import DataError
from tightframe.images import Item

SCHEME = "torchvision/"

_OFFICIAL = {  # the values of ``split`` (or the like) for training, then for testing
    **dict.fromkeys(
        ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST", "USPS"), "True | False"
    ),
    **dict.fromkeys(("FER2013", "Food101", "GTSRB", "STL10", "StanfordCars", "SVHN"), "train | test"),
    **dict.fromkeys(("DTD", "Flowers102", "PCAM", "RenderedSST2"), "train val | test"),
    **dict.fromkeys(("FGVCAircraft", "OxfordIIITPet"), "trainval | test"),
    **dict.fromkeys(("CLEVRClassification", "ImageNet", "Imagenette"), "train | val"),
    "Country211": "train valid | test",
    "INaturalist": "2021_train | 2021_valid",
    "Places365": "train-standard | val",
}
_WHOLE = ("Caltech101", "Caltech256", "EuroSAT", "LFWPeople", "Omniglot", "SEMEION", "SUN397")
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # what chooses them, and what may be chosen, the usual one first
    "DTD": ("partition", {str(number): number for number in range(1, 11)}),
    "EMNIST": ("split", {name: name for name in ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")}),
    "FGVCAircraft": ("annotation_level", {name: name for name in ("variant", "family", "manufacturer")}),
    "Imagenette": ("size", {name: name for name in ("full", "320px", "160px")}),
    "OxfordIIITPet": ("target_types", {name: name for name in ("category", "binary-category")}),
    "Places365": ("small", {"large": False, "small": True}),
}
_CHANNELS_FIRST = ("STL10", "SVHN")


def from_torchvision(name: str, reading: Reading) -> Gathered:
    """The set that torchvision calls ``name`` (``NAME`` or ``NAME/VARIANT``), as it lies below ``root``.

    Raises:
        DataError: there is no such set or variant, or its files are missing or damaged.
    """
    kind, _, variant = name.partition("/")
    chosen = _variant(kind, variant)
    root = (reading.root or cache_folder() / "torchvision").absolute()
    official = list(_splits(kind))
    records, classes = list[Record](), list[str]()
    for split, value in reading.progress(official, f"reading {name}", len(official)):
        dataset = _dataset(kind, root, value | chosen, reading.download)
        pairs = [
            (item, label) for item, label in _pairs(kind, dataset, root, value.get("split", split)) if label is not None
        ]
        names = _names(dataset, [label for _, label in pairs])
        records += [Record(item, names[label], split) for item, label in pairs]
        classes += [name for name in names.values() if name not in set(classes)]
    if kind == "Omniglot":  # whose classes come in the order of the file system
        classes.sort()
    used = {record.label for record in records}
    return Gathered(name.replace("/", "-"), records, [name for name in classes if name in used])


def _variant(kind: str, variant: str) -> dict[str, Any]:
    if kind not in _OFFICIAL and kind not in _WHOLE:
        known = {name.casefold(): name for name in sorted((*_OFFICIAL, *_WHOLE))}
        near = [known[one] for one in get_close_matches(kind.casefold(), known, n=3)]
        raise DataError(
            f"torchvision has no classification set {kind!r}; "
            + (f"nearest: {', '.join(near)}" if near else f"it has {', '.join(known.values())}")
        )
    argument, values = _VARIANTS.get(kind, ("", {}))
    if variant and variant not in values:
        raise DataError(
            f"torchvision/{kind} has no variant {variant!r}; choose {', '.join(values) or 'it without one'}"
        )
    return {argument: values[variant or next(iter(values))]} if values else {}


def _splits(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if kind in _WHOLE:
        yield "", {}
        return
    for split, values in zip(("train", "test"), _OFFICIAL[kind].split("|"), strict=True):
        for value in values.split():
            if value in ("True", "False"):
                yield split, {"train": value == "True"}
            else:
                yield split, {"version" if kind == "INaturalist" else "split": value}


def _dataset(kind: str, root: Path, arguments: dict[str, Any], download: bool) -> Any:
    from torchvision import datasets

    made = getattr(datasets, kind)
    knows = "download" in signature(made).parameters or kind in ("EMNIST", "QMNIST")
    more = {"download": download} if knows else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arrays that are read-only, and the like
            return made(str(root), **arguments, **more)
    except Exception as error:  # torchvision raises whatever its readers do
        why = " ".join(str(error).replace("You can use download=True to download it", "").split())[:300]
        advice = f"; if its files are elsewhere, name the folder with --root, laid out as torchvision's {kind} expects"
        fetch = (
            "Pass --download (download=True) to fetch it" if knows and not download else "Fetch it from its home page"
        )
        raise DataError(
            f"torchvision/{kind} can't be read from {root} ({why.rstrip('. ')}). {fetch}{advice}"
        ) from error


def _pairs(kind: str, dataset: Any, root: Path, split: str) -> list[tuple[Item, int | None]]:
    """Items and labels: files in the order of their names, all else in that of the set."""
    found, labels = _contents(kind, dataset, root)
    numbers = [None if label is None or int(label) < 0 else int(label) for label in labels]
    if found is None:
        patches = _Patches(dataset._base_folder / dataset._FILES[dataset._split]["images"][0])
        return [(DatasetItem(f"{split}-{i:06d}", patches, i), label) for i, label in enumerate(numbers)]
    if len(found) and isinstance(found[0], str | Path):
        return sorted(zip((_file(root, path) for path in found), numbers, strict=True), key=lambda pair: pair[0].name)
    arrays = [np.moveaxis(np.asarray(one), 0, -1) if kind in _CHANNELS_FIRST else np.asarray(one) for one in found]
    named = [ImageArray(f"{split or 'image'}-{index:06d}", array) for index, array in enumerate(arrays)]
    return list(zip(named, numbers, strict=True))


def _contents(kind: str, dataset: Any, root: Path) -> tuple[Any, Any]:
    """Paths or arrays, if the set keeps any, and labels."""
    if kind in ("Caltech101", "Caltech256"):
        top = Path(dataset.root) / f"{kind.removeprefix('Caltech')}_ObjectCategories"
        form = "image_{1:04d}.jpg" if kind == "Caltech101" else "{0:03d}_{1:04d}.jpg"
        pairs = list(zip(dataset.y, dataset.index, strict=True))
        return [top / dataset.categories[y] / form.format(y + 1, number) for y, number in pairs], dataset.y
    if kind == "Omniglot":
        folder, drawn = Path(dataset.target_folder), dataset._flat_character_images
        return [folder / dataset._characters[label] / name for name, label in drawn], [label for _, label in drawn]
    if kind == "INaturalist":
        top = Path(dataset.root)
        return [top / dataset.all_categories[label] / name for label, name in dataset.index], [
            label for label, _ in dataset.index
        ]
    for samples in (getattr(dataset, name, None) for name in ("_samples", "samples", "imgs")):
        if samples is not None:
            return [one for one, _ in samples], [label for _, label in samples]
    for files in (getattr(dataset, name, None) for name in ("_image_files", "_images")):
        if files is not None:
            return files, dataset._bin_labels if _is_binary(dataset) else dataset._labels
    if kind == "PCAM":
        with dataset.h5py.File(dataset._base_folder / dataset._FILES[dataset._split]["targets"][0]) as file:
            return None, np.ravel(file["y"])
    labels: Any = getattr(dataset, "targets", getattr(dataset, "labels", None))
    data = dataset.data if isinstance(dataset.data, list) else np.asarray(dataset.data)
    return data, labels if np.ndim(labels) == 1 else np.asarray(labels)[:, 0]


@dataclass(frozen=True)
class _Patches:
    """PCAM's images, all in one HDF5 file, as ``DatasetItem`` reads them."""

    path: Path

    def __getitem__(self, index: int) -> tuple[np.ndarray, None]:
        import h5py

        with h5py.File(self.path) as file:
            return file["x"][index], None


def _is_binary(dataset: Any) -> bool:
    return getattr(dataset, "_target_types", None) == ["binary-category"]


def _names(dataset: Any, labels: Sequence[int]) -> dict[int, str]:
    """Class names by label, none twice; numbers where the set has no names."""
    known: Any = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    known = known or getattr(dataset, "_characters", None) or getattr(dataset, "all_categories", None)
    if _is_binary(dataset):
        known = dataset.bin_classes
    if known is None and (numbers := getattr(dataset, "class_to_idx", None)):
        known = sorted(numbers, key=numbers.get)
    if known is None:
        return {label: str(label) for label in sorted(set(labels))}
    texts = [", ".join(name) if isinstance(name, tuple) else str(name) for name in known]
    return {label: f"{text} ({label})" if texts.count(text) > 1 else text for label, text in enumerate(texts)}


def _file(root: Path, path: str | Path) -> ImageFile:
    place = Path(os.path.normpath(Path(path).absolute()))
    if not place.is_relative_to(root):
        raise DataError(f"{path}: the set's lists lead out of {root}; fetch it anew")
    return ImageFile(place.relative_to(root).as_posix(), root)
