"""Image encoders of open_clip, by name or from a folder as open_clip writes it, and what their text encoders say.

``penultimate`` is the input of the projection into the space shared with text, as in the linear probes of the CLIP
paper (Radford et al., ICML 2021); the module's output is that of ``encode_image``, after the projection. Of a
projection of several layers, the last linear map counts. Where the projection is part of an attention pool (CLIP's
ResNets), or there is none (SigLIP), the features are the encoder's output.

The text encoder is built only where ``class_texts`` is asked for, and then let go. Weights come from safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import normalize

from tightframe.backbone import Backbone
from tightframe.errors import ModelError, SettingsError
from tightframe.models.fetching import Built, check_files, explained, hub_or_cache, library, nearest, snapshot
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
TEMPLATES = ("a photo of a {}.",)
"""Said of every class, in place of {} its name, where no other sentences are given (Radford et al., ICML 2021)."""
TEXTS_AT_ONCE = 256


class ImageEncoder(nn.Module):
    """An image encoder of open_clip: images (n, 3, h, w) to (n, d), as ``encode_image``.

    The projection, a plain matrix in open_clip's vision transformers, becomes a linear layer of its own. ``texts`` is
    the text encoder that it was trained with.
    """

    def __init__(self, visual: nn.Module, config: dict[str, Any], texts: TextEncoder):
        super().__init__()
        self.visual, self.projection, self._config = visual, _projection_out_of(visual), config
        self.texts = texts
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


class ClassTexts(NamedTuple):
    """What a text encoder says of K classes.

    Attributes:
        embeddings: of each class, of length 1, (K, d).
        scale: of cosines of images and texts in logits.
        bias: added to them.
    """

    embeddings: Float[Tensor, "k d"]
    scale: float
    bias: float

    def logits(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits (n, K) of what ``encode_image`` gives, (n, d)."""
        return self.scale * normalize(images, dim=1) @ self.embeddings.T + self.bias


