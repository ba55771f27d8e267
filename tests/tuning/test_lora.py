"""LoRA: where it goes, that it starts as nothing, and that peft and Tightframe read the same out of one folder."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tightframe import load_backbone, load_tuned
from tightframe.backbone import PENULTIMATE, Backbone, Layer, Preprocessing
from tightframe.deploy.tuned import Tuned
from tightframe.errors import PackageMissing, SavedError, SettingsError
from tightframe.features.taps import submodule
from tightframe.tuning.lora import place_of_head
from tightframe.tuning.methods import METHODS
from tightframe.tuning.surgery import TunableModel

CLASSES = tuple("abcde")
MODELS = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050", "seresnet18")
FILES = {"tightframe.json", "adapter_config.json", "adapter_model.safetensors"}


def of_timm(name, **arguments):
    return load_backbone(f"timm/{name}", pretrained=False, **arguments)


def of_ones_own(module, features, head="head", layout="vector"):
    module.eval()
    size = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
    return Backbone("own", module, size, (), Layer(PENULTIMATE, layout, features, 0), head, origin={"uri": "own"})


def model(backbone, method="lora"):
    return TunableModel(backbone, METHODS[method], None, len(CLASSES)).train(False)


def trained(backbone):
    """As if trained: every number that LoRA and the head have is drawn, so that none of them counts for nothing."""
    found, generator = model(backbone), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return Tuned(backbone, found, CLASSES)


def adapted(tuned_model):
    return {name for name, module in tuned_model.base.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}


def inputs_of(backbone, n=3):
    return torch.randn(n, 3, *backbone.preprocessing.input_size, generator=torch.Generator().manual_seed(1))


def logits(module, inputs):
    with torch.no_grad():
        return module(inputs)


def rewritten(folder, change, reseal):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    reseal(folder)


@pytest.fixture(scope="module")
def resnet():
    return of_timm("test_resnet", input_size=64)


@pytest.fixture
def saved(resnet, tmp_path):
    tuned = trained(resnet)
    tuned.save(tmp_path / "net")
    return tuned, tmp_path / "net"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_it_starts_as_the_model_that_it_goes_into(name):
    backbone = of_timm(name)
    inputs = inputs_of(backbone)
    with torch.no_grad():
        assert torch.equal(model(backbone).features(inputs), model(backbone, "linear").features(inputs))


def test_in_a_transformer_it_goes_beside_linear_maps(transformer):
    found = adapted(model(transformer))
    expected = {n for n, m in transformer.module.named_modules() if isinstance(m, nn.Linear)} - {transformer.head}
    assert found == expected
    assert len(found) == 4 * len(transformer.module.blocks)


@pytest.mark.slow
def test_in_other_models_it_goes_beside_convolutions_that_are_not_grouped():
    backbone = of_timm("mobilenetv3_small_050")
    convolutions = {n: m for n, m in backbone.module.named_modules() if isinstance(m, nn.Conv2d)}
    assert adapted(model(backbone)) == {name for name, module in convolutions.items() if module.groups == 1}
    assert any(module.groups > 1 for module in convolutions.values())


def test_without_linear_maps_layer_norm_makes_no_transformer():
    found = adapted(model(of_timm("convnext_atto", input_size=32)))  # its maps are convolutions of 1 × 1
    assert {"stem.0", "stages.0.blocks.0.mlp.fc1"} <= found
    assert not any(name.endswith("conv_dw") for name in found)


def test_maps_of_rank_8_and_the_head_are_trained_and_nothing_else(resnet):
    found = model(resnet)
    maps = [submodule(resnet.module, name) for name in adapted(found)]
    added = sum(8 * (m.in_channels * m.kernel_size[0] * m.kernel_size[1] + m.out_channels) for m in maps)
    head = (resnet.penultimate.dimension + 1) * len(CLASSES)
    assert found.trainable_parameters == added + head
    assert found.all_parameters == model(resnet, "linear").all_parameters + added
    assert set(found.changed_state()) == {name for name, p in found.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in found.owned.parameters) == added
    assert found.owned.modules == []


def test_it_is_the_same_whatever_was_drawn_before(resnet):
    torch.manual_seed(1)
    first = model(resnet).changed_state()
    torch.manual_seed(2)
    second = model(resnet).changed_state()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    model(resnet, "linear")
    assert torch.equal(torch.get_rng_state(), state)  # LoRA draws from a generator of its own
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(".lora_A." in name and tensor.any() for name, tensor in first.items())


class Odd(nn.Module):
    """Maps that peft's sum would be wrong for, or that are not called, among some that can be adapted."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 3, dilation=2)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.standard = timm.layers.StdConv2d(8, 8, 1)
        self.read, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.standard(self.mirrored(self.wide(torch.relu(self.first(x))))).mean((2, 3))
        return self.head(nn.functional.linear(x, self.read.weight))


