"""Which source a name, a path, an address or an object of Python's means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from torch.utils.data import Dataset

from tightframe.data.digits import load_digit_images
from tightframe.data.folder import load_folder
from tightframe.data.records import Gathered, Reading, splits_of
from tightframe.data.sources import archive, hub, named, objects, shards
from tightframe.data.sources.remote import Address, is_address
from tightframe.data.sources.rows import TABLES
from tightframe.data.sources.table import from_split_tables, from_table, image_names, split_tables
from tightframe.errors import DataError, SettingsError
from tightframe.images import ImageSplits


def load_source(source: object, reading: Reading) -> ImageSplits:
    """The images of ``source``.

    Raises:
        BadImage, DataError, SettingsError: as ``load_images``.
    """
    if isinstance(source, str | Path):
        return _load_path(source, reading)
    return splits_of(_from_object(source, reading), reading)


def _load_path(source: str | Path, reading: Reading) -> ImageSplits:
    scheme = next((one for one in (named.SCHEME, hub.SCHEME, shards.SCHEME) if str(source).startswith(one)), "")
    if isinstance(source, str) and scheme:
        _check_options(source, reading, root=scheme == named.SCHEME, columns=scheme != named.SCHEME)
        return splits_of(_from_scheme(scheme, source.removeprefix(scheme), reading), reading)
    remote = Address(source) if isinstance(source, str) and is_address(source) else None
    name = remote.name if remote else Path(source).name
    if PurePosixPath(name).suffix.lower() in TABLES and (remote or not Path(source).is_dir()):
        _check_options(source, reading, root=True, columns=True)
        return splits_of(_from_table(source, remote, reading), reading)
    _check_options(source, reading)
    scheme, colon, digits = str(source).partition(":")
    if isinstance(source, str) and scheme == "digits":
        return load_digit_images(digits if colon else None, test_share=reading.test_share, seed=reading.seed)
    if archive.is_archive(Path(name)) and (remote or Path(source).is_file()):
        return splits_of(archive.from_archive(remote.file() if remote else Path(source), reading), reading)
    folder = remote.folder(reading.progress) if remote else Path(source)
    if tables := split_tables(folder):
        return splits_of(from_split_tables(tables, reading), reading)
    return load_folder(
        folder,
        test_share=reading.test_share,
        seed=reading.seed,
        skip_bad=reading.skip_bad,
        progress=reading.progress,
        how=reading.decoding,
        min_classes=reading.min_classes,
    )


def _from_scheme(scheme: str, rest: str, reading: Reading) -> Gathered:
    if scheme == named.SCHEME:
        return named.from_torchvision(rest, reading)
    if scheme == shards.SCHEME:
        return shards.from_shards(shards.shard_paths(rest, reading.progress), reading)
    if is_address(rest):
        remote = Address(rest)
        file = PurePosixPath(remote.name).suffix in (".parquet", ".arrow")
        return hub.from_hub(str(remote.file() if file else remote.folder(reading.progress)), reading)
    return hub.from_hub(rest, reading)


def _from_table(source: str | Path, remote: Address | None, reading: Reading) -> Gathered:
    if remote is None or reading.root is not None:
        return from_table(remote.file() if remote else Path(source), reading)
    asked = image_names(remote.file(), reading)
    folder = remote.beside().with_only([remote.name, *asked, *(f"images/{name}" for name in asked)], reading.progress)
    return from_table(folder / remote.name, reading)


def _from_object(source: object, reading: Reading, called: str = "image") -> Gathered:
    if isinstance(source, Mapping):
        return _from_splits(source, reading)
    if hub.is_dataset(source):
        return hub.from_splits("dataset", {"": source}, reading)
    if objects.is_frame(source):
        return objects.from_frame(source, reading)
    _check_options(type(source).__name__, reading)
    if isinstance(source, Dataset):
        return objects.from_dataset(source, reading, called)
    if isinstance(source, tuple) and len(source) == 2:
        return objects.from_pair(*source, called)
    raise DataError(f"a {type(source).__name__} ({source!r:.60}) is no source of images; {objects.ACCEPTED}")


def _from_splits(source: Mapping[object, object], reading: Reading) -> Gathered:
    """Several sources, each of which is a split."""
    if source and all(map(hub.is_dataset, source.values())):
        return hub.from_splits("dataset", {str(split): one for split, one in source.items()}, reading)
    found = {str(split): _from_object(one, reading, str(split)) for split, one in source.items()}
    if not found:
        raise DataError(f"a dictionary without splits; {objects.ACCEPTED}")
    records = [replace(one, split=split) for split, part in found.items() for one in part.records]
    classes = list(dict.fromkeys(name for part in found.values() for name in part.classes or ()))
    skipped = [line for part in found.values() for line in part.skipped]
    return Gathered(next(iter(found.values())).name, records, classes, skipped)


def _check_options(source: object, reading: Reading, root: bool = False, columns: bool = False) -> None:
    """Raise ``SettingsError`` for options that would change nothing."""
    given = [f"--{what}-column" for what in ("image", "label", "split", "group") if getattr(reading.columns, what)]
    if given and not columns:
        raise SettingsError(f"{source} has no columns, so {given[0]} has no meaning; leave it out, or give a table")
    if reading.root is not None and not root:
        raise SettingsError(
            f"{source} says where its images are; --root is for tables and torchvision/NAME, leave it out"
        )
    if reading.download and not str(source).startswith(named.SCHEME):
        raise SettingsError(f"{source} needs no --download, which is for torchvision/NAME; leave it out")
