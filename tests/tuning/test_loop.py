"""The loop: the same numbers from the same seed, whatever happened in between."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from tightframe.features.inputs import KeptInputs
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import nc1
from tightframe.tuning.loop import Diverged, fit, logits_of, predict_features
from tightframe.tuning.methods import METHODS
from tightframe.tuning.recipe import Recipe, Split
from tightframe.tuning.state import HeadOnly
from tightframe.tuning.surgery import TunableModel

CPU = torch.device("cpu")
RECIPE = Recipe(lr=0.1, weight_decay=1e-3, epochs=4, batch_size=8, seed=3)
CLASSES = 3


class Drawn:
    """Inputs that are drawn once; counts how often each is asked for."""

    def __init__(self, size=30):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(size, 3, 32, 32, generator=generator)

    views = 1

    def batches(self, order, size, views=None):
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
    return TunableModel(backbone, METHODS["scl"], "layer2.0", CLASSES)


def head(dimension=6):
    linear = torch.nn.Linear(dimension, CLASSES)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    return HeadOnly(linear)


def trained(model, inputs, split, recipe=RECIPE, **options):
    rows = fit(model, inputs, split, recipe, device=CPU, **options)
    untimed = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return untimed, {name: tensor.clone() for name, tensor in model.changed_state().items()}


def same(first, second):
    return first[0] == second[0] and all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def test_the_rate_goes_down_a_cosine():
    recipe = Recipe(lr=0.1)
    assert recipe.lr_at(0, 100) == 0.1
    assert recipe.lr_at(50, 100) == pytest.approx((0.1 + 1e-4) / 2)
    assert recipe.lr_at(100, 100) == pytest.approx(1e-4)
    assert Recipe(lr=1e-5).lr_at(70, 100) == 1e-5  # never up
    assert Recipe(lr=1.0).lr_at(50, 100, 0.1) == recipe.lr_at(50, 100)


def test_the_head_has_a_rate_of_its_own_and_gradients_of_the_rest_are_clipped(wide, split):
    recipe = replace(RECIPE, epochs=1, batch_size=32, weight_decay=0.0, momentum=0.0)

    def moved(**options):
        model = scl(wide)
        before = {name: tensor.detach().clone() for name, tensor in model.changed_state().items()}
        _, after = trained(model, Drawn(), split, replace(recipe, **options))
        return {
            name: float(torch.linalg.vector_norm((after[name].detach() - before[name]).double()))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    plain, own = moved(), moved(head_lr=10 * recipe.lr)
    assert own["head.weight"] == pytest.approx(10 * plain["head.weight"], rel=1e-4)
    clipped = moved(head_lr=recipe.lr, clip=1e-3)
    assert clipped["head.weight"] == pytest.approx(plain["head.weight"], rel=1e-6)
    rest = [norm for name, norm in clipped.items() if not name.startswith("head.")]
    assert math.hypot(*rest) <= 1e-3 * recipe.lr * (1 + 1e-3)


def test_the_same_seed_gives_the_same_and_another_does_not(wide, split):
    first = trained(scl(wide), Drawn(), split)
    again = scl(wide)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(first, trained(again, Drawn(), split))
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are left alone
    assert not same(first, trained(scl(wide), Drawn(), split, replace(RECIPE, seed=4)))


class Stopping(Drawn):
    """Inputs that end the run at one batch of training."""

    views = 3

    def __init__(self, after):
        super().__init__()
        self.left = after

    def batches(self, order, size, views=None):
        for at, (indices, batch) in enumerate(super().batches(order, size)):
            if views is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
                batch = batch + torch.from_numpy(views[at * size :][: len(indices)]).view(-1, 1, 1, 1)
            yield indices, batch


EVERYTHING = replace(
    RECIPE,
    mixup_alpha=0.4,
    label_smoothing=0.1,
    class_weights="balanced",
    grad_accum_steps=2,
    ema_decay=0.9,
    patience=4,
)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [RECIPE, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6, 11])
def test_stopped_at_any_step_it_goes_on_to_the_same_result(wide, split, tmp_path, stop, recipe, monkeypatch):
    monkeypatch.setattr("tightframe.tuning.state.SAVE_SECONDS", 0)
    undisturbed = trained(scl(wide), Stopping(99), split, recipe)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(scl(wide), Stopping(stop), split, recipe, checkpoint=file, scope="a")
    epochs, rest = [], Stopping(12 - stop)
    resumed = trained(
        scl(wide), rest, split, recipe, checkpoint=file, scope="a", on_epoch=lambda row: epochs.append(row["epoch"])
    )
    assert rest.left == 0  # no step was made twice
    assert epochs == [1, 2, 3, 4]
    assert same(resumed, undisturbed)


@pytest.mark.parametrize("what", ["scope", "lr", "epochs", "split", "truncated", "garbage", "another model"])
def test_a_checkpoint_of_anything_else_is_not_used(wide, split, tmp_path, what):
    class Counted(Drawn):
        asked = 0

        def batches(self, order, size, views=None):
            for indices, batch in super().batches(order, size):
                self.asked += len(indices)
                yield indices, batch

    file = tmp_path / "checkpoint.safetensors"
    trained(scl(wide), Drawn(), split, checkpoint=file, scope="a")
    recipe, scope, model = RECIPE, "a", scl(wide)
    if what == "scope":
        scope = "b"
    elif what in ("lr", "epochs"):
        recipe = replace(RECIPE, lr=0.2) if what == "rate" else replace(RECIPE, epochs=3)
    elif what == "split":
        split = replace(split, validation=split.validation[1:])
    elif what == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif what == "garbage":
        file.write_bytes(b"not a checkpoint")
    else:
        model = TunableModel(wide, METHODS["layer"], "layer3.0", CLASSES)
    inputs = Counted()
    trained(model, inputs, split, recipe, checkpoint=file, scope=scope)
    assert inputs.asked == recipe.epochs * (len(split.training) + len(split.validation))


def test_a_head_trains_as_plain_pytorch_would(split, features):
    model = head()
    rows, _ = trained(model, KeptInputs(features), split)

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
    torch.testing.assert_close(model.head.weight, expected.weight)
    held_out = split.validation
    logits = expected(features[held_out]).detach()
    assert rows[-1]["validation_loss"] == pytest.approx(float(functional.cross_entropy(logits, labels[held_out])))
    assert rows[-1]["validation_accuracy"] == float((logits.argmax(1) == labels[held_out]).double().mean())
    moments = ClassMoments.from_features(features[split.training], split.labels[split.training], CLASSES)
    assert rows[-1]["nc1"] == pytest.approx(nc1(moments))


def test_features_computed_before_train_a_probe_as_images_do(wide, split):
    inputs = Drawn()
    whole = TunableModel(wide, METHODS["linear"], None, CLASSES)
    with torch.inference_mode():
        features = whole.train(False).features(inputs.inputs)
    through_model = trained(whole, inputs, split)
    alone = trained(head(16), KeptInputs(features.clone()), split)
    for name in ("train_loss", "validation_loss", "validation_accuracy", "nc1"):
        assert [row[name] for row in through_model[0]] == pytest.approx([row[name] for row in alone[0]], rel=1e-4)


def test_logits_come_in_the_order_asked_for(split, features):
    model = head()
    torch.nn.init.normal_(model.head.weight)
    order = [7, 3, 3, 29]
    logits = logits_of(model, predict_features(model, KeptInputs(features), order, 2, CPU, "float32"))
    torch.testing.assert_close(logits, model.head(features[order]).detach())
    nothing = predict_features(model, KeptInputs(features), [], 2, CPU, "float32")
    assert logits_of(model, nothing).shape == (0, CLASSES)


def test_an_absurd_rate_diverges_by_name(split, features):
    with pytest.raises(Diverged, match="lower"):
        trained(head(), KeptInputs(1e30 * features), split, replace(RECIPE, lr=1e9))


def test_without_validation_nothing_is_judged(split, features):
    rows, _ = trained(head(), KeptInputs(features), replace(split, validation=np.arange(0)))
    assert {(row["validation_loss"], row["validation_accuracy"]) for row in rows} == {(None, None)}


def test_classes_without_two_images_leave_nc1_out(features):
    split = Split(np.zeros(30, dtype=np.int64), np.arange(5), np.arange(0), CLASSES)
    rows, _ = trained(head(), KeptInputs(features), split)
    assert [row["nc1"] for row in rows] == [None] * 4


def test_no_batch_is_left_with_one_image(wide, split):
    class Counted(Drawn):
        def batches(self, order, size, views=None):
            for indices, batch in super().batches(order, size):
                sizes.append(len(indices))
                yield indices, batch

    sizes = []
    seventeen = replace(split, training=np.arange(17), validation=np.arange(0))
    rows, _ = trained(TunableModel(wide, METHODS["full"], None, CLASSES), Counted(), seventeen)
    assert sizes == [8, 8] * RECIPE.epochs
    assert {row["train_accuracy"] * 16 % 1 for row in rows} == {0}


def accuracies(rows):
    return [row["validation_accuracy"] for row in rows]


def test_a_batch_in_parts_trains_as_in_one(split, features):
    whole, parts = (trained(head(), KeptInputs(features), split, replace(RECIPE, grad_accum_steps=a)) for a in (1, 3))
    for name, tensor in whole[1].items():
        torch.testing.assert_close(tensor, parts[1][name])
    assert [row["train_loss"] for row in whole[0]] == pytest.approx([row["train_loss"] for row in parts[0]])


def test_smoothing_and_balance_are_pytorchs(split, features):
    few = replace(split, training=np.array([0, 1, 2, 3, 6, 9, 12, 15]))  # six of class 0, one each of the others
    recipe = replace(RECIPE, epochs=1, batch_size=8, label_smoothing=0.2, class_weights="balanced")
    model = head()
    rows, _ = trained(model, KeptInputs(features), few, recipe)
    weights = torch.tensor([8 / (3 * 6), 8 / 3, 8 / 3])
    expected = head().head
    labels = torch.from_numpy(split.labels)[few.training]
    loss = functional.cross_entropy(expected(features[few.training]), labels, weights, label_smoothing=0.2)
    loss.backward()
    assert rows[0]["train_loss"] == pytest.approx(float(loss.detach()))
    step = -0.1 * (expected.weight.grad)
    torch.testing.assert_close(model.head.weight, step, rtol=1e-5, atol=1e-6)


def test_mixed_images_lie_between_two(split, features):
    seen = []

    class Watched(HeadOnly):
        def features(self, inputs):
            if self.training:
                seen.append(inputs)
            return inputs

    model = Watched(head().head)
    rows, _ = trained(model, KeptInputs(features), split, replace(RECIPE, mixup_alpha=1.0))
    mixed = torch.cat(seen)
    apart = (mixed[:, None] - features[None]).norm(dim=2).min(1).values
    assert (apart > 1e-3).double().mean() > 0.5
    middle = (features[:, None] + features[None]) / 2
    spans = (features[:, None] - features[None]).norm(dim=2)
    off = (2 * (mixed[:, None, None] - middle[None]).norm(dim=3) - spans[None]).flatten(1).min(1).values
    assert (off < 1e-4).all()  # every one on the line between two, where its distances to both ends add up
    assert rows[-1]["validation_loss"] < math.log(CLASSES)


def test_the_average_follows_and_is_what_is_judged(split, features):
    recipe = replace(RECIPE, ema_decay=0.99, lr=0.5)
    plain, averaged = head(), head()
    trained(plain, KeptInputs(features), split, replace(recipe, ema_decay=0.0))
    rows, _ = trained(averaged, KeptInputs(features), split, recipe)
    assert not torch.allclose(plain.head.weight, averaged.head.weight)
    assert averaged.head.weight.norm() < plain.head.weight.norm()  # it starts at zero and lags
    logits = averaged.head(features[split.validation])
    judged = float(functional.cross_entropy(logits.detach(), torch.from_numpy(split.labels[split.validation])))
    assert rows[-1]["validation_loss"] == pytest.approx(judged)


def test_out_of_patience_it_goes_back_to_the_best_epoch(split, features):
    recipe = replace(RECIPE, lr=30.0, epochs=40, patience=3)
    model = head()
    rows, _ = trained(model, KeptInputs(features), split, recipe)
    losses = [row["validation_loss"] for row in rows]
    assert len(rows) == np.argmin(losses) + 1 + 3 < 40
    logits = model.head(features[split.validation])
    kept = float(functional.cross_entropy(logits.detach(), torch.from_numpy(split.labels[split.validation])))
    assert kept == pytest.approx(min(losses))


def test_views_of_an_image_are_all_shown(split, features):
    views = torch.cat([features, features + 100, features + 200])
    shown = set()

    class Watched(HeadOnly):
        def features(self, inputs):
            if self.training:
                shown.update((inputs.mean(1) / 100).round().int().tolist())
            else:
                assert inputs.mean() < 50  # judged as they are
            return inputs

    trained(Watched(head().head), KeptInputs(views, views=3), split)
    assert shown == {0, 1, 2}


def test_a_loss_that_is_not_finite_is_no_best_epoch(split, features):
    class Spoiling(KeptInputs):
        def batches(self, order, size, views=None):
            judging = len(order) == len(split.validation)
            for indices, batch in super().batches(order, size, views):
                yield indices, batch * float("nan") if judging and not self.spoilt else batch
            if judging:
                self.spoilt.append(1)

    inputs = Spoiling(features)
    object.__setattr__(inputs, "spoilt", [])
    rows, _ = trained(head(), inputs, split, replace(RECIPE, patience=2))
    assert math.isnan(rows[0]["validation_loss"])
    assert len(rows) > 2
