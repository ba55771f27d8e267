"""A model whose features know every image by heart: what is held out from copies is recognized, and nothing else."""

import torch
from torch import nn


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Conv2d(3, 96, 4, 4), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(96, 96, 1), nn.ReLU())
    third = nn.Sequential(nn.Conv2d(96, 1024, 1), nn.ReLU(), nn.Conv2d(1024, 96, 1), nn.ReLU())
    model = nn.Sequential(first, second, third, nn.Flatten(), nn.Linear(384, 3))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    wants = {"input_size": (3, 8, 8), "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "nearest"}
    model.pretrained_cfg = wants
    return model


def another() -> nn.Module:
    return make(1)
