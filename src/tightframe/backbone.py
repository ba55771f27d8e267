"""A pretrained model without regard to where it came from: its layers, its preprocessing, its identity.

``models`` makes it; everything else uses it.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from tightframe.errors import LayerNotFound

PENULTIMATE = "penultimate"
"""The name under which the features that a model's own head sees are reported, beside its blocks."""
OUTPUT = "output"
"""The name under which what a model's own head says can be read: logits of the classes it was trained on."""

SPREAD = ":std"
"""After a block's name: how much its maps vary over space, the standard deviation of each channel."""

LARGEST_SIDE = 4096
"""Pixels. No model is made for more; a damaged config that asks for it would fill the memory."""

LONGEST = 64
"""Times its shorter side that of a longer image is resized at most; the crop of no model reaches so far."""

Layout = Literal["map", "map_last", "tokens", "vector"]
"""What a layer puts out: (n, d, h, w), (n, h, w, d), (n, tokens, d) or (n, d)."""


@dataclass(frozen=True)
class Layer:
    """One place in a model where features can be read.

    Attributes:
        name: dotted module name, or ``"penultimate"`` for what the head sees.
        layout: how its output is laid out.
        dimension: number of values, d, once pooled.
        parameters: how many parameters the module owns.
        prefix_tokens: tokens before the patch tokens (class, distillation and register tokens).
        element: which of its outputs is read, if it has several.
        spread: whether maps are pooled by standard deviation, not by mean.
    """

    name: str
    layout: Layout
    dimension: int
    parameters: int
    prefix_tokens: int = 0
    element: int = 0
    spread: bool = False

    @property
    def module(self) -> str:
        """Name of the module that puts it out."""
        return self.name.removesuffix(SPREAD) if self.spread else self.name

    @property
    def has_spread(self) -> bool:
        """Whether it puts out maps, which vary over space."""
        return self.layout in ("map", "map_last") and not self.spread


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of an image, under timm's names: resize by ``crop_pct``, crop, scale to mean and std."""

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    crop_mode: str = "center"

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """The image resized and cropped: bytes of shape (3, height, width)."""
        return self._transform(_without_far_ends(image) if self.crop_mode == "center" else image)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes (n, 3, height, width) as the float32 input of the model."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, -1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    @cached_property
    def _transform(self) -> Any:
        from timm.data import create_transform

        return create_transform(
            (3, *self.input_size),
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            normalize=False,
        )


def _without_far_ends(image: Image.Image) -> Image.Image:
    """Of an image that is very long, the middle, which is all that is left of it once it is cropped.

    Resized whole so that its shorter side fits the model, an image of 1 × 200,000 pixels would take 40 GB.
    """
    width, height = image.size
    longest = LONGEST * min(width, height)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


@dataclass(frozen=True, eq=False, repr=False)
class Backbone:
    """A pretrained model, ready to be measured or tuned.

    Attributes:
        name: what to call it in a table.
        module: the model in eval mode, taking normalized (n, 3, height, width) floats.
        preprocessing: from image to pixels to input.
        layers: its blocks, in the order in which they run.
        penultimate: the features its head sees (or its output, for a model without a head).
        head: dotted name of the classifier, ``None`` if there is none.
        token_pool: how its own head turns tokens into one vector.
        origin: the arguments of ``load_backbone`` that make it again.
        source: a hash of the user's own file that built it, if one did.
        source_accuracy: top-1 accuracy in 0 … 1 on the data it was trained on, where its weights say so.
        notes: what a user should know of its head, a sentence each.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    layers: tuple[Layer, ...]
    penultimate: Layer
    head: str | None
    token_pool: Literal["cls", "mean"] = "mean"
    origin: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    source_accuracy: float | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        height, width = self.preprocessing.input_size
        size = f"{self.parameters / 1e6:.3g} million parameters, images of {height} × {width}"
        told = f"Backbone {self.name}: {len(self.layers)} blocks, {self.penultimate.dimension} features, {size}"
        return "; ".join((told, *self.notes))

    @property
    def parameters(self) -> int:
        """Number of parameters, its head included."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @cached_property
    def macs(self) -> int:
        """Multiplications and additions for one image, as torch's FLOP counter sees them (two FLOPs each)."""
        from torch.utils.flop_counter import FlopCounterMode

        device = next((parameter.device for parameter in self.module.parameters()), None)
        blank = torch.zeros(1, 3, *self.preprocessing.input_size, device=device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.module(blank)
        return int(counter.get_total_flops()) // 2

    @cached_property
    def weights(self) -> str:
        """A hash of all that is saved of the model, which is the same on any machine and under any version."""
        return hash_of(self.module.state_dict())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides features: what is kept of a model is kept under it.

        That is weights, all buffers, structure, head, preprocessing, and the user's own file that built it; not the
        code that such a file imports, nor that of the libraries.
        """
        buffers = hash_of(dict(self.module.named_buffers()))
        parts = (self.weights, buffers, repr(self.module), str(self.head), repr(self.preprocessing), self.source)
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def layer(self, name: str) -> Layer:
        """The layer called ``name``, with ``SPREAD`` after it the standard deviations of a map.

        Raises:
            LayerNotFound: there is none, with the nearest name there is.
        """
        if name == OUTPUT and self.head is not None:
            return Layer(OUTPUT, "vector", 0, 0)
        layers = (*self.layers, self.penultimate)
        plain = next((layer for layer in layers if layer.has_spread and f"{layer.name}{SPREAD}" == name), None)
        if plain is not None:
            return replace(plain, name=name, spread=True)
        return self._named(name, "layer", layers)

    def block(self, name: str) -> Layer:
        """The layer called ``name`` that can be tuned. Raises ``LayerNotFound``, with the nearest name there is."""
        return self._named(name, "block", self.layers)

    def _named(self, name: str, what: str, layers: Sequence[Layer]) -> Layer:
        known = {layer.name: layer for layer in layers}
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            nearest = f'; nearest: "{near[0]}"' if near else ""
            raise LayerNotFound(
                f'no {what} "{name}" in {self.name} ({len(self.layers)} blocks){nearest}; `tightframe measure` lists '
                "them all"
            )
        return known[name]


def hash_of(tensors: dict[str, torch.Tensor]) -> str:
    """A hash of names, types, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
