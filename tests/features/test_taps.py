"""Features read inside models, against the same models taken apart by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tightframe.backbone import PENULTIMATE, SPREAD, Backbone, Layer, Preprocessing
from tightframe.errors import LayerNotFound, ModelError
from tightframe.features.taps import pooled, pooling_of, submodule, tapped

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WANTS = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)


def backbone(
    module: nn.Module, layers: list[Layer], penultimate: Layer | None = None, head: str | None = None, **rest: Any
) -> Backbone:
    penultimate = penultimate or Layer(PENULTIMATE, "vector", 1, 0)
    return Backbone("net", module.eval().requires_grad_(False), WANTS, tuple(layers), penultimate, head, **rest)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


NUMBERS = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)


@pytest.mark.parametrize("how", ["mean", "cls"])
@pytest.mark.parametrize(
    ("layout", "output", "expected"),
    [
        ("map", NUMBERS, NUMBERS.flatten(2).sum(2) / 20),
        ("map_last", NUMBERS, NUMBERS.flatten(1, 2).sum(1) / 12),
        ("vector", NUMBERS[:, 0, 0], NUMBERS[:, 0, 0]),
        ("vector", (NUMBERS[:, 0, 0], "more"), NUMBERS[:, 0, 0]),
        ("map", [NUMBERS, None], NUMBERS.flatten(2).sum(2) / 20),
    ],
)
def test_only_tokens_are_pooled_one_way_or_the_other(layout: Any, output: Any, expected: Tensor, how: Any) -> None:
    torch.testing.assert_close(pooled(output, Layer("x", layout, 3, 0), how), expected)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_tokens(prefix: int) -> None:
    layer, tokens = Layer("x", "tokens", 4, 0, prefix), NUMBERS[:, 0].transpose(1, 2)
    patches = tokens[:, prefix:].sum(1) / (5 - prefix)
    torch.testing.assert_close(pooled(tokens, layer, "mean"), patches)
    torch.testing.assert_close(pooled(tokens, layer, "cls"), tokens[:, 0] if prefix else patches)


@pytest.mark.parametrize("layout", ["map", "map_last", "tokens", "vector"])
def test_averages_are_taken_in_float32(layout: Any) -> None:
    shape = {"map": (2, 3, 31, 31), "map_last": (2, 31, 31, 3), "tokens": (2, 961, 3), "vector": (2, 3)}[layout]
    output = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 8).bfloat16()
    found = pooled(output, Layer("x", layout, 3, 0), "mean")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pooled(output.float(), Layer("x", layout, 3, 0), "mean"), rtol=0, atol=0)


def resnet() -> Backbone:
    module = timm.create_model(
        "resnet18", pretrained=False, layers=(1, 1, 1, 1), channels=(8, 8, 12, 16), num_classes=5
    )
    layers = [Layer(f"layer{stage}.0", "map", width, 0) for stage, width in ((1, 8), (2, 8), (3, 12), (4, 16))]
    return backbone(module, layers, Layer(PENULTIMATE, "vector", 16, 0), "fc")


def transformer(**arguments: Any) -> Backbone:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 5}
    module = timm.models.VisionTransformer(**size | arguments)
    layers = [Layer(f"blocks.{index}", "tokens", 12, 0, module.num_prefix_tokens) for index in range(2)]
    pool: Any = {"token": "cls", "avg": "mean"}[module.global_pool]
    return backbone(module, layers, Layer(PENULTIMATE, "vector", 12, 0), "head", token_pool=pool)


def swin() -> Backbone:
    size = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "num_heads": (1, 2), "num_classes": 5}
    module = timm.models.SwinTransformer(**size, depths=(1, 1))
    layers = [Layer("layers.0.blocks.0", "map_last", 8, 0), Layer("layers.1.blocks.0", "map_last", 16, 0)]
    return backbone(module, layers, Layer(PENULTIMATE, "vector", 16, 0), "head.fc")


def convnext() -> Backbone:
    module = timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 6, 8, 10), num_classes=5)
    layers = [Layer(f"stages.{stage}.blocks.0", "map", 4 + 2 * stage, 0) for stage in range(4)]
    return backbone(module, layers, Layer(PENULTIMATE, "vector", 10, 0), "head.fc")


MODELS: dict[str, Callable[[], Backbone]] = {
    "resnet": resnet,
    "class token": transformer,
    "mean token": lambda: transformer(class_token=False, global_pool="avg"),
    "class and register tokens": lambda: transformer(reg_tokens=2),
    "swin": swin,
    "convnext": convnext,
}


@pytest.mark.parametrize("kind", MODELS)
def test_penultimate_features_are_what_the_head_sees(kind: str) -> None:
    torch.manual_seed(0)
    net = MODELS[kind]()
    module: Any = net.module
    with torch.inference_mode(), tapped(net, [PENULTIMATE, *(layer.name for layer in net.layers)]) as read:
        logits = module(IMAGES)
        features = module.forward_head(module.forward_features(IMAGES), pre_logits=True)
    torch.testing.assert_close(read[PENULTIMATE], features)
    torch.testing.assert_close(module.get_submodule(net.head)(read[PENULTIMATE]), logits)
    assert {name: values.shape for name, values in read.items()} == {
        layer.name: (2, layer.dimension) for layer in (*net.layers, net.penultimate)
    }


def test_blocks_of_a_resnet_by_hand() -> None:
    net = resnet()
    module: Any = net.module
    with torch.inference_mode(), tapped(net, ["layer1.0", "layer4.0", PENULTIMATE]) as read:
        module(IMAGES)
        first = module.layer1(module.maxpool(module.act1(module.bn1(module.conv1(IMAGES)))))
    torch.testing.assert_close(read["layer1.0"], first.mean((2, 3)))
    torch.testing.assert_close(read["layer4.0"], read[PENULTIMATE])  # the head averages the last block


@pytest.mark.parametrize(("pool", "expected"), [("auto", "cls"), ("cls", "cls"), ("mean", "mean")])
def test_blocks_of_a_transformer_by_hand(pool: Any, expected: str) -> None:
    net = transformer(reg_tokens=2)
    module: Any = net.module
    with torch.inference_mode(), tapped(net, ["blocks.1"], pool) as read:
        module(IMAGES)
        tokens = module.norm_pre(module._pos_embed(module.patch_embed(IMAGES)))
        tokens = module.blocks[1](module.blocks[0](tokens))
    assert tokens.shape == (2, 3 + 16, 12)
    torch.testing.assert_close(read["blocks.1"], tokens[:, 0] if expected == "cls" else tokens[:, 3:].mean(1))


@pytest.mark.parametrize("layer", [Layer("0", "vector", 8, 0), Layer("1", "tokens", 4, 0, 1)], ids=["vector", "cls"])
def test_layers_that_work_in_place_do_not_change_what_was_read_before_them(layer: Layer) -> None:
    module = nn.Sequential(nn.Linear(5, 8), nn.Unflatten(1, (2, 4)), nn.ReLU(inplace=True))
    given = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    net = backbone(module, [layer], token_pool="cls")
    with torch.inference_mode():
        expected = module[0](given)
        with tapped(net, [layer.name]) as read:
            module(given)
    torch.testing.assert_close(read[layer.name], expected[:, : layer.dimension])
    assert (read[layer.name] < 0).any()


def test_a_model_without_a_head_is_read_at_its_output() -> None:
    module = nn.Conv2d(3, 4, 3)
    net = backbone(module, [], Layer(PENULTIMATE, "map", 4, 0))
    with torch.inference_mode(), tapped(net, [PENULTIMATE]) as read:
        output = module(IMAGES)
    torch.testing.assert_close(read[PENULTIMATE], output.mean((2, 3)))


def test_every_pass_replaces_what_was_read() -> None:
    net = resnet()
    with torch.inference_mode(), tapped(net, ["layer1.0"]) as read:
        net.module(IMAGES)
        first = read["layer1.0"]
        net.module(IMAGES[:1] + 1)
    assert (first.shape, read["layer1.0"].shape) == ((2, 8), (1, 8))


def test_a_copy_of_the_model_can_be_listened_to() -> None:
    net, copy = resnet(), resnet().module
    with torch.inference_mode(), tapped(net, ["layer1.0"], module=copy) as read:
        net.module(IMAGES)
        assert read == {}
        copy(IMAGES)
    assert set(read) == {"layer1.0"}


def test_gradients_flow_through_what_is_read() -> None:
    net = resnet()
    net.module.requires_grad_(True)
    with tapped(net, [PENULTIMATE]) as read:
        net.module(IMAGES)
        read[PENULTIMATE].sum().backward()
    assert net.module.get_parameter("conv1.weight").grad is not None


def test_hooks_are_gone_afterwards_whatever_happens() -> None:
    net = resnet()
    with tapped(net, ["layer1.0", PENULTIMATE]) as read:
        assert hooks(net.module) == 2
    with pytest.raises(KeyboardInterrupt), tapped(net, ["layer1.0", PENULTIMATE]):
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), tapped(net, ["layer1.0", PENULTIMATE]):
        net.module(torch.zeros(1, 7, 32, 32))
    with pytest.raises(LayerNotFound), tapped(net, ["layer1.0", PENULTIMATE, "layer9.0"]):
        raise AssertionError("not reached")
    assert hooks(net.module) == 0
    net.module(IMAGES)
    assert read == {}


def test_no_such_layer() -> None:
    with pytest.raises(LayerNotFound, match=r'no layer "layer1.1" in net \(4 blocks\); nearest: "layer1.0"'):
        tapped(resnet(), ["layer1.1"]).__enter__()
    with pytest.raises(LayerNotFound, match=r'no module "layer1\.0" in Linear'):
        tapped(resnet(), ["layer1.0"], module=nn.Linear(3, 3)).__enter__()
    assert isinstance(submodule(resnet().module, "layer1.0.conv1"), nn.Conv2d)


def test_how_tokens_are_pooled() -> None:
    assert [pooling_of(transformer(), pool) for pool in ("auto", "mean", "cls")] == ["cls", "mean", "cls"]
    assert pooling_of(resnet(), "auto") == "mean"
    for net in (resnet(), transformer(class_token=False, global_pool="avg")):
        with pytest.raises(ModelError, match="net has no class token; use pool auto or mean"):
            pooling_of(net, "cls")


@pytest.mark.parametrize("layout", ["map", "map_last"])
def test_maps_have_a_standard_deviation_over_space(layout: str) -> None:
    values = torch.randn(3, 5, 4, 6) * 2 + 1
    given = values if layout == "map" else values.permute(0, 2, 3, 1)
    layer = Layer("block:std", layout, 5, 0, spread=True)
    np.testing.assert_allclose(pooled(given, layer, "mean").numpy(), values.numpy().std((2, 3)), rtol=1e-5)
    assert (layer.module, layer.has_spread) == ("block", False)


def test_a_layer_is_known_by_its_spread_where_it_has_one(wide) -> None:
    block = wide.layers[1]
    found = wide.layer(block.name + SPREAD)
    assert (found.dimension, found.spread, found.module) == (block.dimension, True, block.name)
    for name in (f"{block.name}{SPREAD}{SPREAD}", f"no{SPREAD}", f"{PENULTIMATE}{SPREAD}"):
        with pytest.raises(LayerNotFound):
            wide.layer(name)
