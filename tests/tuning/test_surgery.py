"""What each method trains, to the parameter; what the skip connection adds; what stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from tightframe import load_backbone
from tightframe.errors import LayerNotFound, SettingsError
from tightframe.features.taps import pooled, submodule
from tightframe.tuning.heads import Neck
from tightframe.tuning.methods import METHODS, method_named
from tightframe.tuning.state import HeadOnly
from tightframe.tuning.surgery import TunableModel

BLOCK = "layer2.0"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
NORMS = ("bn1", "bn2", "downsample.1")
OWNED = {
    "discriminant": lambda name: False,
    "linear": lambda name: False,
    "layer": lambda name: name.startswith(f"base.{BLOCK}."),
    "scl": lambda name: name.startswith(f"base.{BLOCK}."),
    "partial": lambda name: (
        name.startswith((f"base.{BLOCK}.", "base.layer3.", "base.layer4."))
        and ".running" not in name
        and ".num_" not in name
    ),
    "full": lambda name: True,
    "lp-ft": lambda name: True,
    "bitfit": lambda name: name.endswith(".bias"),
    "lora": lambda name: ".lora_" in name,
    "norm": lambda name: name.rpartition(".")[0].endswith(NORMS),
}


def model(backbone, method, layer=None, classes=5, **options):
    if METHODS[method].closed_form:
        options = {"align": "concat", "read": ["layer1.0", "penultimate"]} | options
    return TunableModel(backbone, METHODS[method], layer, classes, **options)


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before, after):
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    ("name", "trained", "whole", "share"),
    [("resnet18", 924_170, 11_181_642, "8.27"), ("resnet50", 1_532_938, 23_528_522, "6.52")],
)
def test_parameters_of_the_papers_models(name, trained, whole, share):
    tuned = model(load_backbone(f"timm/{name}", pretrained=False), "scl", "layer3.0", 10)
    assert (tuned.trainable_parameters, tuned.all_parameters) == (trained, whole)
    assert f"{100 * trained / whole:.2f}" == share


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.closed_form])
def test_a_step_changes_what_the_method_trains_and_nothing_else(wide, method):
    layer = BLOCK if METHODS[method].needs_block else None
    tuned = model(wide, method, layer)
    with torch.no_grad():  # heads, and norms that end a block, start at zero: no gradient would pass them
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    tuned.train()
    before, base = state_of(tuned), state_of(wide.module)
    step = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    inputs = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    functional.cross_entropy(tuned(inputs), torch.arange(8) % 5).backward()
    step.step()
    moved = changed(before, state_of(tuned))
    assert method in OWNED, "say there what a new method trains"
    expected = {name for name in before if name.startswith("head.") or OWNED[method](name)}
    assert moved == expected  # weights, and running statistics of the norms in what is trained
    assert set(tuned.changed_state()) == expected
    assert changed(base, state_of(wide.module)) == set()


@pytest.mark.parametrize(("method", "layer"), [("full", None), ("scl", BLOCK)])
def test_batch_norms_keep_their_statistics_where_training_is_steady(wide, method, layer):
    def following(**options):
        modules = model(wide, method, layer, **options).train(True).modules()
        return [module.training for module in modules if isinstance(module, nn.BatchNorm2d)]

    assert any(following())
    assert not any(following(steady=True))
    assert model(wide, method, layer, steady=True).train(True).head.training


def test_eval_mode_changes_no_statistics(wide):
    tuned = model(wide, "full").train(False)
    before = state_of(tuned)
    tuned(torch.randn(4, 3, 32, 32))
    assert changed(before, state_of(tuned)) == set()


def test_frozen_blocks_run_in_eval_mode_while_training(wide):
    tuned = model(wide, "scl", BLOCK).train()
    modes = {name: module.training for name, module in tuned.base.named_modules() if not list(module.children())}
    assert {name for name, training in modes.items() if training} == {
        name for name in modes if name.startswith(f"{BLOCK}.")
    }


def read_by_hand(backbone, tuned, layer, inputs):
    """φ and z from hooks of the test's own."""
    seen = {}
    base = copy.deepcopy(tuned.base)
    submodule(base, layer).register_forward_hook(lambda m, i, o: seen.update(z=o))
    submodule(base, backbone.head).register_forward_pre_hook(lambda m, i: seen.update(phi=i[0]))
    base(inputs)
    return seen["phi"], pooled(seen["z"], backbone.layer(layer), backbone.token_pool)


def test_a_narrower_block_is_padded_to_the_features(wide):
    tuned = model(wide, "scl", BLOCK).train(False)
    inputs = torch.randn(3, 3, 32, 32)
    phi, z = read_by_hand(wide, tuned, BLOCK, inputs)
    assert (phi.shape[1], z.shape[1], tuned.neck.width) == (16, 8, 16)
    torch.testing.assert_close(tuned.features(inputs), phi + torch.cat([z, torch.zeros(3, 8)], 1))


