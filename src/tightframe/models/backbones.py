"""The one door to models: a name, a folder or the user's own builder becomes a ``Backbone``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

import torch
from torch import nn

from tightframe.backbone import Backbone
from tightframe.errors import ModelError
from tightframe.models.blocks import Anatomy, SeveralMaps, UnfitSize
from tightframe.models.builders import from_builder, source_hash
from tightframe.models.clip import from_open_clip
from tightframe.models.fetching import Built
from tightframe.models.huggingface import from_transformers
from tightframe.models.libraries import from_timm, from_timm_folder, from_torchvision
from tightframe.models.names import BUILDER, FORMS, LOCAL, absolute, is_folder, short_name
from tightframe.models.preprocessing import checked
from tightframe.models.wrapping import LastMap, SeveralHeads, plain_module

_LIBRARIES: dict[str, Callable[..., Built]] = {
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
        input_size: Side of the images in pixels, or height and width, if not the model's own (position embeddings are
            resampled where they can be).
        mean: Mean of red, green and blue (0 to 1) to normalize by, if not the model's own.
        std: Standard deviation of red, green and blue (0 to 1) to normalize by, if not the model's own.

    Raises:
        ModelError: the name is unknown, the model can't be built, or it can't take such images.
        HubUnreachable: weights have to be downloaded and can't be.
        LayerNotFound: a name in ``layers`` is not a module, or can't be read.
    """
    built = _built(uri, pretrained)
    preprocessing = checked(uri, built.preprocessing, input_size, mean, std)
    named = tuple(layers) if layers else None
    try:
        anatomy = _anatomy(uri, built.module, preprocessing.input_size, named)
    except UnfitSize:
        resized = None if input_size is None else _resized(uri, pretrained, preprocessing.input_size)
        if resized is None:
            raise
        anatomy = _anatomy(uri, resized, preprocessing.input_size, named)
    given = {"layers": layers, "input_size": input_size, "mean": mean, "std": std}
    plain = {key: value if isinstance(value, int) else list(value) for key, value in given.items() if value is not None}
    return Backbone(
        name=short_name(uri) + ("" if pretrained else " (untrained)"),
        module=anatomy.module,
        preprocessing=preprocessing,
        layers=anatomy.layers,
        penultimate=anatomy.penultimate,
        head=anatomy.head,
        token_pool=_token_pool(anatomy.module, anatomy.prefix_tokens),
        origin={"uri": absolute(uri), "pretrained": pretrained, **plain},
        source=source_hash(uri),
        source_accuracy=built.source_accuracy if pretrained else None,
        notes=_notes(anatomy),
    )


def _anatomy(uri: str, module: nn.Module, size: tuple[int, int], named: tuple[str, ...] | None) -> Anatomy:
    """The anatomy of the module, or of one around it where it has several heads, or puts out several maps."""
    module = plain_module(uri, module).float().cpu()
    try:
        found = Anatomy(module, size, named)
    except SeveralMaps:
        return Anatomy(LastMap(module).eval(), size, named)
    if not found.whole and hasattr(found.module, "forward_features") and hasattr(found.module, "forward_head"):
        return Anatomy(SeveralHeads(found.module).eval(), size, named)
    return found


def _notes(anatomy: Anatomy) -> tuple[str, ...]:
    if isinstance(anatomy.module, SeveralHeads):
        return ("its own logits come from several heads; a new one sees what timm calls their pre_logits",)
    if not anatomy.whole:
        return (f"its own logits are not those of {anatomy.head} alone, whose input a new head sees",)
    return ()


def _resized(uri: str, pretrained: bool, size: tuple[int, int]) -> nn.Module | None:
    """The model built for images of ``size``, where its library can do that."""
    library, _, name = uri.partition("/")
    with suppress(ModelError), _same_every_time():
        if uri.startswith(LOCAL):
            return from_timm_folder(uri, pretrained, size).module
        if library in _LIBRARIES:
            return _LIBRARIES[library](uri, name, pretrained, size).module
    return None


@contextmanager
def _same_every_time() -> Iterator[None]:
    """Random weights are the same every time, so that results can be repeated."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def _built(uri: str, pretrained: bool) -> Built:
    library, _, name = uri.partition("/")
    with _same_every_time():
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
