"""Lists of models by one word or a pattern, for people who don't want to name each, and what models may cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import median

import torch

from tightframe.backbone import Backbone
from tightframe.errors import ModelError
from tightframe.features.precision import on_device

TIMES = 5
"""How often one image is run to time it."""

LISTS = {
    "fast": (
        "timm/mobilenetv3_small_100.lamb_in1k",
        "timm/mobilenetv3_large_100.ra_in1k",
        "timm/efficientnet_lite0.ra_in1k",
        "timm/mobilenetv4_conv_small.e2400_r224_in1k",
        "timm/resnet18.fb_swsl_ig1b_ft_in1k",
    ),
    "default": (
        "timm/mobilenetv3_large_100.ra_in1k",
        "timm/efficientnet_b0.ra_in1k",
        "timm/resnet50.fb_swsl_ig1b_ft_in1k",
        "timm/convnext_tiny.in12k_ft_in1k",
        "timm/vit_small_patch16_224.augreg_in21k",
        "timm/vit_small_patch14_dinov2.lvd142m",
    ),
    "accurate": (
        "timm/convnext_base.fb_in22k",
        "timm/vit_base_patch16_224.augreg_in21k",
        "timm/vit_base_patch16_clip_224.openai",
        "timm/vit_base_patch14_dinov2.lvd142m",
        "timm/eva02_base_patch14_224.mim_in22k",
    ),
}
"""Of differing architectures and source data, since which suits depends on the images."""


@dataclass(frozen=True)
class Limits:
    """What models may cost: millions of parameters, millions of multiplications and additions an image, milliseconds.

    The time is that of one image on ``device``, the median of several.
    """

    params: float | None
    macs: float | None
    latency_ms: float | None
    device: torch.device

    def check(self, backbone: Backbone) -> None:
        """Raise ``ModelError`` where ``backbone`` costs more."""
        costs: tuple[tuple[float | None, Callable[[], float], str, str], ...] = (
            (self.params, lambda: backbone.parameters / 1e6, "million parameters", "--max-params"),
            (self.macs, lambda: backbone.macs / 1e6, "million MACs", "--max-macs"),
            (self.latency_ms, lambda: _latency(backbone, self.device), "ms an image", "--max-latency-ms"),
        )
        for most, cost, unit, option in costs:
            if most is not None and (found := cost()) > most:
                raise ModelError(f"left out: it has {found:.3g} {unit}, more than the {most:g} allowed ({option})")


def _latency(backbone: Backbone, device: torch.device) -> float:
    """Milliseconds that one image takes, the median of ``TIMES`` after as many that don't count."""
    on_device(backbone.module, device)
    blank, times = torch.zeros(1, 3, *backbone.preprocessing.input_size, device=device), list[float]()
    with torch.inference_mode():
        for _ in range(2 * TIMES):
            started = time.perf_counter()
            backbone.module(blank)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(1000 * (time.perf_counter() - started))
    return median(times[TIMES:])


def listed(models: Sequence[str | Backbone]) -> list[str | Backbone]:
    """The models, with those that a word (``LISTS``) or a pattern (timm/*resnet*) stands for in its place.

    Patterns are over the names with pretrained weights of timm and torchvision.

    Raises:
        ModelError: nothing matches a pattern.
    """
    found = list[str | Backbone]()
    for model in models:
        if not isinstance(model, str):
            found.append(model)
        elif model in LISTS:
            found += LISTS[model]
        elif any(sign in model for sign in "*?") and model.partition("/")[0] in ("timm", "torchvision"):
            found += _matching(model)
        else:
            found.append(model)
    return found


def _matching(pattern: str) -> list[str]:
    library, _, name = pattern.partition("/")
    if library == "timm":
        import timm

        known = timm.list_pretrained()
    else:
        from torchvision import models

        known = models.list_models(module=models)
    matching = [f"{library}/{one}" for one in known if fnmatchcase(one, name)]
    if not matching:
        raise ModelError(f"no model of {library} with pretrained weights matches {pattern}; loosen the pattern")
    return matching
