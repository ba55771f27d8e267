"""A run folder: what was done so far, kept so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tightframe.errors import SettingsError
from tightframe.files import write_text
from tightframe.processes import together

MARK = "run.txt"
"""By which a folder is known as that of a run."""


def tune_command(uri: str, options: Mapping[str, Any]) -> str:
    """How to tune the model ``uri``, loaded with these ``options`` of ``load_backbone``, from the command line."""
    given: list[Any] = ["--model", uri]
    if not options.get("pretrained", True):
        given.append("--no-pretrained")
    for name in ("layers", "input_size", "mean", "std"):
        value = options.get(name)
        if value is not None:
            given += [f"--{name.replace('_', '-')}", *(value if isinstance(value, (list, tuple)) else [value])]
    return f"tightframe tune DATA {shlex.join(map(str, given))} --out DIR"


class Run:
    """A folder in which finished stages are remembered, each under the settings that decide it."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)

    def remember(self, name: str, key: Any, compute: Callable[[], Any]) -> Any:
        """The JSON value that ``compute`` gives, or gave before under the same ``name`` and ``key``."""
        wanted, path = fingerprint_of(key), self._path(name, "json")
        kept = _kept(path, name, wanted)
        if together().agree(kept is not None):  # of several processes the first has the say
            return (kept or _kept(path, name, wanted))["value"]
        value = json.loads(json.dumps(compute()))  # what is remembered and what is returned at once are the same
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"stage": name, "key": wanted, "value": value}, ensure_ascii=False))
        return value

    @contextmanager
    def held(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Keep other runs in this folder from the stage ``name``; False, without ``wait``, where one is at it."""
        if together().size > 1:  # they are one run
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
        except (NotImplementedError, OSError):  # files can't be locked there
            yield True
            return
        try:
            yield True
        finally:
            lock.release()

    def _path(self, name: str, kind: str) -> Path:
        return self.folder / "stages" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.{kind}"


def _kept(path: Path, name: str, key: str) -> Any:
    """A stage that was kept, ``None`` where it is not there, or damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept if kept["stage"] == name and kept["key"] == key and "value" in kept else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def claim(folder: Path, settings: Any, resume: bool = True) -> None:
    """Make ``folder`` the place of one run with these ``settings``, or see that it already is.

    Raises:
        SettingsError: it holds something else, or, without ``resume``, anything.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; give --out a folder")
    mark, wanted = folder / MARK, fingerprint_of(settings)
    used = folder.exists() and any(not entry.name.endswith(".unfinished") for entry in folder.iterdir())
    if used and not resume:
        raise SettingsError(f"{folder} is not empty; add --resume to go on with it, or choose another --out")
    if mark.is_file():
        if mark.read_text(encoding="utf-8").strip() != wanted:
            raise SettingsError(
                f"{folder} holds a run with other settings or images; choose another --out, or delete it to start anew"
            )
    elif used:
        raise SettingsError(f"{folder} is not empty and holds no run of tightframe; choose another --out")
    together().wait()  # all have looked before the first begins to write
    folder.mkdir(parents=True, exist_ok=True)
    write_text(mark, wanted + "\n")


def fingerprint_of(settings: Any) -> str:
    """A hash of JSON-able settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
