"""Which labels are called wrong, by brute force; and no worse than cleanlab, where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from tightframe.checks.labels import FALSE, confused, ranking, suspects
from tightframe.decide.evidence import Evidence


def drawn(seed, images=400, classes=5, noise=0.05, sharpness=3.0):
    """Evidence whose probabilities are true of the labels, but for a share ``noise`` of them, and which these are."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(images, classes))
    said = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
    labels = (np.exp(said).cumsum(1) > generator.random((images, 1))).argmax(1)
    wrong = generator.random(images) < noise
    labels[wrong] = (labels[wrong] + generator.integers(1, classes, wrong.sum())) % classes
    return Evidence(said, labels), wrong


@pytest.mark.parametrize("seed", range(4))
def test_as_many_are_called_wrong_as_the_probabilities_allow(seed):
    evidence, _ = drawn(seed)
    said, own = np.exp(evidence.log_probabilities), evidence.probabilities
    most = 0
    for place, threshold in enumerate(np.sort(own), 1):
        if said[said <= threshold].sum() <= FALSE * place:
            most = place
    lowest = set(np.argsort(own)[:most].tolist())
    likely = said.argmax(1)
    expected = {index for index in lowest if likely[index] != evidence.labels[index]}
    assert {one.place for one in suspects(evidence) if one.wrong} == expected


def test_true_labels_are_hardly_ever_called_wrong():
    named = sum(sum(one.wrong for one in suspects(drawn(seed, noise=0.0)[0])) for seed in range(20))
    assert named <= 0.005 * 20 * 400


def test_wrong_labels_are_found():
    evidence, wrong = drawn(0, noise=0.1, sharpness=6.0)
    named = [one.place for one in suspects(evidence) if one.wrong]
    assert wrong[named].mean() > 1 - FALSE
    assert wrong[named].sum() > 0.5 * wrong.sum()


def test_the_least_probable_label_comes_first():
    evidence, _ = drawn(1)
    assert ranking(evidence).tolist() == np.argsort(evidence.probabilities, kind="stable").tolist()
    found = suspects(evidence)
    assert [one.own for one in found] == sorted(one.own for one in found)


def test_the_only_image_of_a_class_is_not_judged():
    evidence, _ = drawn(2)
    labels = np.where(evidence.labels == 4, 3, evidence.labels)
    labels[7] = 4
    assert 7 not in {one.place for one in suspects(Evidence(evidence.log_probabilities, labels))}


def test_confused_classes_are_those_taken_for_each_other():
    labels = np.repeat([0, 1, 2], 40)
    said = np.where(np.eye(3)[labels] > 0, -0.01, -5.0)
    for index in (*range(12), *range(40, 48)):
        said[index, labels[index]], said[index, 1 - labels[index]] = -5.0, -0.01
    assert confused(Evidence(said, labels)) == [(0, 1, 20 / 80)]


@pytest.mark.parametrize("seed", range(3))
def test_no_worse_than_cleanlab(seed):
    rank = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    evidence, wrong = drawn(seed, noise=0.05, sharpness=5.0)
    count = int(wrong.sum())
    theirs = rank.find_label_issues(
        evidence.labels, np.exp(evidence.log_probabilities), return_indices_ranked_by="self_confidence"
    )
    assert wrong[ranking(evidence)[:count]].sum() >= wrong[theirs[:count]].sum()