class TextEncoder:
    """The text encoder of a model: built when texts are encoded, and let go after that."""

    def __init__(self, uri: str, described: _Description):
        self._uri, self._described = uri, described
        self._known: dict[tuple[tuple[str, ...], tuple[str, ...]], ClassTexts] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> TextEncoder:
        return self  # a copy of the image encoder was trained with the same texts

    def of(self, classes: tuple[str, ...], templates: tuple[str, ...]) -> ClassTexts:
        """What it says of classes: the mean of the embeddings of all sentences about each, as open_clip takes it."""
        if (classes, templates) not in self._known:
            open_clip = library("open_clip", "open-clip")
            with explained(f"the text encoder of {self._uri} can't be used"):
                self._known[classes, templates] = self._encoded(open_clip, classes, templates)
        return self._known[classes, templates]

    @torch.no_grad()
    def _encoded(self, open_clip: Any, classes: tuple[str, ...], templates: tuple[str, ...]) -> ClassTexts:
        with hub_or_cache(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = _whole(open_clip, self._described)
            tokenize = open_clip.get_tokenizer(self._described.tokenizer)
        said = [template.replace("{}", name.replace("_", " ")) for name in classes for template in templates]
        parts = [said[start : start + TEXTS_AT_ONCE] for start in range(0, len(said), TEXTS_AT_ONCE)]
        encoded = torch.cat([model.encode_text(tokenize(part), normalize=True) for part in parts])
        embeddings = normalize(encoded.float().unflatten(0, (len(classes), len(templates))).mean(1), dim=1)
        bias = getattr(model, "logit_bias", None)
        return ClassTexts(embeddings, float(model.logit_scale.exp()), 0.0 if bias is None else float(bias))


def class_texts(backbone: Backbone, classes: Sequence[str], prompts: Sequence[str]) -> ClassTexts:
    """What the text encoder that belongs to ``backbone`` says of classes; underscores in names are read as spaces.

    Args:
        backbone: a model of open_clip.
        classes: K names.
        prompts: sentences about a class, {} in place of its name; ``TEMPLATES`` if there is none.

    Raises:
        ModelError: the model has no text encoder, or it can't be built or take these texts.
        SettingsError: a sentence has no {}.
    """
    templates = checked_prompts(prompts)
    texts = getattr(backbone.module, "texts", None)
    if not isinstance(texts, TextEncoder):
        raise ModelError(
            f"{backbone.name} has no text encoder, which --prompts needs; give a model of open_clip "
            "(open_clip/NAME/PRETRAINED or open_clip/local-dir:PATH), or leave out --prompts"
        )
    return texts.of(tuple(classes), templates)


def has_texts(backbone: Backbone) -> bool:
    """Whether a text encoder belongs to ``backbone``."""
    return isinstance(getattr(backbone.module, "texts", None), TextEncoder)


def checked_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """The sentences, or ``TEMPLATES`` if there is none. Raises ``SettingsError`` for one without {}."""
    for prompt in prompts:
        if "{}" not in prompt:
            raise SettingsError(f'the prompt "{prompt}" has no {{}} in place of the class, as in "{TEMPLATES[0]}"')
    return tuple(prompts) or TEMPLATES


class _Description(NamedTuple):
    """What a model is built from: open_clip's settings of model and preprocessing, a file of weights, a tokenizer."""

    model: dict[str, Any]
    preprocessing: dict[str, Any]
    weights: Path | None
    tokenizer: str


def from_open_clip(uri: str, name: str, pretrained: bool, size: tuple[int, int] | None = None) -> Built:
    """The encoder ``ARCHITECTURE/PRETRAINED`` or ``local-dir:PATH``, for images of ``size``.

    Raises:
        ModelError: there is no such encoder, its weights are missing or pickles only, or its folder is damaged.
        HubUnreachable: weights have to be downloaded and can't be.
    """
    open_clip = library("open_clip", "open-clip")
    described = _in_folder(uri, pretrained) if name.startswith(LOCAL) else _published(open_clip, uri, name, pretrained)
    with explained(f"{uri} can't be built by open_clip"):
        encoder = _built(open_clip, uri, described, size)
        return Built(encoder, of_open_clip(described.preprocessing, encoder.visual.image_size))


def _in_folder(uri: str, pretrained: bool) -> _Description:
    folder = Path(uri.partition(LOCAL)[2])
    check_files(uri, folder, (CONFIG, WEIGHTS) if pretrained else (CONFIG,), FOLDER)
    with explained(f"{uri}: {CONFIG} can't be read", "; it wants a model_cfg"):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model, preprocessing = dict(config["model_cfg"]), dict(config.get("preprocess_cfg", {}))
        return _Description(model, preprocessing, folder / WEIGHTS if pretrained else None, LOCAL + str(folder))


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
    return _Description(model, told, _fetched_weights(uri, told) if pretrained else None, architecture)


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


def _built(open_clip: Any, uri: str, described: _Description, size: tuple[int, int] | None) -> ImageEncoder:
    resized = {} if size is None else {"image_size": size}
    config = {
        "embed_dim": described.model["embed_dim"],
        "vision_cfg": _vision(described) | resized,
        "quick_gelu": bool(described.model.get("quick_gelu", False)),
    }
    model = open_clip.CLIP(text_cfg=dict(NO_TEXT), **config)
    visual = model.visual
    if described.weights:
        weights = _image_weights(described.weights)
        if size is not None:
            open_clip.model.resize_pos_embed(weights, model)
        visual.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in weights.items()})
    return ImageEncoder(visual, config, TextEncoder(uri, described))


def _vision(described: _Description) -> dict[str, Any]:
    vision = dict(described.model["vision_cfg"]) | {"timm_model_pretrained": False}
    if ":" in str(vision.get("timm_model_name") or ""):
        raise ValueError(f'timm_model_name is "{vision["timm_model_name"]}"; a name of timm\'s is needed')
    return vision


def _whole(open_clip: Any, described: _Description) -> Any:
    """The model with both encoders, of the kind that open_clip makes by these settings."""
    config = deepcopy(described.model) | {"vision_cfg": _vision(described)}
    text = config["text_cfg"] = dict(config["text_cfg"]) | {"hf_model_pretrained": False}
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    kind = "CLIP" if not custom else "CoCa" if "multimodal_cfg" in config else "CustomTextCLIP"
    model = getattr(open_clip, kind)(**config).eval()
    if described.weights:
        open_clip.load_checkpoint(model, str(described.weights), strict=True, weights_only=True, device="cpu")
    return model


def _image_weights(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIX)}  # noqa: SIM118
