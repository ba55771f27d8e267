"""The two-sample test against refits, scikit-learn and SciPy; its false alarms and its power."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from tightframe.checks import shift as checked
from tightframe.checks.shift import _left_out, _shares, _tested, shift_between, shift_words


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_predictions_left_out_and_auc_are_those_of_refits(generator):
    features, side = generator.normal(size=(24, 6)), np.repeat([0, 1], [15, 9])
    values = torch.from_numpy(features)
    values = (values - values.mean(0)) / (values - values.mean(0)).std(0)
    penalty = checked.RIDGE * float((values @ values.T).diagonal().mean())
    known = values.numpy()
    said = np.empty(24)
    for index in range(24):
        kept = np.arange(24) != index
        said[index] = Ridge(alpha=penalty).fit(known[kept], side[kept]).predict(known[[index]])[0]
    auc, _ = _tested(_left_out(features), side, side[generator.permutation(24)][:, None])
    assert auc == pytest.approx(roc_auc_score(side, said), abs=1e-12)


def test_class_shares_are_compared_by_chi_squared(generator):
    labels, side = generator.integers(0, 4, 200), generator.integers(0, 2, 200)
    labels[side == 1] = np.where(generator.random((side == 1).sum()) < 0.2, 0, labels[side == 1])
    relabeled = np.stack([generator.permutation(side) for _ in range(4000)], 1)
    table = np.stack([np.bincount(labels[side == one], minlength=4) for one in (0, 1)])
    assert _shares(side, relabeled, labels) == pytest.approx(chi2_contingency(table).pvalue, abs=0.02)


def test_false_alarms_are_as_rare_as_they_should_be(monkeypatch):
    monkeypatch.setattr(checked, "DRAWS", 99)
    alarms = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        features, labels = generator.normal(size=(60, 8)), generator.integers(0, 3, 60)
        alarms += shift_between(features[:40], features[40:], labels, seed=seed).found
    assert alarms <= 18  # 5 % of 200 by chance, 18 or fewer with probability 0.99


def test_a_shift_is_found_and_named(generator):
    train, test = generator.normal(size=(120, 8)), generator.normal(size=(60, 8)) + 0.8
    found = shift_between(train, test, np.zeros(180, dtype=np.int64))
    assert found.found
    assert not found.explained
    assert found.auc > 0.8
    assert "differ much" in shift_words(found)


def test_other_class_shares_alone_are_named_as_such(generator):
    labels = np.concatenate([generator.integers(0, 2, 150), (generator.random(80) < 0.15).astype(int)])
    features = generator.normal(size=(230, 6)) + 3 * labels[:, None]
    found = shift_between(features[:150], features[150:], labels)
    assert found.found
    assert found.explained
    assert "class shares" in shift_words(found)


def test_groups_change_sides_together(generator):
    groups = np.repeat(np.arange(12), 10)
    features = generator.normal(size=(12, 5))[groups] + 0.1 * generator.normal(size=(120, 5))
    alone = shift_between(features[:80], features[80:])
    together = shift_between(features[:80], features[80:], groups=groups)
    assert alone.by_features < 0.01
    assert together.by_features > 0.05


def test_too_few_images_say_nothing(generator):
    assert shift_between(generator.normal(size=(30, 3)), generator.normal(size=(4, 3))) is None
