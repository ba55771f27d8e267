"""Features that outlive a pass: in memory, or on disk as safetensors shards with a manifest.

On disk there is one folder a layer, named by a hash of its key: weights, preprocessing, layer, pooling, precision and
images. An entry counts only when its manifest, written last, agrees with the key and the shards; anything else is a
miss and is computed again, never a stale answer. Several processes may share a folder: entries appear whole, and a
whole entry is never replaced.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from tightframe.errors import SavedError
from tightframe.features.moments import ClassMoments
from tightframe.files import sweep, write_tensors, write_text
from tightframe.processes import is_first

FORMAT = 1
SHARD_BYTES = 64 * 2**20
MEMORY_BYTES = 2 * 2**30
"""Features kept in memory at most; the oldest are dropped first."""
MANIFEST, MOMENTS = "manifest.json", "moments.safetensors"
Key = Mapping[str, Any]


@dataclass(frozen=True)
class Kept:
    """Features of one layer.

    Attributes:
        read: gives them, float32 (n, d).
        seconds: how long the pass took that computed them.
        moments: gives the class moments of all images, where features of some alone are kept.
    """

    read: Callable[[], np.ndarray]
    seconds: float
    moments: Callable[[], ClassMoments] | None = None


@dataclass
class FeatureStore:
    """Features by key, in ``folder`` or, without one, in memory. The folder is safe to delete at any time."""

    folder: Path | None = None
    _memory: OrderedDict[str, tuple[np.ndarray, Kept]] = field(default_factory=OrderedDict)

    def find(self, key: Key) -> Kept | None:
        """What is kept under ``key``; ``None`` if it is missing or damaged."""
        name = _name(key)
        if name in self._memory:
            self._memory.move_to_end(name)
            return self._memory[name][1]
        manifest = _manifest(self.folder / name, key) if self.folder is not None else None
        if self.folder is None or manifest is None:
            return None
        return _kept(self.folder / name, manifest)

    def writer(self, keys: Mapping[str, Key]) -> Writer:
        """Collects the features of one pass, by layer. Of several processes the first alone writes to disk."""
        if self.folder is not None and is_first():
            sweep(self.folder, ".*")
        return Writer(self, keys, self.folder if is_first() else None)

    def remember(self, key: Key, features: np.ndarray, seconds: float, moments: ClassMoments | None = None) -> Kept:
        """Keep features in memory."""
        kept = Kept(lambda: features, seconds, None if moments is None else lambda: moments)
        self._memory[_name(key)] = features, kept
        while len(self._memory) > 1 and sum(array.nbytes for array, _ in self._memory.values()) > MEMORY_BYTES:
            self._memory.popitem(last=False)
        return kept


class Writer:
    """Collects one pass: in memory, or as shards in temporary folders that ``finish`` puts in place."""

    def __init__(self, store: FeatureStore, keys: Mapping[str, Key], folder: Path | None):
        self._store, self._keys = store, keys
        self._entries = {layer: folder / _name(key) for layer, key in keys.items()} if folder is not None else {}
        self._waiting: dict[str, list[np.ndarray]] = {layer: [] for layer in keys}
        self._shards: dict[str, list[str]] = {layer: [] for layer in keys}
        self._sums: dict[str, list[int]] = {layer: [] for layer in keys}
        self._rows = 0
        self._mark = uuid.uuid4().hex  # process ids repeat: in containers, and in threads of one process

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """One more batch: features (b, d) of every layer."""
        for layer, features in batch.items():
            self._waiting[layer].append(np.ascontiguousarray(features, dtype=np.float32))
            if self._entries and sum(part.nbytes for part in self._waiting[layer]) >= SHARD_BYTES:
                self._write_shard(layer)
        self._rows += len(next(iter(batch.values()), ()))

    def finish(self, seconds: float, moments: Mapping[str, ClassMoments] = MappingProxyType({})) -> dict[str, Kept]:
        """Keep all layers, with the class moments of more images where there are any; and return how to read them."""
        if self._entries:
            return {layer: self._put_in_place(layer, moments.get(layer), seconds) for layer in self._entries}
        whole = {layer: np.concatenate(parts) for layer, parts in self._waiting.items()}
        return {
            layer: self._store.remember(self._keys[layer], array, seconds, moments.get(layer))
            for layer, array in whole.items()
        }

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for entry in self._entries.values():
            shutil.rmtree(self._unfinished(entry), ignore_errors=True)

    def _put_in_place(self, layer: str, moments: ClassMoments | None, seconds: float) -> Kept:
        entry = self._entries[layer]
        self._write_shard(layer)
        manifest = {"format": FORMAT, "key": self._keys[layer], "rows": self._rows, "seconds": seconds}
        manifest |= {"shards": self._shards[layer], "sums": self._sums[layer]}
        unfinished = self._unfinished(entry)
        if moments is not None:
            moments.save(unfinished / MOMENTS)
            manifest["moments"] = moments.samples
        write_text(unfinished / MANIFEST, json.dumps(manifest, indent=1))
        try:
            unfinished.replace(entry)
        except OSError:  # there is an entry already
            faster = _manifest(entry, self._keys[layer])
            if faster is not None:  # another process's, which may be read already, and whose shards may be others
                return _kept(entry, faster)
            shutil.rmtree(entry, ignore_errors=True)  # damaged
            unfinished.replace(entry)
        return _kept(entry, manifest)

    def _unfinished(self, entry: Path) -> Path:
        return entry.with_name(f".{entry.name}.{self._mark}")

    def _write_shard(self, layer: str) -> None:
        if not self._waiting[layer]:
            return
        folder = self._unfinished(self._entries[layer])
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(self._shards[layer]):05d}.safetensors"
        features = np.concatenate(self._waiting[layer])
        write_tensors(folder / name, {"features": torch.from_numpy(features)})
        self._shards[layer].append(name)
        self._sums[layer].append(_sum(features))
        self._waiting[layer] = []


def _name(key: Key) -> str:
    canonical = json.dumps({"format": FORMAT, **key}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _manifest(entry: Path, key: Key) -> dict[str, Any] | None:
    """The manifest of an entry that is whole."""
    try:
        manifest: dict[str, Any] = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        whole = manifest["format"] == FORMAT and manifest["key"] == json.loads(json.dumps(key))
        whole = whole and ("moments" not in manifest or (entry / MOMENTS).is_file())
        if whole and _rows(entry, manifest) == manifest["rows"] and isinstance(manifest["seconds"], float):
            return manifest
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
        pass
    return None


def _shards(entry: Path, manifest: dict[str, Any]) -> list[Path]:
    """Paths of the shards, which may lie nowhere but in the entry's own folder."""
    return [entry / Path(str(name)).name for name in manifest["shards"]]


