"""What a GPU computes is what the processor computes, to rounding; these tests are skipped where there is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tightframe import Pretraining, TrainConfig, fewshot, load_backbone, load_images, pretrain, rank, tune
from tightframe.features.augment import Distort
from tightframe.features.precision import device_of
from tightframe.features.workspace import Workspace
from tightframe.studies import STUDIES, run_study
from tightframe.tuning.methods import METHODS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA finds")
PLAN = TrainConfig(epochs=3, search_epochs=2, lr=(0.05, 0.01), weight_decay=(1e-4, 1e-3), folds=2)


@pytest.fixture(autouse=True)
def exact():
    """Products in full single precision, so that rounding is all that differs."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def data():
    return load_images("digits:5-9", max_per_class=8, test_share=0.2)


def test_it_is_taken_by_itself():
    assert device_of("auto").type == "cuda"


def features_on(device, precision, names, data):
    return Workspace(device=device, precision=precision).features(load_backbone(names["wide"]), data.train)


def test_features(names, data):
    exact = features_on("cpu", "float32", names, data)
    seen = features_on("cuda", "float32", names, data)
    for layer in exact:
        spread = np.linalg.norm(exact[layer] - exact[layer].mean(0))
        assert np.linalg.norm(seen[layer] - exact[layer]) < 1e-4 * spread + 1e-6


def test_bfloat16_rounds_as_the_processor_does(names, data):
    exact = features_on("cpu", "float32", names, data)
    rounded = {device: features_on(device, "bfloat16", names, data) for device in ("cpu", "cuda")}
    for layer in exact:
        error = {device: np.linalg.norm(found[layer] - exact[layer]) for device, found in rounded.items()}
        assert 0 < error["cuda"] < 2 * error["cpu"]


def test_views():
    images, views = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), np.arange(16)
    made = [Distort(0.7, 1).of(images.to(device), range(16), views).cpu().int() for device in ("cpu", "cuda")]
    assert int((made[0] - made[1]).abs().max()) <= 1
    assert (made[0] != images).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("augment", ["none", "randaugment"])
def test_tuning(names, data, tmp_path, method, augment):
    plan = dataclasses.replace(PLAN, augment=augment)
    if METHODS[method].warm:  # from a probe, lower rates are due
        plan = dataclasses.replace(plan, lr=(2e-3, 5e-4))
    rows = {}
    for device in ("cpu", "cuda"):
        backbone = load_backbone(names["wide"])
        workspace = Workspace(device=device, precision="float32")
        found = tune(data, backbone, method=method, config=plan, out=tmp_path / device, workspace=workspace)
        rows[device] = found
        assert next(found.model.parameters()).device.type == device
    first, second = (rows[device].metrics for device in ("cpu", "cuda"))
    assert first["block"] == second["block"]
    if METHODS[method].closed_form:
        heads = [rows[device].model.head.weight.detach().cpu() for device in ("cpu", "cuda")]
        torch.testing.assert_close(*heads, rtol=1e-2, atol=1e-3 * float(heads[0].abs().max()))
        return
    expected = [np.exp(rows[device].evidence.log_probabilities) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*expected, atol=0.05 if augment == "none" else 0.5)
    losses = [[row["train_loss"] for row in rows[device].history][:2] for device in ("cpu", "cuda")]
    assert losses[1] == pytest.approx(losses[0], rel=0.01 if augment == "none" else 0.1)


def test_tuning_stopped_goes_on(names, data, tmp_path, monkeypatch):
    monkeypatch.setattr("tightframe.tuning.state.SAVE_SECONDS", 0.0)
    whole = tune(data, load_backbone(names["wide"]), method="full", config=PLAN, out=tmp_path / "whole")

    def stopping(items, description, total):
        for place, item in enumerate(items):
            if "training on" in description and place == 1:
                raise KeyboardInterrupt
            yield item

    how = {"method": "full", "config": PLAN, "out": tmp_path / "parts"}
    with pytest.raises(KeyboardInterrupt):
        tune(data, load_backbone(names["wide"]), workspace=Workspace(progress=stopping), **how)
    parts = tune(data, load_backbone(names["wide"]), resume=True, **how)
    for one, other in zip(whole.model.changed_state().values(), parts.model.changed_state().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)  # sums on a GPU come in any order


@pytest.mark.parametrize("loss", ["cross-entropy", "supcon"])
def test_pretraining(tmp_path, loss):
    data = load_images("digits:0-4", max_per_class=40, test_share=0.5)
    how = Pretraining("cifar_resnet8", loss, 1, augment=0.5, epochs=2, lr=0.05, batch_size=32)
    found = [
        pretrain(data, tmp_path / device, how, workspace=Workspace(device=device, precision="float32"))
        for device in ("cpu", "cuda")
    ]
    for one, other in zip(*(each.rows for each in found), strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=0.05)
        assert other["nc1"] == pytest.approx(one["nc1"], rel=0.5)  # steps magnify rounding
    assert load_backbone(f"local-dir:{tmp_path / 'cuda'}").head == "fc"
    quick = pretrain(data, tmp_path / "auto", how)
    assert quick.rows[-1]["train_loss"] == pytest.approx(found[0].rows[-1]["train_loss"], rel=0.2)


def test_ranking_and_episodes(names, data, tmp_path):
    places = [Workspace(device=device, precision="float32") for device in ("cpu", "cuda")]
    tables = [rank(data, list(names.values()), workspace=workspace).rows for workspace in places]
    for one, other in zip(*tables, strict=True):
        for measure in ("cdnv", "logme", "transrate"):  # NC1 of random features magnifies rounding
            assert other[measure] == pytest.approx(one[measure], rel=1e-2)
    backbone = load_backbone(names["wide"])
    shares = [
        fewshot(data, backbone, ways=3, shots=[1], episodes=20, queries=3, workspace=workspace).rows
        for workspace in places
    ]
    for one, other in zip(*shares, strict=True):
        assert other["accuracy"] == pytest.approx(one["accuracy"], abs=0.02)


@pytest.mark.parametrize("name", ["source-collapse", "methods", "tuned-layer"])
def test_studies(names, tmp_path, name):
    study = STUDIES[name]
    scale = dataclasses.replace(study.scales["small"], epochs=1, seeds=1, episodes=10, blocks=2)
    small = dataclasses.replace(study, scales={"small": scale})
    models = () if study.pretrains else list(names.values())
    found = run_study(small, tmp_path, models=models, data=("digits:0-4", "digits:5-9"), max_per_class=8)
    assert [row for row in found.rows if "error" in row] == []
