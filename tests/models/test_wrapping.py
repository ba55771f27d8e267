"""Modules as builders return them, models with several heads or outputs, and images of another size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tightframe import TrainConfig, load_backbone, load_images, load_tuned, measure, tune
from tightframe.backbone import PENULTIMATE
from tightframe.errors import ModelError
from tightframe.features.taps import tapped
from tightframe.features.workspace import Workspace
from tightframe.models.backbones import _anatomy
from tightframe.tuning.methods import METHODS
from tightframe.tuning.surgery import TunableModel

QUICK = TrainConfig(epochs=1, folds=0, lr=(0.01,), weight_decay=(1e-4,))
HEAD = """
import timm, torch
from torch import nn

class Tasks(nn.Module):
    def __init__(self, as_list=False):
        super().__init__()
        self.trunk = timm.create_model("resnet10t", num_classes=0)
        self.first, self.second = nn.Linear(512, 5), nn.Linear(512, 3)
    def forward(self, x):
        seen = self.trunk(x)
        return self.first(seen), self.second(seen)

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.head = timm.create_model("test_resnet", num_classes=0), nn.LazyLinear(3)
    def forward(self, x): return self.head(self.net(x))

def plain(): return timm.create_model("test_resnet")
def compiled(): return torch.compile(plain())
def compiled_in_place():
    net = plain(); net.compile(); return net
def compiled_inside():
    net = plain(); net.layer2 = torch.compile(net.layer2); return net
def parallel(): return nn.DataParallel(plain())
def scripted(): return torch.jit.script(plain())
def traced(): return torch.jit.trace(plain().eval(), torch.zeros(1, 3, 64, 64))
def traced_inside():
    net = plain(); net.layer2 = torch.jit.trace(net.layer2.eval(), torch.zeros(1, 32, 16, 16)); return net
def exported(): return torch.export.export(plain().eval(), (torch.zeros(2, 3, 64, 64),)).module()
def meta():
    with torch.device("meta"): return plain()
def lazy(): return Lazy()
def tasks(): return Tasks()
def maps(): return timm.create_model("resnet10t", features_only=True)
def maps_by_name():
    from torchvision.models import feature_extraction, resnet18
    return feature_extraction.create_feature_extractor(resnet18(), {"layer2": "a", "layer4": "b"})
