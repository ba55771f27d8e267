"""LoRA (Hu et al., ICLR 2022) through peft: a trained low-rank map beside frozen ones, saved in peft's format.

Models with layer norm and no batch norm (transformers, ConvNeXt) are adapted in their ``nn.Linear`` modules, if they
have any; all others in ``nn.Linear`` and in ``nn.Conv2d`` without groups. Subclasses of these are left alone, since
they compute something else, and so are modules that the model never calls: where it only reads a module's weight,
LoRA would have no effect. The head is not adapted.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tightframe.backbone import Backbone
from tightframe.errors import SettingsError, needed_by
from tightframe.features.taps import submodule
from tightframe.tuning.batch_norm import batch_norms

RANK, ALPHA = 8, 16
"""Rank and α as for Hu et al.'s RoBERTa large: the low-rank map is scaled by α / rank = 2."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Names of peft's files."""
PREFIX = "base_model.model."
"""Prefix of a model's module names in peft."""


class Place(NamedTuple):
    """A module and its dotted name in a model."""

    name: str
    module: nn.Module


def adapt(base: nn.Module, backbone: Backbone) -> None:
    """Insert LoRA into ``base``, whose outputs stay the same until it is trained.

    Args:
        base: a copy of the backbone without its head; changed in place.
        backbone: the backbone.

    Raises:
        PackageMissing: ``pip install 'tightframe[lora]'`` is needed.
        SettingsError: there is nothing to adapt.
    """
    with needed_by("method lora", "lora"):
        import peft
    names = _adaptable(base, backbone)
    if not names:
        raise SettingsError(
            f"{backbone.name} calls no plain linear map or convolution that LoRA could adapt; choose another --method"
        )
    exactly = "|".join(map(re.escape, names))  # peft takes names in a list for endings of names
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=exactly)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        peft.inject_adapter_in_model(config, base)


def adapters(base: nn.Module) -> list[nn.Parameter]:
    """The parameters that ``adapt`` inserted."""
    return [parameter for _, layer in _layers(base) for name, parameter in layer.named_parameters() if "lora_" in name]


def merge(base: nn.Module) -> None:
    """Merge LoRA into the weights of ``base``, in place, and remove LoRA's own modules."""
    for name, layer in list(_layers(base)):
        layer.merge()
        base.set_submodule(name, layer.get_base_layer())
    del base.peft_config


def layer_norm_only(module: nn.Module) -> bool:
    """Whether the model has layer norm and no batch norm."""
    return any(isinstance(member, nn.LayerNorm) for member in module.modules()) and not batch_norms(module)


def config_text(base: nn.Module, backbone: Backbone) -> str:
    """The configuration by which peft loads what was trained, as JSON without the name of any file."""
    place = _place(backbone)
    config: Any = base.peft_config["default"]  # type: ignore[index]
    told = replace(config, inference_mode=True, modules_to_save=[place.name] if place else None)
    return json.dumps(told.to_dict(), indent=2, sort_keys=True, default=sorted)


def as_peft(tensors: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """The ``changed_state`` of an adapted model under peft's names; tensors share memory with the model.

    The head is named after its place in the plain model. Where peft can't put it there, it keeps its own name, which
    peft ignores.
    """
    place = _place(backbone)
    return dict(_as_peft(name, tensor, place) for name, tensor in tensors.items())


def _as_peft(name: str, tensor: Tensor, place: Place | None) -> tuple[str, Tensor]:
    part, _, within = name.partition(".")
    if part == "base":
        module, kind, _, last = within.rsplit(".", 3)  # the third is peft's name of the adapter
        return f"{PREFIX}{module}.{kind}.{last}", tensor
    if place is None:
        return name, tensor
    convolution = within == "weight" and isinstance(place.module, nn.Conv2d)
    return f"{PREFIX}{place.name}.{within}", tensor[..., None, None] if convolution else tensor


def place_of_head(backbone: Backbone) -> Place | None:
    """Where a plain model has its head; in a model of timm's without one, where timm would put it.

    ``None`` where there is no place for a head.
    """
    if backbone.head:
        return Place(backbone.head, submodule(backbone.module, backbone.head))
    if not hasattr(backbone.module, "reset_classifier"):
        return None
    headed: Any = copy.deepcopy(backbone.module)
    headed.reset_classifier(2)
    head = headed.get_classifier()
    return next((Place(name, module) for name, module in headed.named_modules() if name and module is head), None)


def _place(backbone: Backbone) -> Place | None:
    """Where peft shall put the head; ``None`` if other modules have names that end alike, which peft would confuse."""
    place = place_of_head(backbone)
    names = {name for name, _ in backbone.module.named_modules()}
    return place if place and not any(name.endswith(place.name) for name in names - {place.name}) else None


def _adaptable(base: nn.Module, backbone: Backbone) -> list[str]:
    """Names of the modules that are adapted (see the top of this file)."""
    called = dict(_called(base, backbone))
    linear = [name for name, module in called.items() if type(module) is nn.Linear]
    if linear and layer_norm_only(base):
        return linear
    return [name for name, module in called.items() if name in linear or _plain_convolution(module)]


def _plain_convolution(module: nn.Module) -> bool:
    """Whether peft adapts this module correctly: it handles stride and padding, but not dilation or groups."""
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
    )


def _called(base: nn.Module, backbone: Backbone) -> list[tuple[str, nn.Module]]:
    """Modules that run on a blank image, with their names."""
    device = next((parameter.device for parameter in base.parameters()), None)
    ran = set[nn.Module]()
    handles = [module.register_forward_pre_hook(lambda m, _: ran.add(m)) for module in base.modules()]
    try:
        with torch.no_grad():
            base(torch.zeros(1, 3, *backbone.preprocessing.input_size, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return [(name, module) for name, module in base.named_modules() if name and module in ran]


def _layers(base: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in base.named_modules() if isinstance(module, LoraLayer))
