"""Models of timm, by name or from a folder as timm writes it, and of torchvision."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tightframe.errors import ModelError
from tightframe.models import cifar  # noqa: F401 - its models are in timm's registry from now on
from tightframe.models.fetching import Built, check_files, explained, fetched, hub_or_cache, nearest
from tightframe.models.names import LOCAL
from tightframe.models.preprocessing import of_timm, of_torchvision


def from_timm(uri: str, name: str, pretrained: bool, size: tuple[int, int] | None = None) -> Built:
    """The model that timm knows as ``name``, for images of ``size``. Raises ``ModelError`` or ``HubUnreachable``."""
    import timm

    if not timm.is_model(name):
        raise ModelError(f'timm has no model "{name}"' + nearest(name, timm.list_models()))
    with hub_or_cache() if pretrained else nullcontext():
        module = fetched(uri, pretrained, lambda: timm.create_model(name, pretrained=pretrained, **_of(size)))
    return Built(module, of_timm(uri, module.pretrained_cfg, module))


def from_timm_folder(uri: str, pretrained: bool, size: tuple[int, int] | None = None) -> Built:
    """The model in a folder as ``timm.models.save_for_hf`` writes it, for images of ``size``. Raises ``ModelError``."""
    import timm

    folder = Path(uri.removeprefix(LOCAL))
    needed = ("config.json", "model.safetensors") if pretrained else ("config.json",)
    check_files(uri, folder, needed, "local-dir: takes a folder as timm's save_for_hf writes it")
    with explained(f"{folder} can't be loaded by timm"):
        module = timm.create_model(f"{LOCAL}{folder}", pretrained=pretrained, **_of(size))
    return Built(module, of_timm(uri, module.pretrained_cfg, module))


def _of(size: tuple[int, int] | None) -> dict[str, Any]:
    """The argument by which those of timm's architectures that depend on it learn the size of images."""
    return {} if size is None else {"img_size": size}


def from_torchvision(uri: str, name: str, pretrained: bool, size: tuple[int, int] | None = None) -> Built:
    """The classifier that torchvision knows as ``name``, for images of ``size``.

    Raises:
        ModelError: there is none, or not for that size.
        HubUnreachable: its weights have to be downloaded and can't be.
    """
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ModelError(f'torchvision has no classifier "{name}"' + nearest(name, models.list_models(module=models)))
    weights = models.get_model_weights(name).DEFAULT
    # torchvision warns of random weights, which is what "not pretrained" asks for
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") and not pretrained else {}
    chosen = weights if pretrained else None
    module = fetched(uri, pretrained, lambda: models.get_model(name, weights=chosen, **extra))
    if size is not None:
        with explained(f"{uri} can't be built for images of {size[0]} × {size[1]}"):
            _resize(module, size)
    percent = weights.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
    return Built(module, of_torchvision(weights.transforms()), None if percent is None else percent / 100)


def _resize(module: Any, size: tuple[int, int]) -> None:
    """Resample the position embedding of a vision transformer of torchvision. Raises for any other model and size."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    if size[0] != size[1]:
        raise ValueError("it takes squares only")
    key = "encoder.pos_embedding"
    module.encoder.pos_embedding.data = interpolate_embeddings(size[0], module.patch_size, module.state_dict())[key]
    module.image_size = size[0]
