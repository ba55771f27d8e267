"""Few-shot episodes: drawn as promised, and four classifiers against scikit-learn and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge

from tightframe.errors import MeasureError, SettingsError
from tightframe.probes import episodes as module
from tightframe.probes import logistic as solver
from tightframe.probes.episodes import CLASSIFIERS, Support, accuracies, draw, logistic, mean_and_margin, support_of


def sample(classes=8, each=30, dimension=40, gap=0.6, seed=0):
    """Positive features of classes ``gap`` apart, as a model's last layer gives them, in float32."""
    generator = np.random.default_rng(seed)
    labels = np.arange(classes * each) % classes
    means = gap * generator.normal(size=(classes, dimension))
    features = 3 * np.maximum(0.3 + means[labels] + generator.normal(size=(len(labels), dimension)), 0)
    return features.astype(np.float32), labels


def normalized(features):
    features = features.astype(np.float64)
    return features / np.linalg.norm(features, axis=-1, keepdims=True).clip(1e-300)


def digits():
    found = load_digits()
    return found.data.astype(np.float32), found.target


def supports(features, drawn):
    """What classifiers are given, and the support's features (e, n, d) and labels (n,) for an oracle."""
    rows = torch.from_numpy(features)[drawn.support.flatten(1)]
    ways, shots = drawn.support.shape[1:]
    given = support_of(rows, rows.double().norm(dim=2), ways)
    return given, normalized(rows.numpy()), np.repeat(np.arange(ways), shots)


def logits(heads, learned, asked):
    """Of queries (e, m, d), from heads in the span of the support (e, n, d)."""
    return heads.weights.numpy() @ learned @ asked.transpose(0, 2, 1) + heads.bias.numpy()[..., None]


CASES = {
    "one shot, separable": (*sample(), 5, 1),
    "five shots": (*sample(), 5, 5),
    "far apart": (*sample(gap=5.0), 5, 5),
    "classes that overlap": (*sample(gap=0.0), 5, 10),
    "more samples than dimensions": (*sample(dimension=6), 5, 5),
    "two classes": (*sample(), 2, 3),
    "handwritten digits, one shot": (*digits(), 5, 1),
    "handwritten digits": (*digits(), 10, 5),
}


@pytest.mark.parametrize("case", CASES)
def test_logistic_regression_is_scikit_learns(case, monkeypatch):
    monkeypatch.setattr(solver, "ROUNDS", 100)
    features, labels, ways, shots = CASES[case]
    drawn = draw(labels, ways, shots, 6, 12)
    given, learned, targets = supports(features, drawn)
    asked = normalized(features)[drawn.queries.flatten(1).numpy()]
    ours = logits(logistic(given), learned, asked)
    for found, seen, unseen in zip(ours, learned, asked, strict=True):
        peer = LogisticRegression(solver="newton-cg", tol=1e-10, max_iter=10_000).fit(seen, targets)
        expected = peer.decision_function(unseen)
        found = found[1] - found[0] if ways == 2 else found.T
        assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("strength", [1e-3, 30.0])
def test_logistic_regression_at_other_strengths(strength, monkeypatch):
    monkeypatch.setattr(module, "STRENGTH", strength)
    features, labels = sample()
    given, learned, targets = supports(features, draw(labels, 4, 4, 1, 3))
    heads = logistic(given)
    for found, seen in zip(logits(heads, learned, learned), learned, strict=True):
        peer = LogisticRegression(C=strength, solver="newton-cg", tol=1e-10, max_iter=10_000).fit(seen, targets)
        assert np.abs(found.T - peer.decision_function(seen)).max() < 1e-3


def test_logistic_regression_says_when_it_finds_no_optimum(monkeypatch):
    monkeypatch.setattr(solver, "ROUNDS", 2)
    features, labels = sample()
    given, _, _ = supports(features, draw(labels, 4, 4, 1, 3))
    with pytest.raises(MeasureError, match="give a strength below 1"):
        logistic(given)


