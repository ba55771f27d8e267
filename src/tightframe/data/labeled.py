"""Labeled image files below one folder: which of them can be used, and why the others can't."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from tightframe.data.decoding import HEIC_SUFFIXES, UNREAD_SUFFIXES, USUAL, Decoding, is_image
from tightframe.data.items import ImageFile
from tightframe.engine.stages import MARK
from tightframe.errors import BadImage, DataError
from tightframe.features.store import MANIFEST
from tightframe.images import Images, undecodable
from tightframe.progress import Progress

LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""What Windows and macOS leave behind, in lower case."""
NO_IMAGE = "not an image, by name or content"
OURS = "written by tightframe, so no images to learn from"
PAGE = "report.html"
_SAVED = ("tightframe.json", "model.safetensors")
"""Files that saved models have."""
_RUN = re.compile(rb"[0-9a-f]{64}\s*")
"""The content of the file that marks a run."""
_FEATURES = re.compile(r"[0-9a-f]{32}")
"""The name of a folder of features."""
_GENERATOR, _HEAD = b'name="generator" content="tightframe', 4096
"""What a page says in its first bytes."""
_STAGE = re.compile(r"[0-9a-f]{16}\.(json|lock)")
_LOOKED_AT = 1000
"""Most entries of a folder that are looked at to know it: folders of images end at the first."""


class Faults:
    """The files and folders below ``root`` that can't be used, with reasons; an error unless they may be skipped."""

    def __init__(self, root: Path, skip_bad: bool, how: Decoding = USUAL):
        self.root, self.skip_bad, self.how = root, skip_bad, how
        self.skipped: list[str] = []
        self._bad: list[tuple[str, str]] = []

    def add(self, path: Path, reason: str) -> None:
        """Note that ``path`` can't be used."""
        if self.skip_bad:
            self.leave_out(path, reason)
        else:
            self._bad.append((printable(path), reason))

    def leave_out(self, path: Path, reason: str) -> None:
        """Note that ``path`` is not used, which is no error."""
        shown = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        self.skipped.append(f"{printable(shown.as_posix())}: {reason}")

    def check(self) -> None:
        """Raise ``BadImage`` for all that was noted so far, unless it may be skipped."""
        if self._bad:
            raise BadImage(*self._bad[0], *self._bad[1:])

    def decodable(self, paths: Collection[str], progress: Progress) -> set[str]:
        """Decode each of ``paths`` (below ``root``); note those that fail, and return the others."""
        files = [ImageFile(path, self.root, self.how) for path in sorted(set(paths))]
        reasons = undecodable(files, progress)
        for index, reason in reasons.items():
            self.add(self.root / files[index].name, reason)
        return {file.name for index, file in enumerate(files) if index not in reasons}


def labeled_files(
    name: str, root: Path, classes: Sequence[str], found: Mapping[str, Sequence[str]], how: Decoding = USUAL
) -> Images:
    """The files ``found`` of each class (paths below ``root``), by class and path; ``how`` they are decoded."""
    pairs = [(label, path) for label, cls in enumerate(classes) for path in sorted(found.get(cls, ()))]
    labels = np.array([label for label, _ in pairs], dtype=np.int64)
    return Images(name, tuple(classes), labels, tuple(ImageFile(path, root, how) for _, path in pairs))


def file_fault(path: Path) -> str:
    """Why ``path`` can't be an image, without decoding it; empty if it can."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return "neither a file nor a folder"
    if path.suffix.lower() in UNREAD_SUFFIXES:
        plugin = ", or pip install pillow-heif" if path.suffix.lower() in HEIC_SUFFIXES else ""
        return f"{path.suffix} files are not read; convert it to JPEG or PNG{plugin}"
    if not is_image(path):
        return NO_IMAGE
    return "" if status.st_size else "the file is empty (0 bytes)"


def check_classes(place: object, classes: Collection[str], advice: str, least: int = 2) -> None:
    """Raise ``DataError`` unless there are two classes, or the ``least``, or more."""
    if len(classes) < least:
        needed = "two are" if least > 1 else "one is"
        found = f"only one class, {next(iter(classes))!r}" if classes else "no class with images"
        raise DataError(f"{printable(place)} has {found}; at least {needed} needed. {advice}")


def printable(path: object) -> str:
    """``path`` with bytes that are no UTF-8 as escapes, so that it can be printed."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def written_here(folder: Path) -> bool:
    """Whether ``folder`` holds what tightframe wrote (a run, a saved model, features, a page) and nothing else."""
    if any((folder / name).is_file() for name in _SAVED) or _RUN.fullmatch(_start(folder / MARK)):
        return True
    if (_FEATURES.fullmatch(folder.name) and (folder / MANIFEST).is_file()) or _GENERATOR in _start(folder / PAGE):
        return True
    with os.scandir(folder) as found:
        entries = list(islice((entry for entry in found if not entry.name.startswith(".")), _LOOKED_AT))
    return bool(entries) and all(_written_here(entry) for entry in entries)


def _start(path: Path) -> bytes:
    """The first bytes of a file; none where there is no such file."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_HEAD)


def _written_here(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():
        return False
    return written_here(Path(entry.path)) if entry.is_dir() else _STAGE.fullmatch(entry.name) is not None
