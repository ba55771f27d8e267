"""WebDataset's tar shards, read where they lie: members of one name, each with its own suffix, are one sample.

``webdataset:PATTERN`` names shards by path with braces (``{0000..0128}``, ``{train,val}``) and wildcards (``*``). A
sample is an image (``.jpg``, ``.png``, …) with its class in ``.cls`` (a number, or a name) or in ``.json`` under one of
the usual names or the one in ``--label-column``. Class numbers become names by ``classes.txt`` or ``classnames.txt``
beside the shards, one name a line from 0 on. Shards, or their folders, whose names begin with train, val or test are
that split. Tars are read as ``archive`` reads them: nothing is unpacked, and the same members are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from tightframe.data.class_lists import class_list
from tightframe.data.decoding import IMAGE_SUFFIXES
from tightframe.data.items import FilePart
from tightframe.data.labeled import Faults
from tightframe.data.records import Gathered, Reading, Record, split_word
from tightframe.data.sources.archive import members
from tightframe.data.sources.remote import Address, is_address
from tightframe.data.sources.rows import sorted_labels, text, usual_column
from tightframe.errors import BadImage, DataError
from tightframe.progress import Progress

SCHEME = "webdataset:"
CLASS_LISTS = ("classes.txt", "classnames.txt")
_MAX_SHARDS = 100_000
_MAX_NOTE = 1 << 20
"""Most bytes of a ``.cls`` or ``.json``."""


@dataclass
class _Sample:
    images: dict[str, FilePart] = field(default_factory=dict)
    notes: dict[str, FilePart] = field(default_factory=dict)


def from_shards(paths: Sequence[Path], reading: Reading) -> Gathered:
    """The images in the shards ``paths``, in their order.

    Raises:
        BadImage: members can't be used, or samples have no class, and ``skip_bad`` is off.
        DataError: a shard can't be read, or a label has no name.
    """
    faults, records = Faults(Path(), reading.skip_bad), list[Record]()
    for path in reading.progress(paths, "reading shards", len(paths)):
        split = _split_of(path)
        for name, sample in _samples(path, faults).items():
            if not sample.images:
                continue
            suffix, part = min(sample.images.items())
            try:
                label, group = _label(sample.notes, reading)
            except BadImage as error:
                faults.add(Path(f"{path.name}/{name}{suffix}"), error.reason)
                continue
            records.append(Record(replace(part, how=reading.decoding), label, split, group))
    faults.check()
    home = _home(paths)
    names = _class_names(home)
    if names:
        records = [Record(one.item, _named(one.label, names, one.item.name), one.split, one.group) for one in records]
    classes = names or sorted_labels({record.label for record in records})
    return Gathered(home.name, records, classes, faults.skipped)


def expanded(pattern: str) -> list[str]:
    """The paths that ``pattern`` means by its braces, in order; wildcards stay.

    Raises:
        DataError: it means more than 100,000.
    """
    done, left = list[str](), [pattern]
    while left:
        if len(done) + len(left) > _MAX_SHARDS:
            raise DataError(f"{pattern} names more than {_MAX_SHARDS:,} shards; name fewer")
        one = left.pop()
        brace = re.search(r"\{([^{}]*)\}", one)  # the innermost first
        if brace is None:
            done.append(one)
        else:
            left += [one[: brace.start()] + part + one[brace.end() :] for part in reversed(_parts(brace[1]))]
    return list(dict.fromkeys(done))


def shard_paths(pattern: str, progress: Progress) -> list[Path]:
    """The shards that ``pattern`` means; those at an address are fetched first.

    Raises:
        DataError: there are none, or one is missing.
    """
    found, names = list[Path](), expanded(pattern)
    if is_address(pattern):
        names = _fetched(names, progress)
    for one in names:
        path = Path(one)
        wild = "*" in one or "?" in one
        anchor = Path(path.anchor)
        some = sorted(anchor.glob(str(path.relative_to(anchor)))) if wild else [path]
        found += [shard for shard in some if shard.is_file()]
        if not wild and not path.is_file():
            raise DataError(f"{SCHEME}{pattern}: there is no {path}; check the path and the range in braces")
    if not found:
        raise DataError(f"{SCHEME}{pattern}: no such shards; check the path, and put the pattern in quotes")
    return found


def _fetched(addresses: Sequence[str], progress: Progress) -> list[str]:
    """The same shards, and the list of classes beside them, in a folder of the cache."""
    if any(mark in one for one in addresses for mark in "*?"):
        raise DataError(f"{addresses[0]}: shards at an address are named by braces, as in {{000..127}}, not wildcards")
    parts = zip(*(one.split("/")[:-1] for one in addresses), strict=False)
    base = "/".join(some[0] for some in takewhile(lambda some: len(set(some)) == 1, parts))
    if split_word(base.rpartition("/")[2]):
        base = base.rpartition("/")[0]
    names = [one[len(base) + 1 :] for one in addresses]
    folder = Address(base).with_only([*names, *CLASS_LISTS], progress)
    return [str(folder / name) for name in names]


def _parts(inside: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span is None:
        return inside.split(",")
    first, last = int(span[1]), int(span[2])
    if abs(last - first) > _MAX_SHARDS:
        raise DataError(f"{{{inside}}} names more than {_MAX_SHARDS:,} shards; name fewer")
    width = len(span[1]) if span[1].startswith("0") else 0
    step = 1 if first <= last else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]


def _split_of(path: Path) -> str:
    """The split that a shard, or its folder, is called after."""
    for name in (path.name, path.absolute().parent.name):
        if word := split_word(re.match(r"[a-z]*", name.casefold())[0]):  # type: ignore[index]
            return word
    return ""


def _samples(path: Path, faults: Faults) -> dict[str, _Sample]:
    found = dict[str, _Sample]()
    for member in members(path):
        place = PurePosixPath(member.name)
        if place.name.startswith("."):
            continue
        if member.reason:
            faults.add(Path(path.name) / member.name.lstrip("/"), member.reason)
            continue
        stem, _, suffixes = place.name.partition(".")  # as webdataset: the name ends at its first dot
        sample = found.setdefault(str(place.with_name(stem)), _Sample())
        suffix = f".{suffixes.lower()}"
        kind = sample.images if PurePosixPath(f"x{suffix}").suffix in IMAGE_SUFFIXES else sample.notes
        if suffix in kind:
            faults.add(Path(path.name) / member.name, "its name stands there twice")
        kind[suffix] = replace(member.part, name=f"{path.name}/{member.name}")
    return found


def _label(notes: dict[str, FilePart], reading: Reading) -> tuple[str, str]:
    """Class and group of a sample. Raises ``BadImage`` where it has no class."""
    asked = reading.columns
    if ".cls" in notes and asked.label is None and asked.group is None:
        said = _note(notes[".cls"]).strip()
        if said:
            return said, ""
    if ".json" not in notes:
        raise BadImage("", "no class: it has neither .cls nor .json")
    try:
        values = json.loads(_note(notes[".json"]), parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise BadImage("", f"its .json can't be read ({error})") from error
    if not isinstance(values, dict):
        raise BadImage("", "its .json is not an object")
    try:
        label = _value(values, asked.label or usual_column("its .json", tuple(values), "label"))
    except DataError as error:
        raise BadImage("", str(error)) from error
    if not label:
        raise BadImage("", f"no class in its .json under {asked.label}")
    return label, _value(values, asked.group) if asked.group else ""


def _value(values: dict[str, Any], name: str | None) -> str:
    return text(values.get(name or ""))


def _note(part: FilePart) -> str:
    if part.size > _MAX_NOTE:
        raise BadImage("", f"its label takes {part.size:,} bytes; at most {_MAX_NOTE:,} are read")
    try:
        return part.content().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadImage("", f"its label is not UTF-8 ({error})") from error


def _home(paths: Sequence[Path]) -> Path:
    """The folder of the dataset: that of the shards, or the one above where it is called after a split."""
    folder = paths[0].absolute().parent
    return folder.parent if split_word(folder.name) else folder


def _class_names(home: Path) -> tuple[str, ...]:
    return next((class_list(home / name) for name in CLASS_LISTS if (home / name).is_file()), ())


def _named(label: str, names: Sequence[str], image: str) -> str:
    if label.isdecimal() and int(label) < len(names):
        return names[int(label)]
    if label in names:
        return label
    raise DataError(f"{image} has class {label}, and the list of classes names {len(names)}; correct either")
