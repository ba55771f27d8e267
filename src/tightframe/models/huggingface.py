"""Vision models of Hugging Face's transformers, by their name on the hub or from a folder as transformers writes it.

A checkpoint of an image classifier gives its logits, and ``penultimate`` is what its classifier sees. Any other gives
pooled features without a head: transformers' ``pooler_output``; where a checkpoint holds no weights for the pooler, the
class token after the last norm, or the mean of the patch tokens. Of a model for images and text (CLIP, SigLIP) it
is the vision part, before the projection.

Weights come from safetensors only, and no code that comes with a model is run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tightframe.backbone import LARGEST_SIDE, Preprocessing
from tightframe.errors import ModelError
from tightframe.models.fetching import each_color, library, one_line, snapshot

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MASKED = ("vit_mae",)
"""Types of models that hide patches at random whenever they run."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
CONVNEXT_SQUASHES_FROM = 384
"""Pixels from which transformers' ConvNeXt processor crops nothing off."""
LARGEST_GAP = 2.0
"""Mean difference, in levels of 256, that resampling may make between our images and the processor's own, beside what
a shift by one pixel makes: sizes and crops are rounded this way or that."""


class VisionModel(nn.Module):
    """A model of transformers: images (n, 3, h, w) to logits (n, k), or features (n, d) if it has no classifier."""

    def __init__(self, model: Any, classifies: bool):
        super().__init__()
        self.model, self.classifies = model, classifies
        self.num_prefix_tokens = sum(_tokens(name, value) for name, value in model.named_parameters())
        self.global_pool = "avg" if getattr(model.config, "use_mean_pooling", False) else None

    def forward(self, images: Any) -> Any:
        """Logits or pooled features. Takes a tensor, or what stands for one while torch.fx follows."""
        found = self.model(pixel_values=images)
        if self.classifies:
            return found.logits
        pooled = getattr(found, "pooler_output", None)
        return self._pooled(found.last_hidden_state) if pooled is None else pooled.flatten(1)

    def _pooled(self, last: Tensor) -> Tensor:
        if last.ndim == 4:
            return last.mean((2, 3))
        if self.num_prefix_tokens and self.global_pool is None:
            return last[:, 0]
        return last[:, self.num_prefix_tokens :].mean(1)

    def get_classifier(self) -> nn.Module:
        """The classifier, in timm's convention; an identity where there is none."""
        return getattr(self.model, "classifier", self.model) if self.classifies else nn.Identity()

    def extra_repr(self) -> str:
        """All that decides what the same weights compute: the fingerprint holds it."""
        config = self.model.config.to_dict()
        return json.dumps({k: v for k, v in config.items() if k not in _CHANGES_NOTHING}, sort_keys=True, default=str)


_CHANGES_NOTHING = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


def _tokens(name: str, value: Tensor) -> int:
    """How many tokens a parameter puts before the patch tokens."""
    last = name.rpartition(".")[2]
    if last == "register_tokens":
        return value.shape[-2]
    return int(last in ("cls_token", "class_token", "class_embedding", "distillation_token"))


def is_folder(name: str) -> bool:
    """Whether it means a folder, not a model on the hub; a folder that is there wins, as in transformers."""
    return name.startswith(("/", "./", "../")) or Path(name).is_dir()


def from_transformers(uri: str, name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing | None]:
    """The model called ``name`` on the hub, or in a folder, and how it wants images if that is told.

    Raises:
        ModelError: no such model, weights that are pickles only, code that would have to run, or a damaged folder.
        HubUnreachable: it has to be fetched and can't be.
    """
    transformers = library("transformers", "hf")
    folder = Path(name) if is_folder(name) else _fetched(uri, name, pretrained)
    _check_files(uri, folder, pretrained)
    try:
        with _quietly():
            module = _built(transformers, uri, folder, pretrained)
            told = any((folder / file).is_file() for file in PROCESSORS)
            return module, _preprocessing(transformers, uri, folder) if told else None
    except ModelError:
        raise
    except Exception as error:  # whatever a damaged config or weights file leads transformers into
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{uri} needs Python code that comes with it, which is never run here; if you trust it, write a "
                "function that builds the model and give PATH.py:FUNCTION"
            ) from error
        raise ModelError(f"{uri} can't be built by transformers: {one_line(error)}") from error


