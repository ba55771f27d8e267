"""Reading features inside a model while it runs: which module, and how its output becomes one vector an image.

Pooling (``pool``): convolutional maps are averaged over space, one value a channel; with ``SPREAD`` after the layer's
name it is their standard deviation over space. Token sequences give the class token (``"cls"``) or the mean of the
patch tokens (``"mean"``); ``"auto"`` does for every layer what the model's own head does. What the head sees needs no
pooling unless the head works on maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tightframe.backbone import OUTPUT, PENULTIMATE, Backbone, Layer
from tightframe.errors import LayerNotFound, ModelError, SettingsError

Pool = Literal["auto", "mean", "cls"]


def pooled(output: Any, layer: Layer, how: Literal["mean", "cls"]) -> Float[Tensor, "n d"]:
    """A layer's output as (n, d), averaged in float32; a copy, since what comes next may work in place."""
    if isinstance(output, (tuple, list)):
        output = output[layer.element]
    if layer.layout == "vector":
        return output.to(torch.float32, copy=True)
    if layer.layout in ("map", "map_last"):
        values, places = output.float(), (2, 3) if layer.layout == "map" else (1, 2)
        return values.std(places, correction=0) if layer.spread else values.mean(places)
    if how == "cls" and layer.prefix_tokens:
        return output[:, 0].to(torch.float32, copy=True)
    return output[:, layer.prefix_tokens :].float().mean(1)


def pooling_of(backbone: Backbone, pool: Pool) -> Literal["mean", "cls"]:
    """How tokens are pooled for ``pool``.

    Raises:
        SettingsError: there is no such pooling.
        ModelError: the model has no class token.
    """
    if pool not in get_args(Pool):
        raise SettingsError(f'no pooling "{pool}"; choose auto, mean or cls')
    if pool == "auto":
        return backbone.token_pool
    if pool == "cls" and not any(layer.prefix_tokens for layer in backbone.layers):
        raise ModelError(f"{backbone.name} has no class token; use pool auto or mean")
    return pool


@contextmanager
def tapped(
    backbone: Backbone, layers: Iterable[str], pool: Pool = "auto", module: nn.Module | None = None
) -> Iterator[dict[str, Tensor]]:
    """While the context is open, every forward pass puts pooled features of each layer into the mapping given.

    Args:
        backbone: whose layers are read.
        layers: names, ``"penultimate"`` included.
        pool: see the module.
        module: the model to listen to, if it is a copy of the backbone's.
    """
    module = module if module is not None else backbone.module
    how = pooling_of(backbone, pool)
    read: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []

    try:
        for name in layers:
            handles.append(_listen(module, backbone, backbone.layer(name), how, read))
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _listen(
    module: nn.Module, backbone: Backbone, layer: Layer, how: Literal["mean", "cls"], read: dict[str, Tensor]
) -> RemovableHandle:
    """Hook a layer's output; for the penultimate features, the head's input, or the output where there is no head."""
    if layer.name == PENULTIMATE and backbone.head is not None:
        head = submodule(module, backbone.head)
        return head.register_forward_pre_hook(lambda _, given: read.update({layer.name: pooled(given, layer, how)}))
    target = module if layer.name in (PENULTIMATE, OUTPUT) else submodule(module, layer.module)
    return target.register_forward_hook(lambda _, __, made: read.update({layer.name: pooled(made, layer, how)}))


def submodule(module: nn.Module, name: str) -> nn.Module:
    """The module at a dotted name. Raises ``LayerNotFound``."""
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise LayerNotFound(f'no module "{name}" in {type(module).__name__}') from error
