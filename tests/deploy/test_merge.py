"""Merging: a plain model that says exactly the same without Tightframe, or a refusal that says what to do."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tightframe import TrainConfig, load_backbone, merge, tune
from tightframe.deploy.merge import NotPlain, difference, plain_model
from tightframe.errors import SettingsError, TightframeError
from tightframe.features.taps import submodule

PLAN = TrainConfig(epochs=1, lr=(0.05,), weight_decay=(1e-4,))
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, 2), nn.ReLU()) for a, b in ((3, 8), (8, 8))))
        self.classifier = nn.Sequential(nn.Conv2d(8, 3, 1), after, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.pretrained_cfg = {"input_size": (3, 16, 16), "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
        self.pretrained_cfg["interpolation"] = "bilinear"

    def forward(self, x):
        return self.classifier(self.body(x))

def plain():
    return Net(nn.Identity())

def squeezed():
    return Net(nn.ReLU())
"""


@pytest.fixture(params=["linear", "layer", "full", "lora"])
def tuned(request, tuned_by):
    return tuned_by(request.param)[0]


def inputs_of(tuned, n=5):
    return torch.randn(n, 3, *tuned.backbone.preprocessing.input_size, generator=torch.Generator().manual_seed(7))


def logits(tuned, inputs):
    with torch.no_grad():
        return tuned.model.cpu()(inputs)


def test_timm_and_tightframe_load_it_and_it_says_the_same(tuned, data, tmp_path):
    found = merge(tuned, tmp_path / "plain")
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"config.json", "model.safetensors"}
    inputs = inputs_of(tuned)
    module = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(module(inputs), logits(tuned, inputs), rtol=1e-5, atol=1e-6)
    backbone = load_backbone(f"local-dir:{tmp_path / 'plain'}")
    assert backbone.preprocessing == tuned.backbone.preprocessing
    with torch.no_grad():
        assert torch.equal(backbone.module(inputs), module(inputs))
    assert len(logits(tuned, inputs).unique(dim=0)) > 1
    (row,) = found.rows
    assert row["format"] == "timm"
    assert row["difference"] < 1e-5
    added = sum(p.numel() for name, p in tuned.model.named_parameters() if ".lora_" in name)
    assert row["parameters"] == tuned.model.all_parameters - added
    assert row["bytes"] == (tmp_path / "plain" / "model.safetensors").stat().st_size


