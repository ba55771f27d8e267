"""Features on disk: safetensors shards with a manifest, found again by everything that made them.

One folder a layer, named by a hash of its key: weights, preprocessing, layer, pooling, precision and images. An
entry counts only when its manifest, written last, is there and agrees with the key and the shards; anything else is a
miss and is made anew, never a stale answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from tightframe.files import write_tensors

FORMAT = 1
SHARD_BYTES = 64 * 2**20
MANIFEST = "manifest.json"
Keys = Mapping[str, dict[str, Any]]
Arrays = dict[str, Callable[[], np.ndarray]]


class Found(NamedTuple):
    """Arrays by layer, read when called, and how long the pass that made them took."""

    arrays: Arrays
    seconds: float


class FeatureStore:
    """A folder of features that commands share. Safe to delete at any time; entries are written whole or not at all."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)

    def find(self, keys: Keys) -> Found | None:
        """What is kept for all of the layers ``keys``, or ``None`` if any is missing or damaged."""
        manifests = {layer: self._manifest(key) for layer, key in keys.items()}
        arrays: Arrays = {}
        for layer, manifest in manifests.items():
            if manifest is None:
                return None
            arrays[layer] = _reader(self.entry(keys[layer]), manifest)
        return Found(arrays, max((m["seconds"] for m in manifests.values() if m), default=0.0))

    def writer(self, keys: Keys) -> Writer:
        """A writer of new entries for ``keys``."""
        return Writer(keys, {layer: self.entry(key) for layer, key in keys.items()})

    def entry(self, key: dict[str, Any]) -> Path:
        """The folder of one layer's features."""
        canonical = json.dumps({"format": FORMAT, **key}, sort_keys=True)
        return self.folder / hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def _manifest(self, key: dict[str, Any]) -> dict[str, Any] | None:
        entry = self.entry(key)
        try:
            manifest: dict[str, Any] = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
            whole = manifest["format"] == FORMAT and manifest["key"] == json.loads(json.dumps(key))
            if whole and _rows(entry, manifest) == manifest["rows"] and isinstance(manifest["seconds"], float):
                return manifest
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            pass
        return None


class Writer:
    """Collects one pass: in memory, or as shards in a temporary folder that ``finish`` puts in place."""

    def __init__(self, keys: Keys, entries: Mapping[str, Path] | None):
        self.keys, self.entries = keys, entries
        self._waiting: dict[str, list[np.ndarray]] = {layer: [] for layer in keys}
        self._shards: dict[str, list[str]] = {layer: [] for layer in keys}
        self._rows = 0

    @classmethod
    def in_memory(cls, keys: Keys) -> Writer:
        """A writer that keeps everything in memory and nothing on disk."""
        return cls(keys, None)

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """One more batch: features (b, d) of every layer."""
        for layer, features in batch.items():
            self._waiting[layer].append(np.ascontiguousarray(features, dtype=np.float32))
            if self.entries is not None and sum(part.nbytes for part in self._waiting[layer]) >= SHARD_BYTES:
                self._write_shard(layer)
        self._rows += len(next(iter(batch.values())))

    def finish(self, seconds: float) -> Arrays:
        """Put all entries in place and return how to read them."""
        if self.entries is None:
            whole = {layer: np.concatenate(parts) for layer, parts in self._waiting.items()}
            return {layer: (lambda array=array: array) for layer, array in whole.items()}  # type: ignore[misc]
        arrays: Arrays = {}
        for layer, entry in self.entries.items():
            self._write_shard(layer)
            manifest = {"format": FORMAT, "key": self.keys[layer], "rows": self._rows, "seconds": seconds}
            manifest["shards"] = self._shards[layer]
            (_unfinished(entry) / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            shutil.rmtree(entry, ignore_errors=True)  # a damaged entry, or an equal one made meanwhile
            _unfinished(entry).replace(entry)
            arrays[layer] = _reader(entry, manifest)
        return arrays

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for entry in (self.entries or {}).values():
            shutil.rmtree(_unfinished(entry), ignore_errors=True)

    def _write_shard(self, layer: str) -> None:
        if self.entries is None or not self._waiting[layer]:
            return
        folder = _unfinished(self.entries[layer])
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(self._shards[layer]):05d}.safetensors"
        write_tensors(folder / name, {"features": torch.from_numpy(np.concatenate(self._waiting[layer]))})
        self._shards[layer].append(name)
        self._waiting[layer] = []


def _unfinished(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.{os.getpid()}")


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


def _reader(entry: Path, manifest: dict[str, Any]) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        parts = []
        for shard in _shards(entry, manifest):
            with safe_open(str(shard), "np") as file:
                parts.append(file.get_tensor("features"))
        return np.concatenate(parts)

    return read