"""
IMAGES = {"input_size": 64, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture
def builder(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(HEAD)
    return f"{tmp_path / 'mine.py'}:"


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-7", max_per_class=6, test_share=0.2)


@pytest.mark.parametrize("kind", ["compiled", "compiled_in_place", "compiled_inside", "parallel"])
def test_what_is_compiled_or_for_several_processes_is_the_plain_model(kind: str, builder: str) -> None:
    found, plain = load_backbone(f"{builder}{kind}", **IMAGES), load_backbone(f"{builder}plain", **IMAGES)
    assert found.layers == plain.layers
    assert found.weights == plain.weights
    assert type(found.module) is type(plain.module)
    assert all(part._compiled_call_impl is None for part in found.module.modules())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(found.module(images), plain.module(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("scripted", "scripted or traced module"),
        ("traced", "scripted or traced module"),
        ("traced_inside", "scripted or traced module"),
        ("exported", "without eval mode"),
        ("meta", "on the meta device"),
        ("lazy", "lazy module that has not yet seen an image"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of scripting
def test_what_is_no_plain_module_is_refused_in_one_line(kind: str, says: str, builder: str) -> None:
    with pytest.raises(ModelError, match=f"{kind} is a .*{says}.*return the plain torch.nn.Module") as error:
        load_backbone(f"{builder}{kind}", **IMAGES)
    assert "\n" not in str(error.value)


def test_of_several_tasks_features_are_what_the_heads_see(builder: str, data: Any) -> None:
    backbone = load_backbone(f"{builder}tasks", **IMAGES)
    assert (backbone.head, backbone.penultimate.dimension) == ("first", 512)
    tuned = tune(data, backbone, method="scl", block=backbone.layers[-1].name, config=QUICK)
    assert tuned.model.head.in_features == 512


@pytest.mark.parametrize("kind", ["maps", "maps_by_name"])
def test_of_several_maps_the_last_is_read(kind: str, builder: str) -> None:
    backbone = load_backbone(f"{builder}{kind}", **IMAGES)
    assert (backbone.head, backbone.penultimate.layout, backbone.penultimate.dimension) == (None, "map", 512)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), tapped(backbone, [PENULTIMATE]) as read:
        backbone.module(images)
        made = backbone.module.net(images)
    last = list(made.values())[-1] if isinstance(made, dict) else made[-1]
    torch.testing.assert_close(read[PENULTIMATE], last.mean((2, 3)))


HEADS = {
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 3},
    "levit_128s": {},
    "efficientformerv2_s0": {"img_size": 64},
    "repvit_m0_9": {},
    "volo_d1_224": {"img_size": 32},
    "crossvit_tiny_240": {},
}


@pytest.mark.parametrize("name", HEADS)
def test_with_several_heads_features_are_what_timm_calls_pre_logits(name: str) -> None:
    torch.manual_seed(3)
    net = timm.create_model(name, **HEADS[name]).eval()
    with torch.no_grad():  # heads of a new model may be zero
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    side = HEADS[name].get("img_size", 224 if name == "levit_128s" else 64)  # CrossViT resamples images itself
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        logits, wanted = net(images), net.forward_head(net.forward_features(images), pre_logits=True)
    found = _anatomy(name, net, (side, side), None)
    assert found.head == "head"
    backbone = load_like(found, side)
    with torch.no_grad(), tapped(backbone, [PENULTIMATE]) as read:
        torch.testing.assert_close(backbone.module(images), logits)
    torch.testing.assert_close(read[PENULTIMATE], wanted)
    model = TunableModel(backbone, METHODS["linear"], None, 3)
    with torch.no_grad():
        torch.testing.assert_close(model.features(images), wanted)
    assert not any("head" in key and value.shape[:1] == (1000,) for key, value in model.state_dict().items())


def load_like(anatomy: Any, side: int) -> Any:
    from tightframe.backbone import Backbone, Preprocessing

    wants = Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3)
    return Backbone("mine", anatomy.module, wants, anatomy.layers, anatomy.penultimate, anatomy.head, "cls")


def test_heads_that_say_less_than_the_logits_are_noted_and_tuned_all_the_same(data: Any) -> None:
    backbone = load_backbone("torchvision/squeezenet1_1", pretrained=False, input_size=64)
    (note,) = backbone.notes
    assert "not those of classifier.1 alone" in note
    assert note in repr(backbone)
    assert any(note in told for told in measure(data, backbone).notes)
    assert tune(data, backbone, method="linear", config=QUICK).model.head.in_features == 512


def test_a_block_that_the_head_does_not_depend_on_is_no_candidate() -> None:
    class Aside(nn.Module):
        """A block that runs last, for nothing."""

        def __init__(self):
            super().__init__()
            self.blocks = timm.create_model("test_vit", img_size=32).blocks
            self.stem, self.aside = nn.Conv2d(3, 64, 16, 16), timm.create_model("test_vit", img_size=32).blocks[0]
            self.head = nn.Linear(64, 5)

        def forward(self, x):
            x = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
            self.aside(x)
            return self.head(x.mean(1))

    found = _anatomy("mine", Aside(), (32, 32), None)
    assert [layer.name for layer in found.layers] == [f"blocks.{n}" for n in range(6)]
    assert "aside" in [layer.name for layer in _anatomy("mine", Aside(), (32, 32), ("aside",)).layers]  # to read


def test_of_a_block_with_several_outputs_the_one_with_a_row_an_image_is_read(data: Any) -> None:
    backbone = load_backbone("timm/tnt_s_legacy_patch16_224", pretrained=False, input_size=32)
    assert [layer.element for layer in backbone.layers] == [1] * 12  # pixels of patches come first
    assert {layer.dimension for layer in backbone.layers} == {384}


@pytest.mark.parametrize(
    ("uri", "size"),
    [
        ("timm/deit_tiny_patch16_224", 32),
        ("timm/vit_small_patch14_dinov2", 28),
        ("timm/swin_tiny_patch4_window7_224", (64, 96)),
        ("torchvision/vit_b_32", 64),
    ],
)
def test_a_model_for_one_size_is_built_for_the_images(uri: str, size: Any) -> None:
    backbone = load_backbone(uri, pretrained=False, input_size=size)
    sides = (size, size) if isinstance(size, int) else size
    assert backbone.preprocessing.input_size == sides
    assert backbone.module(torch.zeros(1, 3, *sides)).shape[0] == 1


def test_it_is_saved_and_loaded_for_the_same_size(data: Any, tmp_path: Path) -> None:
    backbone = load_backbone("timm/deit_tiny_patch16_224", pretrained=False, input_size=32)
    tuned = tune(data, backbone, method="linear", config=QUICK, out=tmp_path / "tuned")
    again = load_tuned(tmp_path / "tuned")
    assert again.predict([data.test[0]]) == tuned.predict([data.test[0]])


def test_position_embeddings_are_those_of_the_model_resampled() -> None:
    plain = load_backbone("torchvision/vit_b_32", pretrained=False)
    small = load_backbone("torchvision/vit_b_32", pretrained=False, input_size=64)
    old, new = (one.module.encoder.pos_embedding for one in (plain, small))
    assert (old.shape[1], new.shape[1]) == (50, 5)
    torch.testing.assert_close(new[:, 0], old[:, 0])
    torch.testing.assert_close(small.module.heads.head.weight, plain.module.heads.head.weight)


def test_sizes_that_nothing_can_be_built_for_are_refused_as_before() -> None:
    with pytest.raises(ModelError, match=r"can't take color images of 64 × 64 .*set --input-size"):
        load_backbone("torchvision/maxvit_t", pretrained=False, input_size=64)
    with pytest.raises(ModelError, match="can't take color images of 64 × 96"):
        load_backbone("torchvision/vit_b_32", pretrained=False, input_size=(64, 96))


def test_convolutions_in_three_dimensions_run_too(data: Any) -> None:
    backbone = load_backbone("timm/lambda_resnet26t", pretrained=False, input_size=64)
    assert any(parameter.ndim == 5 for parameter in backbone.module.parameters())
    assert Workspace(device="cpu").features(backbone, data.train)[PENULTIMATE].shape == (len(data.train), 2048)
