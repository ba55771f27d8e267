"""A folder of images whose subfolders are the classes.

Two layouts are read::

    ROOT/train/CLASS/...   and   ROOT/test/CLASS/...     (or val, valid, validation, where there is no test)
    ROOT/CLASS/...                                       (a share of each class is held out for testing)

Images may lie deeper below CLASS. Classes and images are sorted by name, so the same folder always gives the same
data; class names are compared in Unicode's NFC form, so that copies made by different systems agree. A folder called
``train`` is a split if it holds folders or stands beside a held-out one; otherwise it is a class like any other.

Folders that tightframe wrote (runs, saved models, kept features) are left out and listed, wherever they lie.

Hidden files, what Windows and macOS leave behind, and files beside the class folders that are no images (a license, a
table) are ignored. Files in class folders that are no images, by name or content, are left out and listed. Links are
followed inside the root, each folder once per class. Everything else that can't be used is an error that names it, or,
with ``skip_bad``, is left out and listed.
"""

from __future__ import annotations

import os
import unicodedata
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from tightframe.data.decoding import IMAGE_SUFFIXES, USUAL, Decoding
from tightframe.data.labeled import (
    LITTER,
    NO_IMAGE,
    OURS,
    Faults,
    check_classes,
    file_fault,
    labeled_files,
    printable,
    written_here,
)
from tightframe.data.selection import check_share, hold_out
from tightframe.errors import DataError
from tightframe.images import ImageSplits
from tightframe.progress import Progress, silent

_HELD_OUT = ("test", "val", "valid", "validation")
_SPLIT_WORDS = {"train", "training", "testing", "eval", "evaluation", "dev", *_HELD_OUT}
_LAYOUTS = "Expected are ROOT/train/CLASS/image.jpg with ROOT/test/CLASS/image.jpg, or ROOT/CLASS/image.jpg alone."
_ByClass = dict[str, list[str]]  # class -> paths of its images below the root


def load_folder(
    root: Path,
    *,
    test_share: float = 0.25,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress = silent,
    how: Decoding = USUAL,
    min_classes: int = 2,
) -> ImageSplits:
    """Load the labeled images below ``root``, in either layout.

    Arguments are those of ``load_images``; ``how`` files are decoded. With ``skip_bad`` every image is decoded once, to
    leave out those that fail.

    Raises:
        BadImage: files or links can't be used, and ``skip_bad`` is off.
        DataError: there is no such folder, its layout is another, a class is empty (``skip_bad`` drops it) or its name
            is not text, fewer than two classes are left, or test classes are unknown in training.
        SettingsError: ``test_share`` or ``seed`` is out of range.
    """
    check_share(test_share)
    root = Path(root).absolute()
    faults = Faults(root, skip_bad, how)
    try:
        places = _layout(_existing(root))
        splits = {place: _classes_in(place, faults) for place in places}
    except OSError as error:
        place = printable(error.filename or root)
        raise DataError(f"{place} can't be read ({error.strerror}); check its permissions") from error
    faults.check()
    if skip_bad:
        _drop_undecodable(splits.values(), faults, progress)
    train, *test = _without_empty(splits, faults)
    check_classes(root, train, _LAYOUTS, min_classes)
    name, classes = printable(root.name if root.name not in ("", "..") else root.resolve().name or root), sorted(train)
    images = labeled_files(f"{name}/train", root, classes, train, how)
    if not test:
        return hold_out(name, images, test_share, seed, tuple(faults.skipped))
    _check_test(places[1], test[0], train, splits[places[0]], faults)
    unseen = labeled_files(f"{name}/test", root, classes, test[0], how)
    return ImageSplits(name, images, unseen, tuple(faults.skipped))


def _existing(root: Path) -> Path:
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"{printable(root)} is a file. Give the folder that holds the images; unpack archives first.")
    folders = [entry.name for entry in _entries(root.parent) if entry.is_dir()] if root.parent.is_dir() else []
    near = get_close_matches(root.name, folders, n=1)
    advice = f"Did you mean {printable(root.parent / near[0])}?" if near else "Check the path."
    raise DataError(f"{printable(root)}: there is no such folder. {advice}")


def _layout(root: Path) -> tuple[Path, ...]:
    """The folder that holds the classes for training, and, if there is one, that for testing."""
    entries = _entries(root)
    folders = {entry.name.casefold(): entry for entry in entries if entry.is_dir()}
    train, test = folders.get("train"), next((folders[name] for name in _HELD_OUT if name in folders), None)
    if train and (test or any(entry.is_dir() for entry in _entries(Path(train.path)))):
        splits = [split for split in (train, test) if split]
        for split in splits:
            if split.is_symlink() and (reason := _link_fault(Path(split.path), root)):
                raise DataError(f"{printable(split.path)}: {reason}. Put the folder itself there.")
        return tuple(Path(split.path) for split in splits)
    if folders and folders.keys() <= _SPLIT_WORDS:
        raise DataError(f"{printable(root)} has {', '.join(sorted(folders))}, but no classes to train on. {_LAYOUTS}")
    if not folders:
        found = f"{len(entries)} files but no class folders" if entries else "nothing"
        raise DataError(f"{printable(root)} holds {found}, so the images have no labels. {_LAYOUTS}")
    return (root,)


