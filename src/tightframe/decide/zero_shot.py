"""Class names as a classifier: what the text encoder of an open_clip model says of images, and heads that begin there.

Zero-shot logits are cosines of the embeddings of image and text, times a scale (Radford et al., ICML 2021). A head is
linear in the penultimate features, so it takes the mean length of the embeddings of the images at hand for that of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from tightframe.backbone import OUTPUT, PENULTIMATE, Backbone, hash_of
from tightframe.decide.evidence import Evidence
from tightframe.errors import SettingsError
from tightframe.features.extract import Features
from tightframe.metrics.folds import can_hold_out
from tightframe.models.clip import class_texts, has_texts
from tightframe.probes.calibration import LEAST_LOG, NEVER, temperature
from tightframe.probes.discriminant import LayerReading
from tightframe.row import Row
from tightframe.tuning.surgery import TunableModel

SHARES = tuple(step / 20 for step in range(21))
"""Of zero-shot logits beside those of discriminants, which are tried on images left out."""
TEXTS = "texts"
"""Key of a row that holds the row of what class names alone say."""
UNKNOWN = 0.5
"""The share where no image can be left out."""


class TextHead(NamedTuple):
    """A linear head on penultimate features that says what texts say: weights (K, d) and biases (K,)."""

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]


def zero_shot(backbone: Backbone, features: Features, prompts: Sequence[str]) -> Evidence:
    """What class names alone say of the images of ``features``: no image was learned from, none is held out.

    Args:
        backbone: a model of open_clip.
        features: of its output, or of the penultimate layer where it has no head.
        prompts: see ``class_texts``.

    Raises:
        ModelError, SettingsError: see ``class_texts``.
    """
    layer = OUTPUT if backbone.head is not None else PENULTIMATE
    logits = class_texts(backbone, features.classes, prompts).logits(torch.tensor(features[layer]))
    return Evidence(logits.double().log_softmax(1).numpy(), features.labels, features.groups)


def by_name_alone(backbone: Backbone, features: Features, prompts: Sequence[str] | None) -> Row:
    """The row of what class names alone say, below ``TEXTS``; nothing for a model without a text encoder."""
    if prompts is None or not has_texts(backbone):
        return {}
    evidence = zero_shot(backbone, features, prompts)
    value, low, high = evidence.expected_accuracy
    found = {"model": f"{backbone.name}, zero-shot", "uri": backbone.origin.get("uri"), "zero_shot": True}
    expected = {"expected_accuracy": value, "expected_low": low, "expected_high": high}
    return {TEXTS: found | expected | {"images": len(evidence.labels)}}


def zero_shot_notes(by_name: Sequence[Row], prompts: Sequence[str] | None) -> list[str]:
    """What a reader of these rows should know."""
    if prompts is None:
        return []
    if not by_name:
        return ["no zero-shot row: of these models, none has a text encoder; --prompts needs one of open_clip"]
    return [
        "zero-shot: class names alone, judged on all training images, of which it learned from none; P(best) is among "
        "the others. `tune --prompts` starts from it"
    ]


def texts_hash(backbone: Backbone, classes: Sequence[str], prompts: Sequence[str] | None) -> str:
    """A hash of what texts say of classes, empty without ``prompts``."""
    if prompts is None:
        return ""
    texts = class_texts(backbone, classes, prompts)
    return hash_of({"embeddings": texts.embeddings, "logits": torch.tensor([texts.scale, texts.bias])})


def text_head(
    backbone: Backbone, penultimate: Float[Tensor, "n d"], classes: Sequence[str], prompts: Sequence[str]
) -> TextHead:
    """The head that says of penultimate features what texts say, and would be right but for the lengths of embeddings.

    Raises:
        ModelError, SettingsError: see ``class_texts``.
    """
    texts = class_texts(backbone, classes, prompts)
    projection = backbone.module.get_submodule(backbone.head) if backbone.head is not None else nn.Identity()
    with torch.no_grad():
        length = float(projection(penultimate.to(_device(projection))).norm(dim=1).mean())
    towards = texts.scale / max(length, 1e-12) * texts.embeddings
    if not isinstance(projection, nn.Linear):
        return TextHead(towards, torch.full((len(classes),), texts.bias))
    bias = projection.bias.detach().cpu() if projection.bias is not None else torch.zeros(projection.out_features)
    return TextHead(towards @ projection.weight.detach().cpu(), towards @ bias + texts.bias)


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def text_start(model: TunableModel, features: Features, prompts: Sequence[str]) -> Callable[[np.ndarray], None]:
    """What puts the head where it says what texts say, whichever images it is given.

    Raises:
        ModelError: the model has no text encoder.
        SettingsError: the head sees sums of features of two layers.
    """
    if len(model.read) > 1 and model.neck.align == "pad":
        raise SettingsError(
            f"{model.method.name} adds the features of a block to those that texts are compared with: give --align "
            "concat with --prompts"
        )
    weight, bias = text_head(model.backbone, torch.tensor(features[PENULTIMATE]), features.classes, prompts)
    weight = pad(weight, (0, model.head.in_features - weight.shape[1]))
    if model.neck.standard:
        bias, weight = bias + weight @ model.neck.center.cpu(), weight / model.neck.unit.cpu()

    def begin(_: np.ndarray) -> None:
        with torch.no_grad():
            model.head.weight.copy_(weight)
            model.head.bias.copy_(bias)

    return begin


def with_texts(
    found: LayerReading,
    head: TextHead,
    penultimate: Float[Tensor, "n d"],
    labels: np.ndarray,
    groups: np.ndarray | None = None,
) -> tuple[LayerReading, float]:
    """Discriminants with what texts say beside them, and the share of that in the logits.

    The share, and the factor of all logits, are those of least log loss on images left out, of which texts know nothing
    either. Where none can be left out, the share is ``UNKNOWN``.

    Args:
        found: fitted to these n images.
        head: see ``text_head``.
        penultimate: features of the images.
        labels: of them, (n,).
        groups: of them, (n,), or ``None``.
    """
    weight, bias = head.weight.double(), head.bias.double()
    own, said = found.held_out, (penultimate.double() @ weight.T + bias).log_softmax(1)
    sharp, share, factor = 1.0, UNKNOWN, 1.0
    if can_hold_out(labels, groups):
        judged = torch.tensor(Evidence(own.numpy(), labels, groups).comparable)
        known = torch.tensor(labels).long()[judged]
        sharp = temperature(said[judged], known)
        mixed = [((1 - one) * own + one * sharp * said)[judged] for one in SHARES]
        best = int(np.argmin([float(cross_entropy(logits, known)) for logits in mixed]))
        share, factor = SHARES[best], temperature(mixed[best], known)
    weights = {name: factor * (1 - share) * values for name, values in found.weights.items()}
    weights[PENULTIMATE] = weights[PENULTIMATE] + factor * share * sharp * weight
    biases = factor * ((1 - share) * found.bias + share * sharp * bias)
    biases = torch.where(found.bias <= NEVER, NEVER, biases)  # a class without images stays one that is never predicted
    held_out = (factor * ((1 - share) * own + share * sharp * said)).log_softmax(1).clamp(min=LEAST_LOG)
    return replace(found, weights=weights, bias=biases, held_out=held_out), share
