"""Four small networks for golden numbers; ``PATH.py:make:NAME`` names them. It knows timm, not the project.

Weights are random and seeded. Batch norms have the statistics of some digits, so that images reach the last layer.
"""

from __future__ import annotations

import numpy as np
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SIDE = 32
EXPECTS = {
    "input_size": (3, SIDE, SIDE),
    "mean": (0.4, 0.45, 0.5),
    "std": (0.25, 0.3, 0.35),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
}
CONVOLUTIONS = {"zero_init_last": False}
TRANSFORMER = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "num_heads": 2}
NETWORKS = {
    "conv": ("resnet18", CONVOLUTIONS | {"layers": [2, 2, 2, 2], "channels": [8, 8, 16, 16]}),
    "wide": ("resnet18", CONVOLUTIONS | {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 48]}),
    "vit": ("vit_tiny_patch16_224", TRANSFORMER | {"depth": 10}),
    "shallow vit": ("vit_tiny_patch16_224", TRANSFORMER | {"depth": 2}),
}
CLASSES = 7
"""Of the heads that the networks come with."""


def make(name: str) -> nn.Module:
    """The network called ``name``, with random weights that are the same every time."""
    architecture, arguments = NETWORKS[name]
    torch.manual_seed(1 + list(NETWORKS).index(name))
    module = timm.create_model(architecture, num_classes=CLASSES, **arguments)
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        module.train()(_some_digits())
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.momentum = 0.1
    module.pretrained_cfg = dict(EXPECTS)
    return module.eval()


def _some_digits() -> Tensor:
    """The first 256 of scikit-learn's, (256, 3, SIDE, SIDE), normalized."""
    gray = torch.from_numpy(load_digits().images[:256].astype(np.float32) / 16)[:, None]
    images = functional.interpolate(gray, (SIDE, SIDE)).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(EXPECTS[part]).view(1, 3, 1, 1) for part in ("mean", "std"))
    return (images - mean) / std
