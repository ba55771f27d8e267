"""Image encoders of open_clip, by name or from a folder as open_clip writes it.

``penultimate`` is the input of the projection into the space shared with text, as in the linear probes of the CLIP
paper (Radford et al., ICML 2021); the module's output is that of ``encode_image``, after the projection. Of a
projection of several layers, the last linear map counts. Where the projection is part of an attention pool (CLIP's
ResNets), or there is none (SigLIP), the features are the encoder's output.

The text encoder is never built, and its weights are not read. Weights come from safetensors only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn

from tightframe.errors import ModelError
from tightframe.models.fetching import Built, check_files, explained, library, nearest, snapshot
from tightframe.models.names import LOCAL
from tightframe.models.preprocessing import of_open_clip

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
FOLDER = (
    "open_clip/local-dir: takes a folder as open_clip's save_for_hf writes it, with weights as safetensors (pickles "
    "such as .bin and .pt can run code: they are never read)"
)
"""What to give instead of a folder that lacks a file."""
PREFIX = "visual."
"""Of the names of the image encoder's weights."""
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""The smallest text encoder: open_clip has no image encoder without one."""


class ImageEncoder(nn.Module):
    """An image encoder of open_clip: images (n, 3, h, w) to (n, d), as ``encode_image``.

    The projection, a plain matrix in open_clip's vision transformers, becomes a linear layer of its own.
    """

    def __init__(self, visual: nn.Module, config: dict[str, Any]):
        super().__init__()
        self.visual, self.projection, self._config = visual, _projection_out_of(visual), config
        inner: Any = getattr(visual, "trunk", visual)
        self.num_prefix_tokens = int(getattr(inner, "num_prefix_tokens", hasattr(inner, "class_embedding")))
        self.has_class_token = bool(getattr(inner, "has_class_token", True))
        pool = getattr(inner, "global_pool", {"avg": "avg", "tok": "token"}.get(getattr(inner, "pool_type", "")))
        self.global_pool = pool if isinstance(pool, str) else None

    def forward(self, images: Any) -> Any:
        """As ``encode_image``, not normalized. Takes a tensor, or its proxy while torch.fx traces."""
        features = self.visual(images)
        return self.projection(features[0] if isinstance(features, tuple) else features)  # CoCa gives tokens as well

    def get_classifier(self) -> nn.Module:
        """The projection, in timm's convention; an identity where there is none that could be replaced."""
        if isinstance(self.projection, nn.Linear):
            return self.projection
        head: Any = getattr(self.visual, "head", None)
        if isinstance(head, nn.Module) and any(isinstance(part, nn.Linear) for part in head.modules()):
            return head
        trunk: Any = getattr(self.visual, "trunk", None)
        return nn.Identity() if trunk is None else trunk.get_classifier()

    def extra_repr(self) -> str:
        """The settings that decide what the weights compute; part of the fingerprint."""
        return json.dumps(self._config, sort_keys=True)


def _projection_out_of(visual: nn.Module) -> nn.Module:
    matrix = getattr(visual, "proj", None)
    if not isinstance(matrix, nn.Parameter):
        return nn.Identity()
    linear = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False)
    linear.weight.data = matrix.data.T.contiguous()
    visual.proj = None  # type: ignore[assignment]
    return linear


class _Description(NamedTuple):
    """What an encoder is built from: open_clip's model and preprocessing settings, and a file of weights."""

    model: dict[str, Any]
    preprocessing: dict[str, Any]
    weights: Path | None


def from_open_clip(uri: str, name: str, pretrained: bool, size: tuple[int, int] | None = None) -> Built:
    """The encoder ``ARCHITECTURE/PRETRAINED`` or ``local-dir:PATH``, for images of ``size``.

    Raises:
        ModelError: there is no such encoder, its weights are missing or pickles only, or its folder is damaged.
        HubUnreachable: weights have to be downloaded and can't be.
    """
    open_clip = library("open_clip", "open-clip")
    described = _in_folder(uri, pretrained) if name.startswith(LOCAL) else _published(open_clip, uri, name, pretrained)
    with explained(f"{uri} can't be built by open_clip"):
        encoder = _built(open_clip, described, size)
        return Built(encoder, of_open_clip(described.preprocessing, encoder.visual.image_size))


def _in_folder(uri: str, pretrained: bool) -> _Description:
    folder = Path(uri.partition(LOCAL)[2])
    check_files(uri, folder, (CONFIG, WEIGHTS) if pretrained else (CONFIG,), FOLDER)
    with explained(f"{uri}: {CONFIG} can't be read", "; it wants a model_cfg"):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model, preprocessing = dict(config["model_cfg"]), dict(config.get("preprocess_cfg", {}))
        return _Description(model, preprocessing, folder / WEIGHTS if pretrained else None)


def _published(open_clip: Any, uri: str, name: str, pretrained: bool) -> _Description:
    architecture, _, tag = name.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        raise ModelError(f'open_clip has no model "{architecture}"' + nearest(architecture, known))
    told = dict(open_clip.get_pretrained_cfg(architecture, tag))
    if not told and (tag or pretrained):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none: pass --no-pretrained"
        raise ModelError(
            f'open_clip has no weights "{tag}" for {architecture}; give open_clip/NAME/ and one of: {tags}'
        )
    model = dict(open_clip.get_model_config(architecture))
    if told.get("quick_gelu"):  # the activation that these weights were trained with
        model["quick_gelu"] = True
    return _Description(model, told, _fetched_weights(uri, told) if pretrained else None)


def _fetched_weights(uri: str, told: dict[str, Any]) -> Path:
    repository, _, file = str(told.get("hf_hub") or "").rpartition("/")
    wanted = str(Path(file).with_suffix(".safetensors")) if file else WEIGHTS
    if repository:
        instead = "open_clip/local-dir:PATH, or pass --no-pretrained for random weights"
        found = snapshot(uri, repository, [wanted], instead) / wanted
        if found.is_file():
            return found
    raise ModelError(
        f"{uri}: its weights are not published as safetensors, and pickles can run code: they are never read. "
        "Choose other weights, or convert them where you trust them and give open_clip/local-dir:PATH"
    )


def _built(open_clip: Any, described: _Description, size: tuple[int, int] | None) -> ImageEncoder:
    vision = dict(described.model["vision_cfg"]) | {"timm_model_pretrained": False}
    if size is not None:
        vision["image_size"] = size
    if ":" in str(vision.get("timm_model_name") or ""):
        raise ValueError(f'timm_model_name is "{vision["timm_model_name"]}"; a name of timm\'s is needed')
    config = {
        "embed_dim": described.model["embed_dim"],
        "vision_cfg": vision,
        "quick_gelu": bool(described.model.get("quick_gelu", False)),
    }
    model = open_clip.CLIP(text_cfg=dict(NO_TEXT), **config)
    visual = model.visual
    if described.weights:
        weights = _image_weights(described.weights)
        if size is not None:
            open_clip.model.resize_pos_embed(weights, model)
        visual.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in weights.items()})
    return ImageEncoder(visual, config)


def _image_weights(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIX)}  # noqa: SIM118
