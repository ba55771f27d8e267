"""The demo: models pre-trained in seconds on the built-in digits 0 to 4, and transferred to the digits 5 to 9."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tightframe.backbone import Backbone
from tightframe.data.loading import load_images
from tightframe.features.workspace import Workspace
from tightframe.images import ImageSplits
from tightframe.jobs.pretrain import WEIGHTS, Pretraining, pretrain
from tightframe.models.backbones import load_backbone
from tightframe.progress import Progress, silent

SOURCE, DOWNSTREAM = "digits:0-4", "digits:5-9"
SHOTS = 10
MODELS: dict[str, tuple[int, ...]] = {"digits_resnet": (16, 32, 64, 64), "digits_resnet_narrow": (4, 8, 16, 16)}
"""Channels of the four stages of each model; two residual blocks a stage."""
PRETRAINING = Pretraining("resnet18", augment=0.0, epochs=12, lr=0.02, batch_size=32, input_size=32)


def downstream(max_per_class: int | None = None, seed: int = 0, test_share: float = 0.5) -> ImageSplits:
    """The digits 5 to 9 with ``max_per_class`` training images a class (``SHOTS`` if ``None``)."""
    return load_images(DOWNSTREAM, max_per_class=max_per_class or SHOTS, seed=seed, test_share=test_share)


def candidates(folder: Path, progress: Progress = silent) -> list[str | Backbone]:
    """The models to choose from, pre-trained into ``folder`` unless they are there, and an untrained twin."""
    workspace = Workspace(device="cpu", precision="float32", progress=progress)
    for name, channels in MODELS.items():
        if not (folder / name / WEIGHTS).is_file():
            how = replace(PRETRAINING, arguments={"layers": [2] * len(channels), "channels": list(channels)})
            source = load_images(SOURCE, test_share=0.0)
            pretrain(source, folder / name, how, resume=True, workspace=workspace)
    names = [f"local-dir:{folder / name}" for name in MODELS]
    return [*names, load_backbone(names[0], pretrained=False)]
