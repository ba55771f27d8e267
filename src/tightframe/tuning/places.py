"""Putting modules in the place of others: where a model has its head, and what stands there."""

from __future__ import annotations

import copy
from typing import NamedTuple

from torch import nn

from tightframe.backbone import Backbone
from tightframe.features.taps import submodule


class Place(NamedTuple):
    """A module and its dotted name in a model."""

    name: str
    module: nn.Module


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set ``module`` in the place called ``name``."""
    parent, _, last = name.rpartition(".")
    setattr(submodule(model, parent), last, module)


def place_of_head(backbone: Backbone) -> Place | None:
    """Where a plain model has its head: one of timm's that came without, where timm would put one.

    ``None`` where there is no place for a head.
    """
    if backbone.head:
        return Place(backbone.head, submodule(backbone.module, backbone.head))
    if not hasattr(backbone.module, "reset_classifier"):
        return None
    headed = copy.deepcopy(backbone.module)
    headed.reset_classifier(2)  # type: ignore[operator]
    head = headed.get_classifier()  # type: ignore[operator]
    return next((Place(name, module) for name, module in headed.named_modules() if name and module is head), None)
