"""Small models of fifteen families: measured, tuned, saved and loaded. `benchmarks/architectures.py` has them all."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "architectures.py"
BENCHMARK = runpy.run_path(str(SCRIPT), run_name="imported")
SENTENCES = {
    "timm/cs3darknet_focus_s": {"cut": "goes back to what came before it"},
    "timm/deit_tiny_distilled_patch16_224": {"logits": "several heads"},
    "timm/levit_128s": {"logits": "several heads"},
    "timm/repvit_m1": {"logits": "several heads"},
    "torchvision/squeezenet1_1": {"logits": "not those of classifier.1 alone"},
}
"""What can't hold, and how that is said."""


@pytest.mark.parametrize("name", BENCHMARK["SHORT"])
def test_a_family_is_measured_tuned_saved_and_loaded(name: str) -> None:
    row: dict[str, Any] = BENCHMARK["examined"](name, export=False)
    said = {step: row[step] for step in BENCHMARK["STEPS"] if row.get(step)}
    expected = SENTENCES.get(name, {})
    assert said.keys() == expected.keys(), said
    assert all(expected[step] in why for step, why in said.items())
    assert row["layers"] > 1


def test_every_family_of_timm_is_in_the_benchmark() -> None:
    from timm.models._registry import _model_to_module

    covered = {_model_to_module.get(name) for name in BENCHMARK["TIMM"]}
    assert not set(_model_to_module.values()) - covered - {"cifar"}
