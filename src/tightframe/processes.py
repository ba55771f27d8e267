"""Several processes that train as one: each runs its part of every batch, and what they find is added up.

They are started by ``accelerate launch`` or ``torchrun`` and found by Hugging Face Accelerate. All do the same from the
same seeds, so that they agree on everything but the images at hand; the first alone writes (see ``files``). Batch
norms see the whole batch, so that the result is that of one process, to rounding; but for mixup, whose partners come
from a process's own part, and dropout.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tightframe.errors import SettingsError, TightframeError

Value = TypeVar("Value")


class Team:
    """The processes at work.

    Attributes:
        rank: of this one, 0 for the first.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    def check(self, batch_size: int) -> None:
        """Raise ``SettingsError`` for batches in which there is not an image for each."""
        if batch_size < self.size:
            raise SettingsError(f"a batch of {batch_size} does not go round {self.size} processes: raise --batch-size")

    def share(self, order: np.ndarray, batch_size: int) -> tuple[np.ndarray, int]:
        """Positions in ``order`` of this process's part of every batch, and how many that are of a full one.

        A last batch that is too small to go round is left out.
        """
        positions = np.arange(len(order))
        rest = len(order) % batch_size
        if 0 < rest < self.size:
            positions = positions[:-rest]
        mine = positions[positions % batch_size % self.size == self.rank]
        return mine, len(range(self.rank, batch_size, self.size))

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each by its sum over all processes."""
        for tensor in tensors if self.size > 1 else ():
            torch.distributed.all_reduce(tensor)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (b_i, d) of all processes, in the order of the batch that they are parts of."""
        if self.size == 1:
            return rows
        parts: list[Tensor | None] = [None] * self.size
        torch.distributed.all_gather_object(parts, rows.cpu())
        found = torch.empty(sum(len(part) for part in parts if part is not None), *rows.shape[1:])
        for rank, part in enumerate(parts):
            found[rank :: self.size] = part  # type: ignore[assignment]
        return found

    def agree(self, value: Value) -> Value:
        """The first process's value."""
        if self.size == 1:
            return value
        told = [value]
        torch.distributed.broadcast_object_list(told)
        return told[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            torch.distributed.barrier()

    @contextmanager
    def batch_norms_of(self, model: nn.Module | object) -> Iterator[None]:
        """Batch norms in training mode take their statistics from the whole batch."""
        modules = model.modules() if isinstance(model, nn.Module) and self.size > 1 else ()
        norms = [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.forward = partial(_normalized, norm)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm in norms:
                del norm.forward


def together() -> Team:
    """All processes that were started together; this one alone, unless a launcher said otherwise.

    Raises:
        TightframeError: Accelerate is needed and not here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team()
    try:
        from accelerate import PartialState
    except ModuleNotFoundError as error:
        raise TightframeError(
            "several processes were started, which needs Accelerate: pip install 'tightframe[accelerate]'"
        ) from error
    state = PartialState(cpu=not torch.cuda.is_available())
    return Team(state.process_index, state.num_processes)


class _Sum(torch.autograd.Function):
    """The sum over all processes, each of whose losses depends on it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, gradient)


def _normalized(norm: nn.modules.batchnorm._BatchNorm, inputs: Tensor) -> Tensor:
    """What a batch norm makes of its part of a batch, by the mean and variance of all of it."""
    if not norm.training:
        return type(norm).forward(norm, inputs)
    values = inputs.float()
    along, shape = [0, *range(2, values.ndim)], [1, -1, *[1] * (values.ndim - 2)]
    count = _Sum.apply(torch.tensor(float(values.numel() // values.shape[1]), device=values.device))
    mean = _Sum.apply(values.sum(along)) / count
    centerd = values - mean.view(shape)
    variance = _Sum.apply(centerd.square().sum(along)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # type: ignore
            norm.running_mean.lerp_(mean.detach(), momentum)
            norm.running_var.lerp_(variance.detach() * count / (count - 1), momentum)
    scaled = centerd * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        scaled = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    return scaled.to(inputs.dtype)
