"""Models of timm, by name or from a folder as timm writes it, and of torchvision."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from tightframe.errors import ModelError
from tightframe.models import cifar  # noqa: F401 - its models are in timm's registry from now on
from tightframe.models.fetching import Built, check_files, explained, fetched, hub_or_cache, nearest
from tightframe.models.names import LOCAL
from tightframe.models.preprocessing import of_timm, of_torchvision


def from_timm(uri: str, name: str, pretrained: bool) -> Built:
    """The model that timm knows as ``name``. Raises ``ModelError`` or ``HubUnreachable``."""
    import timm

    if not timm.is_model(name):
        raise ModelError(f'timm has no model "{name}"' + nearest(name, timm.list_models()))
    with hub_or_cache() if pretrained else nullcontext():
        module = fetched(uri, pretrained, lambda: timm.create_model(name, pretrained=pretrained))
    return Built(module, of_timm(uri, module.pretrained_cfg, module))


def from_timm_folder(uri: str, pretrained: bool) -> Built:
    """The model in a folder as ``timm.models.save_for_hf`` writes it. Raises ``ModelError``."""
    import timm

    folder = Path(uri.removeprefix(LOCAL))
    needed = ("config.json", "model.safetensors") if pretrained else ("config.json",)
    check_files(uri, folder, needed, "local-dir: takes a folder as timm's save_for_hf writes it")
    with explained(f"{folder} can't be loaded by timm"):
        module = timm.create_model(f"{LOCAL}{folder}", pretrained=pretrained)
    return Built(module, of_timm(uri, module.pretrained_cfg, module))


def from_torchvision(uri: str, name: str, pretrained: bool) -> Built:
    """The classifier that torchvision knows as ``name``. Raises ``ModelError`` or ``HubUnreachable``."""
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ModelError(f'torchvision has no classifier "{name}"' + nearest(name, models.list_models(module=models)))
    weights = models.get_model_weights(name).DEFAULT
    # torchvision warns of random weights, which is what "not pretrained" asks for
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") and not pretrained else {}
    chosen = weights if pretrained else None
    module = fetched(uri, pretrained, lambda: models.get_model(name, weights=chosen, **extra))
    percent = weights.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
    return Built(module, of_torchvision(weights.transforms()), None if percent is None else percent / 100)
