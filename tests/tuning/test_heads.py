"""Many heads at once are the same heads one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tightframe.features.inputs import KeptInputs
from tightframe.tuning.heads import fit_heads
from tightframe.tuning.loop import fit
from tightframe.tuning.recipe import Recipe, Split
from tightframe.tuning.state import HeadOnly

CPU = torch.device("cpu")
LABELS = np.arange(40) % 4
SPLIT = Split(LABELS, np.arange(29), np.arange(29, 40), 4)
PLAIN = Recipe(epochs=5, batch_size=8, seed=2)
GRID = [(0.5, 1e-4), (0.5, 0.1), (0.01, 1e-4)]


def inputs(views=1):
    generator = torch.Generator().manual_seed(0)
    return KeptInputs(torch.randn(40 * views, 6, generator=generator) + 1, views=views)


def head():
    linear = torch.nn.Linear(6, 4)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    return linear


@pytest.mark.parametrize(
    "recipe", [PLAIN, replace(PLAIN, mixup_alpha=0.3, label_smoothing=0.1, class_weights="balanced")]
)
@pytest.mark.parametrize("views", [1, 3])
def test_together_as_one_after_the_other(recipe, views):
    recipes = [replace(recipe, lr=rate, weight_decay=decay) for rate, decay in GRID]
    start = head()
    together = fit_heads(start, inputs(views), SPLIT, recipes, device=CPU)
    assert not start.weight.any()
    for one, rows in zip(recipes, together, strict=True):
        alone = fit(HeadOnly(head()), inputs(views), SPLIT, one, device=CPU)
        for row, expected in zip(rows, alone, strict=True):
            for name in ("epoch", "lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
                assert row[name] == pytest.approx(expected[name], rel=1e-4), name


def test_a_head_that_diverges_leaves_the_others_alone():
    recipes = [replace(PLAIN, lr=rate) for rate in (0.1, 1e38)]
    sound, broken = fit_heads(head(), inputs(), SPLIT, recipes, device=CPU)
    assert not np.isfinite(broken[-1]["validation_loss"])
    (alone,) = fit_heads(head(), inputs(), SPLIT, recipes[:1], device=CPU)
    assert sound == alone
