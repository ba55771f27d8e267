"""The prefix cache: running on from a block is running the model, and training there is training it."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from tightframe import load_backbone, load_images
from tightframe.features.capture import CannotCut, Capture
from tightframe.features.inputs import PixelInputs
from tightframe.features.pixels import Pixels
from tightframe.features.workspace import Workspace
from tightframe.tuning.loop import fit
from tightframe.tuning.methods import METHODS
from tightframe.tuning.recipe import Recipe, Split
from tightframe.tuning.replay import Suffix
from tightframe.tuning.surgery import TunableModel

CPU = torch.device("cpu")
MODELS = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_mambaout", "test_nfnet")


@pytest.fixture(scope="module")
def data():
    return load_images("digits:5-9", max_per_class=8, test_share=0.3)


def kept(blocks, backbone, data, precision="float32", budget=1.0):
    images = PixelInputs(Pixels(data.train, backbone.preprocessing))
    workspace = Workspace(device="cpu", precision=precision, batch_size=16)
    return workspace.block_inputs(backbone, data.train, blocks, budget_gb=budget), images


@pytest.mark.parametrize("name", MODELS)
def test_a_model_goes_on_from_any_of_its_blocks(name, data):
    backbone = load_backbone(f"timm/{name}", pretrained=False, input_size=64)
    blocks = [layer.name for layer in backbone.layers]
    found, images = kept(blocks, backbone, data)
    inputs = next(images.batches(range(8), 8))[1]
    with torch.no_grad():
        expected = backbone.module(inputs)
        for block in blocks:
            _, rows = next(found[block].batches(range(8), 8))
            on = Suffix(backbone.module, block, (3, 64, 64))(rows)
            torch.testing.assert_close(on, expected, rtol=2e-2, atol=2e-3 * float(expected.abs().max()))


def test_a_model_without_a_head_of_its_own_goes_on_too(data, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import timm\ndef make(): return timm.create_model('test_resnet', num_classes=0)\n"
    )
    backbone = load_backbone(f"{tmp_path / 'mine.py'}:make", input_size=64)
    assert backbone.head is None
    block = backbone.layers[1].name
    model = TunableModel(backbone, METHODS["scl"], block, 5).train(False)
    found, images = kept([block], backbone, data)
    inputs, rows = next(images.batches(range(8), 8))[1], next(found[block].batches(range(8), 8))[1]
    with torch.no_grad():
        whole, part = model.features(inputs), model.from_block().features(rows)
    torch.testing.assert_close(part, whole, rtol=2e-2, atol=2e-3 * float(whole.abs().max()))


@pytest.mark.parametrize("method", ["layer", "scl"])
@pytest.mark.parametrize("which", ["resnet", "transformer"])
def test_training_from_the_block_is_training_the_whole(which, method, wide, transformer, data):
    backbone = wide if which == "resnet" else transformer
    block = backbone.layers[1].name
    recipe = Recipe(lr=0.02, epochs=3, batch_size=16)
    split = Split(data.train.labels, np.arange(30), np.arange(30, 40), 5)
    rows, states = [], []
    for cached in (False, True):
        model = TunableModel(backbone, METHODS[method], block, 5)
        found, images = kept([block], backbone, data)
        trained, inputs = (model.from_block(), found[block]) if cached else (model, images)
        rows.append(fit(trained, inputs, split, recipe, device=CPU))
        states.append({name: tensor.clone() for name, tensor in model.changed_state().items()})
    for whole, part in zip(*rows, strict=True):
        assert part["train_loss"] == pytest.approx(whole["train_loss"], rel=2e-3)
        assert part["validation_loss"] == pytest.approx(whole["validation_loss"], rel=2e-3)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=2e-2, atol=2e-3)


def test_half_precision_is_kept_as_it_is_and_takes_two_bytes_a_value(wide, data):
    block = wide.layers[2].name
    for precision, half in (("float32", torch.float16), ("bfloat16", torch.bfloat16)):
        found, _ = kept([block], wide, data, precision)
        assert found[block].values.dtype == half
        assert found[block].bytes == 2 * found[block].values.numel()
        assert len(found[block].values) == len(data.train)


def test_values_too_large_for_float16_are_kept_as_bfloat16(wide, data):
    large = dataclasses.replace(wide, module=copy.deepcopy(wide.module))
    with torch.no_grad():
        large.module.layer1[0].bn2.bias.fill_(1e6)
    found, _ = kept(["layer2.0"], large, data)
    assert found["layer2.0"].values.dtype == torch.bfloat16
    assert torch.isfinite(found["layer2.0"].values.float()).all()


def test_values_that_grow_too_large_for_float16_later_are_kept_as_bfloat16():
    module, batches = (
        nn.Sequential(nn.Identity(), nn.Identity()),
        [torch.full((2, 3), size) for size in (1.0, 1e5, 2.0)],
    )
    capture = Capture(module, ["1"], 6, 1, 1.0)
    with capture.listening():
        for place, batch in enumerate(batches):
            module(batch)
            capture.add(0, [2 * place, 2 * place + 1], None)
    found = capture.finish()["1"].values
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), torch.cat(batches), rtol=1e-2, atol=0)


def test_a_budget_that_does_not_do_is_said_with_what_would(wide, data):
    with pytest.raises(CannotCut, match=r"layer2.0 takes .* GB, more than the 1e-06 allowed"):
        kept(["layer2.0"], wide, data, budget=1e-6)


def collected(call):
    """What goes into a block that is called so, for two images."""

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Linear(3, 3)

        def forward(self, x):
            return call(self.block, x)

    module = Called()
    capture = Capture(module, ["block"], 2, 1, 1.0)
    with capture.listening():
        module(torch.arange(6.0).view(2, 3))
        capture.add(0, [0, 1], None)
    return module, capture


def test_inputs_that_are_no_tensor_with_a_row_an_image_are_refused():
    _, capture = collected(lambda block, x: block(torch.cat([x, x]))[: len(x)])
    with pytest.raises(CannotCut, match="a row an image"):
        capture.finish()


def test_inputs_given_by_their_name_are_as_good_as_others():
    module, capture = collected(lambda block, x: block(input=x).relu())
    torch.testing.assert_close(capture.finish()["block"].values, torch.arange(6.0).view(2, 3).half())
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(Suffix(module, "block", (3,))(inputs), module(inputs))


class Back(nn.Module):
    """Needs what came before its second block after it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        before = self.first(x)
        return self.third(self.second(before * 2) + x)


