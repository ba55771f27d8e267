"""A folder of images whose folders are the classes.

Two layouts are read::

    ROOT/train/CLASS/...   and   ROOT/test/CLASS/...     (or val, valid, validation, where there is no test)
    ROOT/CLASS/...                                       (a share of every class is held out for testing)

Images may lie deeper below CLASS. Classes and images are sorted by name, so the same folder always gives the same
data; class names are compared in Unicode's NFC form, so that copies made by different systems agree. A folder called
``train`` is a split if it holds folders or stands beside a held-out one; otherwise it is a class like any other.

Passed over in silence are hidden files and folders, what Windows and macOS leave behind, and files beside the class
folders that are no images (a license, a table). Links are followed inside the root, each folder once a class.
Everything else that can't be used is an error that names it, or, with ``skip_bad``, is left out and listed.
"""

from __future__ import annotations

import os
import unicodedata
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from tightframe.data.decoding import IMAGE_SUFFIXES, open_image
from tightframe.data.items import ImageFile
from tightframe.data.selection import check_share, hold_out
from tightframe.errors import BadImage, DataError
from tightframe.images import Images, ImageSplits
from tightframe.progress import Progress, silent

_HELD_OUT = ("test", "val", "valid", "validation")
_SPLIT_WORDS = {"train", "training", "testing", "eval", "evaluation", "dev", *_HELD_OUT}
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
_LAYOUTS = "Expected are ROOT/train/CLASS/image.jpg with ROOT/test/CLASS/image.jpg, or ROOT/CLASS/image.jpg alone."
_THREADS = min(8, os.cpu_count() or 1)
_ByClass = dict[str, list[str]]  # class -> identifiers of its images


