"""Batch norms of any dimension, and how they see the whole of a batch that several processes run in parts.

PyTorch's ``SyncBatchNorm`` does the same on GPUs only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tightframe.processes import Team

BatchNorm = nn.modules.batchnorm._BatchNorm
"""The base class of all batch norms; PyTorch has no public name for it."""


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """All batch norms in ``model``."""
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


class _Sum(torch.autograd.Function):
    """The sum over all processes, each of whose losses depends on it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, gradient)


@contextmanager
def synchronized(model: nn.Module, team: Team) -> Iterator[None]:
    """Let batch norms in training mode take their statistics from the parts of a batch in all processes."""
    norms = batch_norms(model) if team.size > 1 else []
    for norm in norms:
        norm.forward = partial(normalized, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def normalized(norm: BatchNorm, inputs: Tensor) -> Tensor:
    """The output of ``norm`` for this process's part of a batch, by the mean and variance of the whole batch."""
    if not norm.training:
        return type(norm).forward(norm, inputs)
    values = inputs.float()
    along, shape = [0, *range(2, values.ndim)], [1, -1, *[1] * (values.ndim - 2)]
    count = _Sum.apply(torch.tensor(float(values.numel() // values.shape[1]), device=values.device))
    mean = _Sum.apply(values.sum(along)) / count
    centered = values - mean.view(shape)
    variance = _Sum.apply(centered.square().sum(along)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # type: ignore
            norm.running_mean.lerp_(mean.detach(), momentum)
            norm.running_var.lerp_(variance.detach() * count / (count - 1), momentum)
    scaled = centered * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        scaled = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    return scaled.to(inputs.dtype)
