"""Losses against their formulas written out with loops."""

from __future__ import annotations

import math

import pytest
import torch

from tightframe.errors import SettingsError
from tightframe.pretraining import losses


@pytest.fixture
def outputs():
    return torch.randn(9, 4, generator=torch.Generator().manual_seed(3)).double()


TARGET = torch.tensor([0, 1, 2, 3, 0, 1, 0, 2, 0])


def probabilities(row):
    odds = [math.exp(value) for value in row.tolist()]
    return [value / sum(odds) for value in odds]


def test_losses_of_logits(outputs):
    for row, label, ce, smooth, focal, squared in zip(
        outputs,
        TARGET.tolist(),
        losses.cross_entropy(outputs, TARGET),
        losses.label_smoothing(outputs, TARGET),
        losses.focal(outputs, TARGET),
        losses.squared(outputs, TARGET),
        strict=True,
    ):
        p = probabilities(row)
        assert float(ce) == pytest.approx(-math.log(p[label]))
        aims = [0.9 * (k == label) + 0.1 / 4 for k in range(4)]
        assert float(smooth) == pytest.approx(-sum(aim * math.log(q) for aim, q in zip(aims, p, strict=True)))
        assert float(focal) == pytest.approx(-((1 - p[label]) ** 2) * math.log(p[label]))
        assert float(squared) == pytest.approx(sum((v - (k == label)) ** 2 for k, v in enumerate(row.tolist())) / 4)


def test_the_squared_loss_is_rescaled_for_many_classes():
    outputs = torch.zeros(1, 100)
    outputs[0, 7], outputs[0, 3] = 20.0, 2.0
    assert float(losses.squared(outputs, torch.tensor([7]))[0]) == pytest.approx((15 * 10**2 + 2**2) / 100)


def test_supervised_contrastive_is_khoslas_out_form(outputs):
    unit = outputs / outputs.norm(dim=1, keepdim=True)
    found = losses.supervised_contrastive(outputs, TARGET)
    for i in range(9):
        alike = [p for p in range(9) if p != i and TARGET[p] == TARGET[i]]
        every = sum(math.exp(float(unit[i] @ unit[a]) / 0.1) for a in range(9) if a != i)
        logs = [math.log(math.exp(float(unit[i] @ unit[p]) / 0.1) / every) for p in alike]
        assert float(found[i]) == pytest.approx(-sum(logs) / len(alike) if alike else 0.0)
    assert float(found[3]) == 0  # the only one of its class


def test_gradients_are_finite_where_an_image_is_alone():
    outputs = torch.randn(3, 5, requires_grad=True)
    losses.supervised_contrastive(outputs, torch.tensor([0, 1, 2])).sum().backward()
    assert torch.isfinite(outputs.grad).all()


def test_an_unknown_loss_is_refused_with_those_there_are():
    with pytest.raises(SettingsError, match="supcon"):
        losses.loss_named("hinge")