class Choosy(Back):
    """Looks at its values to decide."""

    def forward(self, x):
        before = self.first(x)
        return self.second(before * 2) if before.sum() < 2 * before.abs().sum() else self.third(before)


class Twice(Back):
    """Runs a block twice."""

    def forward(self, x):
        return self.second(self.second(x))


@pytest.mark.parametrize(
    ("module", "says"),
    [(Back(), "goes back to what came before"), (Choosy(), "can't be followed"), (Twice(), "not called once")],
)
def test_models_that_can_not_be_cut_say_why(module, says):
    with pytest.raises(CannotCut, match=says):
        Suffix(module, "second", (3, 4, 4))


class Optional_(nn.Module):
    """Takes an optional argument, and uses a constant of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.offset = nn.Parameter(torch.randn(3))

    def forward(self, x, mask=None):
        x = self.second(self.first(x)) + self.offset.sigmoid()
        return x if mask is None else x * mask


def test_optional_arguments_and_constants_are_no_hindrance():
    module, inputs = Optional_(), torch.randn(4, 3)
    torch.testing.assert_close(Suffix(module, "second", (3,))(module.first(inputs)), module(inputs))


class Rounds(nn.Module):
    """Adds what goes into its block to what comes out, in the module around it and in its own ``forward``."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 3), nn.Module(), nn.Linear(3, 2)
        self.inner.block = nn.Linear(3, 3)
        self.inner.forward = lambda x: x + self.inner.block(x)

    def forward(self, x):
        before = self.first(x)
        return self.last(self.inner(before) + before)


def test_a_block_whose_input_goes_round_it_too():
    module, inputs = Rounds(), torch.randn(4, 3)
    torch.testing.assert_close(Suffix(module, "inner.block", (3,))(module.first(inputs)), module(inputs))


class Looks(nn.Module):
    """Does what tracing can't follow: it looks at shapes and values, and hands on numbers and constants."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.last = Embed(), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        tokens, mask, count, size = self.embed(x)
        assert tuple(size) == (2, 3)
        for _ in range(count if mask.all() else 0):
            tokens = tokens * 1.0
        seen = self.block(tokens)
        return self.last((seen * mask[..., None]).sum(1) / count)


class Embed(nn.Module):
    """From (n, 6) to tokens (n, 2, 3), a mask (n, 2), the number of tokens and a token's shape."""

    def forward(self, x):
        tokens = x.view(len(x), 2, 3) + 1
        return tokens, torch.ones(len(x), 2, dtype=torch.bool), 2, tokens.shape[1:]


def test_what_tracing_can_not_follow_is_run():
    module, inputs = Looks(), torch.randn(5, 6)
    on = Suffix(module, "block", (6,))
    torch.testing.assert_close(on(module.embed(inputs)[0]), module(inputs))
    assert "forward" not in vars(module.embed)  # nothing is left behind
    seen = []
    for name in ("embed", "block", "last"):
        getattr(module, name).register_forward_hook(lambda _, __, ___, name=name: seen.append(name))
    on(module.embed.forward(inputs)[0])
    assert seen == ["block", "last"]


def test_running_from_a_block_leaves_training_modes_and_statistics_alone():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    module[1].train()
    module[2].eval()
    Suffix(module, "2", (3, 4, 4))
    assert (module[1].training, module[2].training) == (True, False)
    assert int(module[1].num_batches_tracked) == 0
