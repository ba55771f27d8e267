"""Datasets of Hugging Face's ``datasets``, from the hub, from a local folder or file, or open in Python already.

``hf/NAME[/CONFIG][:SPLIT]`` is one on the hub, whose name usually has an owner: ``hf/uoft-cs/cifar10:train``.
``hf/PATH[:SPLIT]`` is local: a folder that ``save_to_disk`` wrote, a repository of parquet files or images, or one
parquet or arrow file. As for models, an existing path, or one that begins with ``/``, ``./`` or ``../``, is local.

Images stay in the dataset's own files, which are mapped into memory, and are decoded one by one. No code that comes
with a dataset is run. Rows may name image files in place of holding them, but only below the dataset's folder.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightframe.data.decoding import USUAL, Decoding
from tightframe.data.items import EncodedImage
from tightframe.data.records import Gathered, Reading, Record, split_word
from tightframe.data.sources.cache import cache_folder
from tightframe.data.sources.rows import sorted_labels, text, usual_column
from tightframe.errors import BadImage, DataError, PackageMissing, needed_by

SCHEME = "hf/"
_SAVED = ("dataset_info.json", "dataset_dict.json")
_OLDEST = 4
"""Earlier releases of ``datasets`` could run the code in a repository."""


@dataclass(frozen=True, eq=False)
class TableImage(EncodedImage):
    """The image in one row of a dataset: its bytes, or the path of its file below one of ``folders``."""

    name: str
    rows: Any
    index: int
    folders: tuple[Path, ...]
    how: Decoding = USUAL

    def content(self) -> bytes:
        """The image file's bytes. Raises ``BadImage`` when they can't be read."""
        value = self.rows[self.index].column(0)[0].as_py()
        content, path = (value["bytes"], value["path"]) if isinstance(value, dict) else (value, None)
        if content is None and not path:
            raise BadImage(self.name, "this row has no image")
        return self._read(str(path)) if content is None else content

    def _read(self, path: str) -> bytes:
        try:
            place = next(
                (one for one in (Path(path), *(top / path for top in self.folders)) if one.is_file()), Path(path)
            )
            real = place.resolve(strict=True)
            if not any(real.is_relative_to(top.resolve()) for top in self.folders):
                raise BadImage(self.name, f"it is {path}, which is outside the dataset")
            return real.read_bytes()
        except (OSError, ValueError) as error:
            raise BadImage(self.name, f"{path} can't be read ({error})") from error


def from_hub(uri: str, reading: Reading) -> Gathered:
    """The images of ``uri``, which is as above without ``hf/``.

    Raises:
        BadImage: rows have no label, and ``skip_bad`` is off.
        DataError: it can't be loaded, or it does not say which column is which.
    """
    place, _, split = uri.partition(":") if not Path(uri).exists() else (uri, "", "")
    local = place.startswith(("/", "./", "../", "~")) or (place != "" and Path(place).exists())
    try:
        loaded = _local(Path(place).expanduser()) if local else _remote(place)
    except (DataError, PackageMissing):
        raise
    except Exception as error:  # whatever the library and its readers raise
        advice = "check the path" if local else "check the name, go online, or give a folder: hf/PATH"
        raise DataError(f"hf/{place} can't be loaded ({' '.join(str(error).split())[:300]}); {advice}") from error
    splits = dict(loaded) if isinstance(loaded, Mapping) else {str(loaded.split or ""): loaded}
    if split:
        if split not in splits:
            raise DataError(f"hf/{place} has no split {split!r}; it has {', '.join(splits)}")
        splits = {"": splits[split]}
    if not local:
        return from_splits(place.replace("/", "-"), splits, reading)
    path = Path(place).expanduser().resolve()
    return from_splits(path.stem, splits, reading, (path if path.is_dir() else path.parent,))


def from_splits(name: str, splits: Mapping[str, Any], reading: Reading, folders: tuple[Path, ...] = ()) -> Gathered:
    """The images of datasets by split; a split whose labels are all unknown (-1) is passed over.

    Raises:
        BadImage, DataError: as ``from_hub``.
    """
    records, skipped, classes = list[Record](), list[str](), list[str]()
    known = {split: dataset for split, dataset in splits.items() if len(splits) == 1 or split_word(split)}
    if not known:
        raise DataError(f"{name} has splits {', '.join(splits)}; choose one, as in hf/{name}:{next(iter(splits), '')}")
    for split, dataset in known.items():
        found, names, faults = _records(name, split, dataset, reading, folders)
        records += found
        classes = names or classes
        skipped += faults if found else []
    if not reading.skip_bad and skipped:
        path, _, reason = skipped[0].partition(": ")
        raise BadImage(path, reason, *((one.partition(": ")[0], one.partition(": ")[2]) for one in skipped[1:]))
    return Gathered(name, records, classes or sorted_labels({one.label for one in records}), skipped)


def is_dataset(source: object) -> bool:
    """Whether ``source`` is a ``datasets.Dataset``; the library need not be there."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(source, library.Dataset)


