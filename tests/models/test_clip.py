"""Image encoders of open_clip: what the library itself computes, on images as it prepares them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tightframe import TrainConfig, load_backbone, load_images, load_tuned, measure, tune
from tightframe.errors import HubUnreachable, ModelError
from tightframe.features.workspace import Workspace
from tightframe.models.clip import CONFIG, WEIGHTS
from tightframe.models.names import short_name

VIT = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "mean of tokens": VIT | {"pool_type": "avg", "final_ln_after_pool": True},
    "tokens as well": VIT | {"output_tokens": True},
    "attention pool": VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    "timm": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
    "timm, two layers": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "mlp", "image_size": 64},
    "timm, no projection": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none"}
    | {"image_size": 160},
}
WIDTHS = {"timm": 64, "timm, no projection": 64}
BLOCKS = {
    "vit": [f"visual.transformer.resblocks.{n}" for n in range(3)],
    "resnet": [f"visual.layer{n}.0" for n in (1, 2, 3, 4)] + ["visual.attnpool"],
    "timm": [f"visual.trunk.blocks.{n}" for n in range(6)],
}
HEADS = {
    "vit": "projection",
    "mean of tokens": "projection",
    "tokens as well": "projection",
    "attention pool": "projection",
    "resnet": None,
    "timm": "visual.head.proj",
    "timm, two layers": "visual.head.mlp.fc2",
    "timm, no projection": None,
}


def save(folder: Path, vision: dict[str, Any], width: int = 24, quick_gelu: bool = False, **preprocess: Any) -> Path:
    """A random model in open_clip's own form."""
    folder.mkdir(exist_ok=True)
    model_cfg = {"embed_dim": width, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": quick_gelu}
    torch.manual_seed(4)
    model = open_clip.CLIP(width, dict(vision), dict(TEXT), quick_gelu)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    return folder


def theirs(folder: Path) -> tuple[Any, Callable[[Image.Image], torch.Tensor]]:
    """The model and its preprocessing as open_clip loads them."""
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return model.eval(), prepare


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "mine", VIT)


@pytest.mark.parametrize("tower", TOWERS)
def test_it_puts_out_what_encode_image_does(tower: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "mine", TOWERS[tower], WIDTHS.get(tower, 24), quick_gelu=tower == "mean of tokens")
    backbone = load_backbone(f"open_clip/local-dir:{folder}")
    model, _ = theirs(folder)
    images = torch.randn(3, 3, *backbone.preprocessing.input_size)
    with torch.inference_mode():
        found, expected = backbone.module(images), model.encode_image(images)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert backbone.head == HEADS[tower]
    assert [layer.name for layer in backbone.layers] == BLOCKS.get(tower, [layer.name for layer in backbone.layers])
    assert len(backbone.layers) > 1
    assert backbone.penultimate.layout == "vector"


@pytest.mark.parametrize(
    ("tower", "pool"), [("vit", "cls"), ("mean of tokens", "mean"), ("timm", "cls"), ("timm, no projection", "cls")]
)
def test_tokens_are_pooled_as_the_encoder_does(tower: str, pool: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "mine", TOWERS[tower], WIDTHS.get(tower, 24))
    assert load_backbone(f"open_clip/local-dir:{folder}").token_pool == pool


def test_features_are_those_before_the_projection(saved: Path) -> None:
    data = load_images("digits:5-9", max_per_class=3, test_share=0.2).train
    backbone = load_backbone(f"open_clip/local-dir:{saved}")
    model, prepare = theirs(saved)
    model.visual.proj = None
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([prepare(data[index]) for index in range(len(data))]))
    found = Workspace(precision="float32").features(backbone, data)["penultimate"]
    assert backbone.penultimate.dimension == 32
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_images_of_another_size_resample_the_position_embedding(saved: Path) -> None:
    usual = load_backbone(f"open_clip/local-dir:{saved}")
    larger = load_backbone(f"open_clip/local-dir:{saved}", input_size=48)
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{saved}", force_image_size=48)
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(larger.module(images), model.eval().encode_image(images), rtol=1e-4, atol=1e-5)
    sizes = [one.module.visual.positional_embedding.shape[0] for one in (usual, larger)]
    assert sizes == [1 + 4 * 4, 1 + 6 * 6]


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_images_are_prepared_as_the_library_does(
    mode: str, interpolation: str, tmp_path: Path, photo: Image.Image
) -> None:
    colors = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    folder = save(tmp_path / "mine", VIT, resize_mode=mode, interpolation=interpolation, **colors)
    wanted = load_backbone(f"open_clip/local-dir:{folder}").preprocessing
    found = wanted.normalize(wanted.pixels(photo)[None])[0]
    torch.testing.assert_close(found, theirs(folder)[1](photo), rtol=1e-6, atol=1e-6)  # the same steps: no tolerance


