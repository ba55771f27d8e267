"""Vision models of transformers: what the library itself computes, on images as its own processors prepare them."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.utils import logging

from tightframe import TrainConfig, load_backbone, load_images, load_tuned, measure, tune
from tightframe.errors import HubUnreachable, ModelError
from tightframe.features.taps import tapped
from tightframe.features.workspace import Workspace
from tightframe.models.names import short_name
from tightframe.models.preprocessing import crop_share

SQUARE = {"height": 32, "width": 32}
VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
VIT |= {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 2, 1, 1]}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 64}


@dataclass(frozen=True)
class Family:
    """A tiny model of transformers and what is known of it."""

    model: str
    config: Any
    layers: list[str]
    head: str | None
    width: int
    processor: Any = None


def clip() -> Any:
    return transformers.CLIPConfig(text_config=TEXT, vision_config=VIT, projection_dim=8)


LEVIT = {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1]}
LEVIT |= {"key_dim": [8, 8, 8]}
FAMILIES = {
    "vit": Family("ViTModel", transformers.ViTConfig(**VIT), [f"model.layers.{n}" for n in range(3)], None, 16),
    "vit classifier": Family(
        "ViTForImageClassification",
        transformers.ViTConfig(**VIT, num_labels=5),
        [f"model.vit.layers.{n}" for n in range(3)],
        "model.classifier",
        16,
    ),
    "convnext classifier": Family(
        "ConvNextForImageClassification",
        transformers.ConvNextConfig(**STAGES, num_labels=5),
        [f"model.convnext.encoder.stages.{s}.layers.{n}" for s, depth in enumerate((1, 2, 1, 1)) for n in range(depth)],
        "model.classifier",
        16,
    ),
    "resnet": Family(
        "ResNetModel",
        transformers.ResNetConfig(**STAGES, embedding_size=8, layer_type="basic"),
        [f"model.encoder.stages.{s}.layers.{n}" for s, depth in enumerate((1, 2, 1, 1)) for n in range(depth)],
        None,
        16,
    ),
    "resnet classifier": Family(
        "ResNetForImageClassification",
        transformers.ResNetConfig(**STAGES, embedding_size=8, layer_type="basic", num_labels=5),
        [f"model.resnet.encoder.stages.{s}.layers.{n}" for s, depth in enumerate((1, 2, 1, 1)) for n in range(depth)],
        "model.classifier.1",
        16,
    ),
    "dinov2 classifier": Family(
        "Dinov2ForImageClassification",
        transformers.Dinov2Config(**VIT, num_labels=5),
        [f"model.dinov2.encoder.layer.{n}" for n in range(3)],
        "model.classifier",
        32,
    ),
    "swin": Family(
        "SwinModel",
        transformers.SwinConfig(**SWIN),
        [f"model.encoder.layers.{s}.blocks.{n}" for s in range(2) for n in range(2)],
        None,
        16,
    ),
    "clip": Family("CLIPModel", clip(), [f"model.encoder.layers.{n}" for n in range(3)], None, 16),
    "siglip vision": Family(
        "SiglipVisionModel",
        transformers.SiglipVisionConfig(**VIT),
        [*(f"model.encoder.layers.{n}" for n in range(3)), "model.head"],  # it pools by attention
        None,
        16,
    ),
}


def save(folder: Path, family: Family, processor: Any = None) -> Path:
    """A random model in transformers' own form."""
    torch.manual_seed(4)
    logging.disable_progress_bar()
    getattr(transformers, family.model)(family.config).save_pretrained(folder)
    (processor or transformers.ViTImageProcessor(size=SQUARE)).save_pretrained(folder)
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "mine", FAMILIES["vit classifier"])


