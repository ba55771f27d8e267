"""Features and labels as users give them: tensors or arrays, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightframe.errors import MeasureError


def as_tensor(values: Any, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """``values`` (tensor, array or sequence of numbers) as a tensor without gradient, and no copy where that is safe.

    Raises:
        MeasureError: they are not numbers.
    """
    if isinstance(values, Tensor):
        return torch.as_tensor(values.detach(), dtype=dtype, device=device)
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise MeasureError(
            f"{values.dtype} values are no numbers; number class names with np.unique(labels, return_inverse=True)[1]"
        )
    usual = np.result_type(values.dtype, np.int64 if values.dtype.kind == "u" and values.itemsize > 1 else values.dtype)
    kind = np.dtype(np.float64) if usual.kind == "f" and usual.itemsize > 8 else usual.newbyteorder("=")
    values = values.astype(np.int64 if values.dtype == np.uint64 else kind, copy=False)
    if not values.flags.writeable or min(values.strides, default=0) < 0:
        values = values.copy()
    return torch.as_tensor(values, dtype=dtype, device=device)


def group_numbers(groups: Any, samples: int) -> np.ndarray | None:
    """Groups as numbers 0 … G − 1, int64 (n,); ``None`` where there are none, or every sample has one of its own.

    Args:
        groups: of each sample, values that can be sorted, shape (n,); equal ones belong together. ``None``: no groups.
        samples: n.

    Raises:
        MeasureError: there are not as many as samples.
    """
    if groups is None:
        return None
    given = np.asarray(groups)
    if given.shape != (samples,):
        raise MeasureError(f"groups have shape {given.shape} for {samples} samples; give one group each")
    found, numbers = np.unique(given, return_inverse=True)
    return None if len(found) == samples else numbers.astype(np.int64)


def check_samples(features: Tensor, labels: Tensor, classes: int, dimension: int | None = None) -> None:
    """Raise ``MeasureError`` unless features (n, d) are finite and labels (n,) are integers 0 … classes − 1."""
    if features.ndim != 2 or dimension not in (None, features.shape[1]):
        expected = f"(samples, {'dimension' if dimension is None else dimension})"
        raise MeasureError(f"features have shape {tuple(features.shape)}; expected {expected}")
    if labels.shape != features.shape[:1]:
        raise MeasureError(f"{len(features)} features need as many labels; labels have shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise MeasureError(f"labels must be integers from 0 to {classes - 1}, not {labels.dtype}")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise MeasureError(f"labels run from {found}; with {classes} classes they must be 0 to {classes - 1}")
    if _adds_up(features):
        return
    broken = ~torch.isfinite(features).all(1)
    if broken.any():
        first = int(broken.nonzero()[0])
        raise MeasureError(
            f"{int(broken.sum())} of {len(features)} feature rows hold NaN or infinity (first: row {first}); "
            "the model overflowed there: try precision float32, or leave those images out"
        )


def _adds_up(features: Tensor) -> bool:
    """Whether the sum of all features is finite, as no sum with NaN or infinity is: much the fastest look at them."""
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    return bool(torch.isfinite(features.sum(dtype=wide)))
