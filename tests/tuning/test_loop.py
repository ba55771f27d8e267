"""The loop: the same numbers from the same seed, whatever happened in between."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import nc1
from tightframe.tuning.inputs import FeatureInputs
from tightframe.tuning.loop import Diverged, Recipe, Split, fit, logits_of, predict_features
from tightframe.tuning.methods import METHODS
from tightframe.tuning.surgery import HeadOnly, TunableNetwork

CPU = torch.device("cpu")
RECIPE = Recipe(rate=0.1, decay=1e-3, epochs=4, batch_size=8, seed=3)
CLASSES = 3


class Drawn:
    """Inputs that are drawn once; counts how often each is asked for."""

    def __init__(self, size=30):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(size, 3, 32, 32, generator=generator)

    def batches(self, order, size):
        for start in range(0, len(order), size):
            indices = [int(i) for i in order[start : start + size]]
            yield indices, self.inputs[indices]


@pytest.fixture(scope="module")
def split():
    labels = np.arange(30) % CLASSES
    return Split(labels, np.arange(21), np.arange(21, 30), CLASSES)


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(30, 6, generator=generator) + torch.eye(6)[torch.arange(30) % CLASSES]


def scl(backbone):
    return TunableNetwork(backbone, METHODS["scl"], "layer2.0", CLASSES)


def head(dimension=6):
    linear = torch.nn.Linear(dimension, CLASSES)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    return HeadOnly(linear)


def trained(network, inputs, split, recipe=RECIPE, **options):
    rows = fit(network, inputs, split, recipe, device=CPU, **options)
    untimed = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return untimed, {name: tensor.clone() for name, tensor in network.changed_state().items()}


def same(first, second):
    return first[0] == second[0] and all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def test_the_rate_goes_down_a_cosine():
    recipe = Recipe(rate=0.1)
    assert recipe.rate_at(0, 100) == 0.1
    assert recipe.rate_at(50, 100) == pytest.approx((0.1 + 1e-4) / 2)
    assert recipe.rate_at(100, 100) == pytest.approx(1e-4)
    assert Recipe(rate=1e-5).rate_at(70, 100) == 1e-5  # never up


def test_the_same_seed_gives_the_same_and_another_does_not(wide, split):
    first = trained(scl(wide), Drawn(), split)
    again = scl(wide)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(first, trained(again, Drawn(), split))
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are left alone
    assert not same(first, trained(scl(wide), Drawn(), split, replace(RECIPE, seed=4)))


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_stopped_after_any_epoch_it_goes_on_to_the_same_result(wide, split, tmp_path, stop):
    undisturbed = trained(scl(wide), Drawn(), split)

    def interrupt(row):
        if row["epoch"] == stop:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(scl(wide), Drawn(), split, checkpoint=file, scope="a", on_epoch=interrupt)
    epochs = []
    resumed = trained(
        scl(wide), Drawn(), split, checkpoint=file, scope="a", on_epoch=lambda row: epochs.append(row["epoch"])
    )
    assert epochs == list(range(stop + 1, 5))
    assert same(resumed, undisturbed)


@pytest.mark.parametrize("what", ["scope", "rate", "epochs", "split", "truncated", "garbage", "another network"])
def test_a_checkpoint_of_anything_else_is_not_used(wide, split, tmp_path, what):
    file = tmp_path / "checkpoint.safetensors"
    trained(scl(wide), Drawn(), split, checkpoint=file, scope="a")
    recipe, scope, network = RECIPE, "a", scl(wide)
    if what == "scope":
        scope = "b"
    elif what in ("rate", "epochs"):
        recipe = replace(RECIPE, rate=0.2) if what == "rate" else replace(RECIPE, epochs=3)
    elif what == "split":
        split = replace(split, validation=split.validation[1:])
    elif what == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif what == "garbage":
        file.write_bytes(b"not a checkpoint")
    else:
        network = TunableNetwork(wide, METHODS["layer"], "layer3.0", CLASSES)
    epochs = []
    trained(
        network, Drawn(), split, recipe, checkpoint=file, scope=scope, on_epoch=lambda row: epochs.append(row["epoch"])
    )
    assert epochs == list(range(1, recipe.epochs + 1))


def test_a_head_trains_as_plain_pytorch_would(split, features):
    network = head()
    rows, _ = trained(network, FeatureInputs(features), split)

    expected = head().head
    optimizer = torch.optim.SGD(expected.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    labels, step, steps = torch.from_numpy(split.labels), 0, 3
    for epoch in range(1, 5):
        order = np.random.default_rng((3, epoch)).permutation(split.training)
        for start in range(0, 21, 8):
            rate = 1e-4 + (0.1 - 1e-4) * (1 + math.cos(math.pi * step / (4 * steps))) / 2
            optimizer.param_groups[0]["lr"], step = rate, step + 1
            batch = order[start : start + 8]
            optimizer.zero_grad()
            functional.cross_entropy(expected(features[batch]), labels[batch]).backward()
            optimizer.step()
    torch.testing.assert_close(network.head.weight, expected.weight)
    held_out = split.validation
    logits = expected(features[held_out]).detach()
    assert rows[-1]["validation_loss"] == pytest.approx(float(functional.cross_entropy(logits, labels[held_out])))
    assert rows[-1]["validation_accuracy"] == float((logits.argmax(1) == labels[held_out]).double().mean())
    moments = ClassMoments.from_features(features[split.training], split.labels[split.training], CLASSES)
    assert rows[-1]["nc1"] == pytest.approx(nc1(moments))


def test_features_computed_before_train_a_probe_as_pictures_do(wide, split):
    inputs = Drawn()
    whole = TunableNetwork(wide, METHODS["linear"], None, CLASSES)
    with torch.inference_mode():
        features = whole.train(False).features(inputs.inputs)
    through_network = trained(whole, inputs, split)
    alone = trained(head(16), FeatureInputs(features.clone()), split)
    for name in ("train_loss", "validation_loss", "validation_accuracy", "nc1"):
        assert [row[name] for row in through_network[0]] == pytest.approx([row[name] for row in alone[0]], rel=1e-4)


def test_logits_come_in_the_order_asked_for(split, features):
    network = head()
    torch.nn.init.normal_(network.head.weight)
    order = [7, 3, 3, 29]
    logits = logits_of(network, predict_features(network, FeatureInputs(features), order, 2, CPU, "float32"))
    torch.testing.assert_close(logits, network.head(features[order]).detach())
    nothing = predict_features(network, FeatureInputs(features), [], 2, CPU, "float32")
    assert logits_of(network, nothing).shape == (0, CLASSES)


def test_an_absurd_rate_diverges_by_name(split, features):
    with pytest.raises(Diverged, match="lower"):
        trained(head(), FeatureInputs(1e30 * features), split, replace(RECIPE, rate=1e9))


def test_without_validation_nothing_is_judged(split, features):
    rows, _ = trained(head(), FeatureInputs(features), replace(split, validation=np.arange(0)))
    assert {(row["validation_loss"], row["validation_accuracy"]) for row in rows} == {(None, None)}


def test_classes_without_two_pictures_leave_nc1_out(features):
    split = Split(np.zeros(30, dtype=np.int64), np.arange(5), np.arange(0), CLASSES)
    rows, _ = trained(head(), FeatureInputs(features), split)
    assert [row["nc1"] for row in rows] == [None] * 4


def test_no_batch_is_left_with_one_picture(wide, split):
    class Counted(Drawn):
        def batches(self, order, size):
            for indices, batch in super().batches(order, size):
                sizes.append(len(indices))
                yield indices, batch

    sizes = []
    seventeen = replace(split, training=np.arange(17), validation=np.arange(0))
    rows, _ = trained(TunableNetwork(wide, METHODS["full"], None, CLASSES), Counted(), seventeen)
    assert sizes == [8, 8] * RECIPE.epochs
    assert {row["train_accuracy"] * 16 % 1 for row in rows} == {0}
