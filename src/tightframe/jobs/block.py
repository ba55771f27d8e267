"""Which block to tune: a few candidates race, each trained from its own inputs and judged on images held out.

Candidates are blocks which, with the new head, own at most a tenth of all parameters: the most collapsed of them and
the deepest. One pass keeps what goes into each. They are trained for a few epochs at one rate; the better half goes on
for twice as many from the start, until one is left. Test images have no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from tightframe.backbone import Backbone
from tightframe.data.selection import stratified
from tightframe.decide.layers import Reading, recommend_layer, small_enough, spreads
from tightframe.features.extract import Features, Running
from tightframe.features.pixels import Pixels
from tightframe.features.precision import device_of, likely_precision, on_device
from tightframe.images import Images
from tightframe.jobs.plan import Clock, Plan
from tightframe.jobs.start import model_of, start_of
from tightframe.progress import Progress, silent
from tightframe.row import Row
from tightframe.tuning.inputs import KeptInputs, PixelInputs
from tightframe.tuning.loop import Diverged, fit
from tightframe.tuning.methods import Method
from tightframe.tuning.prefix import CannotCut, inputs_of
from tightframe.tuning.recipe import Recipe, Split
from tightframe.tuning.surgery import Align

COLLAPSED, DEEPEST = 3, 3
"""How many of the most collapsed and of the deepest blocks take part."""
FIRST_ROUND, LONGEST = 6, 5
"""Epochs of the final training for one of the first round, and most epochs of that."""
RACE_SHARE = 0.25
"""Of the time allowed: once that is gone, no round begins."""


@dataclass(frozen=True)
class Trial:
    """What all candidates have in common.

    Attributes:
        plan: for all of tuning.
        recipe: rate, decay and the rest; its epochs are those of the final training.
        clock: no round begins when too much of the time is gone.
    """

    plan: Plan
    recipe: Recipe
    clock: Clock = field(default_factory=Clock)


def readings(backbone: Backbone, features: Features, joined: Align | None = None) -> tuple[list[Reading], int, int]:
    """What is known of each block before any is tuned; parameters of the new head, and of the rest without the old.

    With ``joined``, how a skip connection brings a block to the head, a block's parameters include what that adds.
    """
    width, classes = backbone.penultimate.dimension, len(features.classes)
    each = {"concat": classes, "project": width}.get(joined or "", 0)
    found = spreads([features.moments(block.name) for block in backbone.layers])
    known = [
        Reading(block.name, spread, block.parameters and block.parameters + each * block.dimension)
        for block, spread in zip(backbone.layers, found, strict=True)
    ]
    old = sum(p.numel() for p in backbone.module.get_submodule(backbone.head).parameters()) if backbone.head else 0
    return known, (width + 1) * classes, backbone.parameters - old


def candidates(known: list[Reading], head_parameters: int, other_parameters: int) -> list[str]:
    """Blocks that race, in the order in which they run: of those small enough the most collapsed and the deepest."""
    small = small_enough(known, head_parameters, other_parameters)
    if len(small) < 2:
        return [recommend_layer(known, head_parameters, other_parameters)]
    collapsed = sorted(small, key=lambda reading: reading.spread)[:COLLAPSED]
    taking_part = {reading.layer for reading in (*collapsed, *small[-DEEPEST:])}
    return [reading.layer for reading in small if reading.layer in taking_part]


def choose_block(
    data: Images, backbone: Backbone, features: Features, method: Method, trial: Trial, running: Running
) -> tuple[str, list[Row]]:
    """The block to tune, and a row for every trial: ``layer``, ``epochs``, ``validation_loss`` and ``_accuracy``.

    Args:
        data: training images.
        features: of them, at every block.

    The most collapsed candidate is taken, with no rows, where too few images can be held out or the model can't be
    run from its blocks on.
    """
    known = readings(backbone, features, trial.plan.align if method.skip else None)
    racing = candidates(*known)
    usual = recommend_layer(*known)
    training, held_out = stratified(data.labels, trial.plan.validation_share, trial.recipe.seed)
    if len(racing) < 2 or not len(held_out) or trial.clock.past(RACE_SHARE):
        return (racing[0] if len(racing) == 1 else usual), []
    split = Split(data.labels, training, held_out, len(data.classes))
    try:
        track = _track(data, backbone, features, racing, method, split, trial, running)
    except CannotCut:
        return usual, []
    return _race(track, racing, usual, running.get("progress", silent))


def _race(track: _Track, racing: list[str], usual: str, progress: Progress) -> tuple[str, list[Row]]:
    """The block that is left, and the rows of all rounds; ``usual`` where none can be trained."""
    rows: list[Row] = []
    epochs = min(LONGEST, max(1, track.trial.recipe.epochs // FIRST_ROUND))
    while True:
        listed = progress(racing, f"trying blocks for {epochs} epochs", len(racing))
        found = [track.run(block, epochs) for block in listed]
        rows += found
        best = sorted(
            (row for row in found if np.isfinite(row["validation_loss"])), key=lambda row: row["validation_loss"]
        )
        if not best:
            return usual, rows
        racing = [row["layer"] for row in best[: len(best) // 2]]
        if len(racing) < 2 or track.trial.clock.past(RACE_SHARE):
            return best[0]["layer"], rows
        epochs *= 2


def _track(
    data: Images,
    backbone: Backbone,
    features: Features,
    racing: list[str],
    method: Method,
    split: Split,
    trial: Trial,
    running: Running,
) -> _Track:
    """What the candidates run on: what goes into each, kept. Raises ``CannotCut``."""
    device = device_of(running.get("device", "auto"))
    precision = likely_precision(backbone.module, device, running.get("precision", "auto"))
    kept = inputs_of(
        on_device(backbone.module, device),
        racing,
        PixelInputs(Pixels(data, backbone.preprocessing, keep_bytes=0), device=device),
        len(data),
        device=device,
        precision=precision,
        budget=trial.plan.cache_gb,
        progress=running.get("progress", silent),
    )
    return _Track(backbone, method, trial, features, kept, split, device, precision, running)


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
        plan, pool = self.trial.plan, self.running.get("pool", "auto")
        model = model_of(self.backbone, self.method, block, self.split.classes, plan, pool)
        start = start_of(model, self.features, self.split.labels)
        on_device(model, self.device)
        if start is not None:
            start(self.split.training)
        short = replace(self.trial.recipe, epochs=epochs, average=0.0, patience=None)
        row: Row = {"phase": "block", "layer": block, "epochs": epochs, "validation_loss": float("inf")}
        try:
            found = fit(
                model.from_block(), self.kept[block], self.split, short, device=self.device, precision=self.precision
            )
        except (Diverged, CannotCut):
            return row
        return row | {name: found[-1][name] for name in ("validation_loss", "validation_accuracy")}
