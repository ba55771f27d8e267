"""A model whose head is read off the features of all layers in closed form."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tightframe.backbone import Backbone
from tightframe.decide.evidence import Evidence
from tightframe.features.extract import Features
from tightframe.features.workspace import Workspace
from tightframe.images import Images, among
from tightframe.metrics.folds import can_hold_out, fold_of
from tightframe.probes.discriminant import read_layers
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
    """

    model: TunableModel
    features: Tensor
    left_out: Evidence | None
    evidence: Evidence | None


def read_model(images: Images, backbone: Backbone, method: Method, config: TrainConfig, workspace: Workspace) -> Read:
    """The backbone with the head that reads its layers (see ``probes.discriminant``).

    Raises:
        MeasureError: fewer than two classes have images.
    """
    features, classes, labels = workspace.features(backbone, images), len(images.classes), images.labels
    balanced = config.class_weights == "balanced"
    found = read_layers(features, labels, classes, balanced=balanced, groups=images.groups)
    model = TunableModel(backbone, method, None, classes, workspace.pool, "concat", read=list(found.weights))
    with torch.no_grad():
        model.head.weight.copy_(torch.cat(list(found.weights.values()), 1))
        model.head.bias.copy_(found.bias)
    seen = torch.cat([torch.tensor(features[name]) for name in model.read], 1)
    if not can_hold_out(labels, images.groups):
        return Read(model.train(False), seen, None, None)
    left_out = evidence = Evidence(found.held_out.numpy(), labels, images.groups)
    if config.folds:
        evidence = _out_of_fold(features, balanced, config)
    return Read(model.train(False), seen, left_out, evidence)


def _out_of_fold(features: Features, balanced: bool, config: TrainConfig) -> Evidence:
    labels, groups, classes = features.labels, features.groups, len(features.classes)
    assigned, said = fold_of(labels, config.folds, config.seed, groups), np.empty((len(labels), classes))
    for fold in np.unique(assigned):
        kept, held = np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)
        part = {name: features[name][kept] for name in features}
        found = read_layers(part, labels[kept], classes, balanced=balanced, groups=among(groups, kept))
        logits = found.logits({name: features[name][held] for name in found.weights})
        said[held] = logits.log_softmax(1).numpy()
    return Evidence(said, labels, groups)