def test_the_config_has_class_names_and_no_path(tuned, data, model_folders, tmp_path):
    merge(tuned, tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert config["label_names"] == list(data.classes)
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 5
    assert str(model_folders["wide"]) not in json.dumps(config)
    assert timm.create_model(f"local-dir:{tmp_path / 'plain'}").pretrained_cfg["label_names"] == list(data.classes)


def test_merging_leaves_the_tuned_model_as_it_is(tuned, tmp_path):
    before = logits(tuned, inputs_of(tuned))
    merge(tuned, tmp_path / "plain")
    assert torch.equal(logits(tuned, inputs_of(tuned)), before)
    assert tuned.backbone.module.num_classes == 3


def test_what_was_merged_can_be_tuned_again(tuned, data, tmp_path):
    merge(tuned, tmp_path / "plain")
    again = tune(data, load_backbone(f"local-dir:{tmp_path / 'plain'}"), method="linear", config=PLAN)
    assert again.backbone.name == "plain"


def test_a_skip_connection_is_refused_with_what_to_do(tuned_by, tmp_path):
    tuned, _ = tuned_by("scl")
    with pytest.raises(NotPlain, match=r"skip connection from layer3\.0 .* `tightframe export DIR --onnx"):
        merge(tuned, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_a_reading_of_layers_is_refused_with_what_to_do(tuned_by, tmp_path):
    tuned, _ = tuned_by("discriminant")
    said = (
        rf"wide tuned by discriminant reads the features of {len(tuned.model.read)} layers, .* --onnx .*--method linear"
    )
    with pytest.raises(NotPlain, match=said):
        merge(tuned, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050", "convnext_atto", "cifar_resnet8"])
def test_other_architectures_with_a_size_of_their_own(data, name, method, tmp_path):
    small = {"depth": 2} if "vit" in name else {"depths": (1, 1, 1, 1)} if "convnext" in name else {}
    timm_net = timm.create_model(name, num_classes=7, **({"img_size": 32} if "vit" in name else {}), **small)
    folder = saved_for_timm(timm_net, name, small, tmp_path / "net")
    size = {} if "vit" in name else {"input_size": 32}
    tuned = tune(data, load_backbone(f"local-dir:{folder}", **size), method=method, config=PLAN)
    (row,) = merge(tuned, tmp_path / "plain").rows
    assert row["format"] == "timm"
    assert row["difference"] < 1e-4
    assert load_backbone(f"local-dir:{tmp_path / 'plain'}").preprocessing.input_size == (32, 32)


def saved_for_timm(module, name, arguments, folder):
    folder.mkdir()
    size = {"input_size": [3, 32, 32], "fixed_input_size": "vit" in name, "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": name, "num_classes": module.num_classes, "model_args": arguments, "pretrained_cfg": size}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(module.state_dict(), str(folder / "model.safetensors"))
    return folder


def test_a_model_of_timm_without_a_head_gets_one(data, tmp_path):
    small = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
    bare = timm.create_model("resnet18", num_classes=0, **small)
    folder = saved_for_timm(bare, "resnet18", small, tmp_path / "net")
    tuned = tune(data, load_backbone(f"local-dir:{folder}"), method="linear", config=PLAN)
    assert tuned.backbone.head is None
    merge(tuned, tmp_path / "plain")
    module = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(module(inputs_of(tuned)), logits(tuned, inputs_of(tuned)))


def test_a_model_of_ones_own_becomes_a_state_dict_and_the_builder_is_named(data, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    tuned = tune(data, load_backbone(f"{tmp_path / 'net.py'}:plain"), method="full", config=PLAN)
    found = merge(tuned, tmp_path / "plain")
    assert found.rows[0]["format"] == "state dict"
    said = json.loads((tmp_path / "plain" / "merged.json").read_text())
    assert said["builder"] == f"{tmp_path / 'net.py'}:plain"
    assert said["classes"] == list(data.classes)
    assert said["preprocessing"] == json.loads(json.dumps(asdict(tuned.backbone.preprocessing)))
    module = load_backbone(said["builder"]).module
    parent, _, name = said["head"]["name"].rpartition(".")
    setattr(submodule(module, parent), name, nn.Conv2d(8, 5, 1))
    assert said["head"]["module"] == repr(submodule(module, said["head"]["name"]))
    module.load_state_dict(load_file(tmp_path / "plain" / "model.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(module(inputs_of(tuned)), logits(tuned, inputs_of(tuned)))


def test_what_comes_after_the_old_head_is_seen(data, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    tuned = tune(data, load_backbone(f"{tmp_path / 'net.py'}:squeezed"), method="linear", config=PLAN)
    with pytest.raises(NotPlain, match=r"what comes around it\. `tightframe export"):
        merge(tuned, tmp_path / "plain")


def test_arguments_that_timm_does_not_know_of_make_it_a_state_dict(data, tmp_path):
    (tmp_path / "net.py").write_text(
        "import timm\nfrom timm.models.resnet import BasicBlock, ResNet\n"
        "def make():\n    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, channels=(4, 4, 8, 8))\n"
        "    cfg = {'input_size': (3, 32, 32), 'mean': [0.5] * 3, 'std': [0.5] * 3, 'architecture': 'resnet18'}\n"
        "    net.pretrained_cfg = net.default_cfg = cfg | {'crop_pct': 1.0, 'interpolation': 'bilinear'}\n"
        "    return net\n"
    )
    tuned = tune(data, load_backbone(f"{tmp_path / 'net.py'}:make"), method="linear", config=PLAN)
    assert merge(tuned, tmp_path / "plain").rows[0]["format"] == "state dict"
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"merged.json", "model.safetensors"}


def test_a_folder_in_use_is_refused(tuned, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").touch()
    for place in (tmp_path / "used", tmp_path / "used" / "mine.txt", tmp_path / "used" / "mine.txt" / "below"):
        with pytest.raises(SettingsError, match="choose another --out"):
            merge(tuned, place)
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine.txt"]


def test_the_difference_is_seen(tuned):
    plain = plain_model(tuned)
    assert difference(tuned, plain) < 1e-6
    with torch.no_grad():
        next(plain.parameters()).view(-1)[:10] += 0.5
    assert difference(tuned, plain) > 1e-4
    assert difference(tuned, nn.Flatten()) == float("inf")
    assert issubclass(NotPlain, TightframeError)
