"""Labeled image files below one folder: which of them can be used, and why the others can't."""

from __future__ import annotations

import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from tightframe.data.decoding import UNREAD_SUFFIXES, is_image
from tightframe.data.items import ImageFile
from tightframe.errors import BadImage, DataError
from tightframe.images import Images, undecodable
from tightframe.progress import Progress

LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""What Windows and macOS leave behind, in lower case."""
NO_IMAGE = "not an image, by name or content"


class Faults:
    """The files and folders below ``root`` that can't be used, with reasons; an error unless they may be skipped."""

    def __init__(self, root: Path, skip_bad: bool):
        self.root, self.skip_bad = root, skip_bad
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
        files = [ImageFile(path, self.root) for path in sorted(set(paths))]
        reasons = undecodable(files, progress)
        for index, reason in reasons.items():
            self.add(self.root / files[index].name, reason)
        return {file.name for index, file in enumerate(files) if index not in reasons}


def labeled_files(name: str, root: Path, classes: Sequence[str], found: Mapping[str, Sequence[str]]) -> Images:
    """The files ``found`` of each class (paths below ``root``), sorted by class and path."""
    pairs = [(label, path) for label, cls in enumerate(classes) for path in sorted(found.get(cls, ()))]
    labels = np.array([label for label, _ in pairs], dtype=np.int64)
    return Images(name, tuple(classes), labels, tuple(ImageFile(path, root) for _, path in pairs))


def file_fault(path: Path) -> str:
    """Why ``path`` can't be an image, without decoding it; empty if it can."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return "neither a file nor a folder"
    if path.suffix.lower() in UNREAD_SUFFIXES:
        return f"{path.suffix} files are not read; convert it to JPEG or PNG"
    if not is_image(path):
        return NO_IMAGE
    return "" if status.st_size else "the file is empty (0 bytes)"


def check_classes(place: object, classes: Collection[str], advice: str) -> None:
    """Raise ``DataError`` unless there are two classes or more."""
    if len(classes) < 2:
        found = f"only one class, {next(iter(classes))!r}" if classes else "no class with images"
        raise DataError(f"{printable(place)} has {found}; at least two are needed. {advice}")


def printable(path: object) -> str:
    """``path`` with bytes that are no UTF-8 as escapes, so that it can be printed."""
    return str(path).encode("utf-8", "backslashreplace").decode()