def test_what_peft_would_get_wrong_is_left_alone(tmp_path):
    tuned = trained(of_ones_own(Odd(), 8))
    assert adapted(tuned.model) == {"first"}
    check_with_peft(tuned, tmp_path / "net")


def with_new_head(backbone):
    """What a user of peft's would make: the base model with a head of these classes, not trained."""
    plain, (name, old) = copy.deepcopy(backbone.module), place_of_head(backbone)
    new = nn.Conv2d(old.in_channels, 5, 1) if isinstance(old, nn.Conv2d) else nn.Linear(old.in_features, 5)
    plain.set_submodule(name, new)
    return plain.eval()


def check_with_peft(tuned, folder, plain=None):
    """The saved folder gives the same logits through ``load_tuned``, and through peft without Tightframe."""
    tuned.save(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    inputs = inputs_of(tuned.backbone)
    wanted = logits(tuned.model, inputs)
    assert len(wanted.unique(dim=0)) == len(inputs)
    assert torch.equal(logits(load_tuned(folder, tuned.backbone).model, inputs), wanted)
    plain = plain or with_new_head(tuned.backbone)
    apart = logits(peft.PeftModel.from_pretrained(plain, folder).eval(), inputs) - wanted
    assert float(apart.abs().max()) < 1e-5 * float(wanted.abs().max().clamp(min=1))


@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_the_folder_onto_timms_model_to_the_same_logits(name, tmp_path):
    backbone = of_timm(name, input_size=None if "vit" in name else 64)
    plain = timm.create_model(name, num_classes=len(CLASSES)).eval()
    base = {k: v for k, v in backbone.module.state_dict().items() if not k.startswith(f"{backbone.head}.")}
    assert set(plain.load_state_dict(base, strict=False).missing_keys) == {
        f"{backbone.head}.{p}" for p in ("weight", "bias")
    }
    check_with_peft(trained(backbone), tmp_path / "net", plain)


def test_a_model_of_timm_without_a_head_has_it_where_timm_would(resnet, tmp_path):
    bare = timm.create_model("test_resnet", num_classes=0)
    backbone = of_ones_own(bare, bare.num_features, None)
    assert place_of_head(backbone).name == "fc"
    plain = timm.create_model("test_resnet", num_classes=len(CLASSES)).eval()
    plain.load_state_dict(bare.state_dict(), strict=False)
    check_with_peft(trained(backbone), tmp_path / "net", plain)
    assert bare.num_classes == 0


class Squeezing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(self.body(x)).mean((2, 3))


def test_a_head_that_is_a_convolution_is_saved_as_one(tmp_path):
    backbone = of_ones_own(Squeezing(), 8, layout="map")
    check_with_peft(trained(backbone), tmp_path / "net")
    assert load_file(tmp_path / "net" / "adapter_model.safetensors")["base_model.model.head.weight"].shape == (
        5,
        8,
        1,
        1,
    )


def test_a_model_without_a_place_for_a_head_is_saved_all_the_same(tmp_path):
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = of_ones_own(body, 8, None)
    tuned, inputs = trained(backbone), inputs_of(backbone)
    tuned.save(tmp_path)
    assert torch.equal(logits(load_tuned(tmp_path, backbone).model, inputs), logits(tuned.model, inputs))
    features = peft.PeftModel.from_pretrained(body, tmp_path).eval()
    torch.testing.assert_close(logits(features, inputs), logits(tuned.model.features, inputs))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.overhead, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.overhead(self.body(x)))


