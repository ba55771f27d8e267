"""Which block to tune: a few candidates race, each trained from its own inputs and judged on held-out images.

Candidates are blocks which, with the new head, own at most a tenth of all parameters: the most collapsed of them and
the deepest. One pass keeps what goes into each. They are trained for a few epochs at one learning rate; the better half
starts over for twice as many, until one is left. Test images have no part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tightframe.backbone import OUTPUT, PENULTIMATE, Backbone
from tightframe.data.selection import stratified
from tightframe.decide.layers import Reading, recommend_layer, small_enough, spreads
from tightframe.decide.start import model_of, start_of, tuning_precision
from tightframe.errors import SettingsError
from tightframe.features.capture import CannotCut
from tightframe.features.extract import Features
from tightframe.features.inputs import KeptInputs
from tightframe.features.precision import on_device
from tightframe.features.workspace import Workspace
from tightframe.images import Images
from tightframe.row import Row
from tightframe.tuning.config import Clock, TrainConfig
from tightframe.tuning.heads import Align
from tightframe.tuning.loop import Diverged, fit
from tightframe.tuning.methods import Method
from tightframe.tuning.recipe import Recipe, Split
from tightframe.tuning.surgery import TunableModel

COLLAPSED, DEEPEST = 3, 3
"""How many of the most collapsed and of the deepest blocks take part."""
FIRST_ROUND, LONGEST = 6, 5
"""The first round trains for one in so many epochs of the final training, and for at most so many."""
RACE_SHARE = 0.25
"""Of the time allowed: once it is gone, no round begins."""


def chosen_block(
    images: Images,
    backbone: Backbone,
    block: str,
    method: Method,
    config: TrainConfig,
    workspace: Workspace,
    clock: Clock | None = None,
) -> tuple[str, list[Row]]:
    """The block called ``block``, or the one that ``"auto"`` stands for, and a row for every trial of its race.

    Rows hold ``block``, ``epochs``, ``validation_loss`` and ``validation_accuracy``. The most collapsed candidate is
    chosen, with no rows, where too few images can be held out or the model can't be run from its blocks on.

    Raises:
        LayerNotFound: no such block.
        SettingsError: ``block`` names features.
    """
    check_block(backbone, block)
    if block != "auto":
        return backbone.layer(block).name, []
    if not method.races:
        return backbone.layers[len(backbone.layers) // 2].name, []
    clock = clock or Clock.of(config)
    kept = _small_block_inputs(images, backbone, config, workspace)  # the one pass: the features come with it
    features = workspace.features(backbone, images)
    known = readings(backbone, features, config.align if method.skip else None)
    racing, usual = candidates(*known), recommend_layer(*known)
    parts = stratified(images.labels, config.validation_share, config.seed, images.groups)
    split = Split(images.labels, *parts, len(images.classes))
    if len(racing) < 2 or not len(split.validation) or clock.past(RACE_SHARE):
        return (racing[0] if len(racing) == 1 else usual), []
    if not kept:  # there was no room for any
        return usual, []
    if not set(racing) <= set(kept):
        try:
            kept = workspace.block_inputs(backbone, images, racing, budget_gb=config.prefix_cache_gb)
        except CannotCut:
            return usual, []
    if not set(racing) <= set(kept):
        return usual, []
    lrs, decays = config.choices(backbone.module, method)
    lr = sorted(lrs)[-2:][0]  # the second highest: few epochs want a high rate, few images not the highest
    recipe = replace(config.training(lr, decays[0], method), ema_decay=0.0, patience=None)
    make = partial(model_of, backbone, method, classes=split.classes, config=config, workspace=workspace)
    begin = partial(start_of, features=features, prompts=config.prompts)
    block, rows = _race(racing, make, begin, kept, split, recipe, workspace, clock)
    return block or usual, rows


def check_block(backbone: Backbone, block: str) -> None:
    """Raise ``LayerNotFound`` or ``SettingsError`` unless ``block`` is ``"auto"`` or names a block."""
    if block in (PENULTIMATE, OUTPUT):
        raise SettingsError(f"{block} names features, not a block to tune; `tightframe measure` lists the blocks")
    if block != "auto":
        backbone.block(block)


def _race(
    racing: list[str],
    make: Callable[[str], TunableModel],
    begin: Callable[[TunableModel], Callable[[np.ndarray], None] | None],
    kept: dict[str, KeptInputs],
    split: Split,
    recipe: Recipe,
    workspace: Workspace,
    clock: Clock,
) -> tuple[str, list[Row]]:
    """The block that is left, and a row for every trial; an empty name where none could be trained."""
    rows, epochs = list[Row](), min(LONGEST, max(1, recipe.epochs // FIRST_ROUND))
    while True:
        found = list[Row]()
        for block in workspace.progress(racing, f"trying blocks for {epochs} epochs", len(racing)):
            found.append({"phase": "block", "block": block, "epochs": epochs, "validation_loss": float("inf")})
            model, short = make(block), replace(recipe, epochs=epochs)
            with suppress(Diverged, CannotCut):
                part = _ready(model, begin(model), split, workspace)
                where: dict[str, Any] = {"device": workspace.device, "precision": tuning_precision(model, workspace)}
                last = fit(part, kept[block], split, short, **where)[-1]
                found[-1] |= {name: last[name] for name in ("validation_loss", "validation_accuracy")}
        rows += found
        best = sorted((r for r in found if np.isfinite(r["validation_loss"])), key=lambda r: r["validation_loss"])
        racing = [row["block"] for row in best[: len(best) // 2]]
        if len(racing) < 2 or clock.past(RACE_SHARE):
            return (best[0]["block"] if best else ""), rows
        epochs *= 2


def _ready(
    model: TunableModel, start: Callable[[np.ndarray], None] | None, split: Split, workspace: Workspace
) -> TunableModel:
    """The model from its block on, where training starts. Raises ``CannotCut``."""
    on_device(model, workspace.device)
    if start is not None:
        start(split.training)
    return model.from_block()


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
    return known, (width + 1) * classes, backbone.parameters - _old_head(backbone)


def candidates(known: list[Reading], head_parameters: int, other_parameters: int) -> list[str]:
    """Blocks that race, in the order in which they run: of those small enough the most collapsed and the deepest."""
    small = small_enough(known, head_parameters, other_parameters)
    if len(small) < 2:
        return [recommend_layer(known, head_parameters, other_parameters)]
    collapsed = sorted(small, key=lambda reading: reading.spread)[:COLLAPSED]
    taking_part = {reading.layer for reading in (*collapsed, *small[-DEEPEST:])}
    return [reading.layer for reading in small if reading.layer in taking_part]


def _small_block_inputs(
    images: Images, backbone: Backbone, config: TrainConfig, workspace: Workspace
) -> dict[str, KeptInputs]:
    """What goes into the blocks that are small enough to be tuned, the deepest first, as far as there is room."""
    blocks = [Reading(block.name, 0.0, block.parameters) for block in backbone.layers]
    head = (backbone.penultimate.dimension + 1) * len(images.classes)
    small = small_enough(blocks, head, backbone.parameters - _old_head(backbone))
    try:
        names = [reading.layer for reading in reversed(small)]
        return workspace.block_inputs(backbone, images, names, budget_gb=config.prefix_cache_gb)
    except CannotCut:
        return {}


def _old_head(backbone: Backbone) -> int:
    """Parameters of the backbone's own head."""
    return sum(p.numel() for p in backbone.module.get_submodule(backbone.head).parameters()) if backbone.head else 0
