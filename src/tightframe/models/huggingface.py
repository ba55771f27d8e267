"""Vision models of Hugging Face's transformers, by their name on the hub or from a folder as transformers writes it.

A checkpoint of an image classifier yields logits, and ``penultimate`` is the input of its classifier. Any other yields
pooled features and has no head: transformers' ``pooler_output``, or, where a checkpoint holds no weights for the
pooler, the class token after the last norm or the mean of the patch tokens. Of a model for images and text (CLIP,
SigLIP) only the vision part is used, before the projection.

Weights come from safetensors only, and no code that comes with a model is run.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tightframe.errors import ModelError
from tightframe.models.fetching import Built, check_files, explained, library, snapshot
from tightframe.models.names import is_folder
from tightframe.models.preprocessing import of_processor

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MASKED = ("vit_mae",)
"""Types of models that hide patches at random whenever they run."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
NO_CODE = {"trust_remote_code": False, "local_files_only": True}
OWN_BUILDER = (
    "; write a function that builds the model, with the images it expects in its pretrained_cfg, and give "
    "PATH.py:FUNCTION"
)


class VisionModel(nn.Module):
    """A model of transformers: images (n, 3, h, w) to logits (n, k), or features (n, d) if it has no classifier."""

    def __init__(self, model: Any, classifies: bool):
        super().__init__()
        self.model, self.classifies = model, classifies
        self.options: dict[str, Any] = {}
        self.num_prefix_tokens = sum(_tokens(name, value) for name, value in model.named_parameters())
        self.global_pool = "avg" if getattr(model.config, "use_mean_pooling", False) else None

    def forward(self, images: Any) -> Any:
        """Logits or pooled features. Takes a tensor, or its proxy while torch.fx traces."""
        found = self.model(pixel_values=images, **self.options)
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

    def resample(self) -> None:
        """Resample the position embedding to the images. Raises ``ModelError`` where transformers can't do that."""
        option = "interpolate_pos_encoding"
        if option not in inspect.signature(self.model.forward).parameters:
            raise ModelError(f"{type(self.model).__name__} takes images of one size only")
        self.options = {option: True}

    def get_classifier(self) -> nn.Module:
        """The classifier, in timm's convention; an identity where there is none."""
        return getattr(self.model, "classifier", self.model) if self.classifies else nn.Identity()

    def extra_repr(self) -> str:
        """The settings that decide what the weights compute; part of the fingerprint."""
        config = self.model.config.to_dict() | self.options
        return json.dumps({k: v for k, v in config.items() if k not in _CHANGES_NOTHING}, sort_keys=True, default=str)


_CHANGES_NOTHING = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


def _tokens(name: str, value: Tensor) -> int:
    """The number of tokens that a parameter puts before the patch tokens."""
    last = name.rpartition(".")[2]
    if last == "register_tokens":
        return value.shape[-2]
    return int(last in ("cls_token", "class_token", "class_embedding", "distillation_token"))


def from_transformers(uri: str, name: str, pretrained: bool, size: tuple[int, int] | None = None) -> Built:
    """The model ``name`` on the hub, or in a folder; for ``size`` of images, its position embedding is resampled.

    Raises:
        ModelError: there is no such model, its weights are pickles only, it needs code of its own, it is damaged, or
            it can't be resampled.
        HubUnreachable: it has to be downloaded and can't be.
    """
    transformers = library("transformers", "hf")
    folder = Path(name) if is_folder(name) else _fetched(uri, name, pretrained)
    _check_files(uri, folder, pretrained)
    with explained(f"{uri} can't be built by transformers"), _quietly():
        module = _built(transformers, uri, folder, pretrained)
        if size is not None:
            module.resample()
        if not any((folder / file).is_file() for file in PROCESSORS):
            return Built(module, None)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **NO_CODE)
    with explained(f"{uri}: images can't be prepared as its {type(processor).__name__} does", OWN_BUILDER):
        return Built(module, of_processor(processor))


def _fetched(uri: str, name: str, pretrained: bool) -> Path:
    weights = (WEIGHTS, INDEX, "model-*-of-*.safetensors") if pretrained else ()
    return snapshot(uri, name, (CONFIG, *PROCESSORS, *weights), "hf/PATH, a folder as save_pretrained writes it")


def _check_files(uri: str, folder: Path, pretrained: bool) -> None:
    """Check that the weights are safetensors, in one file or in the parts that an index names."""
    check_files(uri, folder, [CONFIG], "hf/ takes a model as transformers' save_pretrained writes it")
    if not pretrained:
        return
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{uri} is an adapter of another model; merge it into that one with peft, and give the result")
    if (folder / WEIGHTS).is_file():
        return
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"{uri} has no {WEIGHTS}. Pickles such as pytorch_model.bin can run code and are never read: where you "
            "trust them, load the model with transformers and write it anew with save_pretrained"
        )
    with explained(f"{uri}: {INDEX} can't be read"):
        parts = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    for part in map(str, parts):
        if not part.endswith(".safetensors") or Path(part).name != part or not (folder / part).is_file():
            raise ModelError(f'{uri}: {INDEX} names "{part}", which is no safetensors file beside it')


def _built(transformers: Any, uri: str, folder: Path, pretrained: bool) -> VisionModel:
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **NO_CODE)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelError(
            f"{uri} needs Python code that comes with it, which is never run here; if you trust it{OWN_BUILDER}"
        ) from error
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
    options = {"config": config, "use_safetensors": True, "output_loading_info": True}
    model, told = auto.from_pretrained(folder, **options, **NO_CODE)
    missing = sorted(told["missing_keys"])
    if missing and not classifies and all(name.startswith("pooler.") for name in missing):
        model.pooler = None  # transformers would make up its weights
    elif missing:
        raise ModelError(
            f"{uri}: its weights lack {len(missing)} of its tensors, such as {missing[0]}; choose a complete model"
        )
    return VisionModel(model, classifies)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence transformers' progress bars and warnings: what matters is checked here."""
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
