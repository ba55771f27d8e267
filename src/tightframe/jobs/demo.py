"""Networks for the built-in digits: pre-trained here, in seconds, on the digits 0 to 4, to be judged on 5 to 9.

Pre-training is full fine-tuning of a random network, so there is no second training loop. The result is a folder in
timm's own layout that every command takes as ``local-dir:PATH``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tightframe.features.pixels import Pixels
from tightframe.files import write_tensors, write_text
from tightframe.protocols import Backbone, ImageSplits, Progress, silent
from tightframe.sources.backbones import load_backbone
from tightframe.sources.images import load_images
from tightframe.tuning.inputs import PixelInputs
from tightframe.tuning.loop import fit
from tightframe.tuning.methods import METHODS
from tightframe.tuning.recipe import Recipe, Split
from tightframe.tuning.surgery import TunableNetwork

SOURCE, DOWNSTREAM = "digits:0-4", "digits:5-9"
SHOTS = 10
SIZE = 32
NETWORKS: dict[str, tuple[int, ...]] = {"digits_resnet": (16, 32, 64, 64), "digits_resnet_narrow": (4, 8, 16, 16)}
"""Channels of the four stages of each network; two residual blocks a stage."""
RECIPE = Recipe(rate=0.02, decay=5e-4, epochs=12, batch_size=32)


def downstream(shots: int | None = None, seed: int = 0, test_share: float = 0.5) -> ImageSplits:
    """The digits 5 to 9 with ``shots`` training pictures a class (``SHOTS`` if ``None``)."""
    return load_images(DOWNSTREAM, shots=shots or SHOTS, seed=seed, test_share=test_share)


def candidates(folder: Path, progress: Progress = silent) -> list[str | Backbone]:
    """The networks to choose from, pre-trained into ``folder`` unless they are there, and an untrained twin."""
    for name, channels in NETWORKS.items():
        if not (folder / name / "model.safetensors").is_file():
            pretrain(folder / name, channels, progress)
    names = [f"local-dir:{folder / name}" for name in NETWORKS]
    return [*names, load_backbone(names[0], pretrained=False)]


def pretrain(folder: Path, channels: tuple[int, ...], progress: Progress = silent) -> None:
    """Train a small residual network on the digits 0 to 4 and write it into ``folder`` in timm's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(_config(channels), indent=1))
    untrained = load_backbone(f"local-dir:{folder}", pretrained=False)
    data = load_images(SOURCE, test_share=0.0).train
    network = TunableNetwork(untrained, METHODS["full"], None, len(data.classes))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ticks = iter(progress(range(RECIPE.epochs), f"pre-training {folder.name} on {SOURCE}", RECIPE.epochs))
    everything = np.arange(len(data))
    fit(
        network,
        PixelInputs(Pixels(data, untrained.preprocessing)),
        Split(data.labels, everything, everything[:0], len(data.classes)),
        RECIPE,
        device=torch.device("cpu"),
        on_epoch=lambda row: next(ticks, None),
    )
    for _ in ticks:
        pass
    weights = network.base.state_dict() | {f"fc.{name}": tensor for name, tensor in network.head.state_dict().items()}
    write_tensors(folder / "model.safetensors", weights)


def _config(channels: tuple[int, ...]) -> dict[str, Any]:
    return {
        "architecture": "resnet18",
        "num_classes": 5,
        "model_args": {"layers": [2] * len(channels), "channels": list(channels)},
        "pretrained_cfg": {
            "input_size": [3, SIZE, SIZE],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "classifier": "fc",
            "first_conv": "conv1",
            "label_names": ["0", "1", "2", "3", "4"],
        },
    }