def _library() -> Any:
    with needed_by("datasets of Hugging Face", "datasets"):
        library = importlib.import_module("datasets")
    if int(library.__version__.partition(".")[0]) < _OLDEST:
        raise PackageMissing(
            f"datasets {library.__version__} may run code that comes with a dataset; "
            "pip install --upgrade 'tightframe[datasets]'"
        )
    return library


def _local(path: Path) -> Any:
    library = _library()
    if path.suffix == ".arrow":
        return library.Dataset.from_file(str(path))
    if not path.exists():
        raise DataError(f"hf/{path}: there is no such file or folder; check the path")
    if any((path / name).is_file() for name in _SAVED):
        return library.load_from_disk(str(path))
    made = {"cache_dir": str(cache_folder() / "datasets")}
    if path.is_file():
        return library.load_dataset("parquet", data_files=str(path), **made)
    builder = library.load_dataset_builder(str(path.absolute()), **made)
    for files in (builder.config.data_files or {}).values():  # a README may name any file as data
        for one in files:
            if not Path(one).resolve().is_relative_to(path.resolve()):
                raise DataError(
                    f"hf/{path} names {one} as its data, which is outside it; give that itself if you trust it"
                )
    builder.download_and_prepare()
    return builder.as_dataset()


def _remote(place: str) -> Any:
    parts = place.split("/")
    if not all(re.fullmatch(r"[\w.-]+", part) for part in parts) or len(parts) > 3:
        raise DataError(f"hf/{place} is no name on the hub; give hf/OWNER/NAME, hf/OWNER/NAME/CONFIG or hf/PATH")
    return _library().load_dataset("/".join(parts[:2]), *parts[2:])


def _records(
    name: str, split: str, dataset: Any, reading: Reading, folders: tuple[Path, ...]
) -> tuple[list[Record], list[str], list[str]]:
    """Images, class names if the dataset has them, and rows without a label."""
    library, asked = _library(), reading.columns
    image = asked.image or _image_column(name, dataset.features, library)
    label = asked.label or _label_column(name, dataset.features, library)
    for column in filter(None, (image, label, asked.group, asked.split)):
        if column not in dataset.features:
            raise DataError(f"{name} has no column {column!r}; its columns are {', '.join(dataset.features)}")
    kind = dataset.features[image]
    if isinstance(kind, library.Image) or (isinstance(kind, Mapping) and {*kind} == {"bytes", "path"}):
        dataset = dataset.cast_column(image, library.Image(decode=False))
    elif not str(getattr(kind, "dtype", "")).endswith("binary"):
        raise DataError(f"column {image} of {name} holds no images; name one that does with --image-column")
    rows = dataset.select_columns([image]).with_format("arrow")
    names = getattr(dataset.features[label], "names", None) or []
    labels, groups, said = (_column(dataset, column) for column in (label, asked.group, asked.split))
    word, shown = split_word(split), split or "image"
    records, faults = list[Record](), list[str]()
    for index, value in enumerate(labels):
        item = TableImage(f"{shown}-{index:06d}", rows, index, folders, reading.decoding)
        known = _class(value, names)
        if known:
            records.append(
                Record(item, known, split_word(text(said[index])) if asked.split else word, text(groups[index]))
            )
        else:
            faults.append(f"{item.name}: no label")
    return records, names, faults


def _class(value: object, names: Sequence[str]) -> str:
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else ""
    return "" if value == -1 else text(value)


def _column(dataset: Any, column: str | None) -> Sequence[Any]:
    if column is None:
        return [None] * len(dataset)
    return dataset.select_columns([column]).with_format("arrow")[:].column(0).to_pylist() if len(dataset) else []


def _image_column(name: str, features: Mapping[str, Any], library: Any) -> str:
    images = [column for column, kind in features.items() if isinstance(kind, library.Image)]
    return images[0] if len(images) == 1 else usual_column(name, images or list(features), "image")


def _label_column(name: str, features: Mapping[str, Any], library: Any) -> str:
    labels = [column for column, kind in features.items() if isinstance(kind, library.ClassLabel)]
    return labels[0] if len(labels) == 1 else usual_column(name, labels or list(features), "label")
