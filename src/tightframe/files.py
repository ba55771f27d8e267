"""Files that are there whole or not at all: written beside their place under a name of this process, then renamed.

Of processes that a launcher started together to do the same, the first alone leaves files.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tightframe.errors import SettingsError
from tightframe.processes import is_first

UNFINISHED = ".unfinished"
"""How names of files that are being written end."""
ABANDONED = 2 * 86400.0
"""Seconds after which something unfinished is taken for abandoned."""


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8. Raises ``OSError``."""
    _write(path, lambda unfinished: unfinished.write_bytes(encoded(text)))


def encoded(text: str) -> bytes:
    """``text`` in UTF-8. Names typed under a locale without their letters are the bytes that were typed, where these
    are UTF-8, and escapes, as JSON has them, where they are not.
    """
    try:
        found = text.encode("utf-8", "surrogateescape")
        found.decode("utf-8")
    except UnicodeError:
        return text.encode("utf-8", "backslashreplace")
    return found


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` as it is. Raises ``OSError``."""
    _write(path, lambda unfinished: unfinished.write_bytes(content))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write ``tensors``, from whichever device, as safetensors. Raises ``OSError``."""

    def save(unfinished: Path) -> None:
        unfinished.touch()
        usual = unfinished.stat().st_mode  # safetensors puts a file in its place that only its owner may read
        try:
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, str(unfinished), metadata=metadata)
        except SafetensorError as error:  # a full disk, say
            number = re.search(r"os error (\d+)", str(error))
            told = (int(number[1]), os.strerror(int(number[1]))) if number else (str(error),)
            raise OSError(*told) from error
        if unfinished.stat().st_mode != usual:
            unfinished.chmod(usual)

    _write(path, save)


def new_folder(folder: Path) -> None:
    """Make ``folder``, or see that it is empty.

    Raises:
        SettingsError: it is in use, or can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} can't be made ({error.strerror}); choose another --out") from error
    if any(not entry.name.startswith(UNFINISHED) for entry in folder.iterdir()):  # of a process that was killed
        raise SettingsError(f"{folder} is in use; choose another --out, a new or empty folder")


def _write(path: Path, content: Callable[[Path], object]) -> None:
    """Let ``content`` write a file, in place of ``path`` once it is whole."""
    if not is_first():
        return
    path = path.resolve()  # a link stays, and what it leads to is written
    if path.exists() and not path.is_file():
        content(path)  # a device or a pipe must not be replaced by a file
        return
    unfinished = path.with_name(f".{uuid.uuid4().hex}{UNFINISHED}")  # process ids repeat, and names may be long
    try:
        content(unfinished)
        unfinished.replace(path)
    except OSError as error:  # a full disk: the system says neither which file nor where
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def sweep(folder: Path, pattern: str) -> None:
    """Remove what processes that were killed left unfinished in ``folder``: what nothing wrote to for two days."""
    with suppress(OSError):
        for entry in folder.glob(pattern):
            if time.time() - max(one.stat().st_mtime for one in (entry, *entry.glob("*"))) > ABANDONED:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
