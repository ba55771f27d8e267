"""Intervals and chances over groups: their coverage by simulation, and that groups of one image change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tightframe.decide.evidence import Evidence, expected
from tightframe.decide.recommendation import Outcome, standings
from tightframe.metrics.folds import known_without
from tightframe.probes.knn import neighbors_accuracy
from tightframe.probes.results import accuracy_interval, independent, interval, student_interval


def films(generator, groups, size, accuracy, alike):
    """Whether each image was right, and its film: chances of films are drawn, so images of one are ``alike``."""
    one, other = accuracy * (1 - alike) / alike, (1 - accuracy) * (1 - alike) / alike
    numbers = np.repeat(np.arange(groups), generator.integers(1, 2 * size, groups))
    return generator.random(len(numbers)) < generator.beta(one, other, groups)[numbers], numbers


@pytest.mark.parametrize("groups", [5, 20, 100])
@pytest.mark.parametrize("accuracy", [0.6, 0.9])
@pytest.mark.parametrize("alike", [0.1, 0.5, 0.9])
def test_intervals_over_groups_hold_the_truth(groups, accuracy, alike):
    generator, held, plain = np.random.default_rng(0), [], []
    for _ in range(400):
        correct, numbers = films(generator, groups, 10, accuracy, alike)
        low, high = accuracy_interval(correct, numbers)
        held.append(low <= accuracy <= high)
        low, high = accuracy_interval(correct)
        plain.append(low <= accuracy <= high)
    assert np.mean(held) > 0.925  # 400 draws: three standard errors below 95 %, less what Clopper and Pearson give
    assert np.mean(plain) < 0.87 or alike < 0.5


def test_intervals_of_differences_over_groups_hold_the_truth():
    generator, held, plain = np.random.default_rng(0), [], []
    for _ in range(600):
        numbers = np.repeat(np.arange(25), generator.integers(1, 20, 25))
        values = 0.3 + generator.normal(size=25)[numbers] + generator.normal(size=len(numbers))
        low, high = student_interval(values, groups=numbers)
        held.append(low <= 0.3 <= high)
        low, high = student_interval(values)
        plain.append(low <= 0.3 <= high)
    assert np.mean(held) > 0.92  # unequal groups: sandwich variances are a little small
    assert np.mean(plain) < 0.7


def test_copies_count_once():
    generator = np.random.default_rng(0)
    correct = np.repeat(generator.random(400) < 0.7, 5)
    numbers = np.repeat(np.arange(400), 5)
    assert independent(correct, numbers) == pytest.approx(400, rel=0.05)
    assert independent(correct) == independent(correct, np.arange(2000)) == 2000
    copies, each = expected(correct, numbers), expected(correct[::5])
    assert (copies.low, copies.high) == (pytest.approx(each.low, abs=0.003), pytest.approx(each.high, abs=0.003))


def test_images_that_groups_say_nothing_of_count_each():
    generator = np.random.default_rng(0)
    correct, numbers = generator.random(4000) < 0.6, np.repeat(np.arange(400), 10)
    assert independent(correct, numbers) > 3000


@pytest.mark.parametrize("right", [0, 200])
def test_where_all_or_none_are_right_a_group_is_one_image_or_little_more(right):
    correct, numbers = np.arange(200) < right, np.repeat(np.arange(20), 10)
    low, high = accuracy_interval(correct, numbers)
    exact = interval(20 if right else 0, 20)
    assert low == pytest.approx(exact[0], abs=0.03)
    assert high == pytest.approx(exact[1], abs=0.03)


def test_groups_of_one_are_no_groups():
    generator = np.random.default_rng(0)
    labels, alone = generator.integers(0, 3, 60), generator.permutation(60)
    said = np.log(generator.dirichlet(np.ones(3), (2, 60)))
    plain = [Evidence(one, labels) for one in said]
    grouped = [Evidence(one, labels, alone) for one in said]
    assert plain[0].told() == grouped[0].told()
    assert plain[0].gain_over(plain[1]) == grouped[0].gain_over(grouped[1])
    assert plain[0].calibrated()[1] == grouped[0].calibrated()[1]
    one = standings([Outcome.of(evidence) for evidence in plain], [10, 20])
    assert one == standings([Outcome.of(evidence) for evidence in grouped], [10, 20])
    features = generator.normal(size=(60, 4))
    first, second = (neighbors_accuracy(features, labels, 3, groups=groups) for groups in (None, alone))
    np.testing.assert_array_equal(first.predicted, second.predicted)
    assert (first.accuracy, first.low, first.high, first.k) == (second.accuracy, second.low, second.high, second.k)


def test_a_gain_on_copies_is_as_sure_as_on_one_of_each():
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    said = np.log(generator.dirichlet(np.ones(2), (2, 40)))
    plain = Evidence(said[0], labels).gain_over(Evidence(said[1], labels))
    numbers, copied = np.repeat(np.arange(40), 6), np.repeat(labels, 6)
    first, second = (Evidence(np.repeat(one, 6, 0), copied, numbers) for one in said)
    assert first.gain_over(second) == pytest.approx(plain)
    _, low, _ = Evidence(first.log_probabilities, copied).gain_over(Evidence(second.log_probabilities, copied))
    assert low > plain.low


def test_the_only_group_of_its_class_is_a_matter_of_form():
    labels, groups = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 2, 3, 4, 4])
    evidence = Evidence(np.log(np.full((6, 3), 1 / 3)), labels, groups)
    np.testing.assert_array_equal(evidence.comparable, labels < 2)
    assert known_without(labels).all()


def test_copies_do_not_make_a_model_surely_the_best():
    generator = np.random.default_rng(0)
    correct = [generator.random(12) < share for share in (0.9, 0.6)]
    each = standings([Outcome(one, one * 0.8 + 0.1) for one in correct], [10, 10])[0].p_best
    copied, numbers = [np.repeat(one, 30) for one in correct], np.repeat(np.arange(12), 30)
    without = standings([Outcome(one, one * 0.8 + 0.1) for one in copied], [10, 10])[0].p_best
    grouped = standings([Outcome(one, one * 0.8 + 0.1, numbers) for one in copied], [10, 10])[0].p_best
    assert grouped == pytest.approx(each, abs=0.02)
    assert without > grouped


def test_neighbors_of_ones_own_group_have_no_vote():
    generator = np.random.default_rng(0)
    numbers = np.repeat(np.arange(30), 3)
    labels = generator.permutation(np.arange(30) % 2)[numbers]
    features = generator.normal(size=(30, 5))[numbers] + 1e-3 * generator.normal(size=(90, 5))
    assert neighbors_accuracy(features, labels, 2, 3).accuracy > 0.9
    found = neighbors_accuracy(features, labels, 2, 3, numbers)
    scaled = (features - features.mean(0)) / features.std(0)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    alike = np.where(numbers[:, None] == numbers, -np.inf, scaled @ scaled.T)
    near = np.argsort(-alike, 1)[:, :3]
    votes = np.exp(np.take_along_axis(alike, near, 1) / 0.07)
    said = [np.bincount(labels[rows], vote, minlength=2).argmax() for rows, vote in zip(near, votes, strict=True)]
    np.testing.assert_array_equal(found.predicted, said)
