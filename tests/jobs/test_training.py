"""What tuning does beyond the loop: views, patience, time, warm starts, warnings, logs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tightframe import TrainConfig, load_backbone, load_images, tune
from tightframe.data.selection import stratified
from tightframe.decide.training import best, overfitting
from tightframe.errors import SettingsError
from tightframe.features.workspace import Workspace
from tightframe.tuning.loop import Diverged
from tightframe.tuning.recipe import Recipe

MODEL = f"{Path(__file__).parent / 'small_model.py'}:make"
PLAN = TrainConfig(epochs=4, search_epochs=2, lr=(0.05, 0.01), weight_decay=(1e-4, 1e-3), batch_size=8, folds=0)


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-9", max_per_class=10, test_share=0.2)


@pytest.fixture(scope="module")
def small():
    return load_backbone(MODEL)


def phases(tuned):
    return [(row["phase"], row["initial_lr"], row["weight_decay"]) for row in tuned.history if "initial_lr" in row]


def test_a_probe_tries_the_whole_grid_at_once_and_the_rest_one_choice_after_the_other(data, small):
    probe, block = (
        tune(data, small, method=m, block=layer, config=PLAN) for m, layer in (("linear", "auto"), ("scl", "1"))
    )
    assert {trial[1:] for trial in phases(probe) if trial[0] == "search"} == {
        (rate, decay) for rate in PLAN.lr for decay in PLAN.weight_decay
    }
    assert len({trial for trial in phases(block) if trial[0] == "search"}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("method", "layer"), [("linear", "auto"), ("scl", "1"), ("full", "auto")])
@pytest.mark.parametrize("augment", ["flip", "randaugment"])
def test_views_change_training_and_are_the_same_again(data, small, method, layer, augment):
    plan = replace(PLAN, lr=(0.05,), weight_decay=(1e-4,), augment=augment, views=3)
    plain = tune(data, small, method=method, block=layer, config=replace(plan, augment="none"))
    found, again = (tune(data, small, method=method, block=layer, config=plan) for _ in range(2))
    for name, tensor in found.model.changed_state().items():
        assert torch.equal(tensor, again.model.changed_state()[name]), name
    assert not torch.equal(found.model.head.weight, plain.model.head.weight)


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_kept_views_train_as_the_whole_model_does(data, small, augment):
    """With as many views kept as there are, what is kept and what is run each time are the same images."""
    plan = replace(PLAN, lr=(0.05,), weight_decay=(1e-4,), augment=augment, views=2)
    kept = tune(data, small, method="scl", block="1", config=plan)
    if augment == "none":
        whole = tune(data, small, method="scl", block="1", config=replace(plan, prefix_cache_gb=0.0))
        torch.testing.assert_close(kept.model.head.weight, whole.model.head.weight, rtol=1e-2, atol=1e-3)
    assert kept.history[-1]["train_loss"] < np.log(5)


def test_with_patience_images_are_held_out_to_the_end(data, small):
    plan = replace(PLAN, lr=(2.0,), weight_decay=(1e-4,), epochs=40, patience=2)
    tuned = tune(data, small, method="linear", config=plan)
    losses = [row["validation_loss"] for row in tuned.history if row["phase"] == "final"]
    assert len(losses) == np.argmin(losses) + 3 < 40
    kept, held_out = stratified(data.train.labels, plan.validation_share, plan.seed)
    logits, _ = tuned.logits_and_features(data.train)
    labels = torch.tensor(data.train.labels)
    loss = torch.nn.functional.cross_entropy(logits[held_out], labels[held_out])
    assert float(loss) == pytest.approx(min(losses), rel=1e-2)  # there in float32, here maybe in bfloat16
    assert len(kept) + len(held_out) == len(data.train)


@pytest.mark.slow
def test_little_time_tries_fewer_rates_and_trains_less_but_gives_a_model(data, small, tmp_path):
    plan = replace(PLAN, epochs=5000, search_epochs=200, lr=(0.05, 0.02, 0.01), time_limit=0.05)
    tuned = tune(data, small, method="scl", block="1", config=plan, out=tmp_path / "a")
    assert tuned.metrics["seconds"] < 60 * 0.05 * 3
    assert tuned.metrics["epochs"] < 5000
    assert any("of 5000 epochs, within the time limit" in note for note in tuned.notes)
    assert len([row for row in tuned.history if row["phase"] == "final"]) == tuned.metrics["epochs"]


@pytest.mark.slow
def test_without_a_search_an_epoch_tells_how_many_there_is_time_for(data, small):
    plan = replace(PLAN, epochs=5000, lr=(0.01,), weight_decay=(1e-4,), time_limit=0.03)
    tuned = tune(data, small, method="scl", block="1", config=plan)
    assert 1 <= tuned.metrics["epochs"] < 5000
    enough = tune(data, small, method="scl", block="1", config=replace(plan, epochs=3, time_limit=10.0))
    unlimited = tune(data, small, method="scl", block="1", config=replace(plan, epochs=3, time_limit=None))
    assert torch.equal(enough.model.head.weight, unlimited.model.head.weight)


def test_a_warm_start_has_not_seen_the_images_that_judge_it(data, small, monkeypatch):
    seen = []
    import tightframe.decide.start as job

    fitted = job.cross_validated_logistic

    def watched(folds):
        seen.append(len(folds.labels))
        return fitted(folds)

    monkeypatch.setattr(job, "cross_validated_logistic", watched)
    tune(data, small, method="lp-ft", config=replace(PLAN, weight_decay=(1e-4,)))
    kept, _ = stratified(data.train.labels, PLAN.validation_share, PLAN.seed)
    assert seen == [len(kept), len(data.train)]  # each once, however many trials start from it


def test_no_fold_has_seen_the_images_that_it_predicts(data, small, monkeypatch):
    import tightframe.decide.training as job

    fitted, judged, trained, held = job.fit, job.predict_features, [], []

    def fit(model, inputs, split, recipe, **options):
        trained.append(set(split.training.tolist()))
        assert recipe.epochs == PLAN.epochs, "for as long as the model itself"
        return fitted(model, inputs, split, recipe, **options)

    def predict(model, inputs, order, *rest):
        held.append(set(order.tolist()))
        return judged(model, inputs, order, *rest)

    monkeypatch.setattr(job, "fit", fit)
    monkeypatch.setattr(job, "predict_features", predict)
    plan = replace(PLAN, lr=(0.05,), weight_decay=(1e-4,), folds=3)
    tuned = tune(data, small, method="scl", block="1", config=plan)
    everything = set(range(len(data.train)))
    assert [one | other for one, other in zip(trained[:3], held, strict=True)] == [everything] * 3
    assert not any(one & other for one, other in zip(trained[:3], held, strict=True))
    assert trained[3:] == [everything]
    assert len(tuned.evidence.labels) == len(everything) == sum(map(len, held))


@pytest.mark.parametrize(("start", "minutes"), [("probe", None), ("zeros", 5.0)])
def test_every_trial_of_a_probe_starts_where_training_does(data, small, monkeypatch, start, minutes):
    import tightframe.decide.training as job

    fitted, seen = job.fit_heads, []

    def watched(head, *rest, **options):
        seen.append(float(head.weight.detach().norm()))
        return fitted(head, *rest, **options)

    monkeypatch.setattr(job, "fit_heads", watched)
    tune(data, small, method="linear", config=replace(PLAN, head_init=start, time_limit=minutes))
    (norm,) = seen
    assert norm > 1 if start == "probe" else norm == 0


def test_a_probe_is_fitted_to_an_image_of_each_class_or_none(small):
    data = load_images("digits:5-9", max_per_class=2, test_share=0.2)
    tuned = tune(data, small, method="scl", block="1", config=replace(PLAN, head_init="probe"))
    assert tuned.metrics["test_accuracy"] >= 0
    some = replace(data, train=data.train.subset(np.flatnonzero(data.train.labels < 3)))
    tuned = tune(some, small, method="scl", block="1", config=replace(PLAN, head_init="probe"))
    assert all(torch.isfinite(tensor).all() for tensor in tuned.model.changed_state().values())


def test_patience_that_holds_images_out_is_not_told_that_there_are_none(data, small):
    plan = replace(PLAN, lr=(0.01,), weight_decay=(1e-4,), patience=1)
    assert not [
        note for note in tune(data, small, method="scl", block="1", config=plan).notes if "too few images" in note
    ]


@pytest.mark.parametrize("broken", [1, 2])
def test_training_that_falls_apart_is_done_again_at_a_lower_rate(data, small, monkeypatch, broken):
    import tightframe.decide.training as job

    fitted = job.fit

    def breaking(model, inputs, split, recipe, **options):
        found = fitted(model, inputs, split, recipe, **options)
        if not len(split.validation) and recipe.lr in sorted(PLAN.lr)[-broken:]:
            found[-1]["train_accuracy"] = 0.0
        return found

    monkeypatch.setattr(job, "fit", breaking)
    monkeypatch.setattr(job, "best", lambda tried: max(tried, key=lambda recipe: recipe.lr))
    tuned = tune(data, small, method="scl", block="1", config=PLAN)
    assert tuned.metrics["lr"] == min(PLAN.lr)
    told = [note for note in tuned.notes if "collapsed at" in note]
    assert len(told) == broken
    assert told[0].endswith("at learning rate 0.05; 0.01 was used instead")
    assert broken == 1 or "--lr" in told[1]


def rows(train, accuracies, losses):
    return [
        {"epoch": e, "train_accuracy": train, "validation_accuracy": a, "validation_loss": loss}
        for e, (a, loss) in enumerate(zip(accuracies, losses, strict=True), 1)
    ]


def test_overfitting_is_named_and_only_where_it_is_sure():
    (gap,) = overfitting(rows(1.0, [0.5, 0.5], [1.0, 1.0]), 200, "full wide")
    assert gap.startswith("full wide overfits: 100 % accuracy on the images that it trains on")
    assert "50 % on 200 held out" in gap
    assert "--augment" in gap
    (rise,) = overfitting(rows(0.9, [0.85, 0.85, 0.85], [0.9, 0.5, 0.8]), 200, "full wide")
    assert "lowest in epoch 2 of 3" in rise
    assert "1.6 times" in rise
    assert overfitting(rows(0.9, [0.85], [0.5]), 200, "") == []
    assert overfitting(rows(1.0, [0.6], [0.5]), 5, "") == []  # five images say little
    assert overfitting([], 5, "") == []
    assert overfitting(rows(1.0, [None], [None]), 5, "") == []


@pytest.mark.slow
def test_a_model_that_learns_by_heart_is_told_of(data, small):
    labels = np.random.default_rng(0).permutation(data.train.labels)  # nothing to learn but by heart
    shuffled = replace(data, train=replace(data.train, labels=labels))
    searched = TrainConfig(
        epochs=60, search_epochs=60, lr=(0.1, 0.05), weight_decay=(1e-4,), batch_size=8, recipe="paper"
    )
    for plan in (replace(searched, folds=0), replace(searched, lr=(0.1,), folds=2)):
        (told,) = [note for note in tune(shuffled, small, method="full", config=plan).notes if "overfits" in note]
        assert f"on {len(shuffled.train)} held out" in told or plan.folds == 0


def test_if_every_rate_diverges_it_says_which():
    with pytest.raises(Diverged, match=r"0.1, 0.5"):
        best({Recipe(lr=0.5): [], Recipe(lr=0.1): []})


def test_every_row_is_logged_once_also_after_a_stop(data, small, tmp_path, stopping_at, monkeypatch):
    monkeypatch.setattr("tightframe.tuning.state.SAVE_SECONDS", 0)
    whole = tune(data, small, method="scl", block="1", config=PLAN, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tune(
            data,
            small,
            method="scl",
            block="1",
            config=PLAN,
            out=tmp_path / "cut",
            workspace=Workspace(progress=stopping_at(9)),
        )
    tune(data, small, method="scl", block="1", config=PLAN, out=tmp_path / "cut", resume=True)
    logs = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("whole", "cut")
    ]
    for rows in logs:
        assert [(row["epoch"], row["train_loss"]) for row in rows] == [
            (row["epoch"], row["train_loss"]) for row in whole.history
        ]
    assert logs[0][-1]["series"].startswith("final ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views": 1}, "views"),
        ({"label_smoothing": 1.0}, "--label-smoothing"),
        ({"ema_decay": 1.0}, "--ema-decay"),
        ({"mixup_alpha": float("nan")}, "--mixup-alpha"),
        ({"grad_accum_steps": 0}, "--grad-accum-steps"),
        ({"patience": 0}, "patience"),
        ({"time_limit": 0.0}, "--time-limit"),
    ],
)
def test_values_out_of_range_are_refused(data, small, change, said):
    with pytest.raises(SettingsError, match=said):
        tune(data, small, method="scl", block="1", config=replace(PLAN, **change))


def test_logs_are_checked_before_any_work(data, small, tmp_path):
    with pytest.raises(SettingsError, match="tensorboard"):
        tune(data, small, method="scl", block="1", config=PLAN, log_to=["comet"], out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
