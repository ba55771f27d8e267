"""Class names as a classifier: against open_clip's own zero-shot pipeline, on tiny random models in its own form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tightframe import TrainConfig, load_backbone, load_images, load_tuned, rank, transfer, tune
from tightframe.backbone import OUTPUT, PENULTIMATE, Backbone
from tightframe.decide.evidence import Evidence
from tightframe.decide.start import model_of, start_of
from tightframe.decide.zero_shot import TextHead, text_head, with_texts, zero_shot
from tightframe.deploy.export import export_onnx
from tightframe.errors import ModelError, SettingsError
from tightframe.features.workspace import Workspace
from tightframe.images import ImageSplits
from tightframe.models.clip import CONFIG, WEIGHTS, class_texts
from tightframe.probes.discriminant import read_layers
from tightframe.tuning.methods import METHODS

VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
TIMM = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "timm_proj_bias": True} | {
    "image_size": 160
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "vit": (VIT, {}, 24),
    "resnet": (RESNET, {}, 24),
    "with a bias": (TIMM, {}, 64),
    "own text encoder, bias of logits": (VIT, {"custom_text": True, "init_logit_bias": -3.0}, 24),
}
CLASSES = ("red_panda", "cat", "dog", "fox", "owl")
PROMPTS = ("a photo of a {}.", "the {}")


def save(folder: Path, kind: str) -> Path:
    """A random model in open_clip's own form."""
    vision, more, width = KINDS[kind]
    folder.mkdir(exist_ok=True)
    config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": TEXT, **more}
    torch.manual_seed(4)
    shape = open_clip.CustomTextCLIP if more.get("custom_text") else open_clip.CLIP
    model = shape(**{key: value for key, value in json.loads(json.dumps(config)).items() if key != "custom_text"})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.0)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config}))
    return folder


@pytest.fixture(scope="module")
def digits() -> ImageSplits:
    return load_images("digits:5-9", max_per_class=6, test_share=0.2)


