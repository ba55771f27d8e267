"""What a workspace keeps serves the images and the backbone that it was computed for, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tightframe.backbone import PENULTIMATE
from tightframe.features.workspace import Workspace

Make = Callable[..., Any]


def fresh() -> Workspace:
    return Workspace(device="cpu", precision="float32", batch_size=4)


def test_block_inputs_are_those_of_the_images_and_the_backbone_asked_for(model: Make, noise: Make) -> None:
    """Other images have the same name and number, another backbone the same name and structure."""
    workspace, seen = fresh(), list[torch.Tensor]()
    for net, images in ((model(), noise()), (model(), noise(seed=1)), (model(seed=1), noise(seed=1))):
        found = workspace.block_inputs(net, images, ["second"])["second"].values
        assert torch.equal(found, fresh().block_inputs(net, images, ["second"])["second"].values)
        assert not any(torch.equal(found, other) for other in seen)
        seen.append(found.clone())


def test_block_inputs_asked_for_again_take_no_pass(model: Make, noise: Make) -> None:
    workspace, net, images = fresh(), model(), noise()
    both = workspace.block_inputs(net, images, ["first", "second"])
    passes = net.module.passes
    again = workspace.block_inputs(net, images, ["second"])
    assert list(again) == ["second"]
    assert again["second"] is both["second"]
    assert net.module.passes == passes


def test_a_pass_computes_no_features_that_are_kept(model: Make, noise: Make) -> None:
    workspace, net, images = fresh(), model(), noise()
    first = workspace.features(net, images, ["first"])["first"]
    workspace.block_inputs(net, images, ["second"])
    passes = net.module.passes
    every = workspace.features(net, images)
    assert net.module.passes == passes, "the pass for block inputs computed the rest"
    assert tuple(every) == ("first", "second", PENULTIMATE)
    assert every["first"] is first
