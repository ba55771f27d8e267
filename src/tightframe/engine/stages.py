"""A folder of one run: whose it is, and finished stages remembered under the settings that decide them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tightframe.errors import SettingsError
from tightframe.files import UNFINISHED, sweep, write_text
from tightframe.processes import together

MARK = "run.txt"
"""The file that marks a folder as that of a run, and says of which."""


class Stages:
    """Results of stages by name and key: JSON values in ``folder`` or, without one, in memory."""

    def __init__(self, folder: Path | None = None):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise SettingsError(f"{folder} is a file; give --feature-cache a folder")
        self.folder = folder
        self._memory: dict[tuple[str, str], Any] = {}

    def remember(self, name: str, key: Any, make: Callable[[], Any]) -> Any:
        """The JSON value that ``make`` gives, or gave before under the same ``name`` and ``key``."""
        wanted = fingerprint_of(key)
        kept = self._kept(name, wanted)
        if together().agree(kept is not None):  # of several processes the first decides
            return (kept or self._kept(name, wanted))["value"]
        value = json.loads(json.dumps(make()))  # the same now as when it is read back
        self._memory[name, wanted] = {"value": value}
        if self.folder is not None:
            path = self._path(name, "json")
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = {"stage": name, "key": wanted, "value": value, "checksum": fingerprint_of(value)}
            write_text(path, json.dumps(kept, ensure_ascii=False))
        return value

    @contextmanager
    def held(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Keep other runs in this folder out of the stage ``name``; without ``wait``, False where one is in it."""
        if self.folder is None or together().size > 1:  # processes of one launcher are one run
            yield True
            return
        path = self._path(name, "lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except (NotImplementedError, OSError):  # a file system without locks
            yield True
            return
        try:
            yield True
        finally:
            lock.release()

    def _kept(self, name: str, key: str) -> Any:
        """A stage that was kept; ``None`` where it is missing or damaged."""
        if self.folder is None:
            return self._memory.get((name, key))
        try:
            kept = json.loads(self._path(name, "json").read_text(encoding="utf-8"))
            whole = kept["checksum"] == fingerprint_of(kept["value"])
            return kept if whole and kept["stage"] == name and kept["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _path(self, name: str, kind: str) -> Path:
        assert self.folder is not None
        return self.folder / "stages" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.{kind}"


def claim(folder: Path, settings: Any, resume: bool = True) -> None:
    """Make ``folder`` the place of one run with these JSON-able ``settings``, or check that it already is.

    Raises:
        SettingsError: it can't be written to, or holds something else, or, without ``resume``, anything.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; give --out a folder")
    mark, wanted = folder / MARK, fingerprint_of(settings)
    used = folder.exists() and any(not entry.name.endswith(UNFINISHED) for entry in folder.iterdir())
    if used and not resume:
        raise SettingsError(f"{folder} is not empty; add --resume to continue the run in it, or choose another --out")
    if mark.is_file():
        if mark.read_text(encoding="utf-8", errors="replace").strip() != wanted:
            raise SettingsError(
                f"{folder} holds a run with other settings or images; choose another --out, or delete the folder to "
                "start over"
            )
    elif used:
        raise SettingsError(f"{folder} is not empty and holds no run of tightframe; choose another --out")
    together().wait()  # all processes have looked before the first begins to write
    sweep(folder, f".*{UNFINISHED}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(mark, wanted + "\n")
    except OSError as error:
        raise SettingsError(f"{folder} can't be written to ({error.strerror}); choose another --out") from error


def fingerprint_of(settings: Any) -> str:
    """A hash of JSON-able settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