def test_sides_that_differ(tmp_path: Path, photo: Image.Image) -> None:
    folder = save(tmp_path / "mine", VIT | {"image_size": [24, 40]})
    wanted = load_backbone(f"open_clip/local-dir:{folder}").preprocessing
    assert wanted.input_size == (24, 40)
    found = wanted.normalize(wanted.pixels(photo)[None])[0]
    torch.testing.assert_close(found, theirs(folder)[1](photo), rtol=1e-6, atol=1e-6)


def test_random_weights_are_the_same_every_time(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    first, second = (load_backbone(f"open_clip/local-dir:{saved}", pretrained=False) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.name == "mine (untrained)"


def test_the_fingerprint_holds_what_weights_do_not_tell(tmp_path: Path) -> None:
    one, other = (save(tmp_path / name, VIT) for name in ("one", "other"))
    before, alike = (load_backbone(f"open_clip/local-dir:{folder}") for folder in (one, other))
    config = json.loads((other / CONFIG).read_text())
    config["model_cfg"]["vision_cfg"]["head_width"] = 8  # four attention heads of the same weights, not two
    (other / CONFIG).write_text(json.dumps(config))
    after = load_backbone(f"open_clip/local-dir:{other}")
    assert before.fingerprint == alike.fingerprint != after.fingerprint
    assert before.weights == after.weights


def test_the_origin_makes_it_again_from_anywhere(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    made = load_backbone("open_clip/local-dir:mine", mean=(0.0, 0.0, 0.0))
    monkeypatch.chdir("/")
    again = load_backbone(**json.loads(json.dumps(made.origin)))
    assert (again.fingerprint, again.name, again.layers, again.origin) == (
        made.fingerprint,
        "mine",
        made.layers,
        made.origin,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("tower", "whole"), [("vit", False), ("timm", False), ("resnet", False)])
def test_it_is_measured_tuned_saved_and_loaded(tower: str, whole: bool, tmp_path: Path) -> None:
    data = load_images("digits:5-9", max_per_class=6, test_share=0.2)
    backbone = load_backbone(f"open_clip/local-dir:{save(tmp_path / 'mine', TOWERS[tower], WIDTHS.get(tower, 24))}")
    assert [row["layer"] for row in measure(data, backbone).rows] == [*BLOCKS[tower], "penultimate"]
    plan = TrainConfig(epochs=2, search_epochs=1, lr=(0.01,), weight_decay=(1e-4,))
    tuned = tune(data, backbone, method="scl", config=plan, out=tmp_path / "tuned")
    images = [data.test[0], data.test[1]]
    assert load_tuned(tmp_path / "tuned").predict(images) == tuned.predict(images)
    assert any("trained whole" in note for note in tuned.notes) == whole
    uncut = tune(data, backbone, method="scl", config=replace(plan, prefix_cache_gb=0.0))
    assert tuned.history[-1]["train_loss"] == pytest.approx(uncut.history[-1]["train_loss"], rel=2e-2)


# --- names and downloads ----------------------------------------------------------------------------------------------


def test_names() -> None:
    assert short_name("open_clip/ViT-B-32/openai") == "ViT-B-32/openai"
    assert short_name("open_clip/local-dir:some/mine") == "mine"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ViT-B-33/openai", "no model .*nearest: .*ViT-B-32"),
        ("ViT-B-32/laion3b", 'no weights "laion3b" for ViT-B-32; .*laion2b_s34b_b79k'),
        ("ViT-B-32", 'no weights "" for ViT-B-32; give open_clip/NAME/ and one of: .*openai'),
        ("ViT-M-32-alt/x", 'no weights "x" for ViT-M-32-alt; .*none: pass --no-pretrained'),
    ],
)
def test_unknown_names(name: str, reason: str, offline: Path) -> None:
    with pytest.raises(ModelError, match=reason) as failure:
        load_backbone(f"open_clip/{name}")
    assert not isinstance(failure.value, HubUnreachable)


def test_a_hub_out_of_reach_is_one_line_that_says_what_to_do(offline: Path) -> None:
    with pytest.raises(
        HubUnreachable, match=r"^open_clip/ViT-B-32/openai: .*open_clip/local-dir:PATH.*--no-pretrained"
    ):
        load_backbone("open_clip/ViT-B-32/openai")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, offline: Path, tmp_path: Path) -> Path:
    """A tiny architecture that open_clip knows by name, whose weights lie in the hub's cache; the folder of these."""
    model = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", model)
    told = open_clip.pretrained._slpcfg
    entries = {
        "ours": told(hf_hub="some/one/", quick_gelu=True),
        "named": told(hf_hub="some/one/other.bin"),
        "pickled": told(url="https://localhost/weights.pt"),
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", entries)
    cached = offline / "models--some--one"
    for folder in ("refs", "snapshots/0123"):
        (cached / folder).mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123")
    return cached / "snapshots" / "0123"


def test_weights_by_name_come_with_their_activation_and_preprocessing(published: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "mine", VIT, quick_gelu=True)
    (folder / WEIGHTS).rename(published / WEIGHTS)
    backbone = load_backbone("open_clip/tiny/ours")
    (published / WEIGHTS).rename(folder / WEIGHTS)
    model, _ = theirs(folder)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module(images), model.encode_image(images), rtol=1e-5, atol=1e-6)
    assert (backbone.name, backbone.preprocessing.crop_mode) == ("tiny/ours", "squash")
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("tag", ["named", "pickled"])
def test_weights_that_are_pickles_only_are_refused(tag: str, published: Path) -> None:
    (published / "other.bin").write_bytes(b"not read")
    with pytest.raises(ModelError, match=r"not published as safetensors, .*never read.*open_clip/local-dir:PATH"):
        load_backbone(f"open_clip/tiny/{tag}")