def test_ridge_is_scikit_learns():
    features, labels = sample()
    given, learned, targets = supports(features, draw(labels, 5, 4, 1, 5))
    for found, seen in zip(logits(module.ridge(given), learned, learned), learned, strict=True):
        expected = Ridge(alpha=module.PENALTY).fit(seen, np.eye(5)[targets]).predict(seen)
        assert np.abs(found.T - expected).max() < 1e-6


def nearest_mean(seen, targets, unseen, cosine):
    means = np.stack([seen[targets == label].mean(0) for label in range(targets.max() + 1)])
    if cosine:
        return (normalized(unseen) @ normalized(means).T).argmax(1)
    return np.linalg.norm(unseen[:, None] - means, axis=2).argmin(1)


def predicted(name, seen, targets, unseen):
    """What plain code says of one episode's queries, from raw features."""
    if name == "logistic":
        return LogisticRegression(tol=1e-8, max_iter=1000).fit(normalized(seen), targets).predict(normalized(unseen))
    if name == "ridge":
        fitted = Ridge(alpha=1.0).fit(normalized(seen), np.eye(targets.max() + 1)[targets])
        return fitted.predict(normalized(unseen)).argmax(1)
    if name == "cosine":
        return nearest_mean(normalized(seen), targets, unseen, cosine=True)
    return nearest_mean(seen, targets, unseen, cosine=False)


@pytest.mark.parametrize("pieces", [1, 2**20])
@pytest.mark.parametrize("features_and_labels", [sample(gap=0.3), digits()], ids=["made up", "digits"])
def test_accuracies_are_those_of_plain_loops(features_and_labels, pieces, monkeypatch):
    monkeypatch.setattr(module, "BATCH_BYTES", 10 * pieces)
    features, labels = features_and_labels
    drawn = draw(labels, 4, 3, 5, 10, seed=2)
    found = accuracies(features, drawn)
    wide, targets, truth = features.astype(np.float64), np.repeat(np.arange(4), 3), np.repeat(np.arange(4), 5)
    for name in CLASSIFIERS:
        expected = [
            (predicted(name, wide[support.flatten()], targets, wide[queries.flatten()]) == truth).mean()
            for support, queries in zip(drawn.support.numpy(), drawn.queries.numpy(), strict=True)
        ]
        assert found[name].tolist() == pytest.approx(expected)
    assert len({tuple(right.tolist()) for right in found.values()}) > 1  # they are not one and the same


def test_features_that_say_nothing_are_right_by_chance_exactly():
    _, labels = sample()
    for right in accuracies(np.zeros((len(labels), 3), np.float32), draw(labels, 5, 2, 4, 7)).values():
        assert right.tolist() == [0.2] * 7
        assert mean_and_margin(right) == (pytest.approx(0.2), pytest.approx(0, abs=1e-12))


def test_features_that_are_the_class_are_always_right():
    _, labels = sample()
    for right in accuracies(np.eye(8)[labels], draw(labels, 5, 1, 4, 7)).values():
        assert right.tolist() == [1.0] * 7


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e30])
def test_the_unit_of_features_does_not_matter(factor):
    features, labels = sample(gap=0.2)
    drawn = draw(labels, 5, 2, 5, 8)
    usual, other = accuracies(features, drawn), accuracies(features * np.float32(factor), drawn)
    for name, right in usual.items():
        assert other[name].tolist() == pytest.approx(right.tolist(), abs=0.05)  # a tie may fall the other way


def test_single_and_double_precision_agree():
    features, labels = sample()
    drawn = draw(labels, 5, 2, 5, 8)
    double = accuracies(features.astype(np.float64), drawn)
    for name, right in accuracies(features, drawn).items():
        assert right.tolist() == double[name].tolist()


