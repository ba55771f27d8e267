"""Evaluating a tuned model: every number against another way to it, on the classes that the model knows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss

from tightframe import evaluate, load_images
from tightframe.errors import DataError
from tightframe.probes.calibration import calibration_error
from tightframe.probes.results import interval


@pytest.fixture(scope="module")
def tuned(tuned_by):
    return tuned_by("linear")[0]


@pytest.fixture(scope="module")
def found(tuned, data):
    return evaluate(tuned, data)


def test_the_row_is_what_other_ways_give(tuned, data, found):
    shares = tuned.probabilities(data.test).astype(float)
    labels, said = data.test.labels, shares.argmax(1)
    (row,) = found.rows
    right = int((said == labels).sum())
    assert row["images"] == len(labels)
    assert row["classes"] == 5
    assert row["accuracy"] == tuned.metrics["test_accuracy"] == right / len(labels)
    assert (row["accuracy_low"], row["accuracy_high"]) == interval(right, len(labels))
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, said))
    assert row["log_loss"] == pytest.approx(log_loss(labels, shares / shares.sum(1, keepdims=True)), rel=1e-5)
    assert row["calibration_error"] == pytest.approx(calibration_error(shares, labels), abs=1e-6)
    assert 0 < right < len(labels), "all right or all wrong would show too little"


def test_classes_and_confusion_are_those_of_scikit_learn(tuned, data, found):
    said = tuned.probabilities(data.test).argmax(1)
    table = confusion_matrix(data.test.labels, said, labels=range(5))
    classes = found.tables["classes"]
    assert [row["class"] for row in classes] == list(data.classes)
    assert [row["images"] for row in classes] == table.sum(1).tolist()
    assert [row["correct"] for row in classes] == table.diagonal().tolist()
    assert [row["times_predicted"] for row in classes] == table.sum(0).tolist()
    assert [(r["accuracy_low"], r["accuracy_high"]) for r in classes] == [
        interval(r["correct"], r["images"]) for r in classes
    ]
    rebuilt = np.zeros_like(table)
    for row in found.tables["confusion"]:
        place = data.classes.index(row["true"]), data.classes.index(row["predicted"])
        rebuilt[place] = row["count"]
        assert row["share"] == row["count"] / table[place[0]].sum()
    assert (rebuilt == table).all()


def test_mistakes_are_wrong_and_the_surest_first(tuned, data, found):
    shares = tuned.probabilities(data.test)
    wrong = shares.argmax(1) != data.test.labels
    rows = found.tables["mistakes"]
    assert len(rows) == min(10, wrong.sum())
    assert all(row["true"] != row["predicted"] for row in rows)
    assert [row["probability"] for row in rows] == pytest.approx(np.sort(shares.max(1)[wrong])[::-1][: len(rows)])
    place = data.test.identifiers.index(rows[0]["path"])
    assert data.classes[data.test.labels[place]] == rows[0]["true"]


def test_some_classes_in_another_order_are_found_by_name(tuned, data):
    other = load_images("digits:6,8", test_share=0.0).train
    other = other.subset([i for i, digest in enumerate(other.digests) if digest not in tuned.trained_on])
    found = evaluate(tuned, other)
    assert [row["class"] for row in found.tables["classes"]] == ["6", "8"]
    logits, _ = tuned.logits_and_features(other)
    said = [tuned.classes[index] for index in logits.argmax(1)]
    actual = [other.classes[label] for label in other.labels]
    assert found.rows[0]["accuracy"] == np.mean([a == b for a, b in zip(said, actual, strict=True)])
    reordered = replace(tuned, classes=tuned.classes[::-1])
    flipped = evaluate(reordered, other).rows[0]["accuracy"]
    said = [reordered.classes[index] for index in logits.argmax(1)]
    assert flipped == np.mean([a == b for a, b in zip(said, actual, strict=True)])


def test_classes_without_an_image_do_not_count(tuned, data):
    few = data.test.subset(np.flatnonzero(data.test.labels == 2))
    found = evaluate(tuned, few)
    assert found.rows[0]["classes"] == 1
    assert [row["class"] for row in found.tables["classes"]] == ["7"]
    wider = load_images("digits:4-9", test_share=0.0).train
    known = wider.subset(np.flatnonzero(wider.labels > 0))
    assert evaluate(tuned, known).rows[0]["classes"] == 5


def test_strange_classes_are_named_with_what_to_do(tuned):
    with pytest.raises(DataError, match=r'images of "3", "4", but the model was tuned on "5", .*rename'):
        evaluate(tuned, load_images("digits:3-6", test_share=0.0))
    with pytest.raises(DataError, match="and 1 more, but"):
        evaluate(replace(tuned, classes=("a", "b", "c", "d", "e")), load_images("digits:0-5"))


def test_without_test_images_all_are_judged_and_it_says_so(tuned, data):
    whole = load_images("digits:5-9", test_share=0.0)
    found = evaluate(tuned, whole)
    assert found.rows[0]["images"] == len(whole.train) - 30
    assert found.notes[-1] == "30 images are left out: the model was trained on the same"
    assert evaluate(tuned, data).notes == []


def test_images_that_it_was_trained_on_say_nothing(tuned, data):
    with pytest.raises(DataError, match=r"trained on all 30 images .* give others"):
        evaluate(tuned, data.train)
    both = data.train.joined(data.test)
    assert evaluate(tuned, both).rows == evaluate(tuned, data.test).rows


def test_no_image_at_all(tuned, data):
    with pytest.raises(DataError, match="no images"):
        evaluate(tuned, data.test.subset(np.array([], dtype=np.int64)))


def test_it_is_written_as_json(found, tmp_path):
    found.to_json(tmp_path / "found.json")
    written = json.loads((tmp_path / "found.json").read_text())
    assert set(written["tables"]) == {"classes", "confusion", "mistakes", "samples"}
    assert written["rows"] == found.rows


def test_a_perfect_and_a_certainly_wrong_model(tuned, data, monkeypatch):
    def answers(offset):
        def logits(self, images, *how):
            chosen = torch.from_numpy((images.labels + offset) % 5)
            return 50.0 * torch.nn.functional.one_hot(chosen, 5).float(), torch.zeros(len(images), 1)

        return logits

    monkeypatch.setattr(type(tuned), "logits_and_features", answers(0))
    perfect = evaluate(tuned, data)
    assert perfect.rows[0]["accuracy"] == perfect.rows[0]["accuracy_high"] == 1
    assert perfect.rows[0]["calibration_error"] == pytest.approx(0, abs=1e-9)
    assert perfect.tables["mistakes"] == []
    monkeypatch.setattr(type(tuned), "logits_and_features", answers(1))
    wrong = evaluate(tuned, data)
    assert wrong.rows[0]["accuracy"] == 0
    assert wrong.rows[0]["calibration_error"] == pytest.approx(1)
    assert wrong.rows[0]["log_loss"] == pytest.approx(50)
    assert len(wrong.tables["mistakes"]) == 10
