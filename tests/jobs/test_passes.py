"""One pass means one pass: how often images are decoded, and how often they run through what is frozen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest

from tightframe import (
    TrainConfig,
    Workspace,
    compare,
    layers,
    load_backbone,
    load_images,
    measure,
    rank,
    transfer,
    tune,
)
from tightframe.images import Images
from tightframe.tuning.replay import BATCHES

CONFIG = TrainConfig(epochs=2, search_epochs=1, lr=(0.05, 0.01), weight_decay=(1e-4,))


@dataclass(frozen=True)
class Counted:
    """An image that notes when it is decoded."""

    item: object
    decoded: Counter

    @property
    def name(self):
        return self.item.name

    def digest(self):
        return self.item.digest()

    def open(self):
        self.decoded[self.name] += 1
        return self.item.open()


def counted(images: Images, decoded: Counter) -> Images:
    return replace(images, items=tuple(Counted(item, decoded) for item in images.items))


@pytest.fixture
def data():
    return load_images("digits:5-9", max_per_class=6, test_share=0.2)


@pytest.fixture
def listened(names):
    """Backbones whose first layer, which no block holds, counts the images that it is given, by backbone."""
    passed = Counter()

    def make(name, **options):
        backbone = load_backbone(names[name], **options)

        def note(module, inputs, output):
            if len(output) > max(BATCHES):  # on fewer, of noise, arithmetic is counted and cutting is tried out
                passed[name] += len(output)

        backbone.module.conv1.register_forward_hook(note)
        return backbone

    return make, passed


def test_transfer_decodes_each_image_once_and_runs_it_twice(data, listened, tmp_path):
    make, passed = listened
    train, test = Counter(), Counter()
    data = replace(data, train=counted(data.train, train), test=counted(data.test, test))
    models = [make("narrow", input_size=24), make("wide")]
    workspace = Workspace(precision="float32")
    methods = ("linear", "layer", "scl")
    found = transfer(data, models, out=tmp_path / "run", methods=methods, config=CONFIG, workspace=workspace)
    chosen = found.tuned.backbone.name
    (other,) = {"wide", "narrow"} - {chosen}
    assert set(train.values()) == {1}
    assert set(test.values()) == {1}
    assert passed[other] == len(data.train), "the ranking alone"
    assert passed[chosen] == 2 * len(data.train) + len(methods) * len(data.test)


def test_what_was_computed_for_the_ranking_serves_the_other_jobs(data, listened, tmp_path):
    make, passed = listened
    wide, workspace = make("wide"), Workspace(precision="float32")
    blind = replace(data, test=None)
    rank(blind, [wide], workspace=workspace)
    assert passed["wide"] == len(data.train)
    measure(blind, wide, workspace=workspace)
    layers(blind, wide, workspace=workspace)
    tune(blind, wide, method="discriminant", config=CONFIG, workspace=workspace)
    assert passed["wide"] == len(data.train), "the ranking has read all layers"
    tune(blind, wide, config=CONFIG, workspace=workspace)
    assert passed["wide"] == 2 * len(data.train), "block inputs"
    tune(blind, wide, method="linear", config=CONFIG, workspace=workspace)
    rank(blind, [wide], workspace=workspace)
    assert passed["wide"] == 2 * len(data.train)


@pytest.mark.slow
def test_a_folder_serves_other_processes_too(data, listened, tmp_path):
    make, passed = listened
    blind = replace(data, test=None)
    rows = measure(blind, make("wide"), workspace=Workspace(tmp_path, precision="float32")).rows
    before = passed["wide"]
    again = measure(blind, make("wide"), workspace=Workspace(tmp_path, precision="float32")).rows
    assert (passed["wide"], again) == (before, rows)


def test_the_block_is_chosen_in_one_pass_for_all_methods(data, listened, tmp_path):
    make, passed = listened
    workspace = Workspace(precision="float32")
    compare(replace(data, test=None), make("wide"), ["layer", "scl"], out=tmp_path, config=CONFIG, workspace=workspace)
    assert passed["wide"] == len(data.train)
