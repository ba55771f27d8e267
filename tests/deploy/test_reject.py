"""Probabilities mean what they say, and what is none of the classes can be told at a stated rate of false alarms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tightframe import TrainConfig, load_backbone, load_images, load_tuned, tune
from tightframe.decide.evidence import Evidence
from tightframe.deploy.evaluate import evaluate
from tightframe.deploy.tuned import NONE
from tightframe.errors import SettingsError
from tightframe.probes.calibration import NEVER, temperature


def drawn(factor, seed=0, images=4000, classes=4):
    """Logits (n, K), and labels drawn from the softmax of ``factor`` times them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial((factor * logits).softmax(1), 1, generator=generator).flatten()


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_the_temperature_is_that_of_the_draw(factor):
    logits, labels = drawn(factor)
    assert temperature(logits, labels) == pytest.approx(factor, rel=0.1)
    calibrated, found = Evidence(logits.log_softmax(1).numpy(), labels.numpy()).calibrated()
    assert found == pytest.approx(factor, rel=0.1)
    assert calibrated.log_loss < Evidence(logits.log_softmax(1).numpy(), labels.numpy()).log_loss + 1e-4


def test_images_that_are_all_told_apart_leave_doubt():
    labels = torch.arange(20) % 2
    scores = torch.nn.functional.one_hot(labels, 2).double()
    said = (temperature(scores, labels) * scores).softmax(1).amax(1)
    assert 0.9 < float(said[0]) < 0.99
    prior = torch.tensor([0.0, 0.0, NEVER], dtype=torch.float64)
    wider = torch.cat([scores, torch.zeros(20, 1, dtype=torch.float64)], 1)
    assert temperature(wider, labels, prior) == pytest.approx(temperature(scores, labels), rel=1e-3)


def test_a_trained_head_is_saved_at_its_temperature(tuned_by, data, wide):
    tuned, _ = tuned_by("scl")
    plain = tune(
        data,
        wide,
        method="scl",
        block="layer3.0",
        config=TrainConfig(epochs=2, lr=(0.05,), weight_decay=(1e-4,), folds=0),
    )
    assert plain.evidence is None
    factor = tuned.metrics["temperature"]
    torch.testing.assert_close(tuned.test_logits * factor, plain.test_logits, rtol=1e-4, atol=1e-4)
    (row,) = evaluate(tuned, data.test).rows
    (before,) = evaluate(plain, data.test).rows
    assert row["calibration_error_before"] == pytest.approx(before["calibration_error"], abs=1e-6)
    assert "calibration_error_before" not in before


@pytest.fixture(scope="module")
def digits(names):
    """A model of digits 5 to 9 that has learned something, and images of the digits that it knows."""
    data = load_images("digits:5-9", max_per_class=40)
    return tune(data, load_backbone(names["wide"]), method="discriminant"), data


def test_false_alarms_are_as_many_as_said(digits):
    tuned, data = digits
    for share in (0.05, 0.2):
        found = np.mean([row["rejected"] for row in tuned.predict(data.test, reject=share)])
        assert abs(found - share) < 0.08  # of 225 images: a standard error of up to 0.03, and that of the threshold


def test_images_of_other_kinds_are_rejected_more_often(digits, tmp_path):
    tuned, _ = digits
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    rows = tuned.predict(noise, reject=0.1)
    assert np.mean([row["rejected"] for row in rows]) > 0.3
    assert {row["predicted"] for row in rows if row["rejected"]} == {NONE}
    tuned.save(tmp_path)
    again = load_tuned(tmp_path, tuned.backbone).predict(noise, reject=0.1)
    assert [row["predicted"] for row in again] == [row["predicted"] for row in rows]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_of_false_alarms_are_checked(digits, share):
    with pytest.raises(SettingsError, match="between 0 and 1"):
        digits[0].predict(digits[1].test.subset([0]), reject=share)


def test_without_held_out_predictions_nothing_can_be_rejected(data, wide):
    plain = tune(data, wide, method="linear", config=TrainConfig(epochs=1, lr=(0.05,), weight_decay=(0.0,), folds=0))
    with pytest.raises(SettingsError, match="--folds 0"):
        plain.predict(data.test.subset([0]), reject=0.1)
    assert "rejected" not in plain.predict(data.test.subset([0]))[0]