def _classes_in(folder: Path, faults: Faults) -> _ByClass:
    found: _ByClass = {}
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.is_symlink() and (reason := _link_fault(path, faults.root)):
            faults.add(path, reason)
        elif entry.is_dir() and written_here(path):
            faults.leave_out(path, OURS)
        elif entry.is_dir():
            found.setdefault(_class_name(entry), []).extend(_images_below(path, faults))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            faults.add(path, f"it lies in no class folder, so it has no label. {_LAYOUTS}")
    return found


def _images_below(top: Path, faults: Faults) -> Iterator[str]:
    """Paths of the images below ``top``: folders before links, each once, so that loops of links end."""
    folders, links, seen = deque([top]), deque[Path](), set[Path]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        if (real := folder.resolve()) in seen:
            continue
        seen.add(real)
        for entry in _entries(folder):
            path = Path(entry.path)
            if reason := _fault(entry, faults.root):
                (faults.leave_out if reason == NO_IMAGE else faults.add)(path, reason)
            elif entry.is_dir() and written_here(path):
                faults.leave_out(path, OURS)
            elif entry.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            else:
                yield path.relative_to(faults.root).as_posix()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in ``folder``, by name, without what is hidden and what systems leave behind."""
    with os.scandir(folder) as found:
        kept = [entry for entry in found if not entry.name.startswith(".") and entry.name.casefold() not in LITTER]
    return sorted(kept, key=lambda entry: entry.name)


def _class_name(entry: os.DirEntry[str]) -> str:
    if printable(entry.name) != entry.name:
        raise DataError(f"{printable(entry.path)}: this class's name is not text (UTF-8). Rename the folder.")
    return unicodedata.normalize("NFC", entry.name)


def _fault(entry: os.DirEntry[str], root: Path) -> str:
    """Why a file or folder below a class can't be used, without decoding it; empty if it can."""
    if printable(entry.name) != entry.name:
        return "its name is not text (UTF-8)"
    if entry.is_symlink() and (reason := _link_fault(Path(entry.path), root)):
        return reason
    return "" if entry.is_dir() else file_fault(Path(entry.path))


def _link_fault(link: Path, root: Path) -> str:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a circle of links, before Python 3.13
        return "a link that leads nowhere"
    if not target.is_relative_to(root.resolve()):
        return f"a link that leads out of the data folder, to {printable(target)}"
    if link.parent.resolve().is_relative_to(target):
        return "a link that leads back to a folder above it"
    return ""


def _drop_undecodable(splits: Collection[_ByClass], faults: Faults, progress: Progress) -> None:
    lists = [paths for split in splits for paths in split.values()]
    decodable = faults.decodable({path for paths in lists for path in paths}, progress)
    for paths in lists:
        paths[:] = [path for path in paths if path in decodable]


def _without_empty(splits: Mapping[Path, _ByClass], faults: Faults) -> list[_ByClass]:
    """The splits without classes that have no image, which are an error unless faults may be skipped."""
    empty = [place / cls for place, split in splits.items() for cls, paths in split.items() if not paths]
    if empty and not faults.skip_bad:
        raise DataError(
            f"no images in {', '.join(map(printable, empty))}. Put images there or remove the empty folders, or pass "
            "--skip-bad (skip_bad=True) to go on without these classes."
        )
    for folder in empty:
        faults.add(folder, "no images in this class")
    return [{cls: paths for cls, paths in split.items() if paths} for split in splits.values()]


def _check_test(folder: Path, test: _ByClass, train: _ByClass, named: Collection[str], faults: Faults) -> None:
    """Check that the classes below the test ``folder`` are among those ``named`` by the folders for training."""
    if unknown := sorted(set(test) - set(named)):
        raise DataError(
            f"{printable(folder)} has classes that training lacks: {', '.join(unknown)}. Add them to training, remove "
            f"them here, or correct their names; training has {', '.join(sorted(train))}. If splits are meant to "
            f"differ in classes, as for few-shot evaluation, name one of them: {printable(folder)}"
        )
    for cls in sorted(set(test) - set(train)):  # dropped from training, so no longer a class
        faults.add(folder / cls, "training has no usable image of this class")
    if not set(test) & set(train):
        raise DataError(
            f"{printable(folder)} holds no usable images. Remove it to have a share of training held out. {_LAYOUTS}"
        )
