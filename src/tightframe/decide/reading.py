"""A model whose head is read off the features of all layers in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.decide.evidence import Evidence
from tightframe.decide.zero_shot import TextHead, text_head, with_texts
from tightframe.features.extract import Features
from tightframe.features.workspace import Workspace, read_in_closed_form
from tightframe.images import Images, among
from tightframe.metrics.folds import can_hold_out, fold_of
from tightframe.probes.discriminant import LayerReading, read_layers
from tightframe.tuning.config import TrainConfig
from tightframe.tuning.methods import Method
from tightframe.tuning.surgery import TunableModel


class Read(NamedTuple):
    """A model in closed form.

    Attributes:
        model: on which the head is.
        features: what the head sees of each training image, (n, d).
        left_out: predictions of each training image by all others, or all others' groups; ``None`` where that can't be
            judged (see ``can_hold_out``).
        evidence: out-of-fold predictions, to be compared with those of trained models; without folds, ``left_out``.
        notes: what a reader should know.
    """

    model: TunableModel
    features: Tensor
    left_out: Evidence | None
    evidence: Evidence | None
    notes: tuple[str, ...] = ()


def read_model(images: Images, backbone: Backbone, method: Method, config: TrainConfig, workspace: Workspace) -> Read:
    """The backbone with the head that reads its layers (see ``probes.discriminant``).

    With ``config.prompts``, what texts say of the classes has a share in it: see ``with_texts``.

    Raises:
        MeasureError: fewer than two classes have images.
        ModelError, SettingsError: there are prompts, and the model can't take them.
    """
    features = workspace.features(backbone, images, read_in_closed_form(backbone, workspace.pool))
    classes, labels, balanced, notes = len(images.classes), images.labels, config.class_weights == "balanced", []
    found, share, head = reading_of(images, backbone, workspace, balanced=balanced, prompts=config.prompts)
    if head is not None:
        notes.append(f"{method.name}: what texts say of the classes has a share of {share:.0%} in the logits")
    model = TunableModel(backbone, method, None, classes, workspace.pool, "concat", read=list(found.weights))
    with torch.no_grad():
        model.head.weight.copy_(torch.cat(list(found.weights.values()), 1))
        model.head.bias.copy_(found.bias)
    seen = torch.cat([torch.tensor(features[name]) for name in model.read], 1)
    if not can_hold_out(labels, images.groups):
        return Read(model.train(False), seen, None, None, tuple(notes))
    left_out = Evidence(found.held_out.numpy(), labels, images.groups)
    evidence = evidence_of(images, backbone, config, workspace) if config.folds else left_out
    return Read(model.train(False), seen, left_out, evidence, tuple(notes))


def evidence_of(images: Images, backbone: Backbone, config: TrainConfig, workspace: Workspace) -> Evidence:
    """Out-of-fold predictions of the reading of all layers, or, without folds, of each image left out.

    Raises:
        MeasureError, ModelError, SettingsError: see ``reading_of``.
    """
    features = workspace.features(backbone, images, read_in_closed_form(backbone, workspace.pool))
    balanced = config.class_weights == "balanced"
    found, _, head = reading_of(images, backbone, workspace, balanced=balanced, prompts=config.prompts)
    if not config.folds:
        return Evidence(found.held_out.numpy(), images.labels, images.groups)
    return _out_of_fold(features, balanced, head, config)


def reading_of(
    images: Images,
    backbone: Backbone,
    workspace: Workspace,
    *,
    balanced: bool = False,
    prompts: Sequence[str] | None = None,
) -> tuple[LayerReading, float, TextHead | None]:
    """The reading of all layers of the backbone, made once; the share of texts in it; and what they say.

    Args:
        images: that it is fitted to.
        backbone: whose layers are read.
        workspace: gives features, and keeps the reading in memory.
        balanced: see ``read_layers``.
        prompts: sentences about a class, for models with a text encoder; ``None`` for no texts.

    Raises:
        MeasureError: fewer than two classes have images.
        ModelError, SettingsError: there are prompts, and the model can't take them.
    """
    features = workspace.features(backbone, images, read_in_closed_form(backbone, workspace.pool))

    def read() -> tuple[LayerReading, float, TextHead | None]:
        head = None
        if prompts is not None:
            head = text_head(backbone, torch.tensor(features[PENULTIMATE]), images.classes, prompts)
        return *_read(features, images.labels, len(images.classes), images.groups, balanced, head), head

    running = (features.pool, features.precision, balanced, None if prompts is None else tuple(prompts))
    return workspace.once(("reading", backbone.fingerprint, images.fingerprint, *running), read)


def _read(
    features: Mapping[str, np.ndarray],
    labels: np.ndarray,
    classes: int,
    groups: np.ndarray | None,
    balanced: bool,
    head: TextHead | None,
) -> tuple[LayerReading, float]:
    """The reading of these images, and the share of ``head`` in it."""
    found = read_layers(features, labels, classes, balanced=balanced, groups=groups)
    if head is None:
        return found, 0.0
    return with_texts(found, head, torch.tensor(features[PENULTIMATE]), labels, groups)


def _out_of_fold(features: Features, balanced: bool, head: TextHead | None, config: TrainConfig) -> Evidence:
    labels, groups, classes = features.labels, features.groups, len(features.classes)
    assigned, said = fold_of(labels, config.folds, config.seed, groups), np.empty((len(labels), classes))
    for fold in np.unique(assigned):
        kept, held = np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)
        part = {name: features[name][kept] for name in features}
        found, _ = _read(part, labels[kept], classes, among(groups, kept), balanced, head)
        logits = found.logits({name: features[name][held] for name in found.weights})
        said[held] = logits.log_softmax(1).numpy()
    return Evidence(said, labels, groups)
