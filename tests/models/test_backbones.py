from __future__ import annotations

import json
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf

from tightframe.backbone import Backbone
from tightframe.errors import HubUnreachable, LayerNotFound, ModelError
from tightframe.models.backbones import load_backbone
from tightframe.models.names import short_name

SMALL = {"input_size": 32}
"""Keeps the one forward pass that loading makes cheap."""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No model, and empty caches of downloaded weights; the folder of the hub's."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no model in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


def logits(backbone: Backbone) -> torch.Tensor:
    images = torch.rand(2, 3, *backbone.preprocessing.input_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return backbone.module(images)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("torchvision/resnet18", "resnet18"),
        ("local-dir:some/where/mine", "mine"),
        ("local-dir:some/where/mine/", "mine"),
        ("some/where/mine.py:build", "build"),
        ("mine.py:build:large", "large"),
        ("mine.py:build:large:v2", "large:v2"),
        ("mine.py:build:", "build"),
        ("mine.py:build:other.py:word", "other.py:word"),
    ],
)
def test_short_names(uri: str, name: str) -> None:
    assert short_name(uri) == name


@pytest.mark.parametrize(
    "uri", ["", "resnet18", "timm/", "torchvision/", "open_clip/", "hf/", "hub/resnet18", "mine.py", "mine.py:1st"]
)
def test_what_names_no_model(uri: str) -> None:
    with pytest.raises(ModelError, match=f'"{uri}" names no model; give timm/NAME, .*FUNCTION'):
        load_backbone(uri, pretrained=False)


def test_a_folder_alone_is_told_how_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"local-dir:{tmp_path}, .* hf/{tmp_path}$"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize(
    ("uri", "nearest"), [("timm/resnet18x", "resnet18"), ("torchvision/mobilenet_v4", "mobilenet_v")]
)
def test_unknown_names_are_told_their_nearest(uri: str, nearest: str, pretrained: bool, offline: Path) -> None:
    with pytest.raises(ModelError, match=f"has no .*nearest: .*{nearest}") as failure:
        load_backbone(uri, pretrained=pretrained)
    assert not isinstance(failure.value, HubUnreachable)


# --- random weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["timm/test_resnet", "torchvision/shufflenet_v2_x0_5"])
def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone(uri: str, offline: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_backbone(uri, pretrained=False, **SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = load_backbone(uri, pretrained=False, **SMALL)
    assert first.fingerprint == second.fingerprint
    assert first.name == short_name(uri) + " (untrained)"
    assert not first.module.training
    assert not any(parameter.requires_grad for parameter in first.module.parameters())


def test_the_fingerprint_depends_on_every_weight_and_buffer() -> None:
    first = load_backbone("timm/test_resnet", pretrained=False, **SMALL)
    for tensor in (first.module.layer2[0].conv1.weight, first.module.bn1.running_var, first.module.fc.bias):
        again = load_backbone("timm/test_resnet", pretrained=False, **SMALL)
        name = next(n for n, t in first.module.state_dict().items() if t.data_ptr() == tensor.data_ptr())
        again.module.state_dict()[name].view(-1)[-1] += 1e-3
        assert again.fingerprint != first.fingerprint


def test_pretrained_preprocessing_comes_with_the_name() -> None:
    backbone = load_backbone("torchvision/mobilenet_v3_small", pretrained=False)
    assert backbone.preprocessing.input_size == (224, 224)
    assert backbone.preprocessing.crop_pct == 224 / 256
    assert backbone.preprocessing.mean == (0.485, 0.456, 0.406)
    assert backbone.preprocessing.interpolation == "bilinear"
    assert load_backbone("timm/test_vit", pretrained=False).preprocessing.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("name", "pool"), [("test_vit", "cls"), ("test_vit2", "mean"), ("test_vit3", "mean")])
def test_tokens_are_pooled_as_the_head_does_and_registers_are_no_class_token(name: str, pool: str) -> None:
    module = timm.create_model(name)
    assert (module.cls_token is not None) == (name == "test_vit")
    assert load_backbone(f"timm/{name}", pretrained=False).token_pool == pool


# --- downloads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["timm/test_resnet", "torchvision/squeezenet1_1"])
def test_a_hub_out_of_reach_is_one_line_that_says_what_to_do(
    uri: str, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        HubUnreachable, match=r"can't be fetched .*Go online.*local-dir:PATH.*--no-pretrained"
    ) as failure:
        load_backbone(uri)
    assert str(failure.value).startswith(f"{uri}: ")
    assert "\n" not in str(failure.value)
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_weights_fetched_before_are_used_without_the_hub(offline: Path) -> None:
    module = timm.create_model("test_resnet")
    cached = offline / ("models--" + timm.get_pretrained_cfg("test_resnet").hf_hub_id.replace("/", "--"))
    for folder in ("refs", "snapshots/0123"):
        (cached / folder).mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123")
    safetensors.torch.save_file(module.state_dict(), cached / "snapshots" / "0123" / "model.safetensors")
    backbone = load_backbone("timm/test_resnet")
    torch.testing.assert_close(backbone.module.fc.weight, module.fc.weight.detach(), rtol=0, atol=0)
    assert backbone.name == "test_resnet"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [("timm/mobilenetv2_035", "No pretrained weights exist"), ("timm/test_resnet.my_own", "Invalid pretrained tag")],
)
def test_weights_that_never_were_are_not_blamed_on_the_model(uri: str, reason: str, offline: Path) -> None:
    with pytest.raises(ModelError, match=f"{uri} can't be built: .*{reason}") as failure:
        load_backbone(uri)
    assert not isinstance(failure.value, HubUnreachable)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model of five classes in timm's layout."""
    torch.manual_seed(3)
    folder = tmp_path / "mine"
    model = timm.create_model("test_resnet", num_classes=5)
    save_for_hf(model, folder, safe_serialization=True, model_args={"num_classes": 5})
    return folder


