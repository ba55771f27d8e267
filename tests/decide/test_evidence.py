"""Out-of-fold predictions and what follows from them, against SciPy and against draws of a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel

from tightframe.decide import evidence as module
from tightframe.decide.evidence import LEAST_LOG, Evidence, expected
from tightframe.errors import MeasureError


def drawn(images=50, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.ones(classes), images)
    return Evidence(np.log(shares), generator.integers(0, classes, images))


def test_losses_are_those_of_the_true_classes():
    found = Evidence(np.log([[0.5, 0.5], [0.9, 0.1], [1.0, 1e-300], [0.8, 0.2]]), np.array([0, 1, 1, 0]))
    np.testing.assert_allclose(found.losses, [-np.log(0.5), -np.log(0.1), -LEAST_LOG, -np.log(0.8)])
    assert found.log_loss == pytest.approx(found.losses.mean())
    np.testing.assert_array_equal(found.correct, [True, False, False, True])
    np.testing.assert_allclose(found.probabilities, [0.5, 0.1, 1e-12, 0.8], rtol=0.05)


@pytest.mark.parametrize("right", [0, 1, 25, 49, 50])
def test_without_doubt_the_interval_is_that_of_clopper_and_pearson(right, monkeypatch):
    monkeypatch.setattr(module, "DOUBT", 0.0)
    found = expected(np.arange(50) < right)
    exact = binomtest(right, 50).proportion_ci(0.95)
    assert found.value == right / 50
    assert (found.low, found.high) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_doubt_widens_it_and_most_where_images_are_many():
    widths = []
    for images in (100, 100_000):
        found = expected(np.arange(images) % 10 < 8)
        plain = binomtest(int(0.8 * images), images).proportion_ci(0.95)
        widths.append((found.high - found.low) / (plain.high - plain.low))
        assert found.high - found.low > 3.8 * module.DOUBT
    assert 1 < widths[0] < 1.3
    assert widths[1] > 10


def test_a_gain_is_a_paired_difference():
    one, other = drawn(), Evidence(drawn(seed=1).log_probabilities, drawn().labels)
    found = one.gain_over(other)
    peer = ttest_rel(other.losses, one.losses)
    interval = peer.confidence_interval(0.95)
    assert found.value == pytest.approx(other.log_loss - one.log_loss)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert one.gain_over(one) == (0, 0, 0)


def test_other_images_can_not_be_compared():
    with pytest.raises(MeasureError, match="same images"):
        drawn().gain_over(drawn(seed=1))


def test_one_image_leaves_everything_open():
    one = Evidence(np.log([[0.5, 0.5]]), np.array([0]))
    assert one.gain_over(one)[1:] == (-np.inf, np.inf)


def test_the_only_image_of_a_class_decides_nothing():
    """Held out, it is of a class that no model has seen: what each says of it is a matter of form."""
    labels = np.array([0, 0, 1, 1, 2])
    said = np.log(np.full((5, 3), 1 / 3))
    harsh, mild = said.copy(), said.copy()
    harsh[4] = np.log([0.5, 0.5 - 1e-12, 1e-12])
    assert Evidence(harsh, labels).gain_over(Evidence(mild, labels)) == (0, 0, 0)
    assert Evidence(harsh, labels).log_loss == pytest.approx(np.log(3))
    assert Evidence(said[:3], np.arange(3)).log_loss == pytest.approx(np.log(3))
