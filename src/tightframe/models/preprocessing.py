"""How each library says which images a model expects, under timm's names.

What open_clip and transformers say may be damaged: ``of_open_clip`` and ``of_processor`` raise whatever that leads to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from tightframe.backbone import LARGEST_SIDE, Preprocessing
from tightframe.errors import ModelError
from tightframe.models.fetching import explained

CROPS = {"shortest": "center", "squash": "squash"}
"""open_clip's ways to resize, under timm's names."""
CONVNEXT_SQUASHES_FROM = 384
"""Side in pixels from which transformers' ConvNeXt processor crops nothing off."""
LARGEST_GAP = 2.0
"""Mean difference, in levels of 256, that resampling may make between our images and those of a processor of
transformers, beside the difference that a shift by one pixel makes: sizes and crops are rounded differently."""


def of_timm(uri: str, config: Any, module: Any = None) -> Preprocessing:
    """Read timm's ``pretrained_cfg``, as a dictionary or as timm's own class. Raises ``ModelError``."""
    from timm.data import resolve_data_config

    wanted = "; it needs input_size (3, height, width), mean, std, crop_pct and interpolation"
    with explained(f"{uri}: its pretrained_cfg can't be read", wanted):
        plain = config if isinstance(config, dict) else config.to_dict()
        found = resolve_data_config({}, pretrained_cfg=plain, model=module)
        channels, *sides = found["input_size"]
        if channels != 3:
            raise ModelError(f"{uri}: the model takes {channels} color channels; images are given in 3")
        crop_mode = str(found.get("crop_mode") or "center")
        return _described(sides, found["mean"], found["std"], found["crop_pct"], found["interpolation"], crop_mode)


def of_torchvision(transforms: Any) -> Preprocessing:
    """Read the transforms that come with weights of torchvision."""
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    interpolation = transforms.interpolation.value
    return _described((crop, crop), transforms.mean, transforms.std, crop / resize, interpolation, "center")


def of_open_clip(told: Mapping[str, Any], size: Any) -> Preprocessing:
    """Read open_clip's ``preprocess_cfg`` for an encoder of images of ``size``, a side or (height, width)."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    wants = merge_preprocess_dict(PreprocessCfg(), told)
    if wants["resize_mode"] not in CROPS:
        raise ValueError(f'resize_mode is "{wants["resize_mode"]}"; it can be {" or ".join(CROPS)}')
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    interpolation = "bilinear" if wants["interpolation"] == "bilinear" else "bicubic"  # as open_clip reads it
    return _described(sides, wants["mean"], wants["std"], 1.0, interpolation, CROPS[wants["resize_mode"]])


def of_processor(processor: Any) -> Preprocessing:
    """Read an image processor of transformers, and check on an image that the result is what it does."""
    found = _of_settings(processor.to_dict())
    gap = _gap(processor, found)
    if gap > LARGEST_GAP + 255 / min(found.input_size):
        raise ValueError(f"images are {gap:.0f} of 256 levels apart")
    return found


def _of_settings(wants: Mapping[str, Any]) -> Preprocessing:
    size, crop = wants["size"], wants.get("crop_size") or {}
    edge = size.get("shortest_edge")
    crop_mode, crop_pct = "center" if edge else "squash", 1.0
    if wants.get("crop_pct") and edge:  # ConvNeXt's processor
        sides = (edge, edge)
        crop_mode, crop_pct = ("center", wants["crop_pct"]) if edge < CONVNEXT_SQUASHES_FROM else ("squash", 1.0)
    elif wants.get("do_center_crop"):
        sides = (crop["height"], crop["width"])
        crop_pct = crop_share(sides[0], edge or size["height"])
    else:
        sides = (size["height"], size["width"])
    if not 1 <= min(sides) <= max(sides) <= LARGEST_SIDE:  # before images are made to compare
        raise ValueError(f"images of {sides}")
    mean, std = (wants["image_mean"], wants["image_std"]) if wants.get("do_normalize", True) else (0.0, 1.0)
    return _described(sides, mean, std, crop_pct, Image.Resampling(int(wants["resample"])).name.lower(), crop_mode)


def crop_share(crop: int, side: int) -> float:
    """``crop / side``, such that ``crop`` divided by it and rounded down is ``side`` again."""
    share = crop / side
    return share if math.floor(crop / share) == side else math.nextafter(share, 0)


def _gap(processor: Any, ours: Preprocessing) -> float:
    """How far the processor's image of a smooth scene is from ours, in levels of 256 on average."""
    across, down = np.meshgrid(np.linspace(0, 1, 600), np.linspace(0, 1, 400))
    scene = np.stack([across, down, 1 - (across + down) / 2], 2)
    image = Image.fromarray((255 * scene).astype(np.uint8))
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    mine = ours.normalize(ours.pixels(image)[None])[0]
    if theirs.shape != mine.shape:
        raise ValueError(f"its images are {tuple(theirs.shape)}")
    return float(255 * ((theirs - mine) * torch.tensor(ours.std).view(3, 1, 1)).abs().mean())


def _described(sides: Any, mean: Any, std: Any, crop_pct: Any, interpolation: Any, crop_mode: str) -> Preprocessing:
    height, width = map(int, sides)
    return Preprocessing(
        (height, width), _each_color(mean), _each_color(std), float(crop_pct), str(interpolation), crop_mode
    )


def _each_color(value: Any) -> tuple[float, ...]:
    """A number for each of three colors, from one for all or one for each."""
    return tuple(map(float, value)) if isinstance(value, (tuple, list)) else (float(value),) * 3


def checked(
    uri: str,
    known: Preprocessing | None,
    input_size: int | Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocessing:
    """What is ``known`` of the images a model expects, overridden by what is given, if that makes sense.

    Raises:
        ModelError: a value is missing or out of range.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    given: dict[str, Any] = {"input_size": size, "mean": mean, "std": std}
    changes: dict[str, Any] = {key: tuple(value) for key, value in given.items() if value is not None}
    if len(changes.get("input_size", (0, 0))) != 2:
        raise ModelError(f"{uri}: input size is {input_size}; give one side, or height and width")
    if known is None and len(changes) < 3:
        raise ModelError(
            f"{uri}: nothing tells which images it expects (no pretrained_cfg, no preprocessor_config.json); give "
            "--input-size, --mean and --std"
        )
    wanted = Preprocessing(**changes, crop_pct=1.0) if known is None else replace(known, **changes)
    _check_ranges(uri, wanted)
    if mean is not None and not all(0 <= value <= 1 for value in mean):
        raise ModelError(f"{uri}: mean is {tuple(mean)}; give it for colors from 0 to 1, such as 0.485 0.456 0.406")
    with explained(f"{uri}: images can't be prepared as it asks, {wanted}"):  # unknown interpolations or crop modes
        wanted.pixels(Image.new("RGB", (8, 8)))
    return wanted


def _check_ranges(uri: str, wanted: Preprocessing) -> None:
    size, mean, std = wanted.input_size, wanted.mean, wanted.std
    if min(size) < 1 or max(size) > LARGEST_SIDE:
        raise ModelError(f"{uri}: input size is {size}; give height and width, 1 to {LARGEST_SIDE} pixels each")
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))):
        raise ModelError(f"{uri}: mean is {mean} and std {std}; give one number for each of 3 colors")
    if min(std) <= 0:
        raise ModelError(f"{uri}: std is {std}; every value must be above 0")
    if not 0.1 <= wanted.crop_pct <= 2:
        raise ModelError(f"{uri}: crop_pct is {wanted.crop_pct}; it must be between 0.1 and 2 of the image's side")
