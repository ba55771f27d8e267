"""What tells the base what to learn, and what only watches."""

from __future__ import annotations

import pytest
import torch

from tightframe.errors import ModelError
from tightframe.models import cifar
from tightframe.pretraining.losses import LOSSES
from tightframe.pretraining.model import Goal, PretrainedModel

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 0, 1, 2])


def model(loss="cross-entropy", projector=0, seed=0):
    return PretrainedModel("cifar_resnet8", 3, LOSSES[loss], projector, {}, seed)


def gradients(made, loss):
    features = made.features(IMAGES)
    Goal(made, LOSSES[loss]).total(features, made.head(features), TARGET).backward()
    return {name: parameter.grad for name, parameter in made.named_parameters()}


@pytest.mark.parametrize(("loss", "projector"), [("supcon", 0), ("supcon", 2), ("mse", 1), ("cross-entropy", 3)])
def test_a_head_that_watches_learns_cross_entropy_and_tells_the_base_nothing(loss, projector):
    made = model(loss, projector)
    found = gradients(made, loss)
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in found.values())
    made.zero_grad()
    features = made.features(IMAGES).detach()
    torch.nn.functional.cross_entropy(made.head(features), TARGET, reduction="sum").backward()
    torch.testing.assert_close(found["head.weight"], made.head.weight.grad)
    made.zero_grad()
    with torch.no_grad():
        made.head.weight.mul_(50)
    again = gradients(made, loss)
    torch.testing.assert_close(again["base.conv1.weight"], found["base.conv1.weight"])


def test_without_projection_head_the_head_is_the_classifier():
    made = model("focal")
    first = gradients(made, "focal")["base.conv1.weight"].clone()
    made.zero_grad()
    with torch.no_grad():
        made.head.weight.mul_(50)
    assert not torch.allclose(gradients(made, "focal")["base.conv1.weight"], first)
    assert not list(made.projector.parameters())


@pytest.mark.parametrize(("loss", "outputs"), [("cross-entropy", 3), ("supcon", 128)])
def test_a_projection_head_has_as_many_hidden_layers_as_asked(loss, outputs):
    linear = [m for m in model(loss, 3).projector.modules() if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linear] == [64, 64, 64, outputs]


def test_weights_are_drawn_from_the_seed_alone():
    torch.manual_seed(1)
    first = model(seed=5).state_dict()
    torch.manual_seed(2)
    again, other = model(seed=5).state_dict(), model(seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["base.conv1.weight"], other["base.conv1.weight"])


def test_an_architecture_without_one_linear_head_is_refused():
    with pytest.raises(ModelError, match="one linear map"):
        PretrainedModel("deit_tiny_distilled_patch16_224", 3, LOSSES["mse"], 0, {"depth": 1}, 0)


@pytest.mark.parametrize("name", cifar.NAMES)
def test_models_for_small_images(name):
    import timm

    made = timm.create_model(name, num_classes=7).eval()
    assert made(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    first = made.patch_embed.proj if name == "cifar_vit" else made.conv1
    assert first.kernel_size == ((4, 4) if name == "cifar_vit" else (3, 3))


def test_a_thin_model_is_as_deep_as_it_says_and_as_large_as_published():
    import timm

    made = timm.create_model("cifar_resnet20")
    convolutions = [m for m in made.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == 20
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(270_000, rel=0.02)  # He et al., table 6: 0.27 M
    assert made.forward_features(torch.zeros(2, 3, 32, 32)).shape == (2, 64, 8, 8)
    assert [told["reduction"] for told in made.feature_info] == [1, 1, 2, 4]