def _rows(entry: Path, manifest: dict[str, Any]) -> int:
    """Rows of all shards together. Raises ``ValueError`` unless they are tables of one width."""
    shapes = []
    for shard in _shards(entry, manifest):
        with safe_open(str(shard), "np") as file:
            shapes.append(file.get_slice("features").get_shape())
    widths = {tuple(shape[1:]) for shape in shapes}
    if [len(width) for width in widths] != [1]:
        raise ValueError("shards are not tables of one width")
    return sum(shape[0] for shape in shapes)


def _kept(entry: Path, manifest: dict[str, Any]) -> Kept:
    folded = partial(ClassMoments.load, entry / MOMENTS) if "moments" in manifest else None
    return Kept(_reader(entry, manifest), manifest["seconds"], folded)


def _sum(features: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(features).view(np.uint8).data)


def _reader(entry: Path, manifest: dict[str, Any]) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        parts = list[np.ndarray]()
        try:
            for shard in _shards(entry, manifest):
                with safe_open(str(shard), "np") as file:
                    parts.append(file.get_tensor("features"))
        except (OSError, SafetensorError) as error:
            raise SavedError(
                f"{entry}: features that were there a moment ago can't be read ({error}); run the command again, which "
                "computes them anew"
            ) from error
        if manifest.get("sums", found := [_sum(part) for part in parts]) != found:
            shutil.rmtree(entry, ignore_errors=True)
            raise SavedError(
                f"{entry}: kept features were damaged and are removed; run the command again, which computes them anew"
            )
        return np.concatenate(parts)

    return read
