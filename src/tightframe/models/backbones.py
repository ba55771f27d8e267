"""Where models come from: a name, a folder, or the user's own builder.

=================================  ====================================================================
``timm/NAME``                      timm, weights from the hub
``torchvision/NAME``               torchvision, weights from its server
``open_clip/NAME/PRETRAINED``      the image encoder of an open_clip model (``sources.clip``)
``hf/NAME``                        a vision model of transformers, weights from the hub (``sources.huggingface``)
``local-dir:PATH``                 a folder with timm's ``config.json`` and ``model.safetensors``
``open_clip/local-dir:PATH``       a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``
``hf/PATH``                        a folder as transformers' ``save_pretrained`` writes it
``PATH.py:FUNCTION[:ARGUMENT]``    a function that returns an ``nn.Module``. THIS RUNS THE FILE: name only your own
=================================  ====================================================================

A builder's module says what images it expects in an attribute ``pretrained_cfg`` (timm's convention: ``input_size``,
``mean``, ``std``, ``crop_pct``, ``interpolation``); the arguments ``input_size``, ``mean`` and ``std`` say it instead,
or override it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from tightframe.backbone import LARGEST_SIDE, Backbone, Preprocessing
from tightframe.errors import ModelError
from tightframe.models import cifar  # noqa: F401 - its models are in timm's registry from now on
from tightframe.models.blocks import Anatomy
from tightframe.models.clip import from_open_clip
from tightframe.models.fetching import fetched, hub_or_cache, nearest, one_line
from tightframe.models.huggingface import from_transformers, is_folder

BUILDER = re.compile(r"(?P<path>.+?\.py):(?P<function>[^\W\d]\w*)(?::(?P<argument>.*))?")
FORMS = (
    "timm/NAME, torchvision/NAME, open_clip/NAME/PRETRAINED, hf/NAME, local-dir:PATH, open_clip/local-dir:PATH, "
    "hf/PATH or PATH.py:FUNCTION[:ARGUMENT]"
)


def load_backbone(
    uri: str,
    *,
    pretrained: bool = True,
    layers: Sequence[str] | None = None,
    input_size: int | Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """Build the model that ``uri`` names, find its layers, and freeze it in eval mode.

    Args:
        uri: one of the forms in the table above.
        pretrained: with its weights; ``False`` gives random ones (not for a builder, which decides itself).
        layers: dotted module names to use as layers, in place of the blocks found by rule (``sources.blocks``).
        input_size: side, or (height, width), in pixels.
        mean: of each color channel, in 0 … 1.
        std: of each color channel, in 0 … 1.

    Raises:
        ModelError: unknown form or name, a builder that fails, or a model that can't take such images.
        HubUnreachable: weights have to be fetched and can't be.
        LayerNotFound: a name in ``layers`` is not a module, or can't be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the same random weights every time: results can be repeated
        module, preprocessing = _build(uri, pretrained)
    preprocessing = _overridden(uri, preprocessing, input_size, mean, std)
    module = module.eval().requires_grad_(False).float().cpu()
    anatomy = Anatomy(module, preprocessing.input_size, tuple(layers) if layers else None)
    origin: dict[str, Any] = {"uri": _absolute(uri), "pretrained": pretrained}
    given = {"layers": layers, "input_size": input_size, "mean": mean, "std": std}
    origin |= {
        key: value if isinstance(value, int) else list(value) for key, value in given.items() if value is not None
    }
    return Backbone(
        name=short_name(uri) + ("" if pretrained else " (untrained)"),
        module=module,
        preprocessing=preprocessing,
        layers=anatomy.layers,
        penultimate=anatomy.penultimate,
        head=anatomy.head,
        token_pool=_token_pool(module, anatomy.prefix_tokens),
        origin=origin,
        source=_source(uri),
        source_accuracy=_source_accuracy(uri, module) if pretrained else None,
    )


def _source(uri: str) -> str:
    builder = BUILDER.fullmatch(uri)
    return hashlib.sha256(Path(builder["path"]).read_bytes()).hexdigest() if builder else ""


def _source_accuracy(uri: str, module: nn.Module) -> float | None:
    """ImageNet top-1 as torchvision's weights tell it, or ``top1`` (0 … 1) of a module's ``pretrained_cfg``."""
    library, _, name = uri.partition("/")
    config = getattr(module, "pretrained_cfg", None)
    if library == "torchvision" and not BUILDER.fullmatch(uri):
        from torchvision import models

        told = models.get_model_weights(name).DEFAULT.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
        told = None if told is None else told / 100
    else:
        told = config.get("top1") if isinstance(config, dict) else None
    return float(told) if isinstance(told, (int, float)) and 0 <= told <= 1 else None


