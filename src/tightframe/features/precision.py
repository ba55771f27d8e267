"""Where and in which precision models run.

bfloat16 is used where it is both faster and safe. Faster: the processor multiplies bfloat16 matrices itself (CUDA from
Ampere on; CPUs with AMX or AVX512-BF16), and on a CPU the model has no depthwise convolutions, which are slow there.
Safe: on a first batch, the features differ from float32's by little of their own spread.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tightframe.errors import SettingsError

Precision = Literal["auto", "float32", "bfloat16"]
CPU = torch.device("cpu")
SAFE_ERROR = 0.02
"""Largest error of bfloat16 features, relative to the spread of float32 features over a batch."""


def device_of(name: str) -> torch.device:
    """The device called ``name``; ``"auto"`` is a GPU if there is one, of several processes each its own."""
    if name == "auto":
        own = os.environ.get("LOCAL_RANK")
        return torch.device(f"cuda:{own}" if own else "cuda") if torch.cuda.is_available() else CPU
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which a device without memory, such as "meta", refuses
    except (RuntimeError, AssertionError, ImportError) as error:
        why = str(error).splitlines()[0]
        raise SettingsError(f'device "{name}" is not to be had here ({why}); use auto or cpu') from error
    return device


def likely_precision(module: nn.Module, device: torch.device, wanted: Precision) -> Literal["float32", "bfloat16"]:
    """The precision worth trying: what was asked for, or bfloat16 where hardware and model make it faster."""
    if wanted not in get_args(Precision):
        raise SettingsError(f'no precision "{wanted}"; choose auto, float32 or bfloat16')
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    faster = device.type == "cpu" and _cpu_multiplies_bfloat16() and not _has_depthwise(module)
    return "bfloat16" if faster else "float32"


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """The module moved to ``device`` in channels-last layout, in which convolutions run fastest; in place."""
    module.to(device)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:  # there is no such layout of others, of which 3-d convolutions and queries have some
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return module


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``; a GPU goes on with its work while it arrives."""
    if device.type == "cuda" and tensor.is_cpu:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context to run a model in."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def is_safe(exact: Tensor, rounded: Tensor) -> bool:
    """Whether features (n, d) computed in bfloat16 keep what tells images apart."""
    spread = torch.linalg.matrix_norm(exact - exact.mean(0))
    error = torch.linalg.matrix_norm(rounded - exact)
    return bool(torch.isfinite(error)) and bool(error <= SAFE_ERROR * spread)


def _cpu_multiplies_bfloat16() -> bool:
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, check, lambda: False)()) for check in checks)


def _has_depthwise(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) and m.groups > 1 and m.groups == m.in_channels for m in module.modules())
