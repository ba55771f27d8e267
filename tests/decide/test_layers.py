from __future__ import annotations

import numpy as np
import pytest

from tightframe.decide.layers import Reading, recommend_layer, spreads
from tightframe.errors import MeasureError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import nc1, nc1_ratio

# Blocks of 100, 80, 0, 60, 60 and 150 parameters and 50 of stem and norms: 500; a head of 20. A tenth of 520 is 52.
DEEP = [
    Reading("a", 5.0, 30),
    Reading("b", 3.0, 32),
    Reading("act", 0.1, 0),
    Reading("c", 2.0, 33),
    Reading("d", 0.5, 355),
]


def test_the_most_collapsed_block_within_the_allowance() -> None:
    assert recommend_layer(DEEP, head_parameters=20, other_parameters=500) == "b"


def test_the_allowance_is_a_tenth_of_all_parameters_head_included_and_may_be_used_up() -> None:
    assert recommend_layer(DEEP, head_parameters=20, other_parameters=510) == "c"  # (33 + 20) / 530
    assert recommend_layer(DEEP, head_parameters=20, other_parameters=509) == "b"
    assert recommend_layer(DEEP, head_parameters=20, other_parameters=3730) == "d"  # (355 + 20) / 3750
    assert recommend_layer(DEEP, head_parameters=20, other_parameters=3729) == "c"


def test_the_deeper_of_two_alike() -> None:
    alike = [Reading("a", 1.0, 3), Reading("b", 1.0, 3), Reading("c", 2.0, 3)]
    assert recommend_layer(alike, 1, 100) == "b"
    assert recommend_layer([Reading(r.layer, float("inf"), 3) for r in alike], 1, 100) == "c"


def test_the_smallest_where_none_is_small() -> None:
    assert recommend_layer(DEEP, head_parameters=20, other_parameters=400) == "a"
    assert recommend_layer(list(reversed(DEEP)), head_parameters=400, other_parameters=500) == "a"


@pytest.mark.parametrize("readings", [[], [Reading("act", 0.1, 0)]])
def test_nothing_to_tune(readings: list[Reading]) -> None:
    with pytest.raises(MeasureError, match="no layer has parameters to tune; name some with --layers"):
        recommend_layer(readings, 20, 500)


def test_a_layer_of_fewer_values_than_classes_is_not_preferred_for_being_narrow():
    generator = np.random.default_rng(0)
    labels = np.arange(2000) % 20
    means = generator.standard_normal((20, 30))
    features = means[labels] + generator.standard_normal((2000, 30))
    wide = ClassMoments.from_features(features, labels, 20)
    narrow = ClassMoments.from_features(features[:, :4], labels, 20)
    assert nc1(narrow) < nc1(wide) / 2  # four directions are summed in place of nineteen
    assert spreads([wide]) == [pytest.approx(nc1(wide) * 20 / 19)]
    assert spreads([narrow, wide]) == [pytest.approx(nc1_ratio(narrow)), pytest.approx(nc1_ratio(wide))]
    assert spreads([narrow, wide])[1] < 1.2 * spreads([narrow, wide])[0]


def test_a_narrow_early_layer_that_knows_little_loses_to_a_wider_one_that_knows_more():
    """As in CIFAR ResNets on 100 classes: NC1 per direction says the reverse."""
    generator = np.random.default_rng(1)
    labels = np.arange(4000) % 40
    early = 0.6 * generator.standard_normal((40, 8))[labels] + generator.standard_normal((4000, 8))
    scales = np.geomspace(1, 0.1, 24)
    late = 1.0 * generator.standard_normal((40, 24))[labels] * scales + generator.standard_normal((4000, 24)) * scales
    late += 0.3 * generator.standard_normal((4000, 24))
    layers = [ClassMoments.from_features(rows, labels, 40) for rows in (early, late)]
    per_direction = [nc1(moments) * 40 / min(39, moments.dimension) for moments in layers]
    assert per_direction[0] < per_direction[1]
    found = spreads(layers)
    assert found[1] < found[0]
