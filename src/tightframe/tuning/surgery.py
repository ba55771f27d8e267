"""The model that is tuned: a copy of the backbone without its head, a new head, and a neck between them.

A head in closed form sees the features of several layers side by side.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.errors import SettingsError
from tightframe.features.taps import Pool, pooled, pooling_of, submodule, tapped
from tightframe.tuning import lora
from tightframe.tuning.batch_norm import batch_norms
from tightframe.tuning.heads import Align, Neck, SkipScale
from tightframe.tuning.methods import Method
from tightframe.tuning.replay import Suffix
from tightframe.tuning.state import Trainable


class TunableModel(Trainable):
    """A backbone under one method: ``features`` (n, d) that the head sees, and logits (n, K) from ``forward``.

    Only what the method owns has gradients, and only modules that it trains whole are in training mode: batch norms of
    frozen blocks keep their running statistics. The head starts at zero, and what a method inserts from a fixed seed,
    so that training does not depend on random numbers drawn before.

    Attributes:
        base: a copy of the backbone without its head, with what the method inserts.
        owned: what the method trains of it.
        read: names of the layers whose features the head sees; given for methods in closed form, known for others.
        warm: whether the head will start from a probe.
        steady: whether batch norms keep their statistics where modules are trained whole, too.
        beside: names of layers of the pretrained model, as it was before tuning, whose features the head sees beside
            those of ``read`` (see ``joined``).
        plain: the pretrained model, if any of its layers are read; it shares with ``base`` what is not trained.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        block: str | None,
        classes: int,
        pool: Pool = "auto",
        align: Align = "pad",
        skip_scale: SkipScale = "none",
        warm: bool = False,
        steady: bool = False,
        read: Sequence[str] = (),
        beside: Sequence[str] = (),
    ):
        super().__init__()
        if method.needs_block == (block is None):
            raise SettingsError(f"method {method.name} " + ("needs a block" if block is None else "takes no block"))
        if method.closed_form != bool(read):
            raise SettingsError(f"method {method.name} " + ("takes no layers" if read else "needs layers to read"))
        self.backbone, self.method, self.block, self.pool = backbone, method, block, pool
        self.warm, self.steady = warm, steady
        self.base = copy.deepcopy(backbone.module).requires_grad_(False)
        if backbone.head:
            _take_head(self.base, backbone.head)
        if method.adapt:
            method.adapt(self.base, backbone)
        self.read = list(read) or ([PENULTIMATE, block] if method.skip and block else [PENULTIMATE])
        self.neck = Neck([backbone.layer(name).dimension for name in self.read], align, skip_scale)
        self.beside = list(beside)
        self.widths = [*(self.neck.widths if self.neck.align == "concat" else [self.neck.width])]
        self.widths += [backbone.layer(name).dimension for name in self.beside]
        self.head = nn.Linear(sum(self.widths), classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.owned = method.owns(self.base, block)
        self._suffix: Suffix | None = None
        self._modules_trained = [*self.owned.modules, self.neck, self.head]
        for parameter in (
            *self.owned.parameters,
            *(p for module in self._modules_trained for p in module.parameters()),
        ):
            parameter.requires_grad_(True)
        self.plain: nn.Module | None = None
        if self.beside:
            shared: dict[int, Any] = {id(p): p for p in self.base.parameters() if not p.requires_grad}
            self.plain = copy.deepcopy(self.base, shared).requires_grad_(False)

    @property
    def title(self) -> str:
        """The method, for people: what reads the pretrained model's layers is named, too."""
        return f"{self.method.name} and discriminant" if self.beside else self.method.name

    @property
    def trainable_parameters(self) -> int:
        """Number of trainable parameters, the head included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def all_parameters(self) -> int:
        """Number of all parameters, with the new head and without the old one."""
        return sum(p.numel() for p in self.parameters())

    def parts(self, inputs: Float[Tensor, "n ..."]) -> list[Tensor]:
        """The neck's pooled features (n, d_i)."""
        with tapped(self.backbone, self.read, self.pool, module=self.base) as read:
            output = (self._suffix or self.base)(inputs)
        if self._suffix and self.backbone.head is None:  # no module of the base put these features out
            how = pooling_of(self.backbone, self.pool)
            read[PENULTIMATE] = pooled(output, self.backbone.penultimate, how)
        return [read[name] for name in self.read]

    def features(self, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """What the head sees, from images; of what ``from_block`` returns, from inputs of the tuned block."""
        own = self.neck(self.parts(inputs))
        if self.plain is None:
            return own
        with tapped(self.backbone, self.beside, self.pool, module=self.plain) as seen:
            self.plain(inputs)
        return torch.cat([own, *(seen[name] for name in self.beside)], 1)

    def from_block(self) -> TunableModel:
        """The same model, with the same modules, run on inputs of its tuned block instead of images.

        Raises:
            CannotCut: the model can't be cut there.
        """
        assert self.block is not None
        part = copy.copy(self)
        part._suffix = Suffix(self.base, self.block, (3, *self.backbone.preprocessing.input_size))
        return part

    def plain_base(self) -> nn.Module:
        """A copy of the base on the CPU, in eval mode, with an identity for its head and LoRA merged into modules."""
        plain = copy.deepcopy(self.base).cpu().eval().requires_grad_(False)
        if self.method.adapt:
            lora.merge(plain)
        for name in [name for name, module in plain.named_modules() if isinstance(module, _Gone)]:
            plain.set_submodule(name, nn.Identity())
        return plain.to(memory_format=torch.contiguous_format)  # which safetensors wants

    def train(self, mode: bool = True) -> TunableModel:
        """Put modules that are trained whole into training mode, and all others into eval mode."""
        super().train(False)
        for module in self._modules_trained:
            module.train(mode)
        for norm in batch_norms(self) if self.steady else ():
            norm.train(False)
        self.training = mode
        return self

    def changed_state(self) -> dict[str, Tensor]:
        """All that training changes, by name: parameters with gradients, and buffers of modules trained whole."""
        return dict(self._changed())

    def load_changed_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``changed_state`` gave."""
        with torch.no_grad():
            for name, tensor in self._changed():
                tensor.copy_(tensors[name])

    def _changed(self) -> Iterator[tuple[str, Tensor]]:
        within = {id(module) for top in self._modules_trained for module in top.modules()}
        for prefix, module in self.named_modules():
            whole = id(module) in within
            for name, parameter in module._parameters.items():
                if parameter is not None and (whole or parameter.requires_grad):
                    yield f"{prefix}.{name}", parameter
            for name, buffer in module._buffers.items() if whole else ():
                if buffer is not None and name not in module._non_persistent_buffers_set:
                    yield f"{prefix}.{name}", buffer


def joined(tuned: TunableModel, reading: TunableModel) -> TunableModel:
    """The mean of two models of one backbone, what was tuned and what reads the layers as they were before tuning.

    Its logits are the mean of theirs, so that its probabilities are the geometric mean of theirs, normalized.
    """
    neck, classes = tuned.neck, tuned.head.out_features
    model = TunableModel(
        *(tuned.backbone, tuned.method, tuned.block, classes, tuned.pool, neck.align, neck.skip_scale),
        beside=reading.read,
    )
    heads, trained = (tuned.head, reading.head), tuned.changed_state()
    with torch.no_grad():
        for name, tensor in model.changed_state().items():
            if not name.startswith("head."):
                tensor.copy_(trained[name])
        model.head.weight.copy_(torch.cat([head.weight.cpu() for head in heads], 1) / 2)
        model.head.bias.copy_(torch.stack([head.bias.cpu() for head in heads]).mean(0))
    return model.train(False)


class _Gone(nn.Module):
    """In the place of a linear map to ``width`` values: all are the mean of its input, (n, …, d) or maps (n, d, h, w).

    So whatever the model makes of its logits goes on, and whether its features are numbers can be told from it.
    """

    def __init__(self, width: int, axis: int):
        super().__init__()
        self.width, self.axis = width, axis

    def forward(self, features: Tensor) -> Tensor:
        mean = features.mean(self.axis, keepdim=True)
        return mean.repeat_interleave(self.width, self.axis)


def _take_head(base: Any, name: str) -> None:
    """Replace the head of ``base``, in place; one that is no linear map goes as timm's models let it."""
    head = submodule(base, name)
    if isinstance(head, nn.Linear):
        base.set_submodule(name, _Gone(head.out_features, -1))
    elif isinstance(head, nn.Conv2d):
        base.set_submodule(name, _Gone(head.out_channels, 1))
    else:
        base.reset_classifier(0)
