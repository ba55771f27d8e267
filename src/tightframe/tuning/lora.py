"""LoRA (Hu et al., ICLR 2022) through peft: a trained map of low rank beside each frozen one, saved in peft's format.

Which maps: the ``nn.Linear`` of a model that has some, and layer norm and no batch norm (transformers, ConvNeXt); of
any other its ``nn.Linear`` and its ``nn.Conv2d`` that are not grouped. Only modules of exactly these types, since what
derives from them computes something else, and only those that the model calls: one whose weight it reads by itself
would be adapted without effect. The head is none of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tightframe.backbone import Backbone
from tightframe.errors import SettingsError, TightframeError
from tightframe.tuning.batch_norm import batch_norms
from tightframe.tuning.places import Place, place_of_head, put

RANK, ALPHA = 8, 16
"""Rank and α of Hu et al.'s RoBERTa large: the sum is scaled by α / rank = 2."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What peft calls its files."""
PREFIX = "base_model.model."
"""What peft puts before the names of a model's modules."""


class LoraMissing(TightframeError, ModuleNotFoundError):
    """LoRA was asked for, and peft is not there."""


def adapt(base: nn.Module, backbone: Backbone) -> None:
    """Put LoRA into ``base``, a copy of the backbone without its head, which computes the same as before.

    Args:
        base: changed in place.
        backbone: what it is a copy of.

    Raises:
        LoraMissing: ``pip install tightframe[lora]`` is needed.
        SettingsError: there is nothing to adapt.
    """
    peft = _peft()
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
    """The parameters that ``adapt`` put in."""
    return [parameter for _, layer in _layers(base) for name, parameter in layer.named_parameters() if "lora_" in name]


def merge(base: nn.Module) -> None:
    """Add what LoRA learned to the weights of ``base``, in place, and leave its own modules only."""
    for name, layer in list(_layers(base)):
        layer.merge()
        put(base, name, layer.get_base_layer())
    del base.peft_config


def layer_norm_only(module: nn.Module) -> bool:
    """Whether there is layer norm in it and no batch norm."""
    return any(isinstance(member, nn.LayerNorm) for member in module.modules()) and not batch_norms(module)


def config_text(base: nn.Module, backbone: Backbone) -> str:
    """The configuration that peft needs to load what was trained, in its own JSON; no name of a file is in it."""
    place = _place(backbone)
    config: Any = base.peft_config["default"]  # type: ignore[index]
    told = replace(config, inference_mode=True, modules_to_save=[place.name] if place else None)
    return json.dumps(told.to_dict(), indent=2, sort_keys=True, default=sorted)


def as_peft(tensors: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """``changed_state`` of an adapted model by the names that peft gives it, sharing memory.

    The head goes where the plain model has it. Where peft can't put it there, it keeps its name and is passed over.
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


def _place(backbone: Backbone) -> Place | None:
    """Where peft is to put the head; ``None`` where it would take others for it, since it goes by how names end."""
    place = place_of_head(backbone)
    names = {name for name, _ in backbone.module.named_modules()}
    return place if place and not any(name.endswith(place.name) for name in names - {place.name}) else None


def _adaptable(base: nn.Module, backbone: Backbone) -> list[str]:
    """Names of the modules that LoRA goes beside; see the module."""
    called = dict(_called(base, backbone))
    linear = [name for name, module in called.items() if type(module) is nn.Linear]
    if linear and layer_norm_only(base):
        return linear
    return [name for name, module in called.items() if name in linear or _plain_convolution(module)]


def _plain_convolution(module: nn.Module) -> bool:
    """Whether peft's sum for it is right: it knows of stride and padding, and can't merge groups."""
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
    )


def _called(base: nn.Module, backbone: Backbone) -> list[tuple[str, nn.Module]]:
    """Modules that run for a blank image, in the order of their names."""
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


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise LoraMissing(
            f"method lora needs peft, and it can't be imported ({error}): pip install 'tightframe[lora]'",
            name=error.name,
        ) from error
    return peft