def test_broken_features_are_refused():
    features, labels = sample()
    features[3, 0] = np.nan
    with pytest.raises(MeasureError, match="NaN"):
        accuracies(features, draw(labels, 5, 2, 5, 8))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 9), min_size=3, max_size=8),
    st.integers(2, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_episodes_are_what_they_should_be(sizes, ways, shots, queries, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    large = {label for label, size in enumerate(sizes) if size >= shots + queries}
    if len(large) < ways:
        with pytest.raises(MeasureError, match=f"{len(large)} of {len(sizes)} classes have the {shots + queries}"):
            draw(labels, ways, shots, queries, 3, seed)
        return
    drawn = draw(labels, ways, shots, queries, 3, seed)
    for support, asked in zip(drawn.support.numpy(), drawn.queries.numpy(), strict=True):
        together = np.concatenate([support, asked], 1)
        assert len(np.unique(together)) == together.size  # no image twice
        chosen = labels[together]
        assert (chosen == chosen[:, :1]).all()
        assert len(set(chosen[:, 0])) == ways
        assert set(chosen[:, 0]) <= large


def test_episodes_come_from_the_seed_and_their_number_alone():
    _, labels = sample()
    few, many = draw(labels, 5, 2, 3, 4, seed=1), draw(labels, 5, 2, 3, 9, seed=1)
    assert torch.equal(few.support, many.support[:4])
    assert torch.equal(few.queries, many.queries[:4])
    assert not torch.equal(few.support, draw(labels, 5, 2, 3, 4, seed=2).support)
    assert len({tuple(one.flatten().tolist()) for one in many.support}) == 9


def test_every_class_and_image_has_its_turn_equally_often():
    labels = np.repeat(np.arange(6), [10, 10, 10, 20, 20, 4])
    drawn = draw(labels, 2, 2, 3, 1500)
    times = np.bincount(labels[drawn.queries[:, :, 0]].flatten(), minlength=6) / 1500
    assert times == pytest.approx([0.4] * 5 + [0], abs=0.06)
    first = np.bincount(labels[drawn.queries[:, 0, 0]], minlength=6) / 1500
    assert first == pytest.approx([0.2] * 5 + [0], abs=0.05)
    learned = np.bincount(drawn.support.flatten(), minlength=70)[:10] / 1500
    assert learned == pytest.approx([0.08] * 10, abs=0.03)


def test_fewer_shots_keep_classes_and_queries():
    _, labels = sample()
    five = draw(labels, 5, 5, 3, 4)
    one = five.with_shots(1)
    assert torch.equal(one.queries, five.queries)
    assert torch.equal(one.support, five.support[..., :1])


@pytest.mark.parametrize("wrong", [{"ways": 1}, {"shots": 0}, {"queries": 0}, {"episodes": 1}, {"seed": -1}])
def test_numbers_out_of_range(wrong):
    _, labels = sample()
    with pytest.raises(SettingsError, match=f"{next(iter(wrong))} must be"):
        draw(labels, **{"ways": 5, "shots": 1, "queries": 1, "episodes": 2, "seed": 0, **wrong})


def test_the_interval_is_the_fields():
    right = torch.tensor([0.2, 0.4, 0.9, 0.5], dtype=torch.float64)
    mean, margin = mean_and_margin(right)
    assert mean == pytest.approx(0.5)
    assert margin == pytest.approx(1.96 * np.std(right.numpy(), ddof=1) / 2)


def test_the_interval_covers_the_mean_of_all_episodes():
    features, labels = sample(gap=0.2)
    right = accuracies(features, draw(labels, 5, 1, 5, 4000), ["cosine"])["cosine"]
    truth = float(right.mean())
    ends = [mean_and_margin(part) for part in right.split(40)]
    assert 0.88 <= np.mean([abs(mean - truth) <= margin for mean, margin in ends]) <= 1


def test_a_batch_of_episodes_is_its_episodes_one_by_one():
    features, labels = sample()
    given, _, _ = supports(features, draw(labels, 5, 3, 1, 6))
    whole = logistic(given)
    for at in range(6):
        alone = logistic(Support(given.gram[at : at + 1], given.lengths[at : at + 1], given.targets))
        assert torch.allclose(alone.weights[0], whole.weights[at], atol=1e-4)
        assert torch.allclose(alone.bias[0], whole.bias[at], atol=1e-4)
