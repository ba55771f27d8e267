"""SCL where the tuned block is wider than what the head saw: the penultimate features are padded, not the block's."""

from __future__ import annotations

import torch
from torch import nn

from tightframe.backbone import PENULTIMATE, Backbone, Layer, Preprocessing
from tightframe.tuning.methods import METHODS
from tightframe.tuning.surgery import TunableModel


class Narrowing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3), nn.Linear(2, 4)

    def forward(self, images):
        return self.head(torch.relu(self.second(torch.relu(self.first(images)))).mean((2, 3)))


def test_the_features_are_padded_to_a_wider_block():
    module = Narrowing().eval()
    backbone = Backbone(
        "narrowing",
        module,
        Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3),
        (Layer("first", "map", 6, 168), Layer("second", "map", 2, 110)),
        Layer(PENULTIMATE, "vector", 2, 0),
        "head",
    )
    tuned = TunableModel(backbone, METHODS["scl"], "first", 5).train(False)
    inputs = torch.randn(3, 3, 8, 8)
    z = module.first(inputs)
    phi = torch.relu(module.second(torch.relu(z))).mean((2, 3))
    expected = z.mean((2, 3))
    expected[:, :2] += phi
    assert tuned.head.in_features == 6
    torch.testing.assert_close(tuned.features(inputs), expected)
    assert tuned.all_parameters == 168 + 110 + 6 * 5 + 5
    assert tuned.trainable_parameters == 168 + 6 * 5 + 5
