"""A pass in parts gives what one process gives in one go, to the bit, and goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tightframe.backbone import PENULTIMATE
from tightframe.engine.engine import Answer, Engine, Work
from tightframe.errors import MeasureError
from tightframe.features import passes
from tightframe.features.extract import Features
from tightframe.features.moments import FIELDS, ClassMoments
from tightframe.features.passes import Found, Gathered, parts_of, sample_of
from tightframe.features.workspace import Workspace
from tightframe.jobs.measure import measure

Make = Callable[..., Any]


class Shuffled(Engine):
    """Gives answers in another order, and stops after some of them."""

    workers = 2

    def __init__(self, seed: int = 0, most: int | None = None):
        self.seed, self.most, self.tasks = seed, most, 0

    def run(self, work: Work, tasks: Sequence[Any], tries: int = 3) -> Iterator[Answer]:
        order = np.random.default_rng(self.seed).permutation(len(tasks))
        for index in order[: self.most].tolist():
            self.tasks += 1
            yield Answer(index, work.do(tasks[index], 0))
        if self.most is not None and self.most < len(tasks):
            raise KeyboardInterrupt


def workspace(folder: Path | None = None, engine: Engine | None = None) -> Workspace:
    return Workspace(folder, device="cpu", precision="float32", batch_size=2, engine=engine or "local")


def assert_same(found: Features, expected: Features) -> None:
    assert list(found) == list(expected)
    for layer in expected:
        assert np.array_equal(found[layer], expected[layer])
        for one in FIELDS:
            assert torch.equal(getattr(found.moments(layer), one), getattr(expected.moments(layer), one))
    assert np.array_equal(found.labels, expected.labels)


@pytest.mark.parametrize("most", [None, 7])
@pytest.mark.parametrize("kept", [False, True])
def test_the_order_in_which_parts_come_changes_nothing(
    model: Make, noise: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None, kept: bool
) -> None:
    monkeypatch.setattr(passes, "FAN_IN", 2)
    net, images = model(), noise()
    expected = workspace().features(net, images, most=most)
    assert len(expected[PENULTIMATE]) == (most or len(images))
    for seed in range(3):
        folder = tmp_path / str(seed) if kept else None
        assert_same(workspace(folder, Shuffled(seed)).features(net, images, most=most), expected)
        if kept:
            assert_same(workspace(folder, Shuffled(most=0)).features(net, images, most=most), expected)


@pytest.mark.parametrize("most", [None, 7])
def test_an_interrupted_pass_goes_on(model: Make, noise: Make, tmp_path: Path, most: int | None) -> None:
    net, images = model(), noise()
    expected, stops = workspace().features(net, images, most=most), 0
    while True:
        engine = Shuffled(stops, most=2)
        try:
            found = workspace(tmp_path, engine).features(net, images, most=most)
        except KeyboardInterrupt:
            stops += 1
            continue
        break
    assert stops == -(-len(images) // 4) - 1, "two parts of two images each time, and none twice"
    assert_same(found, expected)
    assert not list((tmp_path / "features").glob(".*"))


def test_moments_of_all_images_and_features_of_some(model: Make, noise: Make, tmp_path: Path) -> None:
    net, images = model(), noise()
    every = workspace().features(net, images)
    for folder in (None, tmp_path, tmp_path):
        some = workspace(folder).features(net, images, most=5)
        rows = sample_of(images, 5)
        assert some.total == len(images)
        for layer in every:
            assert np.array_equal(some[layer], every[layer][rows])
            assert some.moments(layer).samples == len(images)
            for one in FIELDS:
                torch.testing.assert_close(getattr(some.moments(layer), one), getattr(every.moments(layer), one))
    assert workspace().features(net, images, most=len(images)).total == len(images)


def test_a_sample_of_a_union_is_a_sample_of_the_samples(noise: Make) -> None:
    images = noise()
    whole = {images.identifiers[row] for row in sample_of(images, 4)}
    halves = [images.subset(np.arange(5)), images.subset(np.arange(5, len(images)))]
    parts = [half.subset(sample_of(half, 4)) for half in halves]
    union = parts[0].joined(parts[1])
    assert {union.identifiers[row] for row in sample_of(union, 4)} == whole
    assert len(whole) == 4


@pytest.mark.parametrize("count", [1, 2, 8, 9, 64, 65, 21])
def test_a_tree_of_moments_holds_each_part_once(noise: Make, tmp_path: Path, count: int) -> None:
    images = noise()
    parts = [passes.Part(images, np.ones(len(images), dtype=bool))] * count
    rng = np.random.default_rng(count)
    gathered = Gathered(parts, tmp_path, True)
    expected = ClassMoments.zero(len(images.classes), 3)
    for index in rng.permutation(count).tolist():
        rows = np.random.default_rng(index).normal(size=(len(images), 3)).astype(np.float32)
        moments = ClassMoments.from_features(rows, images.labels, len(images.classes))
        gathered.add(index, found_of(images, rows, moments))
    for index in range(count):
        rows = np.random.default_rng(index).normal(size=(len(images), 3)).astype(np.float32)
        expected = expected.update(rows, images.labels)
    merged = gathered.moments()["layer"]
    assert merged.samples == count * len(images)
    torch.testing.assert_close(merged.scatter, expected.scatter)
    assert len(list(tmp_path.glob("moments-*"))) == 1


def found_of(images: Any, rows: np.ndarray, moments: ClassMoments) -> Found:
    counts = np.bincount(images.labels, minlength=len(images.classes))
    return Found({"layer": rows}, {"layer": moments}, counts, passes.identity(images))


def test_what_comes_back_of_other_images_is_no_answer(noise: Make, tmp_path: Path) -> None:
    images, others = noise(), noise(seed=1)
    kept = np.ones(len(images), dtype=bool)
    gathered = Gathered([passes.Part(images, kept)], tmp_path, True)
    rows = np.zeros((len(images), 3), dtype=np.float32)
    moments = ClassMoments.from_features(rows, images.labels, len(images.classes))
    with pytest.raises(MeasureError, match="other images than it was sent"):
        gathered.add(0, replace(found_of(images, rows, moments), digest=passes.identity(others)))
    with pytest.raises(MeasureError, match="other images than it was sent"):
        gathered.add(0, replace(found_of(images, rows[1:], moments)))
    with pytest.raises(MeasureError, match="counted twice"):
        gathered.add(0, found_of(images, rows, moments.merge(moments)))
    assert gathered.missing() == [0]


def test_parts_are_whole_batches_whatever_the_number_of_images(noise: Make) -> None:
    images = noise()
    for count, size in ((1, 2), (7, 2), (11, 4), (11, 64)):
        some = images.subset(np.arange(count))
        parts = parts_of(some, np.ones(count, dtype=bool), size)
        assert [len(part.images) % size for part in parts[:-1]] == [0] * (len(parts) - 1)
        assert [name for part in parts for name in part.images.identifiers] == list(some.identifiers)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_real_workers_give_the_same_bits(model: Make, noise: Make, engine: str) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    net, images = model(), noise()
    shared = Workspace(device="cpu", precision="float32", batch_size=2, engine=engine, workers=2)
    try:
        for most in (None, 7):
            assert_same(shared.features(net, images, most=most), workspace().features(net, images, most=most))
    finally:
        shared.engine.close()


def test_a_result_says_that_it_is_of_a_sample(model: Make, noise: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = model(), noise(30)
    whole = measure(images, net, workspace=workspace())
    monkeypatch.setattr("tightframe.jobs.measure.SAMPLE", 20)
    found = measure(images, net, workspace=workspace())
    assert [note for note in found.notes if "of all 30 images" in note and "of 20 of them" in note]
    assert not [note for note in whole.notes if "of them, drawn" in note]
    assert [row["nc1"] for row in found.rows] == pytest.approx([row["nc1"] for row in whole.rows])
    assert [row["samples_per_class"] for row in found.rows] == [[10, 10, 10]] * 3
