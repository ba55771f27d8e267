"""Files that are there whole or not at all: written beside their place under a name of this process, then renamed.

Of processes that a launcher started together to do the same, the first alone leaves files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tightframe.errors import SettingsError
from tightframe.processes import is_first


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8. Raises ``OSError``."""
    _write(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


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
            raise OSError(str(error)) from error
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
    if any(folder.iterdir()):
        raise SettingsError(f"{folder} is in use; choose another --out, a new or empty folder")


def _write(path: Path, content: Callable[[Path], object]) -> None:
    """Let ``content`` write a file, in place of ``path`` once it is whole."""
    if not is_first():
        return
    path = path.resolve()  # a link stays, and what it leads to is written
    if path.exists() and not path.is_file():
        content(path)  # a device or a pipe must not be replaced by a file
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        content(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