def load_folder(
    root: Path,
    *,
    test_share: float = 0.25,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> ImageSplits:
    """The labeled images below ``root``, in either layout.

    Nothing is decoded here, unless ``skip_bad``: then every image is, once, and those that fail are left out.

    Args:
        root: the folder; may be a link.
        test_share: share of every class held out where there is no test folder, in [0, 1); with 0, or where every class
            has but one image, ``test`` is None.
        seed: which images are held out.
        skip_bad: leave out what can't be used and list it in ``skipped`` as "path: reason".
        progress: called as tqdm is, around the decoding.

    Raises:
        BadImage: a file or link can't be used and ``skip_bad`` is off.
        DataError: no such folder, not a layout that is read, an empty class (``skip_bad`` drops it), fewer than two
            classes, test classes unknown in training, or a class name that is not text.
        SettingsError: ``test_share`` or ``seed`` is out of range.

    """
    check_share(test_share)
    try:
        root = _existing(Path(root).absolute())
        parts = _Survey(root, skip_bad).run(progress)
    except OSError as error:
        raise DataError(
            f"{_shown(error.filename or root)} can't be read ({error.strerror}); check its rights"
        ) from error
    name = _shown(root.name if root.name not in ("", "..") else root.resolve().name or root)
    classes = tuple(sorted(parts.train))
    train = _images(f"{name}/train", root, classes, parts.train)
    skipped = tuple(parts.skipped)
    if parts.test is not None:
        return ImageSplits(name, train, _images(f"{name}/test", root, classes, parts.test), skipped)
    return hold_out(name, train, test_share, seed, skipped)


def _images(name: str, root: Path, classes: tuple[str, ...], found: _ByClass) -> Images:
    pairs = [(label, image) for label, cls in enumerate(classes) for image in sorted(found.get(cls, []))]
    labels = np.array([label for label, _ in pairs], dtype=np.int64)
    return Images(name, classes, labels, tuple(ImageFile(image, root) for _, image in pairs))


@dataclass
class _Survey:
    """What lies below ``root``, class by class, and what was left out. One is made for each load."""

    root: Path
    skip_bad: bool
    train: _ByClass = field(default_factory=dict)
    test: _ByClass | None = None
    skipped: list[str] = field(default_factory=list)

    def run(self, progress: Progress) -> _Survey:
        train_at, test_at = _layout(self.root)
        self.train = self._scan(train_at)
        self.test = None if test_at is None else self._scan(test_at)
        if self.skip_bad:
            self._drop_undecodable(progress)
        known = set(self.train)
        self._drop_empty(train_at, test_at)
        self._check(known, test_at)
        return self

    def bad(self, path: str | Path, reason: str) -> None:
        """Raise for the file or folder ``path``, or note it where it may be skipped."""
        if not self.skip_bad:
            raise BadImage(_shown(path), reason)
        self.skipped.append(f"{_shown(Path(path).relative_to(self.root).as_posix())}: {reason}")

    def _scan(self, folder: Path) -> _ByClass:
        found: _ByClass = {}
        for entry in _entries(folder):
            if entry.is_symlink() and (reason := _link_fault(entry, self.root)):
                self.bad(entry.path, reason)
            elif entry.is_dir():
                found.setdefault(_class_name(entry), []).extend(self._below(entry.path))
            elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                self.bad(entry.path, f"it lies in no class folder, so it has no label. {_LAYOUTS}")
        return found

    def _below(self, top: str) -> Iterator[str]:
        """Identifiers of the images below ``top``: folders before links, each once, so no loop of links hangs."""
        folders, links, seen = deque([Path(top)]), deque[Path](), set[Path]()
        while folders or links:
            folder = folders.popleft() if folders else links.popleft()
            if (real := folder.resolve()) in seen:
                continue
            seen.add(real)
            for entry in _entries(folder):
                if reason := _fault(entry, self.root):
                    self.bad(entry.path, reason)
                elif entry.is_dir():
                    (links if entry.is_symlink() else folders).append(Path(entry.path))
                else:
                    yield Path(entry.path).relative_to(self.root).as_posix()

    def _drop_undecodable(self, progress: Progress) -> None:
        lists = [images for part in (self.train, self.test or {}) for images in part.values()]
        everything = sorted({image for images in lists for image in images})
        with ThreadPoolExecutor(_THREADS) as pool:
            reasons = pool.map(self._decoding_fault, everything)
            checked = progress(zip(everything, reasons, strict=True), "Checking images", len(everything))
            faults = {image: reason for image, reason in checked if reason}
        for image, reason in faults.items():
            self.bad(self.root / image, reason)
        for images in lists:
            images[:] = [image for image in images if image not in faults]

    def _decoding_fault(self, identifier: str) -> str:
        try:
            open_image(self.root / identifier)
        except BadImage as error:
            return error.reason
        return ""

    def _drop_empty(self, train_at: Path, test_at: Path | None) -> None:
        empty = [train_at / cls for cls, images in self.train.items() if not images]
        if test_at is not None:
            empty += [test_at / cls for cls, images in (self.test or {}).items() if not images]
        if empty and not self.skip_bad:
            raise DataError(
                f"no images in {', '.join(str(path) for path in empty)}. Put images there or remove the empty"
                " folders, or pass --skip-bad (skip_bad=True) to go on without these classes."
            )
        for path in empty:
            self.bad(path, "no images in this class")
        self.train = {cls: images for cls, images in self.train.items() if images}
        if self.test is not None:
            self.test = {cls: images for cls, images in self.test.items() if images}

    def _check(self, known: set[str], test_at: Path | None) -> None:
        if len(self.train) < 2:
            found = f"only one class, {next(iter(self.train))!r}" if self.train else "no class with images"
            raise DataError(f"{_shown(self.root)}: {found}, so there is nothing to tell apart. {_LAYOUTS}")
        if self.test is None or test_at is None:
            return
        if unknown := sorted(set(self.test) - known):
            raise DataError(
                f"{test_at} has classes that training lacks: {', '.join(unknown)}. Add them to training, remove them"
                f" here, or correct their names; training has {', '.join(sorted(self.train))}. If splits are meant to"
                f" differ in classes, as for few-shot evaluation, name one of them: {test_at}"
            )
        for cls in sorted(set(self.test) - set(self.train)):  # dropped from training above, so no longer a class
            self.bad(test_at / cls, "training has no usable image of this class")
            del self.test[cls]
        if not self.test:
            raise DataError(
                f"{test_at} holds no usable images. Remove it to have a share of training held out. {_LAYOUTS}"
            )


def _existing(root: Path) -> Path:
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"{_shown(root)} is a file. Give the folder that holds the images; unpack an archive first.")
    folders = [entry.name for entry in _entries(root.parent) if entry.is_dir()] if root.parent.is_dir() else []
    near = get_close_matches(root.name, folders, n=1)
    advice = f"Did you mean {_shown(root.parent / near[0])}?" if near else "Check the path."
    raise DataError(f"{_shown(root)}: there is no such folder. {advice}")


