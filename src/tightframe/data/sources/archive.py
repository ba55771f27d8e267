"""A zip or tar whose folders are classes, laid out as a folder of images is, and read where it lies.

Nothing is unpacked: an image is a part of the archive, inflated in memory when it is decoded. A compressed tar can't be
read from the middle, so the tar itself (no file in it) is uncompressed once into the cache. An archive may come from
anyone, so

- names that are absolute or climb out, links, devices, sparse and encrypted members are refused
- no member may take more than 256 MiB once inflated, and none is inflated beyond what it declares
- a compressed tar may grow to 100 times its size and 256 MiB, and no further

A single folder around everything is passed over, as archives usually have one.
"""

from __future__ import annotations

import bz2
import gzip
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tightframe.data.decoding import IMAGE_SUFFIXES
from tightframe.data.items import FilePart
from tightframe.data.labeled import LITTER, NO_IMAGE, Faults
from tightframe.data.records import Gathered, Reading, Record, split_word
from tightframe.data.sources.cache import cache_folder, kept, key_of
from tightframe.errors import DataError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
"""How names of archives end, in lower case."""
MAX_MEMBER = 1 << 28
"""Most bytes of one member once inflated."""
MAX_GROWTH = 100
"""Most bytes that a byte of a compressed tar may become, beyond ``MAX_MEMBER``."""

_CHUNK = 1 << 20
_DAMAGED = (
    *(OSError, EOFError, ValueError, OverflowError, NotImplementedError, struct.error),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error),
)
_LOCAL_HEADER = 30


class Member(NamedTuple):
    """A file in an archive, or why it can't be used."""

    name: str
    part: FilePart
    reason: str = ""


def is_archive(path: Path) -> bool:
    """Whether ``path`` names an archive."""
    return path.name.lower().endswith(ARCHIVES)


def from_archive(path: Path, reading: Reading) -> Gathered:
    """The images in the archive ``path``, sorted by class and name.

    Raises:
        BadImage: members can't be used, and ``skip_bad`` is off.
        DataError: it can't be read, or holds no class folders.
    """
    faults, found = Faults(Path(), reading.skip_bad), dict[PurePosixPath, FilePart]()
    for member in members(path):
        place = PurePosixPath(member.name)
        if any((part.startswith(".") and part != "..") or part.casefold() in LITTER for part in place.parts):
            continue
        reason = member.reason or ("its name stands there twice" if place in found else "")
        if reason:
            faults.add(Path(member.name), reason)
        elif place.suffix.lower() in IMAGE_SUFFIXES:
            found[place] = replace(member.part, how=reading.decoding)
        elif len(place.parts) > 2:
            faults.leave_out(Path(member.name), NO_IMAGE)
    faults.check()
    name = path.name[: -len(next(end for end in ARCHIVES if path.name.lower().endswith(end)))]
    records = _laid_out(path, found, faults)
    return Gathered(name, sorted(records, key=lambda one: (one.label, one.item.name)), skipped=faults.skipped)


def members(path: Path) -> Iterable[Member]:
    """The files in the archive ``path``, in its order.

    Raises:
        DataError: it can't be read.
    """
    try:
        yield from _zipped(path) if path.suffix.lower() == ".zip" else _tarred(path)
    except _DAMAGED as error:
        raise DataError(f"{path} can't be read as an archive ({error}); make or fetch it anew") from error


def _zipped(path: Path) -> Iterable[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.replace("\\", "/")
            if name.endswith("/"):
                continue
            reason = name_fault(name)
            if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                reason = reason or "a link or a device"
            if info.flag_bits & 1:
                reason = reason or "encrypted"
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                reason = reason or "neither stored nor deflated; make the zip anew with plain deflate"
            reason = reason or _size_fault(max(info.file_size, info.compress_size))
            start = info.header_offset if reason else _data_start(archive.fp, info.header_offset)
            inflated = info.file_size if info.compress_type == zipfile.ZIP_DEFLATED else None
            yield Member(name, FilePart(name, path, start, info.compress_size, inflated), reason)


def _data_start(file: IO[bytes] | None, header: int) -> int:
    """Where a member's bytes begin: behind its own header, whose names may be longer than those in the index."""
    assert file is not None
    file.seek(header)
    told = file.read(_LOCAL_HEADER)
    if len(told) < _LOCAL_HEADER or not told.startswith(b"PK\3\4"):
        raise zipfile.BadZipFile("a member's header is not where the index says")
    return header + _LOCAL_HEADER + int.from_bytes(told[26:28], "little") + int.from_bytes(told[28:30], "little")


def _tarred(path: Path) -> Iterable[Member]:
    plain = path if path.suffix.lower() == ".tar" else _uncompressed(path)
    with tarfile.open(plain, "r:") as archive:
        for info in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
            if info.isdir():
                continue
            reason = name_fault(info.name)
            if not info.isreg() or info.issparse():
                reason = reason or "a link, a device or a sparse file"
            reason = reason or _size_fault(info.size)
            yield Member(info.name, FilePart(info.name, plain, info.offset_data, info.size), reason)


def _uncompressed(path: Path) -> Path:
    """The plain tar in the compressed one, in the cache."""
    status = path.stat()
    key = key_of(str(path.absolute()), status.st_size, status.st_mtime_ns)
    opened: Callable[[Path], IO[bytes]] = bz2.open if path.name.lower().endswith("bz2") else gzip.open  # type: ignore
    most = MAX_GROWTH * status.st_size + MAX_MEMBER

    def uncompress(target: Path) -> None:
        with opened(path) as source, target.open("wb") as file:
            while chunk := source.read(_CHUNK):
                if file.tell() + len(chunk) > most:
                    raise DataError(f"{path} grows beyond {MAX_GROWTH} times its size; uncompress it yourself")
                file.write(chunk)

    return kept(cache_folder() / "tars" / f"{key}.tar", uncompress)


def _laid_out(path: Path, found: dict[PurePosixPath, FilePart], faults: Faults) -> Iterable[Record]:
    """Classes and splits, by the layouts of a folder: of three splits, train and test are read."""
    places = {place: place.parts for place in found}
    tops = {parts[0] for parts in places.values()}
    if len(tops) == 1 and all(len(parts) > 2 for parts in places.values()) and not split_word(*tops):
        places = {place: parts[1:] for place, parts in places.items()}
        tops = {parts[0] for parts in places.values()}
    words = {split_word(top) for top in tops} - {""}
    if "train" in words and any(len(parts) > 2 for parts in places.values() if split_word(parts[0]) == "train"):
        held = "test" if "test" in words else "val"
        places = {place: parts for place, parts in places.items() if split_word(parts[0]) in ("train", held)}
        splits = {place: split_word(parts[0]) for place, parts in places.items()}
        places = {place: parts[1:] for place, parts in places.items()}
    else:
        splits = dict.fromkeys(places, "")
    for place, parts in places.items():
        if len(parts) < 2:
            faults.add(Path(place), "it lies in no class folder, so it has no label")
            continue
        yield Record(found[place], unicodedata.normalize("NFC", parts[0]), splits[place])
    faults.check()


def name_fault(name: str) -> str:
    """Why a member can't be called ``name``; empty if it can."""
    place = PurePosixPath(name)
    climbs = place.is_absolute() or ".." in place.parts or "\0" in name or name[1:2] == ":"
    return "its name leads out of the archive" if climbs or not place.parts else ""


def _size_fault(size: int) -> str:
    return f"it takes {size:,} bytes; at most {MAX_MEMBER:,} are read" if size > MAX_MEMBER else ""
