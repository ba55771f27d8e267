"""The one pass: every image goes through the model once, and features of all layers come out together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.features.inputs import PixelInputs
from tightframe.features.moments import ClassMoments
from tightframe.features.precision import Precision, autocast, is_safe, likely_precision
from tightframe.features.taps import tapped
from tightframe.images import Images

SAMPLE = 50_000
"""Images whose features are kept where class moments of all do for the rest."""
TRIAL = 32
"""Images on which bfloat16 is compared with float32."""


class Features(Mapping[str, np.ndarray]):
    """Pooled features of one split by layer: float32 arrays (n, d), read from disk when they are kept there.

    Attributes:
        labels: integers (n,).
        classes: class names.
        groups: which images belong together (n,), or ``None``.
        precision: in which the model ran.
        pool: how tokens were pooled.
        seconds: how long the pass took that computed them.
        total: images that class moments are of; more than n, where features of a sample alone are kept.
    """

    def __init__(
        self,
        arrays: Mapping[str, Callable[[], np.ndarray]],
        data: Images,
        moments: dict[str, ClassMoments] | None = None,
        *,
        folded: Mapping[str, Callable[[], ClassMoments]] | None = None,
        total: int | None = None,
        precision: str,
        pool: str,
        seconds: float,
    ):
        self._arrays, self._moments = dict(arrays), {} if moments is None else moments
        self.labels, self.classes, self.groups = data.labels, data.classes, data.groups
        self.precision, self.pool, self.seconds = precision, pool, seconds
        self._folded, self.total = dict(folded or {}), len(data) if total is None else total

    def __getitem__(self, layer: str) -> np.ndarray:
        return self._arrays[layer]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def moments(self, layer: str) -> ClassMoments:
        """Class moments of one layer, of all images, computed once."""
        if layer not in self._moments and layer in self._folded:
            self._moments[layer] = self._folded[layer]()
        elif layer not in self._moments:
            self._moments[layer] = ClassMoments.from_features(self[layer], self.labels, len(self.classes))
        return self._moments[layer]


def sampled(features: Features) -> list[str]:
    """A note where ``features`` are those of a sample."""
    if features.total == len(features.labels):
        return []
    return [
        f"collapse metrics are of all {features.total:,} images; probes, scores and intervals, which need the features "
        f"themselves, of {len(features.labels):,} of them, drawn by a hash of their contents"
    ]


def safe_precision(backbone: Backbone, inputs: PixelInputs, wanted: Precision) -> str:
    """The precision to run in: with ``"auto"``, bfloat16 where it is faster and a first batch shows it to be safe."""
    chosen = likely_precision(backbone.module, inputs.device, wanted)
    if wanted != "auto" or chosen == "float32" or not len(inputs.pixels):
        return chosen
    _, batch = next(inputs.batches(range(min(TRIAL, len(inputs.pixels))), TRIAL))
    seen: list[Tensor] = []
    for precision in ("float32", "bfloat16"):
        with tapped(backbone, [PENULTIMATE]) as read, torch.inference_mode(), autocast(inputs.device, precision):
            backbone.module(batch)
            seen.append(read[PENULTIMATE])
    return "bfloat16" if is_safe(*seen) else "float32"


def feature_key(backbone: Backbone, data: Images, layer: str, pool: str, precision: str) -> dict[str, Any]:
    """Everything that decides a layer's features."""
    return {
        "model": backbone.fingerprint,
        "layer": layer,
        "pool": pool,
        "precision": precision,
        "data": data.fingerprint,
    }