def short_name(uri: str) -> str:
    """What to call a model in a table: the argument of a builder, the last part of a path or name."""
    builder = BUILDER.fullmatch(uri)
    if builder:
        return builder["argument"] or builder["function"]
    folder = folder_of(uri)
    if folder:
        return folder[1].resolve().name
    return uri.partition("/")[2] or uri


def folder_of(uri: str) -> tuple[str, Path] | None:
    """The form, such as ``"local-dir:"``, and the path, of a name that means a folder; ``None`` for any other."""
    for form in ("local-dir:", "open_clip/local-dir:"):
        if uri.startswith(form):
            return form, Path(uri.removeprefix(form))
    name = uri.removeprefix("hf/")
    return ("hf/", Path(name)) if name and name != uri and is_folder(name) else None


def _build(uri: str, pretrained: bool) -> tuple[nn.Module, Preprocessing | None]:
    library, _, name = uri.partition("/")
    if BUILDER.fullmatch(uri):
        return _from_builder(uri, pretrained)
    if uri.startswith("local-dir:"):
        return _from_folder(uri, pretrained)
    if library == "timm" and name:
        return _from_timm(name, pretrained)
    if library == "torchvision" and name:
        return _from_torchvision(name, pretrained)
    if library == "open_clip" and name:
        return from_open_clip(uri, name, pretrained)
    if library == "hf" and name:
        return from_transformers(uri, name, pretrained)
    known = f"; a folder of timm's is local-dir:{uri}, one of transformers' hf/{uri}" if uri and is_folder(uri) else ""
    raise ModelError(f'"{uri}" names no model; give {FORMS}{known}')


def _from_timm(name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing | None]:
    import timm

    if not timm.is_model(name):
        raise ModelError(f'timm has no model "{name}"' + nearest(name, timm.list_models()))
    with hub_or_cache() if pretrained else nullcontext():
        module = fetched(f"timm/{name}", pretrained, lambda: timm.create_model(name, pretrained=pretrained))
    return module, _timm_preprocessing(f"timm/{name}", module.pretrained_cfg, module)


def _from_folder(uri: str, pretrained: bool) -> tuple[nn.Module, Preprocessing | None]:
    import timm

    folder = Path(uri.partition(":")[2])
    for needed in ("config.json", "model.safetensors") if pretrained else ("config.json",):
        if not (folder / needed).is_file():
            raise ModelError(f"{folder} has no {needed}; local-dir: wants a folder as timm's save_for_hf writes it")
    try:
        module = timm.create_model(f"local-dir:{folder}", pretrained=pretrained)
    except Exception as error:  # whatever a damaged config or weights file leads timm into
        raise ModelError(f"{folder} can't be loaded by timm: {one_line(error)}") from error
    return module, _timm_preprocessing(uri, module.pretrained_cfg, module)


def _from_torchvision(name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing | None]:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ModelError(f'torchvision has no classifier "{name}"' + nearest(name, models.list_models(module=models)))
    weights = models.get_model_weights(name).DEFAULT
    # a random start that torchvision warns about is what "not pretrained" asks for
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") and not pretrained else {}
    chosen = weights if pretrained else None
    module = fetched(f"torchvision/{name}", pretrained, lambda: models.get_model(name, weights=chosen, **extra))
    wants = weights.transforms()
    crop, resize = wants.crop_size[0], wants.resize_size[0]
    return module, Preprocessing(
        (crop, crop), tuple(wants.mean), tuple(wants.std), crop / resize, wants.interpolation.value
    )


def _from_builder(uri: str, pretrained: bool) -> tuple[nn.Module, Preprocessing | None]:
    parts = BUILDER.fullmatch(uri)
    assert parts is not None, "only called for this form"
    if not pretrained:
        raise ModelError(f"{uri}: a builder chooses its own weights; add a function that leaves them random")
    function = _function(Path(parts["path"]), parts["function"])
    arguments = () if parts["argument"] is None else (parts["argument"],)
    try:
        module = function(*arguments)
    except (Exception, SystemExit) as error:  # the user's own code: whatever it raises is shown
        raise ModelError(f"{uri} failed: {one_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{uri} returned a {type(module).__name__}; it must return a torch.nn.Module")
    config = getattr(module, "pretrained_cfg", None)
    return module, _timm_preprocessing(uri, config, None) if config else None


