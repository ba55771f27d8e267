"""Tuning methods: each declares which parameters it owns and what the new head sees.

Linear probe, Layer FT and SCL FT follow Li et al. (TMLR 2024, arXiv 2212.12206); partial fine-tuning Yosinski et al.
(NeurIPS 2014); BitFit Ben Zaken et al. (ACL 2022); LP-FT Kumar et al. (ICLR 2022); LoRA Hu et al. (ICLR 2022).
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

AUTO = "auto"
"""Not a method: what reads all layers, or its mean with what is trained, whichever does better on held-out images."""
ONE_BLOCK, MANY_BLOCKS = 0.03, 0.005
"""Learning rates for what is tuned beside a head whose features have a standard scale."""


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
        lr: learning rate of what it owns that does well on few images (``benchmarks/decisions.py``); ``None`` where
            none is known, and several are tried.
    """

    name: str
    owns: Callable[[nn.Module, str | None], Owned]
    summary: str
    needs_block: bool = False
    skip: bool = False
    warm: bool = False
    adapt: Callable[[nn.Module, Backbone], None] | None = None
    closed_form: bool = False
    lr: float | None = None

    @property
    def to_the_end(self) -> bool:
        """Whether all that follows its block is trained, too."""
        return self.owns is _from_block

    @property
    def races(self) -> bool:
        """Whether its block is chosen by a race, if none is named."""
        return self.needs_block and not self.to_the_end

    @property
    def head_only(self) -> bool:
        """Whether nothing but the head is trained."""
        return self.owns is _nothing


def _nothing(base: nn.Module, layer: str | None) -> Owned:
    return Owned([], [])


def _block(base: nn.Module, layer: str | None) -> Owned:
    return Owned([submodule(base, layer or "")], [])


def _from_block(base: nn.Module, layer: str | None) -> Owned:
    """Parameters of the block and of all modules that are registered after it; their batch norms stay as they are."""
    first = submodule(base, layer or "")
    modules = list(base.modules())
    following = modules[next(index for index, module in enumerate(modules) if module is first) :]
    return Owned([], [parameter for module in following for parameter in module.parameters(recurse=False)])


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
        Method("layer", _block, "Layer FT: one block and a new head", needs_block=True, lr=ONE_BLOCK),
        Method(
            "scl",
            _block,
            "SCL FT: one block, skip-connected to the features of the new head",
            needs_block=True,
            skip=True,
            lr=ONE_BLOCK,
        ),
        Method(
            "partial",
            _from_block,
            "partial fine-tuning: the later half of the blocks and a new head",
            needs_block=True,
            lr=MANY_BLOCKS,
        ),
        Method("full", _everything, "full fine-tuning: every parameter and a new head", lr=MANY_BLOCKS),
        Method("bitfit", _biases, "BitFit: all biases and a new head"),
        Method("norm", _norms, "all normalization layers and a new head"),
        Method("lp-ft", _everything, "LP-FT: a probe first, then every parameter", warm=True),
        Method("lora", _adapters, "LoRA: maps of low rank and a new head", adapt=lora.adapt),
    )
}


def method_named(name: str) -> Method:
    """The method called ``name``. Raises ``SettingsError``."""
    if name not in METHODS:
        raise SettingsError(f'no method "{name}"; choose {AUTO}, {", ".join(METHODS)}')
    return METHODS[name]


def unique_methods(names: Sequence[str]) -> list[str]:
    """The names without repetitions, ``auto`` last.

    Raises:
        SettingsError: one is unknown, or there is none.
    """
    if not names:
        raise SettingsError(f"no method is named; choose from {AUTO}, {', '.join(METHODS)}")
    found = [method_named(name).name for name in dict.fromkeys(names) if name != AUTO]
    return [*found, *([AUTO] if AUTO in names else [])]
