"""Models tuned on few images of a set, and what became of their collapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tightframe.backbone import Backbone
from tightframe.data.selection import at_most
from tightframe.deploy.tuned import Tuned
from tightframe.features.inputs import PixelInputs
from tightframe.features.pixels import Pixels
from tightframe.images import Images, ImageSplits
from tightframe.jobs.compare import compare
from tightframe.row import Row
from tightframe.studies.evidence import LEAST_SHARE, Evidence, crossed, differences
from tightframe.studies.study import Lab
from tightframe.tuning.config import TrainConfig
from tightframe.tuning.loop import collapse_of
from tightframe.tuning.methods import PAPER

KEPT = (
    "method",
    "block",
    "test_accuracy",
    "train_accuracy",
    "trainable_parameters",
    "trainable_share",
    "seconds",
    "bytes",
    "lr",
    "error",
)
ALL_METHODS = ("linear", "layer", "scl", "full", "lora", "bitfit", "norm", "lp-ft")
CALLED = {"full": "full fine-tuning", "linear": "the linear probe", "layer": "tuning the block alone (Layer FT)"}
COLUMNS = (
    "method",
    "block",
    "test_accuracy",
    "train_accuracy",
    "nc1",
    "trainable_parameters",
    "trainable_share",
    "seconds",
)


def plan(lab: Lab, seed: int) -> TrainConfig:
    """How to tune: rate and decay are chosen on training images held out."""
    return TrainConfig(epochs=lab.scale.epochs, seed=seed)


def sampled(lab: Lab, data: ImageSplits, seed: int) -> ImageSplits:
    """As many training images a class as the scale says; all where it says nothing, or there are not so many."""
    return few(data, lab.scale.shots[0], seed) or data if lab.scale.shots else data


def few(data: ImageSplits, shots: int, seed: int) -> ImageSplits | None:
    """So many training images a class; ``None`` where a class has fewer."""
    if int(np.bincount(data.train.labels, minlength=len(data.classes)).min()) < shots:
        return None
    return replace(data, train=at_most(data.train, shots, seed))


def by_methods(
    lab: Lab, data: ImageSplits, backbone: Backbone, methods: Sequence[str], seed: int, out: Path
) -> list[Row]:
    """A row a method, each tuned with the same block and split, with ``nc1`` of the penultimate features."""
    found = compare(data, backbone, methods, config=plan(lab, seed), out=out, resume=True, workspace=lab.workspace)
    return [
        {key: row[key] for key in KEPT if key in row}
        | ({"nc1": penultimate_nc1(found.tuned[row["method"]], data.train)} if row["method"] in found.tuned else {})
        for row in found.rows
    ]


def penultimate_nc1(tuned: Tuned, images: Images) -> float | None:
    """Of images at the layer before the head, whatever else the head sees."""
    device = next(tuned.model.parameters()).device
    inputs = PixelInputs(Pixels(images, tuned.backbone.preprocessing, keep_bytes=0), device=device)
    tuned.model.train(False)
    with torch.inference_mode():
        batches = inputs.batches(range(len(images)), 64)
        found = [tuned.model.parts(batch)[0].float().cpu() for _, batch in batches]
    return collapse_of(torch.cat(found), images.labels)


def others(rows: Sequence[Row]) -> list[str]:
    """What SCL is compared with: the paper's methods, then all that are there."""
    there = dict.fromkeys(row["method"] for row in rows if "error" not in row)
    return [*CALLED, *(name for name in there if name not in PAPER)]


def ahead(rows: Sequence[Row], other: str, pairs: Sequence[str]) -> Evidence:
    """By how much SCL is ahead of another method in test accuracy, on what agrees in ``pairs``: model, set, …"""
    gaps = differences(rows, "test_accuracy", "method", ["scl"], [other], pairs)
    question = f"SCL is more accurate than {CALLED.get(other, other)}"
    return crossed(question, "paired difference", gaps, LEAST_SHARE, share=True)


def not_behind(rows: Sequence[Row], other: str, pairs: Sequence[str]) -> Evidence:
    """The same with the least difference that would matter added: whether SCL is as accurate, or better."""
    gaps = differences(rows, "test_accuracy", "method", ["scl"], [other], pairs)
    question = f"SCL is as accurate as {CALLED.get(other, other)} to half a point, or better"
    shifted = {key: gap + LEAST_SHARE for key, gap in gaps.items()}
    return crossed(question, "paired difference + 0.5", shifted, LEAST_SHARE, share=True)
