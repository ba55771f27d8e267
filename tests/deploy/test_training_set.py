"""What is kept of the training images: hashes, held-out predictions, and where they lie; and what that is good for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tightframe import TrainConfig, evaluate, load_images, load_tuned, tune
from tightframe.deploy.training_set import TRAINING_SET, TrainingSet
from tightframe.errors import DataError, SavedError


@pytest.fixture
def kept(tuned_by, tmp_path):
    """The training set of a saved model, in a folder to be spoilt."""
    tuned, folder = tuned_by("scl")
    (tmp_path / TRAINING_SET).write_bytes((folder / TRAINING_SET).read_bytes())
    return tuned, tmp_path


def test_it_is_read_as_it_was_written(kept):
    tuned, folder = kept
    found = TrainingSet.read(folder, 5, tuned.model.neck.width)
    assert found.digests == tuned.trained_on
    np.testing.assert_array_equal(found.evidence.log_probabilities, tuned.evidence.log_probabilities)
    assert all(torch.equal(one, other) for one, other in zip(found.familiar, tuned.familiar, strict=True))


def test_without_the_file_nothing_is_known(tmp_path):
    found = TrainingSet.read(tmp_path, 5, 16)
    assert (found.digests, found.evidence, found.familiar) == ((), None, None)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("digests", lambda t: t[:, :8]),
        ("labels", lambda t: t + 5),
        ("labels", lambda t: t.double()),
        ("log_probabilities", lambda t: t[1:]),
        ("log_probabilities", lambda t: t * float("nan")),
        ("center", lambda t: t[:-1]),
        ("distances", None),
        ("digests", None),
        ("extra", lambda t: torch.zeros(1)),
    ],
)
def test_damage_is_an_error(kept, name, spoil):
    tuned, folder = kept
    tensors = load_file(folder / TRAINING_SET)
    tensors = {key: value for key, value in tensors.items() if key != name} | (
        {name: spoil(tensors.get(name)).contiguous()} if spoil else {}
    )
    save_file(tensors, folder / TRAINING_SET)
    with pytest.raises(SavedError, match="damaged"):
        TrainingSet.read(folder, 5, tuned.model.neck.width)
    (folder / TRAINING_SET).write_bytes(b"nonsense")
    with pytest.raises(SavedError, match="damaged"):
        TrainingSet.read(folder, 5, tuned.model.neck.width)


@pytest.fixture
def flat(data, tmp_path):
    """A folder of classes without a test split, of ten digits a class."""
    source = load_images("digits:5-9", max_per_class=10).train
    for index, label in enumerate(source.labels):
        folder = tmp_path / "flat" / source.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        source[index].save(folder / f"{index}.png")
    return tmp_path / "flat"


def test_a_folder_that_was_partly_trained_on_is_judged_on_the_rest(flat, wide, tmp_path):
    data = load_images(flat, seed=1)
    tune(data, wide, method="linear", config=TrainConfig(epochs=1, lr=(0.05,), folds=0, seed=1), out=tmp_path / "run")
    tuned = load_tuned(tmp_path / "run", wide)
    found = evaluate(tuned, load_images(flat, test_share=0.0))
    assert found.rows[0]["images"] == len(data.test)
    assert found.rows[0]["accuracy"] == tuned.metrics["test_accuracy"]
    assert found.notes[-1].startswith(f"{len(data.train)} images are left out")
    with pytest.raises(DataError, match="say nothing of new ones"):
        evaluate(tuned, data.train)


def test_images_in_both_splits_or_under_two_classes_are_named(flat):
    splits = load_images(flat)
    leaking = replace(splits, test=splits.test.joined(splits.train.subset([0, 1])))
    (told,) = leaking.notes
    assert told.startswith("2 test images are among the training images")
    twice = splits.train.joined(replace(splits.train.subset([0]), labels=splits.train.labels[:1] + 1))
    (told,) = replace(splits, train=twice).notes
    assert told.startswith("1 training image is under two classes")
    assert splits.notes == []