@pytest.fixture
def clip(tmp_path: Path) -> Backbone:
    return load_backbone(f"open_clip/local-dir:{save(tmp_path / 'mine', 'vit')}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [(), PROMPTS], ids=["default", "two"])
def test_logits_are_those_of_the_library(kind: str, prompts: tuple[str, ...], tmp_path: Path) -> None:
    folder = save(tmp_path / "mine", kind)
    backbone = load_backbone(f"open_clip/local-dir:{folder}")
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    names = [name.replace("_", " ") for name in CLASSES]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    weights = open_clip.build_zero_shot_classifier(model, tokenizer, names, prompts or ("a photo of a {}.",))
    images = torch.randn(6, 3, *backbone.preprocessing.input_size)
    with torch.inference_mode():
        expected = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ weights
        expected = expected + (0.0 if model.logit_bias is None else model.logit_bias)
        found = class_texts(backbone, CLASSES, prompts).logits(backbone.module(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_says_what_texts_say_but_for_the_lengths_of_embeddings(kind: str, tmp_path: Path) -> None:
    backbone = load_backbone(f"open_clip/local-dir:{save(tmp_path / 'mine', kind)}")
    data = load_images("digits:5-9", max_per_class=3, test_share=0.2).train
    layers = [PENULTIMATE, *([OUTPUT] if backbone.head is not None else [])]
    features = Workspace(precision="float32").features(backbone, data, layers)
    seen = torch.tensor(features[PENULTIMATE])
    embeddings = torch.tensor(features[layers[-1]])
    texts = class_texts(backbone, data.classes, ())
    head = text_head(backbone, seen, data.classes, ())
    lengths = embeddings.norm(dim=1, keepdim=True)
    expected = (texts.logits(embeddings) - texts.bias) * lengths / lengths.mean() + texts.bias
    torch.testing.assert_close(seen @ head.weight.T + head.bias, expected, rtol=1e-4, atol=1e-4)


def test_evidence_is_of_all_images(clip: Backbone, digits: ImageSplits) -> None:
    features = Workspace(precision="float32").features(clip, digits.train, [PENULTIMATE, OUTPUT])
    found = zero_shot(clip, features, PROMPTS)
    logits = class_texts(clip, digits.classes, PROMPTS).logits(torch.tensor(features[OUTPUT]))
    np.testing.assert_array_equal(found.log_probabilities.argmax(1), logits.argmax(1).numpy())
    np.testing.assert_allclose(np.exp(found.log_probabilities).sum(1), 1)
    assert len(found.labels) == len(digits.train)


# --- what can't be ----------------------------------------------------------------------------------------------------


def test_a_model_without_a_text_encoder_says_so(wide: Backbone, digits: ImageSplits, tmp_path: Path) -> None:
    wanted = r"has no text encoder.*open_clip/NAME/PRETRAINED"
    with pytest.raises(ModelError, match=wanted):
        class_texts(wide, ("a", "b"), ())
    for method in ("auto", "linear", "discriminant"):
        with pytest.raises(ModelError, match=wanted):
            tune(digits, wide, method=method, config=TrainConfig(epochs=1, prompts=()))
    found = rank(digits, [wide], prompts=())
    assert [row["model"] for row in found.rows] == [wide.name]
    assert any("none has a text encoder" in note for note in found.notes)


def test_prompts_want_a_place_for_the_class(clip: Backbone, digits: ImageSplits) -> None:
    for job in (
        lambda: rank(digits, [clip], prompts=("a photo",)),
        lambda: tune(digits, clip, method="linear", config=TrainConfig(prompts=("a photo",))),
    ):
        with pytest.raises(SettingsError, match=r'"a photo" has no \{\}'):
            job()


def test_prompts_and_another_start_contradict_each_other() -> None:
    with pytest.raises(SettingsError, match="--prompts start the head: leave out --head-init probe"):
        TrainConfig(prompts=(), head_init="probe")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vocab_size": 64}, "IndexError|shape"),
        ({"width": 32}, "width changed"),
        ({"heads": 3}, "divisible"),
        ({"hf_model_name": "no/such"}, "."),
    ],
)
def test_a_text_encoder_that_cannot_be_built(
    change: dict[str, Any], reason: str, tmp_path: Path, offline: Path
) -> None:
    folder = save(tmp_path / "mine", "vit")
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["text_cfg"] = TEXT | change
    (folder / CONFIG).write_text(json.dumps(config))
    backbone = load_backbone(f"open_clip/local-dir:{folder}")  # its images need no text
    with pytest.raises(ModelError, match=rf"the text encoder of open_clip/.* can't be used: .*({reason})") as failure:
        class_texts(backbone, ("a", "b"), ())
    assert "\n" not in str(failure.value)


# --- starts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "partial", "layer", "full", "lp-ft", "scl"])
@pytest.mark.parametrize("recipe", ["steady", "paper"])
def test_training_starts_from_what_texts_say(method: str, recipe: str, clip: Backbone, digits: ImageSplits) -> None:
    config = TrainConfig(prompts=PROMPTS, recipe=recipe, align="concat")
    workspace = Workspace(precision="float32")
    block = clip.layers[0].name if METHODS[method].needs_block else None
    model = model_of(clip, METHODS[method], block, 5, config, workspace)
    features = workspace.features(clip, digits.train)
    begin = start_of(model, features, PROMPTS)
    assert begin is not None
    begin(np.arange(3))
    head = text_head(clip, torch.tensor(features[PENULTIMATE]), digits.classes, PROMPTS)
    seen = torch.tensor(features[PENULTIMATE])
    with torch.inference_mode():
        found = model.head(model.neck([torch.tensor(features[name]) for name in model.read]))
    assert model.neck.standard == (recipe == "steady" and method != "linear")
    torch.testing.assert_close(found, seen @ head.weight.T + head.bias, rtol=1e-3, atol=1e-3)


def test_a_sum_with_a_block_has_no_such_start(clip: Backbone, digits: ImageSplits) -> None:
    with pytest.raises(SettingsError, match="give --align concat with --prompts"):
        tune(digits, clip, method="scl", block=clip.layers[0].name, config=TrainConfig(epochs=1, prompts=()))


def test_one_epoch_at_a_rate_of_nearly_nothing_is_zero_shot(clip: Backbone, digits: ImageSplits) -> None:
    config = TrainConfig(epochs=1, lr=(1e-12,), weight_decay=(0.0,), folds=0, prompts=())
    workspace = Workspace(precision="float32")
    tuned = tune(digits, clip, method="linear", config=config, workspace=workspace)
    features = workspace.features(clip, digits.train, [PENULTIMATE])
    head = text_head(clip, torch.tensor(features[PENULTIMATE]), digits.classes, ())
    torch.testing.assert_close(tuned.model.head.weight.detach(), head.weight, rtol=1e-4, atol=1e-5)


# --- discriminants ----------------------------------------------------------------------------------------------------


def world(seed: int, told: float) -> tuple[dict[str, np.ndarray], np.ndarray, torch.Tensor]:
    """Features of 3 × 4 images, their labels, and directions of classes that texts know as well as ``told`` says."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(3, 12))
    labels = np.repeat([0, 1, 2], 4)
    features = centers[labels] + generator.normal(size=(12, 12)) * 2
    known = torch.from_numpy(centers) * told + torch.from_numpy(generator.normal(size=(3, 12))) * (1 - told)
    return {"early": features[:, :4], PENULTIMATE: features}, labels, known


def mixed(seed: int, told: float):
    features, labels, weight = world(seed, told)
    head = TextHead(weight.float(), torch.zeros(3))
    found = read_layers(features, labels, 3)
    seen = torch.from_numpy(features[PENULTIMATE])
    return found, *with_texts(found, head, seen, labels), features, labels


def test_texts_have_a_share_by_how_well_they_predict() -> None:
    good, bad = ([mixed(seed, told)[2] for seed in range(20)] for told in (1.0, 0.0))
    assert np.mean(good) > 0.6
    assert np.mean(bad) < 0.35


def test_texts_never_raise_the_loss_of_images_left_out() -> None:
    for seed in range(10):
        for told in (0.0, 0.5, 1.0):
            plain, joined, _, _, labels = mixed(seed, told)
            before, after = (Evidence(one.held_out.numpy(), labels).log_loss for one in (plain, joined))
            assert after <= before + 0.02  # the one image of no class moves the temperature a little


def test_what_is_said_is_one_linear_map() -> None:
    plain, joined, share, features, _ = mixed(1, 1.0)
    assert 0 < share < 1
    difference = joined.logits(features)
    own = plain.logits(features)
    _, _, weight = world(1, 1.0)
    said = torch.from_numpy(features[PENULTIMATE]).double() @ weight.float().double().T
    basis = torch.stack([(own - own.mean(1, keepdim=True)).flatten(), (said - said.mean(1, keepdim=True)).flatten()], 1)
    wanted = (difference - difference.mean(1, keepdim=True)).flatten()
    left = wanted - basis @ torch.linalg.lstsq(basis, wanted).solution
    assert left.norm() < 1e-6 * wanted.norm()


def test_a_class_without_images_stays_unpredicted() -> None:
    features, labels, weight = world(0, 1.0)
    kept = labels != 2
    part = {name: values[kept] for name, values in features.items()}
    found = read_layers(part, labels[kept], 3)
    joined, _ = with_texts(
        found, TextHead(weight.float(), torch.zeros(3)), torch.from_numpy(part[PENULTIMATE]), labels[kept]
    )
    assert not (joined.logits(features).argmax(1) == 2).any()


# --- whole jobs -------------------------------------------------------------------------------------------------------


def test_rank_has_a_row_by_name_alone(clip: Backbone, wide: Backbone, digits: ImageSplits) -> None:
    found = rank(digits, [clip, wide], prompts=PROMPTS)
    names = [row["model"] for row in found.rows]
    assert sorted(names[:2]) == sorted([clip.name, wide.name])
    assert names[2:] == [f"{clip.name}, zero-shot"]
    row = found.rows[2]
    features = Workspace(precision="float32").features(clip, digits.train, [OUTPUT])
    expected = zero_shot(clip, features, PROMPTS).expected_accuracy
    assert [row[f"expected_{end}"] for end in ("accuracy", "low", "high")] == pytest.approx(list(expected))
    assert row["zero_shot"]
    assert "p_best" not in row
    assert any(note.startswith("zero-shot: class names alone") for note in found.notes)
    assert ("--prompts 'a photo of a {}.' 'the {}'" in found.next_steps[0]) == (names[0] == clip.name)
    plain = rank(digits, [clip, wide])
    assert [row["p_best"] for row in plain.rows] == [row["p_best"] for row in found.rows[:2]], "no part in P(best)"


def test_a_race_has_the_row_as_well(clip: Backbone, digits: ImageSplits) -> None:
    found = rank(digits, [clip], prompts=(), time_limit=5.0)
    assert [row.get("zero_shot", False) for row in found.rows] == [False, True]


@pytest.mark.parametrize("method", ["discriminant", "auto"])
def test_it_is_tuned_saved_loaded_and_exported(
    method: str, clip: Backbone, digits: ImageSplits, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=1, folds=2, prompts=())
    tuned = tune(digits, clip, method=method, config=config, out=tmp_path / "tuned")
    assert any("what texts say of the classes has a share of" in note for note in tuned.notes)
    images = [digits.test[0], digits.test[1]]
    assert load_tuned(tmp_path / "tuned").predict(images) == tuned.predict(images)
    export_onnx(tuned, tmp_path / "model.onnx")
    again = tune(digits, clip, method=method, config=config, out=tmp_path / "tuned", resume=True)
    assert again.predict(images) == tuned.predict(images)
    with pytest.raises(SettingsError):
        tune(digits, clip, method=method, config=replace(config, prompts=None), out=tmp_path / "tuned", resume=True)


def test_transfer_takes_prompts_for_models_that_have_texts(
    clip: Backbone, wide: Backbone, digits: ImageSplits, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=1, folds=2, prompts=())
    found = transfer(digits, [clip, wide], out=tmp_path / "run", methods=["discriminant"], config=config)
    assert any(row.get("zero_shot") for row in found.ranking.rows)
    alone = transfer(digits, [wide], out=tmp_path / "other", methods=["discriminant"], config=config)
    assert alone.tuned.backbone is wide
