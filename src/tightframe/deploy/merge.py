"""Merge what was trained into the base model: one plain module, for use without Tightframe.

A model of timm's becomes a folder in timm's layout, ``config.json`` and ``model.safetensors``, which
``timm.create_model("local-dir:FOLDER", pretrained=True)`` and ``load_backbone("local-dir:FOLDER")`` load. Any other
becomes a state dict, ``model.safetensors``, and ``merged.json``, which names the builder and the head to put in.

Both models are run on the same inputs, and a plain model with other logits is not written.
"""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tightframe.deploy.tuned import Tuned
from tightframe.errors import ModelError, TightframeError
from tightframe.features.taps import submodule
from tightframe.files import new_folder, write_tensors, write_text
from tightframe.models.backbones import load_backbone
from tightframe.report.result import Result, versions
from tightframe.row import Row
from tightframe.tuning.lora import place_of_head

WEIGHTS, TIMM_CONFIG, PLAIN_CONFIG = "model.safetensors", "config.json", "merged.json"
TOLERANCE = 1e-4
"""Largest difference between the logits of both models, relative to the largest logit."""
REGISTERED = ("timm.", "tightframe.models.cifar")
"""Where the models are from that timm knows by name."""


class NotPlain(TightframeError):
    """The tuned model can't be written as a plain one."""


def merge(tuned: Tuned, out: Path | str) -> Result:
    """Write a tuned model as a plain one, which timm loads without Tightframe.

    The row holds ``model``, ``format`` (``timm`` or ``state dict``), ``parameters``, ``bytes`` of the weights,
    ``difference`` (see the function of that name; for timm's format, of the model loaded from the folder) and
    ``folder``.

    Args:
        tuned: A model tuned by a method without a skip connection.
        out: A new or empty folder.

    Raises:
        NotPlain: the plain model would give other logits.
        SettingsError: ``out`` is in use, or can't be written to.
    """
    folder = Path(out)
    plain = plain_model(tuned)
    new_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        scratch = Path(unfinished)
        apart = _as_timm(tuned, plain, scratch)
        form = "state dict" if apart is None else "timm"
        if apart is None:
            write_tensors(scratch / WEIGHTS, _untied(plain))
            write_text(scratch / PLAIN_CONFIG, json.dumps(_recipe(tuned, plain), indent=1, ensure_ascii=False))
            apart = difference(tuned, plain)
        for name in (WEIGHTS, TIMM_CONFIG if form == "timm" else PLAIN_CONFIG):
            (scratch / name).replace(folder / name)
    row: Row = {
        "model": tuned.backbone.name,
        "format": form,
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "bytes": (folder / WEIGHTS).stat().st_size,
        "difference": apart,
        "folder": str(folder),
    }
    return Result("merge", [row], tuned.settings, [_how_to_load(folder, form)])


def plain_model(tuned: Tuned) -> nn.Module:
    """The base model with its trained weights and the new head in the old one's place, on the CPU, in eval mode.

    Raises:
        NotPlain: it would give other logits.
    """
    name, method = tuned.backbone.name, tuned.model.method.name
    elsewhere = "`tightframe export DIR --onnx FILE` writes all of it into one file, and `tightframe predict` reads DIR"
    beside, read = tuned.model.beside, tuned.model.read
    if len(read) > 1 or beside:
        where = f"reads the features of {len(read)} layers"
        if beside:
            where = f"reads the features of {len(beside)} layers of the pretrained model, too"
        elif tuned.model.block:
            where = f"has a skip connection from {tuned.model.block} to its head"
        raise NotPlain(
            f"{name} tuned by {method} {where}, for which a plain model has no place. {elsewhere}; or tune with "
            "--method linear, layer or full"
        )
    plain = _with_head(tuned, tuned.model.head)
    if plain is None or difference(tuned, plain) > TOLERANCE:
        raise NotPlain(
            f"{name} can't be written as a plain model: in the place of its old head "
            f"({tuned.backbone.head or 'none'}) the new one would not say the same, because of what comes around it. "
            f"{elsewhere}"
        )
    return plain


