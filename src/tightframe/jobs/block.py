"""Which block to tune: a few candidates race, each trained from its own inputs and judged on pictures held out.

Candidates are blocks which, with the new head, own at most a tenth of all parameters: the most collapsed of them and
the deepest. One pass keeps what goes into each. They are trained for a few epochs at one rate; the better half goes on
for twice as many from the start, until one is left. Test pictures have no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tightframe.features.extract import Features, Running
from tightframe.features.pixels import Pixels
from tightframe.features.precision import device_of, likely_precision, on_device
from tightframe.jobs.run import Row
from tightframe.metrics.choice import Reading, recommend_layer, small_enough, spreads
from tightframe.protocols import Backbone, ImageData, silent
from tightframe.sources.selection import stratified
from tightframe.tuning.inputs import PixelInputs
from tightframe.tuning.loop import Diverged, Recipe, Split, fit
from tightframe.tuning.methods import Method
from tightframe.tuning.prefix import CannotCut, KeptInputs, inputs_of
from tightframe.tuning.surgery import Align, Scale, TunableNetwork

COLLAPSED, DEEPEST = 3, 3
"""How many of the most collapsed and of the deepest blocks take part."""
FIRST_ROUND = 6
"""Epochs of the final training for one of the first round."""


@dataclass(frozen=True)
class Trial:
    """What all candidates have in common.

    Attributes:
        recipe: rate, decay, batch size and seed; its epochs are those of the final training.
        validation_share: of the training pictures, held out to judge.
        align, scale: of the neck.
        cache_gb: gigabytes for what goes into all candidates.
    """

    recipe: Recipe
    validation_share: float
    align: Align
    scale: Scale
    cache_gb: float


def readings(backbone: Backbone, features: Features) -> tuple[list[Reading], int, int]:
    """What is known of each block before any is tuned; parameters of the new head, and of the rest without the old."""
    found = spreads([features.moments(block.name) for block in backbone.layers])
    known = [Reading(b.name, spread, b.parameters) for b, spread in zip(backbone.layers, found, strict=True)]
    head = (backbone.penultimate.dimension + 1) * len(features.classes)
    old = sum(p.numel() for p in backbone.module.get_submodule(backbone.head).parameters()) if backbone.head else 0
    return known, head, backbone.parameters - old


def candidates(known: list[Reading], head_parameters: int, other_parameters: int) -> list[str]:
    """Blocks that race, in the order in which they run: of those small enough the most collapsed and the deepest."""
    small = small_enough(known, head_parameters, other_parameters)
    if len(small) < 2:
        return [recommend_layer(known, head_parameters, other_parameters)]
    collapsed = sorted(small, key=lambda reading: reading.spread)[:COLLAPSED]
    taking_part = {reading.layer for reading in (*collapsed, *small[-DEEPEST:])}
    return [reading.layer for reading in small if reading.layer in taking_part]


def choose_block(
    data: ImageData, backbone: Backbone, features: Features, method: Method, trial: Trial, running: Running
) -> tuple[str, list[Row]]:
    """The block to tune, and a row for every trial: ``layer``, ``epochs``, ``validation_loss`` and ``_accuracy``.

    Args:
        data: training pictures.
        features: of them, at every block.

    The most collapsed candidate is taken, with no rows, where too few pictures can be held out or the network can't be
    run from its blocks on.
    """
    known = readings(backbone, features)
    racing = candidates(*known)
    usual = recommend_layer(*known)
    training, held_out = stratified(data.labels, trial.validation_share, trial.recipe.seed)
    if len(racing) < 2 or not len(held_out):
        return (racing[0] if len(racing) == 1 else usual), []
    split = Split(data.labels, training, held_out, len(data.classes))
    device = device_of(running.get("device", "auto"))
    precision = likely_precision(backbone.module, device, running.get("precision", "auto"))
    pictures = PixelInputs(Pixels(data, backbone.preprocessing, keep_bytes=0))
    base = on_device(backbone.module, device)
    progress = running.get("progress", silent)
    try:
        kept = inputs_of(
            base,
            racing,
            pictures,
            len(data),
            device=device,
            precision=precision,
            budget=trial.cache_gb,
            progress=progress,
        )
    except CannotCut:
        return usual, []
    track = _Track(backbone, method, trial, features, kept, split, device, precision, running)
    rows: list[Row] = []
    epochs = max(1, trial.recipe.epochs // FIRST_ROUND)
    while True:
        listed = progress(racing, f"trying blocks for {epochs} epochs", len(racing))
        found = [track.run(block, epochs) for block in listed]
        rows += found
        found = [row for row in found if np.isfinite(row["validation_loss"])]
        if not found:
            return usual, rows
        best = sorted(found, key=lambda row: row["validation_loss"])
        racing = [row["layer"] for row in best[: len(best) // 2]]
        if len(racing) < 2:
            return best[0]["layer"], rows
        epochs *= 2


@dataclass(frozen=True)
class _Track:
    backbone: Backbone
    method: Method
    trial: Trial
    features: Features
    kept: dict[str, KeptInputs]
    split: Split
    device: torch.device
    precision: str
    running: Running

    def run(self, block: str, epochs: int) -> Row:
        """Train one candidate from the start and judge it; an infinite loss if that fails."""
        trial, recipe = self.trial, self.trial.recipe
        pool = self.running.get("pool", "auto")
        network = TunableNetwork(self.backbone, self.method, block, self.split.classes, pool, trial.align, trial.scale)
        network.neck.rescale([torch.from_numpy(self.features[name]) for name in network.read])
        on_device(network, self.device)
        short = Recipe(recipe.rate, recipe.decay, epochs, recipe.batch_size, seed=recipe.seed)
        row: Row = {"phase": "block", "layer": block, "epochs": epochs, "validation_loss": float("inf")}
        try:
            found = fit(
                network.from_block(), self.kept[block], self.split, short, device=self.device, precision=self.precision
            )
        except (Diverged, CannotCut):
            return row
        return row | {name: found[-1][name] for name in ("validation_loss", "validation_accuracy")}
