"""What a study is run with, and what studies do with models and images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.data.selection import at_most
from tightframe.deploy.tuned import Tuned
from tightframe.engine.stages import fingerprint_of
from tightframe.features.extract import Features
from tightframe.features.inputs import PixelInputs
from tightframe.features.pixels import Pixels
from tightframe.features.workspace import Workspace
from tightframe.images import Images, ImageSplits, among
from tightframe.jobs.compare import compare
from tightframe.jobs.pretrain import Pretraining, pretrain
from tightframe.jobs.tune import tune
from tightframe.metrics.collapse import nc1
from tightframe.metrics.folds import Folds
from tightframe.models.backbones import load_backbone
from tightframe.probes.linear import cross_validated_ridge
from tightframe.row import Row
from tightframe.tuning.config import TrainConfig
from tightframe.tuning.loop import collapse_of

BATCH_SIZE = 64


@dataclass(frozen=True)
class Scale:
    """How large a study is; a field left empty plays no part in it.

    Attributes:
        epochs: of pre-training or tuning.
        seeds: how many; each draws other weights, orders and, where few are taken, other images.
        models: used if the user names none; the built-in ones if empty.
        max_images: most training images of a point.
        per_class: training images per class, where a study takes few.
        arch: the architecture to pre-train, with strength of augmentation and batch size.
        augment, batch_size: see ``jobs.pretrain``.
        episodes: of few-shot evaluation.
        blocks: most blocks of a model that are tuned, one after the other.
        methods: tuning methods.
    """

    epochs: int = 0
    seeds: int = 0
    models: Sequence[str] = ()
    max_images: int = 0
    per_class: int = 0
    arch: str = ""
    augment: float = 0.0
    batch_size: int = 0
    episodes: int = 0
    blocks: int = 0
    methods: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Lab:
    """What a study is run with: its scale, datasets and models, the folder to write to, and where models run."""

    scale: Scale
    data: tuple[ImageSplits, ...]
    models: tuple[Backbone, ...]
    folder: Path
    workspace: Workspace

    @property
    def seeds(self) -> range:
        """0, 1, …"""
        return range(self.scale.seeds)

    def features(self, backbone: Backbone, images: Images | None) -> Features:
        """Penultimate features of images."""
        assert images is not None  # `run_study` has seen to test images
        return self.workspace.features(backbone, images, [PENULTIMATE])

    def tune(self, data: ImageSplits, backbone: Backbone, block: str, seed: int) -> Row:
        """The metrics of Layer FT of one block, with ``nc1`` of the penultimate features."""
        config = TrainConfig(epochs=self.scale.epochs, seed=seed, folds=0, recipe="paper")
        tuned = tune(data, backbone, method="layer", block=block, config=config, workspace=self.workspace)
        return tuned.metrics | {"nc1": penultimate_nc1(tuned, data.train)}

    def compare(self, labels: Row, data: ImageSplits, backbone: Backbone, seed: int) -> list[Row]:
        """The rows of ``compare``, with ``nc1`` of the penultimate features; ``labels`` tell the runs apart."""
        out, config = (
            self._place("tuned", labels),
            TrainConfig(epochs=self.scale.epochs, seed=seed, folds=0, recipe="paper"),
        )
        methods = self.scale.methods
        found = compare(data, backbone, methods, config=config, out=out, resume=True, workspace=self.workspace)
        collapse = {method: {"nc1": penultimate_nc1(tuned, data.train)} for method, tuned in found.tuned.items()}
        return [row | collapse.get(row["method"], {}) for row in found.rows]

    def pretrain(self, source: ImageSplits, choice: Mapping[str, Any]) -> tuple[Backbone, Row]:
        """A model pre-trained on ``source``, or untrained for 0 epochs, and its accuracy and NC1 there."""
        scale, known = self.scale, dict[str, Any]()
        if choice["epochs"]:
            folder = self._place("models", choice)
            usual = Pretraining(scale.arch, augment=scale.augment, batch_size=scale.batch_size)
            last = pretrain(source, folder, replace(usual, **choice), resume=True, workspace=self.workspace).rows[-1]
            known = {f"source_{name}": last.get(name) for name in ("train_accuracy", "test_accuracy")}
            backbone = load_backbone(f"local-dir:{folder}")
        else:
            backbone = load_backbone(f"timm/{scale.arch}", pretrained=False)
        for name, part in (("source_nc1", source.train), ("source_test_nc1", source.test)):
            known[name] = nc1(self.features(backbone, part).moments(PENULTIMATE))
        return backbone, known

    def _place(self, kind: str, labels: Mapping[str, Any]) -> Path:
        return self.folder / kind / fingerprint_of(labels)[:16]


class Labeled(NamedTuple):
    """Features (n, d), their labels (n,), integers 0 … K − 1, and, where images belong together, their groups (n,)."""

    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None


def probed(train: Labeled, test: Labeled, classes: int) -> Row:
    """``nc1``, and the cross-validated ``probe_accuracy`` and ``test_accuracy`` of a ridge probe."""
    folds = Folds.of(train.features, train.labels, classes, groups=train.groups)
    probe = cross_validated_ridge(folds)
    accuracy = {"probe_accuracy": probe.accuracy, "test_accuracy": probe.head.accuracy(test.features, test.labels)}
    return {"nc1": nc1(folds.total)} | accuracy


def subset(features: Features, classes: Iterable[int], *, luck: Any = None, most: int | None = None) -> Labeled:
    """Features and new labels of some classes; with a generator, shuffled, and ``most`` of each class."""
    found = [np.flatnonzero(features.labels == label) for label in classes]
    if luck is not None:
        found = [luck.permutation(rows)[:most] for rows in found]
    chosen = np.concatenate(found)
    labels = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
    return Labeled(features[PENULTIMATE][chosen], labels, among(features.groups, chosen))


def few(data: ImageSplits, per_class: int, seed: int) -> ImageSplits | None:
    """The dataset with so many training images per class; ``None`` if a class has fewer."""
    if int(np.bincount(data.train.labels, minlength=len(data.classes)).min()) < per_class:
        return None
    return replace(data, train=at_most(data.train, per_class, seed))


def penultimate_nc1(tuned: Tuned, images: Images) -> float | None:
    """NC1 of images at the layer before the head, whatever else the head sees."""
    device = next(tuned.model.parameters()).device
    inputs = PixelInputs(Pixels(images, tuned.backbone.preprocessing, keep_bytes=0), device=device)
    tuned.model.train(False)
    with torch.inference_mode():
        batches = inputs.batches(range(len(images)), BATCH_SIZE)
        found = [tuned.model.parts(batch)[0].float().cpu() for _, batch in batches]
    return collapse_of(torch.cat(found), images.labels)
