"""Models pre-trained in different ways on one dataset, and what each is worth on others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.errors import DataError
from tightframe.images import ImageSplits
from tightframe.jobs import demo
from tightframe.jobs.pretrain import Pretraining, pretrain
from tightframe.metrics.collapse import nc1
from tightframe.models.backbones import load_backbone
from tightframe.probes.episodes import Episodes, accuracies, draw
from tightframe.row import Row
from tightframe.studies.probing import probed
from tightframe.studies.study import Lab, Point, Scale, tried

WAYS, SHOTS, QUERIES = 5, 5, 15
UNTRAINED = "untrained"
BUILT_IN = (demo.SOURCE, demo.DOWNSTREAM)
SMALL = Scale(epochs=40, seeds=3, augment=0.0, batch_size=32)
"""Long enough for the terminal phase, in which training images are told apart and go on collapsing."""
MEDIUM = Scale(epochs=60, seeds=3, arch="cifar_resnet18", augment=0.0, batch_size=128, episodes=600)
"""The same for the paper's model: minutes of a GPU, shared by several processes."""
PAPER = Scale(epochs=200, seeds=3, arch="cifar_resnet18", augment=0.25, batch_size=128, episodes=600)
COLUMNS = (
    "data",
    "seed",
    "source_nc1",
    "source_test_nc1",
    "source_train_accuracy",
    "source_test_accuracy",
    "nc1",
    "test_accuracy",
    "fewshot_accuracy",
)


def variants(lab: Lab, choices: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[Point]:
    """A point for every seed and way of pre-training, with a row for every set that is transferred to.

    Args:
        lab: whose first dataset is the source.
        choices: fields of ``Pretraining`` that differ; a model of 0 epochs is as it was drawn, once for all seeds.
        names: the fields that tell points apart.
    """
    scale = lab.scale
    usual = Pretraining(scale.arch, augment=scale.augment, epochs=scale.epochs, batch_size=scale.batch_size)
    episodes = [_episodes(data, scale.episodes) for data in lab.data[1:]]
    for seed in lab.seeds:
        for choice in choices:
            how = replace(usual, **choice, seed=seed)
            if how.epochs or not seed:
                labels = {name: getattr(how, name) for name in names} | {"seed": seed}
                untrained = {"loss": UNTRAINED} if "loss" in names and not how.epochs else {}
                yield Point(labels | untrained, partial(_rows, lab, how, episodes))


def _episodes(data: ImageSplits, count: int) -> Episodes:
    """Few-shot tasks on all images of a set, training images first; with fewer queries where there are few."""
    assert data.test is not None  # `run_study` saw to it
    labels = np.concatenate([data.train.labels, data.test.labels])
    sizes = np.sort(np.bincount(labels, minlength=len(data.classes)))[::-1]
    ways = min(WAYS, len(data.classes))
    queries = min(QUERIES, int(sizes[ways - 1]) - SHOTS)
    if queries < 1:
        raise DataError(f"{data.name}: {SHOTS}-shot episodes need {ways} classes of {SHOTS + 1} images; give more")
    return draw(labels, ways, SHOTS, queries, count)


def _rows(lab: Lab, how: Pretraining, episodes: Sequence[Episodes]) -> list[Row]:
    source, *others = lab.data
    backbone, known = (
        _made(lab, source, how) if how.epochs else (load_backbone(f"timm/{how.arch}", pretrained=False), {})
    )
    for name, part in (("source_nc1", source.train), ("source_test_nc1", source.test)):
        if part is not None:
            known[name] = nc1(lab.workspace.features(backbone, part, [PENULTIMATE]).moments(PENULTIMATE))
    return [
        {"data": other.name} | known | tried(partial(_transferred, lab, backbone, other, drawn))
        for other, drawn in zip(others, episodes, strict=True)
    ]


def _made(lab: Lab, source: ImageSplits, how: Pretraining) -> tuple[Backbone, Row]:
    """The model, and its accuracy on the source."""
    name = f"{how.loss}-projector{how.projector}-augment{how.augment:g}-epochs{how.epochs}-seed{how.seed}"
    folder = lab.folder / "models" / name
    found = pretrain(source, folder, how, resume=True, workspace=lab.workspace)
    last = found.rows[-1]
    known = {f"source_{name}": last.get(name) for name in ("train_accuracy", "test_accuracy")}
    return load_backbone(f"local-dir:{folder}"), known


def _transferred(lab: Lab, backbone: Backbone, data: ImageSplits, episodes: Episodes) -> Row:
    """What the model is worth on ``data``: NC1, a probe, few-shot episodes of logistic regression."""
    assert data.test is not None  # `run_study` saw to it
    train, test = (lab.workspace.features(backbone, part, [PENULTIMATE]) for part in (data.train, data.test))
    seen, unseen = train[PENULTIMATE], test[PENULTIMATE]
    (right,) = accuracies(np.concatenate([seen, unseen]), episodes, ["logistic"]).values()
    found = probed(seen, train.labels, unseen, test.labels, len(data.classes))
    return found | {"fewshot_accuracy": float(right.mean())}