def theirs(folder: Path, family: Family, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and output as transformers computes them."""
    model = getattr(transformers, family.model).from_pretrained(folder).eval()
    if family.model == "CLIPModel":
        model = model.vision_model
    seen: list[Tensor] = []
    if hasattr(model, "classifier"):
        model.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    with torch.inference_mode():
        found = model(images)
    return (seen[0], found.logits) if seen else (found.pooler_output.flatten(1),) * 2


@pytest.mark.parametrize("name", FAMILIES)
def test_features_and_output_are_the_librarys(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    backbone = load_backbone(f"hf/{save(tmp_path / 'mine', family)}")
    images = torch.randn(3, 3, 32, 32)
    expected = theirs(tmp_path / "mine", family, images)
    with torch.inference_mode(), tapped(backbone, ["penultimate"]) as read:
        output = backbone.module(images)
    torch.testing.assert_close(read["penultimate"], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output, expected[1], rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in backbone.layers] == family.layers
    assert (backbone.head, backbone.penultimate.dimension) == (family.head, family.width)


def test_features_of_images_as_the_processor_prepares_them(saved: Path) -> None:
    data = load_images("digits:5-9", max_per_class=3, test_share=0.2).train
    processor = AutoImageProcessor.from_pretrained(saved)
    prepared = processor(images=[data[index] for index in range(len(data))], return_tensors="pt")["pixel_values"]
    expected, _ = theirs(saved, FAMILIES["vit classifier"], prepared)
    found = Workspace(precision="float32").features(load_backbone(f"hf/{saved}"), data)["penultimate"]
    apart = np.linalg.norm(found - expected.numpy(), axis=1) / np.linalg.norm(expected.numpy(), axis=1)
    assert apart.max() < 0.01  # the processor resizes tensors, not images: see below


PROCESSORS = {
    "squash": transformers.ViTImageProcessor(size=SQUARE, resample=2),
    "bicubic": transformers.ViTImageProcessor(size={"height": 24, "width": 40}, resample=3),
    "crop": transformers.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE),
    "odd crop": transformers.BitImageProcessor(size={"shortest_edge": 49}, crop_size=SQUARE),
    "squash, then crop": transformers.DeiTImageProcessor(size={"height": 36, "width": 36}, crop_size=SQUARE),
    "convnext": transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
    "large convnext": transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
    "not normalized": transformers.ViTImageProcessor(size=SQUARE, do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_prepared_as_the_processor_does(name: str, tmp_path: Path, photo: Image.Image) -> None:
    save(tmp_path / "mine", FAMILIES["resnet"], PROCESSORS[name])
    wanted = load_backbone(f"hf/{tmp_path / 'mine'}").preprocessing
    found = wanted.normalize(wanted.pixels(photo)[None])[0]
    expected = PROCESSORS[name](images=photo, return_tensors="pt")["pixel_values"][0]
    levels = 255 * (found - expected).abs() * torch.tensor(wanted.std).view(3, 1, 1)
    assert levels.mean() < 0.5  # of 256: Pillow and torch round differently when they resize
    assert levels.max() < 6


def test_a_crop_that_is_rounded_another_way_is_no_other_image(tmp_path: Path) -> None:
    save(
        tmp_path / "mine",
        FAMILIES["resnet"],
        transformers.CLIPImageProcessor(size={"shortest_edge": 37}, crop_size=SQUARE),
    )
    assert load_backbone(f"hf/{tmp_path / 'mine'}").preprocessing.crop_pct == 32 / 37


def test_a_share_comes_to_whole_pixels() -> None:
    assert all(
        int(crop / crop_share(crop, side)) == side for crop in (32, 49, 224, 518) for side in range(crop, 3 * crop)
    )


@pytest.mark.parametrize(
    "processor",
    [
        transformers.EfficientNetImageProcessor(size=SQUARE),  # normalizes twice
        transformers.MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE),  # swaps red and blue
        transformers.ViTImageProcessor(size=SQUARE, do_rescale=False),
        transformers.ViTImageProcessor(size=SQUARE, do_resize=False),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_a_processor_that_does_something_else_is_refused(processor: Any, tmp_path: Path) -> None:
    save(tmp_path / "mine", FAMILIES["resnet"], processor)
    with pytest.raises(ModelError, match=f"can't be prepared as its {type(processor).__name__} does: .*FUNCTION"):
        load_backbone(f"hf/{tmp_path / 'mine'}")


def test_without_a_processor_images_have_to_be_described(saved: Path) -> None:
    (saved / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"no preprocessor_config.json.*--input-size, --mean and --std"):
        load_backbone(f"hf/{saved}")
    wanted = load_backbone(f"hf/{saved}", input_size=32, mean=(0.5,) * 3, std=(0.25,) * 3).preprocessing
    assert (wanted.input_size, wanted.std) == ((32, 32), (0.25,) * 3)


def test_a_pooler_without_weights_is_not_made_up(tmp_path: Path) -> None:
    torch.manual_seed(4)
    config = FAMILIES["vit"].config
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size=SQUARE).save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(images).last_hidden_state[:, 0]
        torch.testing.assert_close(load_backbone(f"hf/{tmp_path}").module(images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "tokens"), [("vit", 1), ("clip", 1), ("swin", 0), ("siglip vision", 0)])
def test_tokens_are_pooled_as_the_head_does(name: str, tokens: int, tmp_path: Path) -> None:
    backbone = load_backbone(f"hf/{save(tmp_path, FAMILIES[name])}")
    assert {layer.prefix_tokens for layer in backbone.layers} == {tokens}
    assert backbone.token_pool == ("cls" if tokens else "mean")


def test_a_model_that_hides_patches_is_refused(tmp_path: Path) -> None:
    save(tmp_path, Family("ViTMAEModel", transformers.ViTMAEConfig(**VIT), [], None, 16))
    with pytest.raises(ModelError, match="hides patches at random"):
        load_backbone(f"hf/{tmp_path}")


def test_registers_are_prefix_tokens(tmp_path: Path) -> None:
    config = transformers.Dinov2WithRegistersConfig(**VIT, num_register_tokens=4)
    backbone = load_backbone(f"hf/{save(tmp_path, Family('Dinov2WithRegistersModel', config, [], None, 16))}")
    assert backbone.layers[0].prefix_tokens == 5


def test_random_weights_are_the_same_every_time(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    first, second = (load_backbone(f"hf/{saved}", pretrained=False) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.name == "mine (untrained)"


def test_the_fingerprint_holds_what_weights_do_not_tell_and_not_the_place(saved: Path, tmp_path: Path) -> None:
    before, alike = (
        load_backbone(f"hf/{folder}") for folder in (saved, save(tmp_path / "b", FAMILIES["vit classifier"]))
    )
    changed(saved, num_attention_heads=4)
    after = load_backbone(f"hf/{saved}")
    assert before.fingerprint == alike.fingerprint != after.fingerprint
    assert before.weights == after.weights


def test_the_origin_makes_it_again_from_anywhere(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    made = load_backbone("hf/mine", mean=(0.0, 0.0, 0.0))
    monkeypatch.chdir("/")
    again = load_backbone(**json.loads(json.dumps(made.origin)))
    assert (again.fingerprint, again.name, again.origin) == (made.fingerprint, "mine", made.origin)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit classifier", "convnext classifier", "resnet", "clip"])
def test_it_is_measured_tuned_saved_and_loaded(name: str, tmp_path: Path) -> None:
    data = load_images("digits:5-9", max_per_class=6, test_share=0.2)
    family = FAMILIES[name]
    backbone = load_backbone(f"hf/{save(tmp_path / 'mine', family)}")
    assert [row["layer"] for row in measure(data, backbone).rows] == [*family.layers, "penultimate"]
    plan = TrainConfig(epochs=2, search_epochs=1, lr=(0.01,), weight_decay=(1e-4,))
    tuned = tune(data, backbone, method="scl", config=plan, out=tmp_path / "tuned")
    images = [data.test[0], data.test[1]]
    assert load_tuned(tmp_path / "tuned").predict(images) == tuned.predict(images)
    assert not any("trained whole" in note for note in tuned.notes)
    uncut = tune(data, backbone, method="scl", config=replace(plan, prefix_cache_gb=0.0))
    assert tuned.history[-1]["train_loss"] == pytest.approx(uncut.history[-1]["train_loss"], rel=2e-2)


def test_images_of_another_size_resample_the_position_embedding(saved: Path, tmp_path: Path) -> None:
    backbone = load_backbone(f"hf/{saved}", input_size=2 * VIT["image_size"])
    usual = load_backbone(f"hf/{saved}")
    assert backbone.weights == usual.weights
    assert backbone.fingerprint != usual.fingerprint
    images = torch.randn(2, 3, *backbone.preprocessing.input_size)
    with torch.inference_mode():
        wanted = usual.module.model(images, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(backbone.module(images), wanted)
    fixed = save(tmp_path / "levit", Family("LevitModel", transformers.LevitConfig(**LEVIT), [], None, 16))
    with pytest.raises(ModelError, match="can't take color images of 32 × 32"):
        load_backbone(f"hf/{fixed}", input_size=32)


def test_a_block_that_the_classifier_does_not_depend_on_is_no_candidate(tmp_path: Path) -> None:
    config = transformers.SiglipConfig(vision_config=VIT, num_labels=5)  # whose vision part pools by attention, unasked
    family = Family("SiglipForImageClassification", config, [], None, 16)
    backbone = load_backbone(f"hf/{save(tmp_path / 'mine', family)}")
    assert [layer.name for layer in backbone.layers] == [f"model.vision_model.encoder.layers.{n}" for n in range(3)]


def test_the_librarys_own_remarks_are_left_as_they_were(saved: Path) -> None:
    logging.enable_progress_bar()
    before = logging.get_verbosity()
    load_backbone(f"hf/{saved}")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (before, True)


# --- names and downloads ----------------------------------------------------------------------------------------------


def test_names() -> None:
    assert short_name("hf/google/vit-base-patch16-224") == "google/vit-base-patch16-224"
    assert short_name("hf//some/mine") == short_name("hf/./mine") == "mine"


def test_a_hub_out_of_reach_is_one_line_that_says_what_to_do(offline: Path) -> None:
    with pytest.raises(HubUnreachable, match=r"^hf/some/one: .*Go online.*hf/PATH") as failure:
        load_backbone("hf/some/one")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["a/b/c", "no such", "name--twice"])
def test_what_can_be_no_name_on_the_hub(name: str, offline: Path) -> None:
    with pytest.raises(ModelError, match=f"hf/{name}: the hub has no {name}"):
        load_backbone(f"hf/{name}")


def test_what_was_fetched_before_is_used_without_the_hub(offline: Path) -> None:
    cached = offline / "models--some--one"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123")
    save(cached / "snapshots" / "0123", FAMILIES["vit"])
    assert load_backbone("hf/some/one").name == "some/one"
    assert load_backbone("hf/some/one", pretrained=False).name == "some/one (untrained)"


def test_without_the_package_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'tightframe\[hf\]'"):
        load_backbone("hf/some/one")


# --- damaged folders --------------------------------------------------------------------------------------------------


class Bomb:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def changed(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as failure:
        load_backbone(f"hf/{folder}")
    assert str(folder) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_pickles_are_never_read(saved: Path, tmp_path: Path) -> None:
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    load_backbone(f"hf/{saved}")
    (saved / "model.safetensors").unlink()
    refused(saved, "no model.safetensors. Pickles .* never read: .*save_pretrained")
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    refused(saved, 'names "pytorch_model.bin", which is no safetensors')
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    refused(saved, 'names "../x.safetensors", which is no safetensors')
    changed(saved, transformers_weights="pytorch_model.bin")
    (saved / "model.safetensors").write_bytes(b"")
    refused(saved, "can't be built by transformers")
    assert not (tmp_path / "mark").exists()


def test_weights_in_parts(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = transformers.ViTModel(FAMILIES["vit"].config)
    model.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    transformers.ViTImageProcessor(size=SQUARE).save_pretrained(tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    whole = load_backbone(f"hf/{save(tmp_path / 'whole', FAMILIES['vit'])}")
    assert load_backbone(f"hf/{tmp_path / 'parts'}").fingerprint == whole.fingerprint


def test_code_that_comes_with_a_model_is_not_run(saved: Path, tmp_path: Path) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\n"
    (saved / "mine.py").write_text(code + "class Config:\n    pass\nclass Model:\n    pass\n")
    maps = {"AutoConfig": "mine.Config", "AutoModelForImageClassification": "mine.Model"}
    changed(saved, auto_map=maps)
    load_backbone(f"hf/{saved}")
    changed(saved, model_type="mine", auto_map=maps)
    refused(saved, "needs Python code that comes with it, which is never run")
    assert not (tmp_path / "mark").exists()


def test_an_adapter_is_not_followed(saved: Path) -> None:
    (saved / "adapter_config.json").write_text('{"base_model_name_or_path": "some/one"}')
    refused(saved, "is an adapter of another model")


@pytest.mark.parametrize("folder", ["/no/such", "./no-such"])
def test_a_folder_that_is_not_there(folder: str) -> None:
    with pytest.raises(ModelError, match=f"hf/{folder} has no config.json"):
        load_backbone(f"hf/{folder}")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": "no_such"}, "can't be built by transformers"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "weights lack"),
        ({"hidden_size": 32}, "can't be built by transformers"),
        ({"num_hidden_layers": 4}, "weights lack .*vit.*layers.3"),
        ({"num_channels": 1}, "can't be built by transformers|can't take color"),
        ({"image_size": -5}, "can't be built by transformers"),
        ({"architectures": 7}, "can't be built by transformers"),
    ],
)
def test_damaged_or_hostile_configs(fields: dict[str, Any], reason: str, saved: Path) -> None:
    changed(saved, **fields)
    refused(saved, reason)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}"])
def test_a_config_that_is_no_config(text: str, saved: Path) -> None:
    (saved / "config.json").write_text(text)
    refused(saved, "can't be built by transformers")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"image_processor_type": 7}', '{"image_processor_type": "ViTImageProcessor", "size": 1000000000}'],
)
def test_a_processor_that_is_no_processor(text: str, saved: Path) -> None:
    (saved / "preprocessor_config.json").write_text(text)
    refused(saved, "can't be (built|prepared)")


@pytest.mark.parametrize("content", [b"", b"{}", (2**62).to_bytes(8, "little") + b"{}"])
def test_damaged_weights(content: bytes, saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(content)
    refused(saved, "can't be built by transformers")
