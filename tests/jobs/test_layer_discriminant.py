"""``LayerDiscriminant`` is a classifier as scikit-learn knows them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import estimator_checks_generator

from tightframe import LayerDiscriminant, read_layers
from tightframe.jobs.estimator import UnusableInput


@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        pytest.param(estimator, check, id=str(getattr(check, "func", check).__name__))
        for estimator, check in estimator_checks_generator(LayerDiscriminant())
        if getattr(check, "func", check).__name__ != "check_do_not_raise_errors_in_init_or_set_params"
        # which sets widths to things that the annotations enforced in this test suite, and nowhere else, refuse
    ],
)
def test_it_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_columns_are_the_layers_side_by_side():
    features, labels = load_iris(return_X_y=True)
    found = LayerDiscriminant([1, 3]).fit(features, labels)
    expected = read_layers({"first": features[:, :1], "rest": features[:, 1:]}, labels, 3)
    wanted = expected.logits({"first": features[:, :1], "rest": features[:, 1:]}).softmax(1).numpy()
    np.testing.assert_allclose(found.predict_proba(features), wanted, atol=1e-12)
    assert cross_val_score(LayerDiscriminant([1, 3]), features, labels, cv=5).mean() > 0.95
    with pytest.raises(UnusableInput, match="don't add up to the 4 columns"):
        LayerDiscriminant([1, 2]).fit(features, labels)
