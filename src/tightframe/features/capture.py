"""What goes into blocks during a pass, kept on disk: a block trains on it later, without the blocks before it.

Values are kept in half precision, memory-mapped, in a file that is gone once nothing refers to it.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tightframe.backbone import PENULTIMATE
from tightframe.errors import TightframeError
from tightframe.features.inputs import KeptInputs
from tightframe.features.taps import submodule

GIGABYTE = 2**30
LARGEST_HALF = 6e4
"""Beyond it float16 can't hold a value."""


class CannotCut(TightframeError):
    """The model can't be run from this block on; it can be tuned whole."""


class Capture:
    """Collects what goes into blocks, for so many images in so many views.

    Args:
        module: the model.
        blocks: dotted names, the most wanted first; ``"penultimate"`` for what the head sees, kept in float32.
        count: images.
        views: of each image.
        budget_gb: gigabytes of disk for all of it; blocks beyond it are left out.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[str], count: int, views: int, budget_gb: float):
        self._modules = {block: submodule(module, block) for block in blocks if block != PENULTIMATE}
        self._blocks, self._count, self._views, self._budget = tuple(blocks), count, views, budget_gb
        self._seen: dict[str, Tensor] = {}
        self._kept: dict[str, tuple[Tensor, bool]] | None = None
        self._refused = ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note what goes into the blocks in forward passes within the context."""
        handles = [
            module.register_forward_pre_hook(self._listen(block), with_kwargs=True)
            for block, module in self._modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, view: int, indices: Sequence[int], penultimate: Tensor | None) -> None:
        """Keep what was seen in the last pass, of ``view`` of the images with these indices."""
        if penultimate is not None:
            self._seen[PENULTIMATE] = penultimate
        if self._kept is None:
            self._kept = self._allocated(len(indices))
        rows = torch.tensor([view * self._count + index for index in indices])
        for block, (values, maps) in self._kept.items():
            seen = self._seen[block]
            seen = (seen.permute(0, 2, 3, 1) if maps else seen).cpu()
            if values.dtype == torch.float16 and _half(seen) == torch.bfloat16:  # as no batch before showed
                values = _widened(values)
                self._kept[block] = values, maps
            values[rows] = seen.to(values.dtype)
        self._seen.clear()

    def finish(self) -> dict[str, KeptInputs]:
        """By block, in the order asked for. Raises ``CannotCut`` where there is no room for any."""
        if self._blocks and not self._kept:
            raise CannotCut(self._refused)
        return {block: KeptInputs(values, maps, self._views) for block, (values, maps) in (self._kept or {}).items()}

    def _listen(self, block: str) -> Any:
        def keep(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            first = next(iter((*given, *named.values())), None)  # a mask may follow the inputs
            if isinstance(first, Tensor):
                self._seen[block] = first.clone()  # the block may work in place

        return keep

    def _allocated(self, rows: int) -> dict[str, tuple[Tensor, bool]]:
        """A file for each block that there is room for."""
        kept, left = dict[str, tuple[Tensor, bool]](), self._budget * GIGABYTE
        for block in self._blocks:
            seen = self._seen.get(block)
            if seen is None or len(seen) != rows:  # it is called by keyword, say, or on windows of images
                self._refused = f"what goes into {block} is not one tensor with a row an image"
                continue
            maps = seen.ndim == 4
            first = seen.permute(0, 2, 3, 1) if maps else seen
            dtype = torch.float32 if block == PENULTIMATE else _half(first)
            needed = self._views * self._count * first[0].numel() * dtype.itemsize
            try:
                if needed > left:
                    raise CannotCut(
                        f"what goes into {block} takes {needed / GIGABYTE:.1f} GB, more than the "
                        f"{self._budget:g} allowed (--prefix-cache-gb)"
                    )
                kept[block] = _mapped((self._views * self._count, *first.shape[1:]), dtype), maps
                left -= needed
            except CannotCut as error:
                self._refused = str(error)
        return kept


def _half(values: Tensor) -> torch.dtype:
    large = values.dtype == torch.bfloat16 or bool(values.abs().max() > LARGEST_HALF)
    return torch.bfloat16 if large else torch.float16


def _widened(values: Tensor) -> Tensor:
    """The same values as bfloat16, in the same place."""
    for row in values:
        row.view(torch.bfloat16).copy_(row.to(torch.bfloat16))
    return values.view(torch.bfloat16)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A file of this shape, which is gone once nothing refers to it. Raises ``CannotCut`` if it doesn't fit."""
    storage = {2: np.int16, 4: np.float32}[dtype.itemsize]
    with tempfile.NamedTemporaryFile(prefix="tightframe-", dir=Path(tempfile.gettempdir())) as file:
        _allocate(file.fileno(), dtype.itemsize * math.prod(shape))
        array = np.memmap(file.name, dtype=storage, mode="w+", shape=shape)
    return torch.from_numpy(array).view(dtype)


def _allocate(descriptor: int, size: int) -> None:
    """Take the room at once: running out of it later would end the process. Raises ``CannotCut``."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        where = tempfile.gettempdir()
        raise CannotCut(
            f"{where} has no room for {size / GIGABYTE:.2g} GB ({error.strerror}); TMPDIR moves it"
        ) from error