def test_a_head_that_peft_would_mix_up_is_not_named_to_it(tmp_path):
    backbone = of_ones_own(TwoHeads(), 8)
    tuned, inputs = trained(backbone), inputs_of(backbone)
    assert adapted(tuned.model) == {"body.0", "overhead"}
    tuned.save(tmp_path)
    assert torch.equal(logits(load_tuned(tmp_path, backbone).model, inputs), logits(tuned.model, inputs))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] is None
    backbone.module.head = nn.Identity()
    features = peft.PeftModel.from_pretrained(backbone.module, tmp_path).eval()
    torch.testing.assert_close(logits(features, inputs), logits(tuned.model.features, inputs))


def test_the_names_are_those_that_peft_would_save(saved, resnet, tmp_path):
    _, folder = saved
    plain = timm.create_model("test_resnet", num_classes=len(CLASSES))
    peft.PeftModel.from_pretrained(plain, folder).save_pretrained(tmp_path / "by-peft")
    ours, theirs = (load_file(place / "adapter_model.safetensors") for place in (folder, tmp_path / "by-peft"))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for place in (folder, tmp_path / "by-peft"):
        config = json.loads((place / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 16, 0)
        assert (config["modules_to_save"], config["peft_type"], config["inference_mode"]) == (["fc"], "LORA", True)


@pytest.mark.parametrize("text", [None, "", "{", "[" * 100_000, '{"peft_type": "LORA", "r": 999, "auto_mapping": {}}'])
def test_the_configuration_is_never_read(saved, resnet, text, reseal):
    tuned, folder = saved
    path = folder / "adapter_config.json"
    path.unlink() if text is None else path.write_text(text)
    reseal(saved[1])
    inputs = inputs_of(resnet)
    assert torch.equal(logits(load_tuned(folder, resnet).model, inputs), logits(tuned.model, inputs))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found | {"base_model.model.more": torch.zeros(1)}, "more"),
        (lambda found: dict(list(found.items())[1:]), "does not hold"),
        (lambda found: {name: tensor[:1].clone() for name, tensor in found.items()}, "shape"),
        (lambda found: {name: tensor.double() for name, tensor in found.items()}, "float64"),
    ],
)
def test_tensors_of_another_model_are_refused(saved, resnet, change, said, reseal):
    rewritten(saved[1], change, reseal)
    with pytest.raises(SavedError, match=said):
        load_tuned(saved[1], resnet)


def test_a_pickle_in_place_of_the_tensors_is_refused(saved, resnet, reseal):
    (saved[1] / "adapter_model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    reseal(saved[1])
    with pytest.raises(SavedError, match="can't be read"):
        load_tuned(saved[1], resnet)


def test_merged_it_is_the_models_own_modules_and_says_the_same(resnet):
    tuned = trained(resnet)
    plain, inputs = tuned.model.plain_base(), inputs_of(resnet)
    assert {type(m) for m in plain.modules()} <= {type(m) for m in resnet.module.modules()} | {nn.Identity}
    assert set(plain.state_dict()) < set(resnet.module.state_dict())
    assert not hasattr(plain, "peft_config")
    wanted = logits(tuned.model.features, inputs)
    torch.testing.assert_close(logits(plain, inputs), wanted, rtol=1e-4, atol=1e-5)
    assert float((wanted - logits(model(resnet).features, inputs)).abs().max()) > 0.01
    assert adapted(tuned.model)


def test_without_peft_the_way_to_get_it_is_said(resnet, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PackageMissing, match=r"pip install 'tightframe\[lora\]'"):
        model(resnet)
    assert model(resnet, "linear").trainable_parameters


def test_a_model_with_nothing_to_adapt_is_refused():
    body = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(SettingsError, match=r"own calls no plain linear map .* choose another --method"):
        model(of_ones_own(body, 6, "3"))


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet20_cifar10"])
def test_a_really_pretrained_model(zoo, name, tmp_path):
    backbone = load_backbone(zoo + name)
    tuned = trained(backbone)
    with torch.no_grad():  # what was drawn is much for a model that was trained
        for parameter in tuned.model.owned.parameters:
            parameter.mul_(0.1)
    check_with_peft(tuned, tmp_path / "net")
