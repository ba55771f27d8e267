"""The model that is tuned, what it is trained on, and where its training starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.decide.training import Session, Trainer
from tightframe.decide.zero_shot import text_start
from tightframe.features.capture import CannotCut
from tightframe.features.extract import Features
from tightframe.features.inputs import KeptInputs, PixelInputs
from tightframe.features.precision import likely_precision, on_device
from tightframe.features.workspace import Workspace
from tightframe.images import Images, among
from tightframe.metrics.folds import Folds, can_hold_out
from tightframe.probes.logistic import cross_validated_logistic, logistic_path
from tightframe.tuning.config import TrainConfig
from tightframe.tuning.loop import Inputs
from tightframe.tuning.methods import Method, Owned
from tightframe.tuning.state import HeadOnly, Trainable
from tightframe.tuning.surgery import TunableModel

USUAL_STRENGTH = 1e-2
"""Strength (scikit-learn's ``C``) of a probe where too few images leave none to choose it by."""
UNSEEN = 10.0
"""By how much the bias of a class without images is below all others: it can still be learned."""


def model_of(
    backbone: Backbone, method: Method, block: str | None, classes: int, config: TrainConfig, workspace: Workspace
) -> TunableModel:
    """The model to be tuned, as the configuration asks for it."""
    warm = config.from_probe(method)
    return TunableModel(
        *(backbone, method, block, classes, workspace.pool, config.align, config.skip_scale),
        warm=warm,
        steady=warm or config.steady(method),
    )


def tuning_precision(model: TunableModel, workspace: Workspace) -> str:
    """The precision in which ``model`` is trained."""
    return likely_precision(model.base, workspace.device, workspace.precision)


def trainer_of(
    model: TunableModel, images: Images, config: TrainConfig, workspace: Workspace, session: Session
) -> tuple[Trainer, list[str]]:
    """What is trained on which inputs, where whatever is constant in training is computed once; and notes."""
    notes, precision = list[str](), "float32"
    part: Trainable = model
    inputs: Inputs | None = _constant_inputs(model, images, config, workspace)
    if inputs is not None:
        part = HeadOnly(model.head).to(workspace.device)
    else:
        on_device(model, workspace.device)
        precision = tuning_precision(model, workspace)
        try:
            if model.block is not None and config.prefix_cache_gb:
                part = model.from_block()
                inputs = _kept(model.backbone, images, model.block, config, workspace)
        except CannotCut as error:
            part, notes = model, [f"trained whole, which takes longer: {error}"]
    if inputs is None:
        pixels = workspace.pixels(images, model.backbone.preprocessing)
        inputs = PixelInputs(pixels, config.views_by(), workspace.device)
    warm = None
    if len(model.read) > 1 or model.steady or config.prompts is not None:
        warm = start_of(model, workspace.features(model.backbone, images, model.read), config.prompts)
    of = (images.labels, len(images.classes), workspace, precision, session, warm, images.groups)
    return Trainer(part, inputs, *of), notes


def _constant_inputs(
    model: TunableModel, images: Images, config: TrainConfig, workspace: Workspace
) -> KeptInputs | None:
    """Features of all training images where nothing but the head is trained."""
    if model.owned != Owned([], []):
        return None
    if config.kept_views == 1:
        return KeptInputs(torch.tensor(workspace.features(model.backbone, images, [PENULTIMATE])[PENULTIMATE]))
    if not config.prefix_cache_gb:
        return None
    try:
        return _kept(model.backbone, images, PENULTIMATE, config, workspace)
    except CannotCut:  # the whole model makes them anew
        return None


def _kept(backbone: Backbone, images: Images, block: str, config: TrainConfig, workspace: Workspace) -> KeptInputs:
    """What goes into ``block`` in every view that is kept. Raises ``CannotCut``."""
    return workspace.block_inputs(
        backbone,
        images,
        [block],
        budget_gb=config.prefix_cache_gb,
        augment=config.views_by(),
        views=config.kept_views,
    )[block]


def start_of(
    model: TunableModel, features: Features, prompts: Sequence[str] | None = None
) -> Callable[[np.ndarray], None] | None:
    """Scale what the head sees by the features before tuning; what puts the head where training starts.

    No fold by which a probe's strength is chosen parts a group of images.

    Args:
        model: not yet trained.
        features: of the training images, with those of all layers that the head sees.
        prompts: sentences about a class that heads start from (see ``text_start``), if they do.

    Returns:
        What starts the head from texts, or fits a probe to the images whose indices it is given; ``None`` where heads
        start from zeros.

    Raises:
        ModelError, SettingsError: see ``text_start``.
    """
    labels, groups = features.labels, features.groups
    parts = [torch.tensor(features[name]) for name in model.read]
    model.neck.rescale(parts)
    if prompts is not None:
        if model.steady:
            model.neck.standardize(parts)
        return text_start(model, features, prompts)
    if not model.warm:
        if model.steady:
            model.neck.standardize(parts)
        return None
    with torch.no_grad():
        seen = model.neck(parts)
    heads: dict[bytes, tuple[Tensor, Tensor]] = {}

    def fit_probe(training: np.ndarray) -> None:
        known = training.tobytes()
        if known not in heads:
            part = seen[torch.from_numpy(training)], labels[training]
            heads[known] = _probe(*part, model.head.out_features, among(groups, training))
        with torch.no_grad():
            model.head.weight.copy_(heads[known][0])
            model.head.bias.copy_(heads[known][1])

    return fit_probe


def _probe(features: Tensor, labels: np.ndarray, classes: int, groups: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Weights and biases of a logistic regression, of usual strength where nothing can be held out to choose it by."""
    if can_hold_out(labels, groups):
        head = cross_validated_logistic(Folds.of(features, labels, classes, groups=groups)).result.head
    else:
        head = logistic_path(features, torch.from_numpy(labels), classes, (USUAL_STRENGTH,))[0]
    least = head.bias[head.bias.isfinite()].min() - UNSEEN
    return head.weight, head.bias.clamp(min=float(least))