def test_wider_blocks_pad_the_features():
    backbone = load_backbone("timm/test_efficientnet", pretrained=False, input_size=32)
    layer = max(backbone.layers, key=lambda block: block.dimension)
    phi, z = torch.randn(2, 3), torch.randn(2, 5)
    torch.testing.assert_close(Neck([3, 5])([phi, z]), torch.cat([phi, torch.zeros(2, 2)], 1) + z)
    tuned = model(backbone, "scl", layer.name)
    assert tuned.neck.width == max(backbone.penultimate.dimension, layer.dimension)
    assert tuned(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_a_head_in_closed_form_sees_the_layers_it_reads_side_by_side(wide):
    tuned = model(wide, "discriminant", read=["layer1.0", BLOCK, "penultimate"]).train(False)
    inputs = torch.randn(3, 3, 32, 32)
    first, (last, second) = read_by_hand(wide, tuned, "layer1.0", inputs)[1], read_by_hand(wide, tuned, BLOCK, inputs)
    torch.testing.assert_close(tuned.features(inputs), torch.cat([first, second, last], 1))
    assert tuned.head.in_features == first.shape[1] + second.shape[1] + last.shape[1]


def test_layers_to_read_are_for_closed_form_alone(wide):
    with pytest.raises(SettingsError, match="discriminant needs layers to read"):
        TunableModel(wide, METHODS["discriminant"], None, 5)
    with pytest.raises(SettingsError, match="linear takes no layers"):
        model(wide, "linear", read=["penultimate"])
    with pytest.raises(SettingsError, match="discriminant takes no block"):
        model(wide, "discriminant", BLOCK)
    with pytest.raises(LayerNotFound):
        model(wide, "discriminant", read=["layer9.0"])


@pytest.mark.parametrize("method", ["linear", "layer", "full"])
def test_without_a_skip_the_head_sees_the_penultimate_features(wide, method):
    tuned = model(wide, method, BLOCK if method == "layer" else None).train(False)
    inputs = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(tuned.features(inputs), read_by_hand(wide, tuned, BLOCK, inputs)[0])


@pytest.mark.parametrize("pool", ["auto", "mean", "cls"])
def test_transformers(transformer, pool):
    layer = transformer.layers[1].name
    tuned = model(transformer, "scl", layer, pool=pool).train(False)
    inputs = torch.randn(2, 3, *transformer.preprocessing.input_size)
    seen = {}
    submodule(tuned.base, layer).register_forward_hook(lambda m, i, o: seen.update(tokens=o))
    phi = read_by_hand(transformer, tuned, layer, inputs)[0]
    features = tuned.features(inputs)
    token = {"auto": transformer.token_pool, "mean": "mean", "cls": "cls"}[pool]
    z = seen["tokens"][:, 0] if token == "cls" else seen["tokens"][:, 1:].mean(1)
    torch.testing.assert_close(features, phi + z)


def test_the_head_starts_at_zero_whatever_was_drawn_before(wide):
    torch.manual_seed(1)
    first = model(wide, "linear")
    torch.manual_seed(2)
    second = model(wide, "linear")
    assert not first.head.weight.any()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_state_is_put_back(wide):
    tuned = model(wide, "layer", BLOCK)
    start = {name: tensor.clone() for name, tensor in tuned.changed_state().items()}
    with torch.no_grad():
        for tensor in tuned.changed_state().values():
            tensor.add_(1)
    tuned.load_changed_state(start)
    assert changed(start, tuned.changed_state()) == set()


def test_a_head_alone_keeps_the_same_promises():
    head = HeadOnly(torch.nn.Linear(3, 2))
    inputs = torch.randn(4, 3)
    assert torch.equal(head.features(inputs), inputs)
    assert torch.equal(head(inputs), head.head(inputs))
    head.load_changed_state({"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(2)})
    assert head.head.weight.sum() == 6


@pytest.mark.parametrize(("align", "skip_scale"), [("pad", "none"), ("concat", "none"), ("project", "spread")])
def test_a_standard_scale_is_what_it_says_and_goes_into_the_head(align, skip_scale):
    draw = torch.Generator().manual_seed(0)
    parts = [3 + 7 * torch.randn(40, 6, generator=draw), 0.1 * torch.randn(40, 4, generator=draw) - 2]
    neck = Neck([6, 4], align, skip_scale)
    neck.rescale(parts)
    plain = neck(parts)
    neck.standardize(parts)
    seen = neck(parts)
    assert float(seen.detach().mean(0).abs().max()) < 1e-5
    assert float(seen.detach().square().sum(1).mean()) == pytest.approx(20, rel=1e-5)
    assert "unit" not in neck.state_dict(), "nothing of it is saved"
    head = torch.nn.Linear(neck.width, 3)
    logits = head(seen)
    neck.fold_into(head)
    torch.testing.assert_close(neck(parts), plain)
    torch.testing.assert_close(head(plain), logits, atol=1e-4, rtol=1e-4)
    neck.fold_into(head)  # once only
    torch.testing.assert_close(head(plain), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("method", "layer"), [("linear", BLOCK), ("full", BLOCK), ("scl", None), ("layer", None)])
def test_methods_and_layers_that_do_not_go_together(wide, method, layer):
    with pytest.raises(SettingsError, match=r"block"):
        model(wide, method, layer)


def test_unknown_names(wide):
    with pytest.raises(LayerNotFound, match=r"layer2\.0"):
        model(wide, "scl", "layer2.1")
    with pytest.raises(SettingsError, match="auto, discriminant, linear, layer, scl, partial, full"):
        method_named("magic")