def _fetched(uri: str, name: str, pretrained: bool) -> Path:
    weights = (WEIGHTS, INDEX, "model-*-of-*.safetensors") if pretrained else ()
    return snapshot(uri, name, (CONFIG, *PROCESSORS, *weights), "hf/PATH, a folder as save_pretrained writes it")


def _check_files(uri: str, folder: Path, pretrained: bool) -> None:
    """Only what is meant to be read is there to be read."""
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{uri} has no {CONFIG}; hf/ wants a model as transformers' save_pretrained writes it")
    if not pretrained:
        return
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{uri} is an adapter of another model; merge it into that one with peft, and give the result")
    if (folder / WEIGHTS).is_file():
        return
    try:
        parts = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError as error:
        raise ModelError(
            f"{uri} has no {WEIGHTS}. Pickles such as pytorch_model.bin can run code and are never read: where you "
            "trust them, load the model with transformers and write it anew with save_pretrained"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{uri}: {INDEX} can't be read ({one_line(error)})") from error
    for part in parts:
        if not str(part).endswith(".safetensors") or Path(str(part)).name != part or not (folder / part).is_file():
            raise ModelError(f'{uri}: {INDEX} names "{part}", which is no safetensors file beside it')


def _built(transformers: Any, uri: str, folder: Path, pretrained: bool) -> VisionModel:
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    classifies = any(str(made).endswith("ForImageClassification") for made in config.architectures or ())
    if not classifies:
        config = getattr(config, "vision_config", config)
    if config.model_type in MASKED:
        raise ModelError(
            f"{uri} hides patches at random whenever it runs, so its features are never the same twice; choose another"
        )
    config.return_dict = True
    auto = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    if not pretrained:
        return VisionModel(auto.from_config(config, trust_remote_code=False), classifies)
    model, told = auto.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = sorted(told["missing_keys"])
    if missing and not classifies and all(name.startswith("pooler.") for name in missing):
        model.pooler = None  # transformers would make up its weights
    elif missing:
        raise ModelError(
            f"{uri}: its weights lack {len(missing)} of its tensors, such as {missing[0]}; choose a whole one"
        )
    return VisionModel(model, classifies)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bars and remarks: what matters is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _preprocessing(transformers: Any, uri: str, folder: Path) -> Preprocessing:
    processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    try:
        found = _as_timm_says(processor.to_dict())
        gap = _gap(processor, found)
    except Exception as error:  # sizes, colors or steps of another kind
        raise ModelError(_not_followed(uri, processor, one_line(error))) from error
    if gap > LARGEST_GAP + 255 / min(found.input_size):
        raise ModelError(_not_followed(uri, processor, f"{gap:.0f} of 256 levels apart"))
    return found


def _not_followed(uri: str, processor: Any, why: str) -> str:
    return (
        f"{uri}: images can't be prepared as its {type(processor).__name__} does ({why}); write a function that "
        "builds the model, say there what images it expects, and give PATH.py:FUNCTION"
    )


def _as_timm_says(wants: dict[str, Any]) -> Preprocessing:
    """A processor's settings under timm's names. Raises where there is no telling."""
    size, crop = wants["size"], wants.get("crop_size") or {}
    edge = size.get("shortest_edge")
    mode, share = "center" if edge else "squash", 1.0
    if wants.get("crop_pct") and edge:  # ConvNeXt's processor
        sides = (edge, edge)
        mode, share = ("center", wants["crop_pct"]) if edge < CONVNEXT_SQUASHES_FROM else ("squash", 1.0)
    elif wants.get("do_center_crop"):
        sides = (crop["height"], crop["width"])
        share = _share(sides[0], edge or size["height"])
    else:
        sides = (size["height"], size["width"])
    if not 1 <= min(sides) <= max(sides) <= LARGEST_SIDE:
        raise ValueError(f"images of {sides}")
    normalized = wants.get("do_normalize", True)
    return Preprocessing(
        (int(sides[0]), int(sides[1])),
        each_color(wants["image_mean"]) if normalized else (0.0,) * 3,
        each_color(wants["image_std"]) if normalized else (1.0,) * 3,
        float(share),
        Image.Resampling(int(wants["resample"])).name.lower(),
        mode,
    )


def _share(crop: int, side: int) -> float:
    """The share of ``side`` that ``crop`` is, such that dividing by it gives ``side`` in whole pixels again."""
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
