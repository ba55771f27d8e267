"""The base model of the folders beside: its weights are the same with any version of PyTorch and on any machine."""

import torch
from torch import nn


def make() -> nn.Module:
    first = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    model = nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    for place, parameter in enumerate(model.parameters()):
        values = (torch.arange(parameter.numel()) * (5 + 2 * place)) % 13
        parameter.data = ((values - 6) / 16).view_as(parameter).float()
    wants = {"input_size": (3, 8, 8), "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "nearest"}
    model.pretrained_cfg = wants
    return model
