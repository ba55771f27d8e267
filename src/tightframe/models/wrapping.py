"""A module as it comes, made one that takes images and puts out features or logits; others are refused in one line."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from tightframe.errors import ModelError

INSTEAD = "return the plain torch.nn.Module, with its weights"
DESCRIBES_TOKENS = ("num_prefix_tokens", "has_class_token", "global_pool")
"""Attributes by which models of timm say how they pool tokens."""


def plain_module(uri: str, module: nn.Module) -> nn.Module:
    """The module in eval mode, without ``torch.compile`` and wrappers for several processes.

    Raises:
        ModelError: it is scripted, traced, exported, without values (on the meta device) or not yet initialized.
    """
    module = _unwrapped(module)
    for name, part in [(name, part) for name, part in module.named_modules() if name]:
        if (inner := _unwrapped(part)) is not part:
            module.set_submodule(name, inner)
    for part in module.modules():
        part._compiled_call_impl = None  # of module.compile()
    kind = _refused(module)
    if kind:
        raise ModelError(f"{uri} is {kind}, which can be neither read nor tuned; {INSTEAD}")
    try:
        return module.eval().requires_grad_(False)
    except Exception as error:  # modules of torch.export, say
        why = " ".join(str(error).split())[:200]
        raise ModelError(f"{uri} is a {type(module).__name__} without eval mode ({why}); {INSTEAD}") from error


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _refused(module: nn.Module) -> str:
    """What kind of module it is, if it is of no use here."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return "a scripted or traced module"
    lazy = (part for part in module.modules() if isinstance(part, LazyModuleMixin))
    if any(part.has_uninitialized_params() for part in lazy):
        return "a lazy module that has not yet seen an image"
    if any(value.is_meta for value in (*module.parameters(), *module.buffers())):
        return "a module on the meta device, without values"
    return ""


class LastMap(nn.Module):
    """The last of the maps (n, d, h, w) that a feature extractor puts out as a list or a dictionary."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Any) -> Any:
        """From images (n, 3, h, w)."""
        return maps_of(self.net(images))[-1]


def maps_of(output: Any) -> list[torch.Tensor]:
    """The maps of which ``output`` is a list or dictionary, if there are several and nothing else."""
    parts = list(output.values()) if isinstance(output, dict) else output
    several = isinstance(parts, (list, tuple)) and len(parts) > 1
    return list(parts) if several and all(isinstance(m, torch.Tensor) and m.ndim == 4 for m in parts) else []


class SeveralHeads(nn.Module):
    """A model of timm's whose logits come from several heads (a distilled one, say), with one place for a new head.

    The new head sees what timm calls ``pre_logits``; until there is one, the output is that of the model itself.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.head: nn.Module = OwnLogits()
        for name in DESCRIBES_TOKENS:
            if hasattr(net, name):
                setattr(self, name, getattr(net, name))

    def forward(self, images: Any) -> Any:
        """Logits, or features once the head is an identity, from images (n, 3, h, w)."""
        net: Any = self.net
        seen = net.forward_features(images)
        features = net.forward_head(seen, pre_logits=True)
        return self.head(features, net.forward_head(seen)) if isinstance(self.head, OwnLogits) else self.head(features)

    def get_classifier(self) -> nn.Module:
        """What yields the logits, in timm's convention."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Take the model's own heads away; in timm's convention ``num_classes`` is 0 for an output of features."""
        net: Any = self.net
        net.reset_classifier(0)
        self.head = nn.Linear(net.num_features, num_classes) if num_classes else nn.Identity()


class OwnLogits(nn.Module):
    """Takes features and the logits that the model's own heads make, and gives the logits."""

    def forward(self, features: Any, logits: Any) -> Any:
        """The second of the two."""
        return logits