def _layout(root: Path) -> tuple[Path, Path | None]:
    """The folders that hold the classes for training and, if there is one, for testing."""
    entries = _entries(root)
    folders = {entry.name.casefold(): entry for entry in entries if entry.is_dir()}
    train, test = folders.get("train"), next((folders[name] for name in _HELD_OUT if name in folders), None)
    if train and (test or any(entry.is_dir() for entry in _entries(Path(train.path)))):
        for split in (train, test):
            if split and split.is_symlink() and (reason := _link_fault(split, root)):
                raise DataError(f"{_shown(split.path)}: {reason}. Put the folder itself there.")
        return Path(train.path), Path(test.path) if test else None
    if folders and folders.keys() <= _SPLIT_WORDS:
        raise DataError(f"{_shown(root)} has {', '.join(sorted(folders))}, but no classes to train on. {_LAYOUTS}")
    if not folders:
        found = f"{len(entries)} files but no class folders" if entries else "nothing"
        raise DataError(f"{_shown(root)} holds {found}, so the images have no labels. {_LAYOUTS}")
    return root, None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in ``folder``, by name, without what is hidden and what systems leave behind."""
    with os.scandir(folder) as found:
        kept = [entry for entry in found if not entry.name.startswith(".") and entry.name.casefold() not in _LITTER]
    return sorted(kept, key=lambda entry: entry.name)


def _class_name(entry: os.DirEntry[str]) -> str:
    if _shown(entry.name) != entry.name:
        raise DataError(f"{_shown(entry.path)}: this class's name is not text (UTF-8). Rename the folder.")
    return unicodedata.normalize("NFC", entry.name)


def _fault(entry: os.DirEntry[str], root: Path) -> str:
    """Why a file or folder below a class can't be used, without decoding it; empty if nothing speaks against it."""
    if _shown(entry.name) != entry.name:
        return "its name is not text (UTF-8)"
    if entry.is_symlink() and (reason := _link_fault(entry, root)):
        return reason
    if entry.is_dir():
        return ""
    if not entry.is_file():
        return "neither a file nor a folder"
    if (suffix := Path(entry.name).suffix.lower()) not in IMAGE_SUFFIXES:
        return f"not an image: its suffix is {suffix or 'missing'}, not one of {' '.join(sorted(IMAGE_SUFFIXES))}"
    return "" if entry.stat().st_size else "the file is empty (0 bytes)"


def _link_fault(entry: os.DirEntry[str], root: Path) -> str:
    link = Path(entry.path)
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a circle of links, before Python 3.13
        return "a link that leads nowhere"
    if not target.is_relative_to(root.resolve()):
        return f"a link that leads out of the data folder, to {_shown(target)}"
    if link.parent.resolve().is_relative_to(target):
        return "a link that leads back to a folder above it"
    return ""


def _shown(path: object) -> str:
    """A path that can be printed: bytes that are no UTF-8 come out as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()
