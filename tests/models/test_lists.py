"""Lists of models by a word or a pattern."""

from __future__ import annotations

import pytest
import timm

from tightframe.errors import ModelError
from tightframe.models.lists import LISTS, listed


def test_every_model_of_the_lists_is_one_that_timm_has_weights_for():
    known = set(timm.list_pretrained())
    for models in LISTS.values():
        assert {model.removeprefix("timm/") for model in models} <= known
        assert len(set(models)) == len(models) >= 5


def test_words_and_patterns_are_replaced_in_their_place(wide):
    found = listed(["timm/resnet18", "fast", wide, "torchvision/resnet1?", "local-dir:what/*"])
    assert found[0] == "timm/resnet18"
    assert found[1:6] == [*LISTS["fast"]]
    assert found[6] is wide
    assert found[7:] == ["torchvision/resnet18", "local-dir:what/*"]
    every = listed(["timm/*resnet18*"])
    assert "timm/resnet18.a1_in1k" in every
    assert all("resnet18" in model for model in every)
    assert listed(found) == found


def test_a_pattern_that_nothing_matches():
    with pytest.raises(ModelError, match=r"no model of timm .* matches timm/nosuch\*"):
        listed(["timm/nosuch*"])
