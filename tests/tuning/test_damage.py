"""A checkpoint that was damaged on disk never changes what training comes to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tightframe.features.inputs import KeptInputs
from tightframe.tuning.loop import fit
from tightframe.tuning.recipe import Recipe, Split
from tightframe.tuning.state import HeadOnly

RECIPE = Recipe(epochs=3, batch_size=8)
SPLIT = Split(np.arange(20) % 2, np.arange(20), np.arange(0), 2)
FEATURES = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


def trained(file=None, on_epoch=lambda row: None):
    """The head's weights, after training on from ``file``."""
    head = torch.nn.Linear(4, 2)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    inputs = KeptInputs(FEATURES)
    fit(HeadOnly(head), inputs, SPLIT, RECIPE, device=torch.device("cpu"), checkpoint=file, on_epoch=on_epoch)
    return head.weight.detach().clone()


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr("tightframe.tuning.state.SAVE_SECONDS", 0)

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(file, stop)
    return file


@pytest.mark.slow
def test_a_flipped_bit_is_never_trained_on(interrupted):
    whole, expected = interrupted.read_bytes(), trained()
    generator = np.random.default_rng(0)
    for place in [*generator.choice(len(whole), 30, replace=False), *range(len(whole) - 40, len(whole), 3)]:
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << generator.integers(8)
        interrupted.write_bytes(spoiled)
        assert torch.equal(trained(interrupted), expected), place


@pytest.mark.slow
def test_a_file_cut_short_is_never_trained_on(interrupted):
    whole, expected = interrupted.read_bytes(), trained()
    for length in [0, 1, 8, 9, *range(50, len(whole), 90), len(whole) - 1]:
        interrupted.write_bytes(whole[:length])
        assert torch.equal(trained(interrupted), expected), length
