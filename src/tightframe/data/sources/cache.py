"""Where fetched and uncompressed data is kept: ``$TIGHTFRAME_CACHE``, else ``tightframe`` in the user's cache folder.

Whatever is there can be deleted at any time, and is then made or fetched again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from tightframe.errors import DataError
from tightframe.files import sweep


def cache_folder() -> Path:
    """The folder; it may not exist yet."""
    if chosen := os.environ.get("TIGHTFRAME_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "tightframe"


def key_of(*what: object) -> str:
    """A short name for what is kept, which is the same whenever ``what`` is."""
    return blake2b(repr(what).encode(), digest_size=16).hexdigest()


def kept(path: Path, make: Callable[[Path], object]) -> Path:
    """The file or folder ``path``, which ``make`` makes under another name unless it is there: whole or not at all.

    Raises:
        DataError: its folder can't be written.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, ".unfinished-*")
        beside = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=path.parent))
    except OSError as error:
        raise DataError(
            f"{path.parent} can't be written ({error.strerror}); name another folder in TIGHTFRAME_CACHE"
        ) from error
    try:
        make(beside / path.name)
        (beside / path.name).rename(path)
    except OSError as error:
        if not path.exists():  # else another process was as far at the same time
            raise DataError(f"{path} can't be written ({error.strerror}); is there room in the cache?") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path
