"""The demo's own models: really pre-trained, and better at digits they have not seen than an untrained twin."""

from __future__ import annotations

import dataclasses

import pytest

from tightframe import load_backbone, load_images, rank
from tightframe.jobs import demo


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    short = dataclasses.replace(demo.PRETRAINING, epochs=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "PRETRAINING", short)
        folder = tmp_path_factory.mktemp("demo")
        yield folder, demo.candidates(folder)


@pytest.mark.slow
def test_pretraining_on_some_digits_helps_on_the_others(models):
    _, candidates = models
    result = rank(demo.downstream(), candidates)
    assert [row["model"] for row in result.rows][-1] == "digits_resnet (untrained)"
    assert result.rows[0]["probe_accuracy"] > result.rows[-1]["probe_accuracy"] + 0.1
    assert result.rows[0]["nc1"] < result.rows[-1]["nc1"]


@pytest.mark.slow
def test_they_are_made_once_and_are_plain_models(models):
    folder, (first, *_) = models
    weights = (folder / "digits_resnet" / "model.safetensors").stat().st_mtime_ns
    demo.candidates(folder)
    assert (folder / "digits_resnet" / "model.safetensors").stat().st_mtime_ns == weights
    backbone = load_backbone(first)
    assert backbone.module.fc.out_features == 5
    assert backbone.fingerprint != load_backbone(first, pretrained=False).fingerprint


def test_source_and_downstream_share_no_class():
    source, downstream = load_images(demo.SOURCE), demo.downstream()
    assert not set(source.classes) & set(downstream.classes)
    assert list(map(int, [sum(downstream.train.labels == k) for k in range(5)])) == [demo.SHOTS] * 5
