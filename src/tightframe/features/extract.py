"""The one pass: every image goes through the model once, and features of all layers come out together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.features.moments import ClassMoments
from tightframe.features.pixels import Pixels
from tightframe.features.precision import Precision, autocast, device_of, is_safe, likely_precision, on_device, sent
from tightframe.features.store import FeatureStore, Writer
from tightframe.features.taps import Pool, pooling_of, tapped
from tightframe.images import Images
from tightframe.progress import Progress, silent

BATCH = 64


class Running(TypedDict, total=False):
    """The arguments of ``extract`` that say how to run, not what: jobs take them as keywords and hand them on."""

    pool: Pool
    precision: Precision
    batch_size: int
    device: str
    store: FeatureStore | None
    progress: Progress


class Features(Mapping[str, np.ndarray]):
    """Pooled features of one split by layer: float32 arrays (n, d), read from disk when they are kept there.

    Attributes:
        labels: integers (n,).
        classes: class names.
        precision: in which the model ran.
        pool: how tokens were pooled.
        seconds: that the pass took, when it was made.
    """

    def __init__(
        self,
        arrays: Mapping[str, Callable[[], np.ndarray]],
        data: Images,
        *,
        precision: str,
        pool: str,
        seconds: float,
    ):
        self._arrays, self._moments = dict(arrays), dict[str, ClassMoments]()
        self.labels, self.classes = data.labels, data.classes
        self.precision, self.pool, self.seconds = precision, pool, seconds

    def __getitem__(self, layer: str) -> np.ndarray:
        return self._arrays[layer]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def moments(self, layer: str) -> ClassMoments:
        """Class moments of one layer, computed once."""
        if layer not in self._moments:
            self._moments[layer] = ClassMoments.from_features(self[layer], self.labels, len(self.classes))
        return self._moments[layer]


def extract(
    backbone: Backbone,
    data: Images,
    *,
    layers: Sequence[str] | None = None,
    pool: Pool = "auto",
    precision: Precision = "auto",
    batch_size: int = BATCH,
    device: str = "auto",
    store: FeatureStore | None = None,
    progress: Progress = silent,
) -> Features:
    """Features of ``data`` at ``layers`` (all blocks and the penultimate features, unless named) in one pass.

    With a ``store``, features go to disk batch by batch and are read back by layer; a later call with the same
    weights, preprocessing, layers, pooling, precision and images reads them without running the model (but for
    the trial batch of precision ``"auto"``, where bfloat16 would be faster).

    Raises:
        BadImage: an image can't be decoded.
        LayerNotFound: a name in ``layers`` is not a layer.
    """
    names = tuple(layers) if layers is not None else (*(layer.name for layer in backbone.layers), PENULTIMATE)
    how, target = pooling_of(backbone, pool), device_of(device)
    module = on_device(backbone.module, target)
    chosen = _safe_precision(backbone, data, target, precision)
    keys = {name: _key(backbone, data, backbone.layer(name).name, how, chosen) for name in names}
    kept = store.find(keys) if store else None
    if kept is not None:
        return Features(kept.arrays, data, precision=chosen, pool=how, seconds=kept.seconds)

    started = time.perf_counter()
    writer = store.writer(keys) if store else Writer.in_memory(keys)
    pixels = Pixels(data, backbone.preprocessing, keep_bytes=0)
    batches = pixels.batches(range(len(data)), batch_size)
    total = -(-len(data) // batch_size)
    with writer, tapped(backbone, names, pool) as read, torch.inference_mode(), autocast(target, chosen):
        for _, batch in progress(batches, f"{backbone.name} on {data.name}", total):
            module(_ready(backbone, batch, target))
            writer.add({name: read[name].cpu().numpy() for name in names})
        seconds = time.perf_counter() - started
        arrays = writer.finish(seconds)
    return Features(arrays, data, precision=chosen, pool=how, seconds=seconds)


def _safe_precision(backbone: Backbone, data: Images, device: torch.device, wanted: Precision) -> str:
    chosen = likely_precision(backbone.module, device, wanted)
    if wanted != "auto" or chosen == "float32":
        return chosen
    pixels = Pixels(data, backbone.preprocessing, keep_bytes=0)
    _, batch = next(pixels.batches(range(min(32, len(data))), 32))
    seen: list[Tensor] = []
    for precision in ("float32", "bfloat16"):
        with tapped(backbone, [PENULTIMATE]) as read, torch.inference_mode(), autocast(device, precision):
            backbone.module(_ready(backbone, batch, device))
            seen.append(read[PENULTIMATE])
    return "bfloat16" if is_safe(*seen) else "float32"


def _ready(backbone: Backbone, batch: Tensor, device: torch.device) -> Tensor:
    return backbone.preprocessing.normalize(sent(batch, device)).contiguous(memory_format=torch.channels_last)


def _key(backbone: Backbone, data: Images, layer: str, pool: str, precision: str) -> dict[str, Any]:
    """All that decides a layer's features."""
    return {
        "model": backbone.fingerprint,
        "layer": layer,
        "pool": pool,
        "precision": precision,
        "data": data.fingerprint,
    }
