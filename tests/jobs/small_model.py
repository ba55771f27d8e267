"""A model small enough to be tuned many times in a test, named as any user's own."""

import torch
from torch import nn


def make() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU())
    model = nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    wants = {"input_size": (3, 8, 8), "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "nearest"}
    model.pretrained_cfg = wants
    return model
