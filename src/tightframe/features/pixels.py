"""Images as the model wants them: decoded, resized, cropped, and still bytes.

Bytes take a quarter of the memory of floats, so a few thousand images are decoded once and kept for every epoch;
scaling to the model's mean and deviation happens batch by batch, where it costs nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from tightframe.backbone import Preprocessing
from tightframe.errors import BadImage
from tightframe.images import Images, undecodable

KEEP_BYTES = 4 * 2**30
THREADS = min(16, os.cpu_count() or 1)
AHEAD = 3  # batches decoded before they are asked for


class Pixels:
    """Bytes (n, 3, height, width) of one split, decoded on demand and kept if all of them fit in ``keep_bytes``."""

    def __init__(self, data: Images, preprocessing: Preprocessing, keep_bytes: int = KEEP_BYTES):
        self.data, self.preprocessing = data, preprocessing
        height, width = preprocessing.input_size
        self._kept: dict[int, Tensor] | None = {} if len(data) * 3 * height * width <= keep_bytes else None

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, order: np.ndarray | Sequence[int], size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Indices and bytes (b, 3, h, w) in the order given, ``size`` at a time, decoded ahead by threads."""
        with ThreadPoolExecutor(THREADS) as pool:
            waiting: deque[tuple[list[int], list[Future[Tensor]]]] = deque()
            try:
                for start in range(0, len(order), size):
                    indices = [int(i) for i in order[start : start + size]]
                    if not waiting and self._kept is not None and all(index in self._kept for index in indices):
                        yield indices, torch.stack([self._kept[index] for index in indices])
                        continue
                    waiting.append((indices, [pool.submit(self._one, index) for index in indices]))
                    if len(waiting) > AHEAD:
                        yield self._finished(*waiting.popleft())
                while waiting:
                    yield self._finished(*waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _finished(self, indices: list[int], futures: list[Future[Tensor]]) -> tuple[list[int], Tensor]:
        try:
            return indices, torch.stack([future.result() for future in futures])
        except BadImage as error:
            bad = undecodable(self.data.items)  # to name them all, so that one run finds what has to be repaired
            if len(bad) < 2:
                raise
            first, *others = ((self.data.identifiers[index], reason) for index, reason in bad.items())
            raise BadImage(*first, *others) from error

    def _one(self, index: int) -> Tensor:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        pixels = self.preprocessing.pixels(self.data[index])
        if self._kept is not None:
            self._kept[index] = pixels
        return pixels