def test_no_pretrained_needs_no_hub(offline: Path, published: Path) -> None:
    assert load_backbone("open_clip/tiny", pretrained=False).head == "projection"
    assert load_backbone("open_clip/tiny/ours", pretrained=False).preprocessing.mean == (0.5, 0.5, 0.5)


def test_without_the_package_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModelError, match=r"pip install 'tightframe\[open-clip\]'"):
        load_backbone("open_clip/ViT-B-32/openai")


# --- damaged folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_folder_that_lacks_a_file(missing: str, saved: Path) -> None:
    torch.save(load_file(saved / WEIGHTS), saved / "open_clip_pytorch_model.bin")
    (saved / missing).unlink()
    with pytest.raises(ModelError, match=f"{saved} has no {missing}; .*never read"):
        load_backbone(f"open_clip/local-dir:{saved}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"model_cfg": 3}', '{"model_cfg": {}}'])
def test_a_config_that_is_no_config(text: str, saved: Path) -> None:
    (saved / CONFIG).write_text(text)
    with pytest.raises(ModelError, match=f"{saved}.*can't be (read|built)"):
        load_backbone(f"open_clip/local-dir:{saved}")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("vision_cfg", {"width": 64}),
        ("vision_cfg", {"color": "mauve"}),
        ("vision_cfg", {"image_size": -5}),
        ("vision_cfg", {"timm_model_name": "hf-hub:some/one"}),
        ("vision_cfg", {"timm_model_name": "no_such_model"}),
        ("preprocess_cfg", {"resize_mode": "longest"}),
        ("preprocess_cfg", {"mean": "dark"}),
        ("preprocess_cfg", {"std": [0.5, 0.0, 0.5]}),
    ],
)
def test_damaged_or_hostile_configs(part: str, change: dict[str, Any], saved: Path) -> None:
    config = json.loads((saved / CONFIG).read_text())
    (config["model_cfg"] | config)[part].update(change)
    (saved / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"{saved}: |{saved} can't") as failure:
        load_backbone(f"open_clip/local-dir:{saved}")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("content", [b"", b"{}", (2**62).to_bytes(8, "little") + b"{}"])
def test_damaged_weights(content: bytes, saved: Path) -> None:
    (saved / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelError, match=f"{saved} can't be built by open_clip"):
        load_backbone(f"open_clip/local-dir:{saved}")
