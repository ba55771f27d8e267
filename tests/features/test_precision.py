from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tightframe.errors import SettingsError
from tightframe.features import precision as module
from tightframe.features.precision import SAFE_ERROR, autocast, device_of, is_safe, likely_precision, on_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(1, 4, 1))
DEPTHWISE = nn.Sequential(PLAIN, nn.Conv2d(4, 8, 3, groups=4))


@pytest.mark.parametrize("there", [True, False])
def test_auto_is_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert device_of("auto") == (CUDA if there else CPU)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("auto") == (torch.device("cuda:1") if there else CPU)


def test_a_device_that_is_there() -> None:
    assert device_of("cpu") == CPU
    assert device_of("cpu:0") == torch.device("cpu:0")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "xpu:99", "hpu", "meta", "cpu:x", "privateuseone"])
def test_a_device_that_is_not(name: str) -> None:
    with pytest.raises(SettingsError, match=f'device "{name}" is not to be had here .*; use auto or cpu'):
        device_of(name)


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", [PLAIN, DEPTHWISE])
def test_what_is_asked_for_is_what_is_tried(monkeypatch: pytest.MonkeyPatch, model: nn.Module, wanted: Any) -> None:
    for able in (True, False):
        monkeypatch.setattr(module, "_cpu_multiplies_bfloat16", lambda able=able: able)
        assert likely_precision(model, CPU, wanted) == wanted


@pytest.mark.parametrize(
    ("amx", "avx512", "model", "expected"),
    [
        (True, False, PLAIN, "bfloat16"),
        (False, True, PLAIN, "bfloat16"),
        (False, False, PLAIN, "float32"),
        (True, True, DEPTHWISE, "float32"),
    ],
)
def test_auto_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, model: nn.Module, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert likely_precision(model, CPU, "auto") == expected


def test_auto_where_torch_does_not_say_what_the_cpu_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert likely_precision(PLAIN, CPU, "auto") == "float32"


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_a_gpu_asks_for_native_bfloat16(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert likely_precision(DEPTHWISE, CUDA, "auto") == ("bfloat16" if native else "float32")


def test_auto_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cpu_multiplies_bfloat16", lambda: True)
    assert likely_precision(PLAIN, torch.device("mps"), "auto") == "float32"


def spread() -> torch.Tensor:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(("share", "safe"), [(0.0, True), (0.9, True), (1.1, False)])
def test_safe_is_an_error_small_against_the_spread_not_the_size(share: float, safe: bool, offset: float) -> None:
    exact = spread().double()
    error = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)).double()
    scale = torch.linalg.matrix_norm(exact - exact.mean(0)) / torch.linalg.matrix_norm(error)
    assert is_safe(exact + offset, exact + offset + share * SAFE_ERROR * scale * error) is safe


def test_rounding_far_from_zero_is_not_safe() -> None:
    assert is_safe(spread(), spread().bfloat16().float())
    assert not is_safe(spread() + 100, (spread() + 100).bfloat16().float())


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_overflow_is_not_safe(broken: float) -> None:
    assert not is_safe(spread(), torch.full((16, 8), broken))
    assert not is_safe(torch.full((16, 8), broken), torch.full((16, 8), broken))


def test_a_model_runs_in_the_precision_named() -> None:
    layer = nn.Linear(3, 3)
    for name, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(CPU, name):
            assert layer(torch.ones(1, 3)).dtype == expected


def test_on_device_lays_out_convolutions_channels_last_in_place() -> None:
    model = nn.Conv2d(4, 4, 3)
    weight = model.weight.detach().clone()
    assert on_device(model, CPU) is model
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.weight, weight)
