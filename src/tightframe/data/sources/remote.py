"""Data at an address that fsspec reads (``s3://``, ``gs://``, ``https://``, …), fetched into the local cache.

A folder, or the images that a table names, become a folder in the cache that holds just these files; a file is kept
under its address, size and version, so that what changed is fetched anew and what did not is not. Names that lead out
of the folder are not fetched. Files are data: nothing that is fetched is run.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from tightframe.data.sources.cache import cache_folder, kept, key_of
from tightframe.errors import DataError, TightframeError, needed_by
from tightframe.progress import Progress

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_REFUSED = ("reference", "dask", "dir", "cached", "blockcache", "filecache", "simplecache")
"""File systems that read others as a file tells them to."""
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "version_id", "LastModified", "mtime", "updated", "created")
_CONNECTIONS = 16


class Address:
    """A file or folder elsewhere. Raises ``DataError`` where nothing there can be reached."""

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        protocol = address.partition("://")[0].casefold()
        if "::" in address or protocol in _REFUSED:
            raise DataError(f"{address} leads from one address to another; give the one where the data is")
        with needed_by(f"{protocol}://", "remote"):
            import fsspec

            try:
                self._files, self._place = fsspec.core.url_to_fs(self.address)
            except ValueError as error:
                raise DataError(f"{address}: {error}; give an address that fsspec reads, or a local path") from error

    @property
    def name(self) -> str:
        """The last part of its path; data, where that is none."""
        last = PurePosixPath(self.address.partition("://")[2].partition("?")[0]).name
        return last if last not in ("", "..") else "data"

    def beside(self) -> Address:
        """The folder that it lies in."""
        return Address(self.address.rpartition("/")[0])

    def file(self) -> Path:
        """The file, in the cache."""
        return self._file(self._place, self.name)

    def folder(self, progress: Progress) -> Path:
        """The folder with all that is in it, in the cache."""
        base = str(self._place).rstrip("/") + "/"
        found = [str(one) for one in self._asked(self._files.find, self._place)]
        names = [one[len(base) :] for one in found if one.startswith(base)]
        if not names:
            raise DataError(f"{self.address} holds no files; check the address")
        return self.with_only(names, progress)

    def with_only(self, names: Sequence[str], progress: Progress) -> Path:
        """The folder with those of the files ``names`` (paths below it) that are there, in the cache."""
        inside = sorted({name for name in names if _is_inside(name)})
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            got = list(progress(pool.map(self._below, inside), "fetching images", len(inside)))
        files = {name: path for name, path in zip(inside, got, strict=True) if path is not None}
        key = key_of(self.address, [(name, str(path)) for name, path in files.items()])

        def fill(folder: Path) -> None:
            folder.mkdir()
            for name, path in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                _link(path, folder / name)

        return kept(cache_folder() / "fetched" / key / self.name, fill)

    def _below(self, name: str) -> Path | None:
        place = f"{str(self._place).rstrip('/')}/{name}"
        try:
            return self._file(place, PurePosixPath(name).name)
        except _Absent:
            return None

    def _file(self, place: str, name: str) -> Path:
        info = self._asked(self._files.info, place)
        version = key_of(self._files.protocol, place, info.get("size"), [str(info.get(one)) for one in _VERSIONS])
        target = cache_folder() / "files" / version / name
        return kept(target, lambda unfinished: self._asked(self._files.get_file, place, str(unfinished)))

    def _asked(self, ask: Any, *arguments: Any) -> Any:
        try:
            return ask(*arguments)
        except TightframeError:
            raise
        except FileNotFoundError as error:
            raise _Absent(f"{self.address}: there is no such file or folder ({error}); check the address") from error
        except Exception as error:  # whatever a file system of others raises
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise DataError(
                f"{self.address} can't be read ({why}); check the address, and that you may read it"
            ) from error


class _Absent(DataError):
    """There is nothing at an address."""


def is_address(source: str) -> bool:
    """Whether ``source`` is an address and not a path."""
    return _ADDRESS.match(source) is not None


def _is_inside(name: str) -> bool:
    place = PurePosixPath(name)
    return bool(place.parts) and not place.is_absolute() and ".." not in place.parts and "\0" not in name


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
