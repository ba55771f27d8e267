"""Calibration and classes by hand, and the logistic probe against a loop over its folds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from tightframe.errors import MeasureError
from tightframe.metrics.folds import Folds, fold_of
from tightframe.probes.calibration import calibration_error, per_class_accuracy
from tightframe.probes.logistic import cross_validated_logistic


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    labels = np.array([0, 0, 0, 1, 1, 1])  # 0.75 right at 0.9, all right at 0.6
    assert calibration_error(probabilities, labels) == pytest.approx((4 * 0.15 + 2 * 0.4) / 6)


def test_calibration_of_draws_from_the_probabilities_is_near_zero_and_of_boasts_is_not() -> None:
    generator = np.random.default_rng(0)
    chance = generator.uniform(0.5, 1, 20000)
    probabilities = np.stack([chance, 1 - chance], 1)
    labels = (generator.random(20000) > chance).astype(int)
    assert calibration_error(probabilities, labels) < 0.02
    assert calibration_error(np.tile([1.0, 0.0], (20000, 1)), labels) == pytest.approx(labels.mean())


def test_one_bin_is_confidence_minus_accuracy() -> None:
    probabilities = np.random.default_rng(1).dirichlet(np.ones(3), 50)
    labels = np.arange(50) % 3
    expected = abs(probabilities.max(1).mean() - (probabilities.argmax(1) == labels).mean())
    assert calibration_error(probabilities, labels, bins=1) == pytest.approx(expected)


@pytest.mark.parametrize("given", [np.zeros((3, 2)), np.full((3, 2), np.nan), np.ones((2, 2)) / 2, np.ones(3)])
def test_what_is_not_probabilities_is_refused(given: np.ndarray) -> None:
    with pytest.raises(MeasureError, match=r"softmax|shapes"):
        calibration_error(given, np.zeros(3, dtype=int))


def test_each_class_fares_by_itself() -> None:
    found = per_class_accuracy(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), 3)
    assert found == [0.5, 1.0, None]


def test_the_logistic_probe_is_a_loop_over_its_folds() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = generator.normal(size=(3, 6))[labels] + generator.normal(size=(90, 6))
    strengths, assigned = (1e-3, 1e-1, 10.0), fold_of(labels, 3, 0)
    said = np.zeros((3, 90, 3))
    for fold in range(3):
        out = assigned == fold
        scaler = StandardScaler().fit(features[~out])
        for at, strength in enumerate(strengths):
            model = LogisticRegression(C=strength, tol=1e-8, max_iter=10000)
            model.fit(scaler.transform(features[~out]), labels[~out])
            said[at, out] = model.predict_proba(scaler.transform(features[out]))
    losses = [log_loss(labels, each) for each in said]
    best = int(np.argmin(losses))
    found = cross_validated_logistic(Folds.of(features, labels, 3, 3, 0), strengths)
    assert found.result.penalty == strengths[best]
    assert found.log_loss == pytest.approx(losses[best], rel=1e-3)
    np.testing.assert_array_equal(found.result.predicted, said[best].argmax(1))
    assert found.calibration_error == pytest.approx(calibration_error(said[best], labels), abs=1e-3)