def difference(tuned: Tuned, plain: nn.Module) -> float:
    """Largest difference between the logits of both for made-up inputs, relative to the largest logit.

    Infinite where they have other shapes, or ``plain`` can't be run.
    """
    inputs = torch.randn(4, 3, *tuned.backbone.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    model = tuned.model.cpu().train(False)
    with torch.no_grad():
        wanted = model(inputs)
        try:
            found = plain(inputs)
        except Exception:  # a second head of the old width, say
            return float("inf")
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def _with_head(tuned: Tuned, head: nn.Linear) -> nn.Module | None:
    """A copy of the trained base with ``head`` where the old one was; ``None`` where there is no place for one."""
    plain, place = tuned.model.plain_base(), place_of_head(tuned.backbone)
    if place is None:
        return None
    if tuned.backbone.head is None:  # one of timm's that came without
        plain.reset_classifier(head.out_features)  # type: ignore[operator]
    plain.set_submodule(place.name, _like(place.module, head))
    if hasattr(plain, "num_classes"):
        plain.num_classes = head.out_features  # type: ignore[assignment]
    return plain


def _like(old: nn.Module, head: nn.Linear) -> nn.Module:
    """The new head as the kind of module that stood there: a linear map, or the same as a 1 × 1 convolution."""
    new = nn.Conv2d(head.in_features, head.out_features, 1) if isinstance(old, nn.Conv2d) else copy.deepcopy(head)
    with torch.no_grad():
        new.weight.copy_(head.weight.view_as(new.weight))
        new.bias.copy_(head.bias)  # type: ignore[union-attr]
    return new.cpu().eval().requires_grad_(False)


def _untied(module: nn.Module) -> dict[str, Tensor]:
    """The state dict in copies, since safetensors takes no tensors that share memory."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _as_timm(tuned: Tuned, plain: nn.Module, folder: Path) -> float | None:
    """Write ``plain`` in timm's layout and load it again; its ``difference``, ``None`` where timm can't make it."""
    from timm.models import save_for_hf

    architecture = _architecture(plain)
    if architecture is None:
        return None
    described = copy.copy(plain)
    described.pretrained_cfg = getattr(plain, "default_cfg", {}) | {"architecture": architecture}  # type: ignore
    wants = tuned.backbone.preprocessing
    told = {
        "pretrained_cfg": asdict(wants) | {"input_size": [3, *wants.input_size]},
        "label_names": list(tuned.classes),
    }
    try:
        save_for_hf(described, folder, model_config=told, safe_serialization=True)
        again = load_backbone(f"local-dir:{folder}")
    except (ModelError, ValueError, KeyError):  # arguments that timm does not know of were used to build it
        return None
    apart = difference(tuned, again.module)
    return apart if apart <= TOLERANCE and again.preprocessing == wants else None


def _architecture(module: nn.Module) -> str | None:
    """Timm's name of the model, if timm can make it."""
    import timm

    configs = (getattr(module, name, None) for name in ("pretrained_cfg", "default_cfg"))
    named = [config["architecture"] for config in configs if isinstance(config, dict) and config.get("architecture")]
    return named[0] if named and type(module).__module__.startswith(REGISTERED) and timm.is_model(named[0]) else None


def _recipe(tuned: Tuned, plain: nn.Module) -> dict[str, Any]:
    """How to build the model that the state dict belongs to."""
    origin = dict(tuned.backbone.origin)
    new = submodule(plain, str(tuned.backbone.head))
    return {
        "builder": origin.pop("uri", None),
        "options": origin,
        "head": {"name": tuned.backbone.head, "module": repr(new)},
        "classes": list(tuned.classes),
        "preprocessing": asdict(tuned.backbone.preprocessing),
        "versions": versions(),
    }


def _how_to_load(folder: Path, form: str) -> str:
    if form == "timm":
        return f'load it with timm.create_model("local-dir:{folder}", pretrained=True), or name it as --model'
    return (
        f"timm can't make this model from a name: build it as {PLAIN_CONFIG} says, put the new head in, and load "
        f"{WEIGHTS} as its state dict"
    )
