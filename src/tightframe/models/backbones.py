"""The one door to models: a name, a folder or the user's own builder becomes a ``Backbone``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from tightframe.backbone import Backbone
from tightframe.errors import ModelError
from tightframe.models.blocks import Anatomy
from tightframe.models.builders import from_builder, source_hash
from tightframe.models.clip import from_open_clip
from tightframe.models.fetching import Built
from tightframe.models.huggingface import from_transformers
from tightframe.models.libraries import from_timm, from_timm_folder, from_torchvision
from tightframe.models.names import BUILDER, FORMS, LOCAL, absolute, is_folder, short_name
from tightframe.models.preprocessing import checked

_LIBRARIES: dict[str, Callable[[str, str, bool], Built]] = {
    "timm": from_timm,
    "torchvision": from_torchvision,
    "open_clip": from_open_clip,
    "hf": from_transformers,
}


def load_backbone(
    uri: str,
    *,
    pretrained: bool = True,
    layers: Sequence[str] | None = None,
    input_size: int | Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """Load a pretrained model, find its layers, and freeze it.

    Args:
        uri: The model: timm/NAME, torchvision/NAME, open_clip/NAME/PRETRAINED or hf/NAME (transformers) by its name;
            local-dir:PATH, open_clip/local-dir:PATH or hf/PATH in a folder as timm, open_clip or transformers writes
            it, with weights as safetensors; PATH.py:FUNCTION[:ARGUMENT] from a function of yours that returns an
            nn.Module, which runs that file.
        pretrained: Load the pretrained weights; without, the weights are random.
        layers: Modules to read features at, by dotted name, in place of the blocks that are found.
        input_size: Side of the images in pixels, or height and width, if not the model's own.
        mean: Mean of red, green and blue (0 to 1) to normalize by, if not the model's own.
        std: Standard deviation of red, green and blue (0 to 1) to normalize by, if not the model's own.

    Raises:
        ModelError: the name is unknown, the model can't be built, or it can't take such images.
        HubUnreachable: weights have to be downloaded and can't be.
        LayerNotFound: a name in ``layers`` is not a module, or can't be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # random weights are the same every time: results can be repeated
        built = _built(uri, pretrained)
    preprocessing = checked(uri, built.preprocessing, input_size, mean, std)
    module = built.module.eval().requires_grad_(False).float().cpu()
    anatomy = Anatomy(module, preprocessing.input_size, tuple(layers) if layers else None)
    given = {"layers": layers, "input_size": input_size, "mean": mean, "std": std}
    plain = {key: value if isinstance(value, int) else list(value) for key, value in given.items() if value is not None}
    return Backbone(
        name=short_name(uri) + ("" if pretrained else " (untrained)"),
        module=module,
        preprocessing=preprocessing,
        layers=anatomy.layers,
        penultimate=anatomy.penultimate,
        head=anatomy.head,
        token_pool=_token_pool(module, anatomy.prefix_tokens),
        origin={"uri": absolute(uri), "pretrained": pretrained, **plain},
        source=source_hash(uri),
        source_accuracy=built.source_accuracy if pretrained else None,
    )


def _built(uri: str, pretrained: bool) -> Built:
    library, _, name = uri.partition("/")
    if BUILDER.fullmatch(uri):
        return from_builder(uri, pretrained)
    if uri.startswith(LOCAL):
        return from_timm_folder(uri, pretrained)
    if library in _LIBRARIES and name:
        return _LIBRARIES[library](uri, name, pretrained)
    known = f"; a folder of timm's is {LOCAL}{uri}, one of transformers' hf/{uri}" if uri and is_folder(uri) else ""
    raise ModelError(f'"{uri}" names no model; give {FORMS}{known}')


def _token_pool(module: nn.Module, prefix_tokens: int) -> Literal["cls", "mean"]:
    declared = getattr(module, "global_pool", None)
    if declared in ("token", "avg"):
        return "cls" if declared == "token" and prefix_tokens else "mean"
    return "cls" if prefix_tokens and getattr(module, "has_class_token", True) else "mean"  # others are registers
