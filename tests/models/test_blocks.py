from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models

from tightframe.errors import LayerNotFound, ModelError
from tightframe.models.blocks import Anatomy


def grid(pattern: str, depths: tuple[int, ...], start: int = 0) -> list[str]:
    """Names of blocks in stages of these depths, both counted from ``start``."""
    return [
        pattern.format(stage, block)
        for stage, depth in enumerate(depths, start)
        for block in range(start, start + depth)
    ]


@dataclass(frozen=True)
class Family:
    """A model and what is known of it from its paper and its authors' code."""

    build: Callable[[], nn.Module]
    side: int
    layers: list[str]
    head: str
    penultimate: int
    ends: tuple[int, int]
    layout: str = "map"
    prefix_tokens: int = 0


def timm_model(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name, **settings)


def tiny_vision_transformer() -> nn.Module:
    return models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=7
    )


RESNET = ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1"]
SWIN_SHRUNK = {"img_size": 64, "embed_dim": 24, "num_heads": (1, 2, 4, 8)}
FAMILIES = {
    "resnet18": Family(timm_model("resnet18"), 64, RESNET, "fc", 512, (64, 512)),
    "resnet26": Family(timm_model("resnet26"), 64, RESNET, "fc", 2048, (256, 2048)),
    "mobilenetv2": Family(
        timm_model("mobilenetv2_050"), 64, grid("blocks.{}.{}", (1, 2, 3, 4, 3, 3, 1)), "classifier", 1280, (8, 160)
    ),
    "mobilenetv3": Family(
        timm_model("mobilenetv3_small_050"), 64, grid("blocks.{}.{}", (1, 2, 3, 2, 3)), "classifier", 1024, (8, 48)
    ),
    "efficientnet_b0": Family(
        timm_model("efficientnet_b0"), 64, grid("blocks.{}.{}", (1, 2, 2, 3, 3, 4, 1)), "classifier", 1280, (16, 320)
    ),
    # a ghost block has two ghost modules as members; they are parts of it
    "ghostnet": Family(
        timm_model("ghostnet_050"), 64, grid("blocks.{}.{}", (1, 1, 1, 1, 1, 1, 5, 1, 4)), "classifier", 1280, (8, 80)
    ),
    "densenet121": Family(
        timm_model("densenet121"),
        64,
        [f"features.denseblock{n}" for n in (1, 2, 3, 4)],
        "classifier",
        1024,
        (256, 1024),
    ),
    # two of its four stages have one block only
    "regnetx": Family(timm_model("regnetx_002"), 64, grid("s{}.b{}", (1, 1, 4, 7), 1), "head.fc", 368, (24, 368)),
    "convnext": Family(
        timm_model("convnext_atto"), 64, grid("stages.{}.blocks.{}", (2, 2, 6, 2)), "head.fc", 320, (40, 320)
    ),
    # its later stages end with a block of another class
    "edgenext": Family(
        timm_model("edgenext_xx_small"), 64, grid("stages.{}.blocks.{}", (2, 2, 6, 2)), "head.fc", 168, (24, 168)
    ),
    "vit": Family(
        timm_model("vit_tiny_patch16_224", img_size=32),
        32,
        grid("blocks.{1}", (12,)),
        "head",
        192,
        (192, 192),
        "tokens",
        1,
    ),
    # two heads and two tokens: the class token's is the head
    "deit distilled": Family(
        timm_model("deit_tiny_distilled_patch16_224", img_size=32),
        32,
        grid("blocks.{1}", (12,)),
        "head",
        192,
        (192, 192),
        "tokens",
        2,
    ),
    "swin": Family(
        timm_model("swin_tiny_patch4_window7_224", **SWIN_SHRUNK),
        64,
        grid("layers.{}.blocks.{}", (2, 2, 6, 2)),
        "head.fc",
        192,
        (24, 192),
        "map_last",
    ),
    "mixer": Family(
        timm_model("mixer_s32_224", img_size=64), 64, grid("blocks.{1}", (8,)), "head", 512, (512, 512), "tokens"
    ),
    "levit": Family(
        timm_model("levit_128s", img_size=64),
        64,
        [
            *grid("stages.0.blocks.{1}", (2,)),
            *("stages.1.downsample", *grid("stages.1.blocks.{1}", (3,))),
            *("stages.2.downsample", *grid("stages.2.blocks.{1}", (4,))),
        ],
        "head.linear",
        384,
        (128, 384),
        "tokens",
    ),
    "maxvit": Family(
        timm_model("test_maxvit", img_size=64),
        64,
        ["stem", *grid("stages.{}.blocks.{}", (1, 1, 1, 1))],
        "head.fc",
        128,
        (32, 128),
    ),
    # its transformers fold patches into the batch: the block around them is what can be read
    "mobilevit": Family(
        timm_model("mobilevit_xxs"), 64, grid("stages.{}.{}", (1, 3, 2, 2, 2)), "head.fc", 320, (16, 80)
    ),
    "torchvision mobilenet_v3": Family(
        models.mobilenet_v3_small, 64, [f"features.{n}" for n in range(1, 12)], "classifier.3", 1024, (16, 96)
    ),
    "torchvision mnasnet": Family(
        models.mnasnet0_5, 64, grid("layers.{}.{}", (0,) * 8 + (3, 3, 3, 2, 4, 1)), "classifier.1", 1280, (16, 160)
    ),
    "torchvision shufflenet": Family(
        models.shufflenet_v2_x0_5, 64, grid("stage{}.{}", (0, 0, 4, 8, 4)), "fc", 1024, (48, 192)
    ),
    "torchvision squeezenet": Family(
        models.squeezenet1_1,
        64,
        [f"features.{n}" for n in (3, 4, 6, 7, 9, 10, 11, 12)],
        "classifier.1",
        512,
        (128, 512),
    ),
    # auxiliary classifiers run in training only
    "torchvision googlenet": Family(
        partial(models.googlenet, init_weights=False),
        64,
        [f"inception{n}" for n in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")],
        "fc",
        1024,
        (256, 1024),
    ),
    "torchvision vit": Family(
        tiny_vision_transformer,
        32,
        grid("encoder.layers.encoder_layer_{1}", (3,)),
        "heads.head",
        32,
        (32, 32),
        "tokens",
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_and_head_of_known_families(name: str) -> None:
    family = FAMILIES[name]
    found = Anatomy(family.build().eval(), (family.side, family.side))
    assert [layer.name for layer in found.layers] == family.layers
    assert found.head == family.head
    assert (found.penultimate.name, found.penultimate.dimension) == ("penultimate", family.penultimate)
    assert (found.layers[0].dimension, found.layers[-1].dimension) == family.ends
    assert {layer.layout for layer in found.layers} == {family.layout}
    assert {layer.prefix_tokens for layer in found.layers} == {family.prefix_tokens}


def test_a_model_without_blocks_is_read_at_its_convolutions_and_linear_maps() -> None:
    found = Anatomy(models.alexnet().eval(), (64, 64))
    names = ["features.0", "features.3", "features.6", "features.8", "features.10", "classifier.1", "classifier.4"]
    assert [layer.name for layer in found.layers] == names
    assert [layer.layout for layer in found.layers] == ["map"] * 5 + ["vector"] * 2
    assert [layer.dimension for layer in found.layers] == [64, 192, 384, 256, 256, 4096, 4096]
    assert (found.head, found.penultimate.layout, found.penultimate.dimension) == ("classifier.6", "vector", 4096)


class Residual(nn.Module):
    def __init__(self, width: int = 6):
        super().__init__()
        self.one, self.other = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.other(self.one(x).relu())


class Own(nn.Module):
    """Somebody's own model: three residual blocks in a list, defined in another order than they run."""

    def __init__(self, head: nn.Module | None = None):
        super().__init__()
        if head is not None:
            self.head = head
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.stem = nn.Conv2d(3, 6, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index in (2, 0, 1):
            x = self.blocks[index](x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x)) if hasattr(self, "head") else self.features(x)


def names_in(module: nn.Module, **settings: Any) -> list[str]:
    return [layer.name for layer in Anatomy(module.eval(), (8, 8), **settings).layers]


RUN_ORDER = ["blocks.2", "blocks.0", "blocks.1"]


def test_layers_come_in_the_order_in_which_they_run() -> None:
    found = Anatomy(Own(nn.Linear(6, 4)).eval(), (8, 8))
    assert [layer.name for layer in found.layers] == RUN_ORDER
    assert found.layers[0].parameters == 2 * (6 * 6 * 9 + 6)
    assert (found.head, found.penultimate.dimension, found.penultimate.parameters) == ("head", 6, 0)


def test_without_a_head_the_output_is_penultimate() -> None:  # the 1 × 1 stem is as wide, but blocks follow it
    found = Anatomy(Own().eval(), (8, 8))
    assert (found.head, found.penultimate.layout, found.penultimate.dimension) == (None, "vector", 6)
    assert [layer.name for layer in found.layers] == RUN_ORDER


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).relu())


def test_a_classifier_of_its_own_class_is_a_head_and_no_block() -> None:
    found = Anatomy(Own(Perceptron()).eval(), (8, 8))
    assert [layer.name for layer in found.layers] == RUN_ORDER
    assert (found.head, found.penultimate.dimension) == ("head.outer", 9)


def test_a_model_within_another_module_is_looked_into() -> None:
    inner = Own(nn.Linear(6, 4))
    found = Anatomy(nn.Sequential(nn.Identity(), inner).eval(), (8, 8))
    assert [layer.name for layer in found.layers] == [f"1.{name}" for name in RUN_ORDER]
    assert found.head == "1.head"


class Halves(nn.Module):
    """Treats the two halves of an image as if they were two images."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual(), Residual()])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat(x.chunk(2, 3))
        for block in self.blocks:
            x = block(x)
        return torch.cat(x.chunk(2), 3)


def test_blocks_that_fold_patches_into_the_batch_give_way_to_what_is_around_them() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 1), Halves(), Residual(), Halves(), nn.Flatten(), nn.Linear(384, 4))
    found = Anatomy(module, (8, 8))
    assert [(layer.name, layer.layout) for layer in found.layers] == [("1", "map"), ("2", "map"), ("3", "map")]
    with pytest.raises(LayerNotFound, match="no tensor that can be pooled"):
        Anatomy(module, (8, 8), ("1.blocks.0",))


class AnswersWithFeatures(Own):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.head(features), features


def test_of_a_tuple_the_first_tensor_is_the_answer() -> None:
    found = Anatomy(AnswersWithFeatures(nn.Linear(6, 4)).eval(), (8, 8))
    assert (found.head, found.penultimate.dimension, len(found.layers)) == ("head", 6, 3)


class AnswersInWords(Own):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self.features(x)}


def test_an_answer_that_is_no_tensor() -> None:
    with pytest.raises(ModelError, match="AnswersInWords puts out a dict"):
        Anatomy(AnswersInWords().eval(), (8, 8))


def stack(*tail: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *tail
    )


def test_plain_stacks() -> None:
    assert names_in(stack(nn.Linear(7, 4))) == ["0", "2"]
    assert Anatomy(stack(nn.Linear(7, 4)), (8, 8)).head == "6"
    assert Anatomy(stack(), (8, 8)).head is None
    # a classifier with dropout is a small sequence itself; the convolutions must not be lost for it
    assert names_in(stack(nn.Sequential(nn.Dropout(), nn.Linear(7, 4)))) == ["0", "2"]


def test_convolutions_with_their_norm_are_read_after_the_activation() -> None:
    def unit(inner: int, outer: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inner, outer, 3), nn.BatchNorm2d(outer), nn.ReLU())

    module = nn.Sequential(unit(3, 5), unit(5, 7), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4))
    assert names_in(module) == ["0", "1"]


def test_a_linear_classifier_on_pixels_has_no_layer_but_a_head() -> None:
    found = Anatomy(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), (8, 8))
    assert (found.layers, found.head, found.penultimate.dimension) == ((), "1", 192)


class Repeats(Own):
    """The first block runs twice and the last one never."""

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.blocks[0](self.blocks[1](self.blocks[0](x))).mean((2, 3))


def test_blocks_that_run_twice_or_never_are_no_layers() -> None:
    assert names_in(Repeats(nn.Linear(6, 4))) == ["blocks.1"]


@pytest.mark.parametrize("name", ["blocks.0", "blocks.2"])
def test_such_a_block_cannot_be_asked_for_either(name: str) -> None:
    with pytest.raises(LayerNotFound, match=f'"{name}" does not run exactly once'):
        names_in(Repeats(nn.Linear(6, 4)), named=(name,))


def test_layers_by_name_are_any_modules_once_each_in_running_order() -> None:
    assert names_in(Own(nn.Linear(6, 4)), named=("blocks.1.one", "stem", "blocks.2", "stem")) == [
        "stem",
        "blocks.2",
        "blocks.1.one",
    ]


@pytest.mark.parametrize(("name", "nearest"), [("blocks.7", "blocks."), ("steam", '"stem"'), ("", '"')])
def test_names_that_do_not_exist(name: str, nearest: str) -> None:
    with pytest.raises(LayerNotFound, match=f'no layer "{name}" .*nearest: .*{nearest}'):
        names_in(Own(nn.Linear(6, 4)), named=(name,))


class Odd(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Any]):
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


class Aside(Own):
    """Something odd happens on the way that does not matter to the answer."""

    def __init__(self, answer: Callable[[Tensor], Any]):
        super().__init__(nn.Linear(6, 4))
        self.odd = Odd(answer)

    def forward(self, x: Tensor) -> Tensor:
        self.odd(x)
        return super().forward(x)


@pytest.mark.parametrize(
    "answer",
    [lambda x: None, lambda x: {"x": x}, lambda x: x.mean(), lambda x: x[..., None], lambda x: x.repeat(4, 1, 1, 1)],
    ids=["nothing", "dict", "number", "five axes", "another batch"],
)
def test_a_named_layer_that_cannot_be_pooled(answer: Callable[[Tensor], Any]) -> None:
    with pytest.raises(LayerNotFound, match='"odd" does not run exactly once, or puts out no tensor'):
        names_in(Aside(answer), named=("odd",))


def test_a_named_layer_that_puts_out_a_tuple_is_read_at_its_first_tensor() -> None:
    (layer,) = Anatomy(Aside(lambda x: (x.flatten(1), None)).eval(), (8, 8), ("odd",)).layers
    assert (layer.layout, layer.dimension) == ("vector", 192)


@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 8)])
@pytest.mark.parametrize("channels", [1, 5, 12, 64])
def test_channels_are_found_first_or_last(size: tuple[int, int], channels: int) -> None:
    def maps(x: Tensor) -> Tensor:
        return torch.zeros(len(x), channels, size[0] // 2, size[1] // 2)

    for answer, layout in ((maps, "map"), (lambda x: maps(x).permute(0, 2, 3, 1), "map_last")):
        (layer,) = Anatomy(Aside(answer).eval(), size, ("odd",)).layers
        assert (layer.layout, layer.dimension) == (layout, channels)


class Unheeded(Own):
    """Declares a classifier as timm's models do, and leaves it out."""

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def test_a_declared_head_that_never_runs_is_none() -> None:
    assert Anatomy(Unheeded(nn.Linear(6, 4)).eval(), (8, 8)).head is None


def test_the_wrong_input_size_says_what_to_do() -> None:
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    with pytest.raises(ModelError, match=r"VisionTransformer can't take .*48 × 32 .*Input height .*set --input-size"):
        Anatomy(module, (48, 32))
    assert not any(m._forward_hooks for m in module.modules())


def test_looking_leaves_the_model_as_it_was() -> None:
    module = Own(nn.Linear(6, 4)).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    Anatomy(module, (8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
