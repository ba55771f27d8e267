"""Tuning methods: each declares which parameters it owns and what the new head sees.

Linear probe, Layer FT and SCL FT follow Li et al. (TMLR 2024, arXiv 2212.12206); BitFit Ben Zaken et al. (ACL 2022);
LP-FT Kumar et al. (ICLR 2022); LoRA Hu et al. (ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from tightframe.backbone import Backbone
from tightframe.errors import SettingsError
from tightframe.features.taps import submodule
from tightframe.tuning import lora
from tightframe.tuning.batch_norm import BatchNorm

NORMS = (BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


class Owned(NamedTuple):
    """What a method trains besides the new head.

    Attributes:
        modules: modules that are trained whole, in training mode: their batch norms adapt to the new images.
        parameters: single parameters, of modules that stay in eval mode.
    """

    modules: list[nn.Module]
    parameters: list[nn.Parameter]


@dataclass(frozen=True)
class Method:
    """A tuning method.

    Attributes:
        name: value of ``--method``.
        owns: from an adapted model and the name of the tuned block to what the method trains.
        summary: one line of help.
        needs_block: whether a block has to be named or chosen.
        skip: whether the head sees the tuned block's pooled output beside the penultimate features.
        warm: whether the head starts, by default, from a fitted probe instead of zeros.
        adapt: inserts modules into a copy of the backbone without its head, which must leave its outputs unchanged.
            What such a method trains is saved in peft's format.
        closed_form: whether the head is a formula of the features of all layers: nothing is trained.
    """

    name: str
    owns: Callable[[nn.Module, str | None], Owned]
    summary: str
    needs_block: bool = False
    skip: bool = False
    warm: bool = False
    adapt: Callable[[nn.Module, Backbone], None] | None = None
    closed_form: bool = False


def _nothing(base: nn.Module, layer: str | None) -> Owned:
    return Owned([], [])


def _block(base: nn.Module, layer: str | None) -> Owned:
    return Owned([submodule(base, layer or "")], [])


def _everything(base: nn.Module, layer: str | None) -> Owned:
    return Owned([base], [])


def _biases(base: nn.Module, layer: str | None) -> Owned:
    return Owned([], [parameter for name, parameter in base.named_parameters() if name.endswith("bias")])


def _norms(base: nn.Module, layer: str | None) -> Owned:
    return Owned([module for module in base.modules() if isinstance(module, NORMS)], [])


def _adapters(base: nn.Module, layer: str | None) -> Owned:
    return Owned([], lora.adapters(base))


METHODS = {
    method.name: method
    for method in (
        Method(
            "discriminant",
            _nothing,
            "shrunk linear discriminants of all layers, in closed form: nothing is trained",
            closed_form=True,
        ),
        Method("linear", _nothing, "linear probe: a new head on frozen features"),
        Method("layer", _block, "Layer FT: one block and a new head", needs_block=True),
        Method(
            "scl",
            _block,
            "SCL FT: one block, skip-connected to the features of the new head",
            needs_block=True,
            skip=True,
        ),
        Method("full", _everything, "full fine-tuning: every parameter and a new head"),
        Method("bitfit", _biases, "BitFit: all biases and a new head"),
        Method("norm", _norms, "all normalization layers and a new head"),
        Method("lp-ft", _everything, "LP-FT: a probe first, then every parameter", warm=True),
        Method("lora", _adapters, "LoRA: maps of low rank and a new head", adapt=lora.adapt),
    )
}


def method_named(name: str) -> Method:
    """The method called ``name``. Raises ``SettingsError``."""
    if name not in METHODS:
        raise SettingsError(f'no method "{name}"; choose {", ".join(METHODS)}')
    return METHODS[name]


def unique_methods(names: Sequence[str]) -> list[str]:
    """The names without repetitions. Raises ``SettingsError`` for an unknown one, or if there is none."""
    if not names:
        raise SettingsError(f"no method is named; choose from {', '.join(METHODS)}")
    return [method_named(name).name for name in dict.fromkeys(names)]