def _function(path: Path, name: str) -> Callable[..., Any]:
    if not path.is_file():
        raise ModelError(f"no file {path} to build a model with")
    content = hashlib.sha256(str(path.resolve()).encode() + b"|" + path.read_bytes())  # a file edited since runs anew
    unique = f"tightframe_builder_{content.hexdigest()[:12]}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, path)
        assert spec is not None, "a .py file always has a loader"
        assert spec.loader is not None
        sys.modules[unique] = importlib.util.module_from_spec(spec)  # before it runs: dataclasses look it up
        try:
            spec.loader.exec_module(sys.modules[unique])
        except (Exception, SystemExit) as error:
            del sys.modules[unique]
            raise ModelError(f"{path} can't be imported: {one_line(error)}") from error
    function = getattr(sys.modules[unique], name, None)
    if not callable(function):
        found = [n for n, value in vars(sys.modules[unique]).items() if callable(value) and not n.startswith("_")]
        raise ModelError(f"{path} has no function {name}" + nearest(name, found))
    return function


def _timm_preprocessing(uri: str, config: Any, module: nn.Module | None) -> Preprocessing:
    from timm.data import resolve_data_config

    try:
        plain = config if isinstance(config, dict) else config.to_dict()
        found = resolve_data_config({}, pretrained_cfg=plain, model=module)
        channels, height, width = found["input_size"]
        preprocessing = Preprocessing(
            (int(height), int(width)),
            tuple(map(float, found["mean"])),
            tuple(map(float, found["std"])),
            float(found["crop_pct"]),
            str(found["interpolation"]),
            str(found.get("crop_mode") or "center"),
        )
    except Exception as error:  # whatever stands there in place of numbers
        raise ModelError(
            f"{uri}: its pretrained_cfg can't be read ({one_line(error)}); it wants input_size (3, height, width), "
            "mean, std, crop_pct and interpolation"
        ) from error
    if channels != 3:
        raise ModelError(f"{uri}: the model takes {channels} color channels; images are given in 3")
    return preprocessing


def _overridden(
    uri: str,
    preprocessing: Preprocessing | None,
    input_size: int | Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocessing:
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    given: dict[str, Any] = {"input_size": size, "mean": mean, "std": std}
    changes: dict[str, Any] = {key: tuple(value) for key, value in given.items() if value is not None}
    if len(changes.get("input_size", (0, 0))) != 2:
        raise ModelError(f"{uri}: input size is {input_size}; give one side, or height and width")
    if preprocessing is not None:
        return _checked(uri, replace(preprocessing, **changes))
    if len(changes) < 3:
        raise ModelError(
            f"{uri}: nothing tells what images it expects (no pretrained_cfg, no preprocessor_config.json), so say "
            "it: --input-size, --mean and --std"
        )
    return _checked(uri, Preprocessing(**changes, crop_pct=1.0))


def _checked(uri: str, preprocessing: Preprocessing) -> Preprocessing:
    size, mean, std = preprocessing.input_size, preprocessing.mean, preprocessing.std
    if min(size) < 1 or max(size) > LARGEST_SIDE:
        raise ModelError(f"{uri}: input size is {size}; give height and width, 1 to {LARGEST_SIDE} pixels each")
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))):
        raise ModelError(f"{uri}: mean is {mean} and std {std}; each has one number for each of 3 colors")
    if min(std) <= 0:
        raise ModelError(f"{uri}: std is {std}; every value must be above 0")
    if not 0.1 <= preprocessing.crop_pct <= 2:
        raise ModelError(f"{uri}: crop_pct is {preprocessing.crop_pct}; a share of the image's side is needed")
    try:
        preprocessing.pixels(Image.new("RGB", (8, 8)))
    except Exception as error:  # an interpolation or crop mode that timm does not know
        raise ModelError(f"{uri}: images can't be prepared as it asks, {preprocessing}: {one_line(error)}") from error
    return preprocessing


def _token_pool(module: nn.Module, prefix_tokens: int) -> Literal["cls", "mean"]:
    declared = getattr(module, "global_pool", None)
    if declared in ("token", "avg"):
        return "cls" if declared == "token" and prefix_tokens else "mean"
    return "cls" if prefix_tokens and getattr(module, "has_class_token", True) else "mean"  # others are registers


def _absolute(uri: str) -> str:
    """The same model named from anywhere: paths in full."""
    builder = BUILDER.fullmatch(uri)
    if builder:
        return str(Path(builder["path"]).resolve()) + uri[len(builder["path"]) :]
    folder = folder_of(uri)
    return folder[0] + str(folder[1].resolve()) if folder else uri