def test_a_folder_in_timms_layout_comes_back_as_it_was(saved: Path, offline: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=5).eval()
    backbone = load_backbone(f"local-dir:{saved}")
    assert (backbone.name, backbone.head, backbone.preprocessing.input_size) == ("mine", "fc", (160, 160))
    with torch.inference_mode():
        expected = model(torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(logits(backbone), expected, rtol=0, atol=0)
    assert load_backbone(f"local-dir:{saved}", pretrained=False).fingerprint != backbone.fingerprint


def test_a_config_cannot_send_the_loader_elsewhere(saved: Path, offline: Path) -> None:
    untouched = load_backbone(f"local-dir:{saved}", **SMALL).fingerprint
    elsewhere = {"source": "hf-hub", "hf_hub_id": "some/one", "url": "http://localhost/x.pth", "file": "/x.pth"}
    changed(saved, **elsewhere, custom_load=True)
    assert load_backbone(f"local-dir:{saved}", **SMALL).fingerprint == untouched


def changed(folder: Path, architecture: Any = None, **pretrained_cfg: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architecture"] = config["architecture"] if architecture is None else architecture
    config["pretrained_cfg"] |= pretrained_cfg
    (folder / "config.json").write_text(json.dumps(config))


BAD_CONFIGS: dict[str, dict[str, Any]] = {
    "unknown architecture": {"architecture": "no_such_model"},
    "another architecture": {"architecture": "test_vit"},
    "architecture elsewhere": {"architecture": "hf-hub:some/one"},
    "architecture is a number": {"architecture": 7},
    "architecture is a list": {"architecture": ["test_resnet"]},
    "huge input": {"input_size": [3, 10**9, 10**9]},
    "negative input": {"input_size": [3, -5, 64]},
    "no input": {"input_size": [3, 0, 0]},
    "two numbers": {"input_size": [64, 64]},
    "words": {"input_size": "large"},
    "mean is not a number": {"mean": [float("nan")] * 3},
    "mean is words": {"mean": ["dark", "darker", "black"]},
    "two means": {"mean": [0.5, 0.5]},
    "infinite std": {"std": [1.0, 1.0, float("inf")]},
    "std of zero": {"std": [0.5, 0.0, 0.5]},
    "negative crop": {"crop_pct": -1.0},
    "tiny crop": {"crop_pct": 1e-9},
    "unknown interpolation": {"interpolation": "cubist"},
    "unknown field": {"color": "mauve"},
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_damaged_or_hostile_configs(case: str, saved: Path, offline: Path) -> None:
    changed(saved, **BAD_CONFIGS[case])
    with pytest.raises(ModelError, match=f"{saved}") as failure:
        load_backbone(f"local-dir:{saved}")
    assert "\n" not in str(failure.value)


def test_a_folder_with_a_model_for_gray_images(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_resnet", in_chans=1), tmp_path, safe_serialization=True)
    with pytest.raises(ModelError, match=f"{tmp_path}: the model takes 1 color channels"):
        load_backbone(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"architecture": null}', "\x00\xff"])
def test_a_config_that_is_no_config(text: str, saved: Path) -> None:
    (saved / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=f"{saved} can't be loaded by timm"):
        load_backbone(f"local-dir:{saved}")


class Bomb:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def truncated(weights: Path, _: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-100])


def emptied(weights: Path, _: Path) -> None:
    weights.write_bytes(b"")


def claims_a_huge_header(weights: Path, _: Path) -> None:
    weights.write_bytes((2**62).to_bytes(8, "little") + b"{}")


def pickled(weights: Path, mark: Path) -> None:
    weights.write_bytes(pickle.dumps({"fc.weight": Bomb(mark)}))


def saved_by_torch(weights: Path, mark: Path) -> None:
    torch.save({"fc.weight": Bomb(mark)}, weights)


def of_another_model(weights: Path, _: Path) -> None:
    safetensors.torch.save_file(timm.create_model("test_efficientnet").state_dict(), weights)


@pytest.mark.parametrize(
    "damage", [truncated, emptied, claims_a_huge_header, pickled, saved_by_torch, of_another_model]
)
def test_damaged_or_hostile_weights(damage: Callable[[Path, Path], None], saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    damage(saved / "model.safetensors", mark)
    with pytest.raises(ModelError, match=f"{saved} can't be loaded by timm"):
        load_backbone(f"local-dir:{saved}")
    assert not mark.exists()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file(missing: str, saved: Path, tmp_path: Path) -> None:
    (saved / missing).unlink()
    mark = tmp_path / "mark"
    saved_by_torch(saved / "pytorch_model.bin", mark)  # pickles are never read, and never in place of what is missing
    with pytest.raises(ModelError, match=f"{saved} has no {missing}; .*save_for_hf"):
        load_backbone(f"local-dir:{saved}")
    assert not mark.exists()


def test_a_pickle_beside_the_weights_is_not_read(saved: Path, tmp_path: Path) -> None:
    saved_by_torch(saved / "pytorch_model.bin", tmp_path / "mark")
    load_backbone(f"local-dir:{saved}", **SMALL)
    assert not (tmp_path / "mark").exists()


# --- builders ---------------------------------------------------------------------------------------------------------

BUILDERS = """
import sys
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class TrainConfig:
    width: "int" = 4


def plain(width="4"):
    width = TrainConfig(int(width)).width
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 1), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, 5))


def described(**fields):
    module = plain()
    module.pretrained_cfg = {"input_size": (3, 20, 24), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6),
                             "crop_pct": 0.9, "interpolation": "bicubic"} | fields
    return module


def echoes(word):
    module = described()
    module.word = word
    return module


def gray():
    return described(input_size=(1, 20, 20))


def gray_unsaid():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def garbled():
    return described(input_size=20)


def halved():
    return described().half().train()


def number():
    return 7


def fails():
    raise LookupError("no weights\\nhere")


def leaves():
    sys.exit("bye")
"""
IMAGES = {"input_size": 20, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(BUILDERS)
    return path


def test_a_builders_own_description_is_used(mine: Path) -> None:
    backbone = load_backbone(f"{mine}:described")
    wanted = backbone.preprocessing
    assert (backbone.name, backbone.head, len(backbone.layers)) == ("described", "5", 2)
    assert (wanted.input_size, wanted.mean, wanted.std) == ((20, 24), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (wanted.crop_pct, wanted.interpolation) == (0.9, "bicubic")


def test_arguments_override_the_description_one_by_one(mine: Path) -> None:
    wanted = load_backbone(f"{mine}:described", input_size=[32, 16], mean=(0.0, 0.0, 0.0)).preprocessing
    assert (wanted.input_size, wanted.mean, wanted.std) == ((32, 16), (0.0, 0.0, 0.0), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("missing", IMAGES)
def test_a_module_without_description_has_to_be_described(mine: Path, missing: str) -> None:
    partly = {key: value for key, value in IMAGES.items() if key != missing}
    with pytest.raises(ModelError, match=r"no pretrained_cfg, .*--input-size, --mean and --std"):
        load_backbone(f"{mine}:plain", **partly)
    wanted = load_backbone(f"{mine}:plain", **IMAGES).preprocessing
    assert (wanted.input_size, wanted.mean, wanted.std, wanted.crop_pct) == ((20, 20), (0.5,) * 3, (0.5,) * 3, 1.0)


def test_the_argument_reaches_the_builder(mine: Path) -> None:
    assert load_backbone(f"{mine}:plain:6", **IMAGES).layers[0].dimension == 6
    for word in ("a:b", "x.py:f", "", "/some/where else"):
        assert load_backbone(f"{mine}:echoes:{word}").module.word == word


def test_a_builders_model_is_made_ready_to_measure(mine: Path) -> None:
    module = load_backbone(f"{mine}:halved").module
    assert not module.training
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


FAILURES = {
    "described_": r"mine\.py has no function described_; nearest: described",
    "plane": r"no function plane; nearest: plain",
    "sys": "no function sys",
    "number": "returned a int; it must return a torch.nn.Module",
    "fails": "failed: LookupError: no weights here",
    "leaves": "failed: SystemExit: bye",
    "echoes": "failed: TypeError: .*word",
    "plain:wide": "failed: ValueError: .*wide",
    "gray": "takes 1 color channels; images are given in 3",
    "garbled": "pretrained_cfg can't be read: .*needs input_size",
}


@pytest.mark.parametrize("call", FAILURES)
def test_builders_that_fail(mine: Path, call: str) -> None:
    with pytest.raises(ModelError, match=FAILURES[call]):
        load_backbone(f"{mine}:{call}")


def test_a_model_for_gray_images_is_told_so(mine: Path) -> None:
    with pytest.raises(ModelError, match=r"can't take color images of 20 × 20 .*1 channels"):
        load_backbone(f"{mine}:gray_unsaid", **IMAGES)


def test_a_builder_decides_on_its_weights(mine: Path) -> None:
    with pytest.raises(ModelError, match="a builder chooses its own weights"):
        load_backbone(f"{mine}:described", pretrained=False)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no file .*none\.py"):
        load_backbone(f"{tmp_path / 'none.py'}:build")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_package_anywhere", "ModuleNotFoundError: .*no_such_package_anywhere"),
        ("def build(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_file_that_cannot_be_imported_can_be_mended(mine: Path, code: str, reason: str) -> None:
    mine.write_text(code)
    for _ in range(2):
        with pytest.raises(ModelError, match=rf"mine\.py can't be imported: {reason}"):
            load_backbone(f"{mine}:described")
    mine.write_text(BUILDERS)
    assert load_backbone(f"{mine}:described").name == "described"


def test_files_of_the_same_name_and_edited_files_do_not_clash(mine: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text(BUILDERS.replace("width, 8, 1", "width, 8, 3"))
    load_backbone(f"{mine}:described")
    assert load_backbone(f"{other}:described").parameters != load_backbone(f"{mine}:described").parameters
    mine.write_text(other.read_text())
    assert load_backbone(f"{other}:described").parameters == load_backbone(f"{mine}:described").parameters


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"std": (0.5, 0.0, 0.5)}, "std is .*above 0"),
        ({"std": (0.5, -1.0, 0.5)}, "std is .*above 0"),
        ({"std": (0.5, float("nan"), 0.5)}, "one number for each of 3 colors"),
        ({"std": (0.5,)}, "one number for each of 3 colors"),
        ({"mean": (0.5,)}, "one number for each of 3 colors"),
        ({"mean": ()}, "one number for each of 3 colors"),
        ({"mean": (0.5, 0.5, 0.5, 0.5)}, "one number for each of 3 colors"),
        ({"mean": (0.0, 0.0, float("inf"))}, "one number for each of 3 colors"),
        ({"mean": (123.7, 116.3, 103.5)}, "colors from 0 to 1"),
        ({"input_size": 0}, "input size"),
        ({"input_size": -20}, "input size"),
        ({"input_size": (20, -20)}, "input size"),
        ({"input_size": (20,)}, "input size"),
        ({"input_size": 10**6}, "input size"),
    ],
)
@pytest.mark.parametrize("function", ["plain", "described"])
def test_overrides_out_of_range(mine: Path, function: str, wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=rf"mine\.py:{function}: .*{reason}"):
        load_backbone(f"{mine}:{function}", **(IMAGES | wrong))


# --- origin -----------------------------------------------------------------------------------------------------------


def test_the_origin_makes_it_again_from_anywhere(
    mine: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    made = [
        load_backbone("mine.py:echoes:a.py:b", input_size=(24, 20), layers=("2",)),
        load_backbone("mine.py:plain:6", **IMAGES),
        load_backbone("local-dir:mine", input_size=32),
        load_backbone(
            "timm/test_resnet", pretrained=False, input_size=32, mean=(0.0, 0.0, 0.0), layers=["layer3", "fc"]
        ),
    ]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for backbone in made:
        again = load_backbone(**json.loads(json.dumps(backbone.origin)))
        assert again.fingerprint == backbone.fingerprint
        assert (again.name, again.layers, again.origin) == (backbone.name, backbone.layers, backbone.origin)
        assert again.preprocessing == backbone.preprocessing
    assert made[0].origin["uri"] == os.fspath(mine) + ":echoes:a.py:b"


def test_layers_by_name(mine: Path) -> None:
    backbone = load_backbone(f"{mine}:described", layers=["1", "0"])
    assert [layer.name for layer in backbone.layers] == ["0", "1"]
    with pytest.raises(LayerNotFound, match=r'no layer "layer9" .*nearest'):
        load_backbone(f"{mine}:described", layers=["layer9"])
    with pytest.raises(LayerNotFound, match='no layer "2" in described'):
        backbone.layer("2")


# --- real models ----------------------------------------------------------------------------------------------------


def test_all_real_models_load(zoo: str, shared: Path) -> None:
    names = json.loads((shared / "zoo" / "models" / "MANIFEST.json").read_text())
    assert len(names) == 13
    prints = set()
    for name, entry in names.items():
        backbone = load_backbone(zoo + name, input_size=32 if "cifar" in name else 64)
        assert backbone.name == name
        assert len(backbone.layers) > 1
        assert backbone.head is not None
        assert list(backbone.preprocessing.mean) == entry["mean"]
        assert len({layer.name for layer in backbone.layers}) == len(backbone.layers)
        prints.add(backbone.fingerprint)
    assert len(prints) == len(names)


def test_another_structure_with_the_same_weights_has_another_fingerprint(tmp_path: Path) -> None:
    """Built by the same file, so that nothing but the structure tells them apart."""
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\ndef make(activation):\n    torch.manual_seed(0)\n"
        "    act, pool = getattr(torch.nn, activation)(), torch.nn.AdaptiveAvgPool2d(1)\n"
        "    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), act, pool, torch.nn.Flatten())\n"
        "    net.pretrained_cfg = dict(input_size=(3, 8, 8), mean=(.5,) * 3, std=(.5,) * 3, crop_pct=1.0)\n"
        "    return net\n"
    )
    relu, again, gelu = (load_backbone(f"{file}:make:{activation}") for activation in ("ReLU", "ReLU", "GELU"))
    assert (relu.weights, relu.source, relu.head) == (gelu.weights, gelu.source, gelu.head)
    assert relu.fingerprint == again.fingerprint != gelu.fingerprint


def test_what_computes_something_else_with_the_same_weights_has_another_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    code = (
        "import torch\nclass Net(torch.nn.Module):\n"
        "    pretrained_cfg = dict(input_size=(3, 8, 8), mean=(.5,) * 3, std=(.5,) * 3, crop_pct=1.0)\n"
        "    def __init__(self, factor):\n        super().__init__()\n"
        "        self.register_buffer('factor', torch.tensor(float(factor)), persistent=False)\n"
        "    def forward(self, x):\n        return self.factor * x.mean((2, 3))\n"
        "def make(factor):\n    return Net(factor)\n"
    )
    file.write_text(code)
    one, again, five = (load_backbone(f"{file}:make:{factor}") for factor in (1, 1, 5))
    file.write_text(code.replace("self.factor *", "-self.factor *"))
    edited = load_backbone(f"{file}:make:1")
    assert one.fingerprint == again.fingerprint
    assert len({one.fingerprint, five.fingerprint, edited.fingerprint}) == 3
    assert one.weights == five.weights == edited.weights
