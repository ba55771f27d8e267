"""The model that is tuned: a copy of the backbone without its head, a new head, and a neck between them.

With a skip connection (SCL) the neck brings together φ, the penultimate features, and z, the pooled output of the tuned
block. ``align="pad"`` without scaling is the paper's parameter-free sum, φ + P z with P zero-padding of the shorter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.errors import SettingsError
from tightframe.features.taps import Pool, pooled, pooling_of, tapped
from tightframe.tuning import lora
from tightframe.tuning.batch_norm import batch_norms
from tightframe.tuning.methods import Method
from tightframe.tuning.places import put
from tightframe.tuning.prefix import Suffix
from tightframe.tuning.state import Trainable

Align = Literal["pad", "concat", "project"]
SkipScale = Literal["none", "spread"]


class Neck(nn.Module):
    """What the head sees: features (n, d_i) of one or two places in the model as one vector (n, width).

    Args:
        widths: d of φ and, with a skip connection, of z.
        align: ``"pad"`` adds them, the shorter zero-padded; ``"concat"`` puts them side by side; ``"project"`` adds
            to φ a learned linear map of z, which starts at zero.
        skip_scale: ``"spread"`` multiplies z by one number, so that it varies as much as φ does before tuning (see
            ``rescale``); ``"none"`` takes it as it is.
    """

    gain: Tensor

    def __init__(self, widths: list[int], align: Align = "pad", skip_scale: SkipScale = "none"):
        super().__init__()
        for name, value, known in (("align", align, Align), ("skip scale", skip_scale, SkipScale)):
            if value not in get_args(known):
                raise SettingsError(f'no {name} "{value}"; choose {", ".join(get_args(known))}')
        self.widths, self.align, self.skip_scale = widths, align, skip_scale
        self.width = {"pad": max(widths), "concat": sum(widths), "project": widths[0]}[align]
        self.project: nn.Linear | None = None
        if len(widths) > 1 and align == "project":
            self.project = nn.Linear(widths[1], widths[0], bias=False)
            nn.init.zeros_(self.project.weight)
        if len(widths) > 1 and skip_scale == "spread":
            self.register_buffer("gain", torch.ones(()))

    def rescale(self, parts: list[Float[Tensor, "n _"]]) -> None:
        """Take the gain from φ and z (n, d_i) as they are before tuning; 1 where either does not vary."""
        if self.skip_scale == "none" or len(parts) < 2:
            return
        spreads = [float(torch.linalg.matrix_norm(part - part.mean(0))) for part in parts]
        if min(spreads) > 0:
            self.gain.fill_(spreads[0] / spreads[1])

    def forward(self, parts: list[Float[Tensor, "n _"]]) -> Float[Tensor, "n d"]:
        """Features of each place, in the order of ``widths``, as one vector."""
        if len(parts) == 1:
            return parts[0]
        features, skipped = parts[0], parts[1] if self.skip_scale == "none" else parts[1] * self.gain
        if self.align == "concat":
            return torch.cat([features, skipped], 1)
        if self.project is not None:
            return features + self.project(skipped)
        return sum_padded([features, skipped], self.width)


class TunableModel(Trainable):
    """A backbone under one method: ``features`` (n, d) that the head sees, and logits (n, K) from ``forward``.

    Only what the method owns has gradients, and only modules that it trains whole are in training mode: BatchNorm of
    frozen blocks keeps its running statistics. The head starts at zero, and what a method adds from a fixed seed,
    so training is the same whatever was drawn before.

    Attributes:
        base: the copy of the backbone, without its head, with what the method adds.
        owned: what the method trains of it.
        warm: whether the head will start from a probe, so that batch norms keep the statistics it was fitted under.
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
    ):
        super().__init__()
        if method.needs_block == (block is None):
            raise SettingsError(f"method {method.name} " + ("needs a block" if block is None else "takes no block"))
        self.backbone, self.method, self.block, self.pool, self.warm = backbone, method, block, pool, warm
        self.base = copy.deepcopy(backbone.module).requires_grad_(False)
        if backbone.head:
            put(self.base, backbone.head, nn.Identity())
        if method.adapt:
            method.adapt(self.base, backbone)
        self.read = [PENULTIMATE, block] if method.skip and block else [PENULTIMATE]
        self.neck = Neck([backbone.layer(name).dimension for name in self.read], align, skip_scale)
        self.head = nn.Linear(self.neck.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.owned = method.owns(self.base, block)
        self._modules_trained = [*self.owned.modules, self.neck, self.head]
        for parameter in (
            *self.owned.parameters,
            *(p for module in self._modules_trained for p in module.parameters()),
        ):
            parameter.requires_grad_(True)

    @property
    def trainable_parameters(self) -> int:
        """Number of parameters trained, the head included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def all_parameters(self) -> int:
        """Number of parameters of the whole tuned model, the new head included and the old one gone."""
        return sum(p.numel() for p in self.parameters())

    def parts(self, inputs: Float[Tensor, "n ..."], run: Callable[[Tensor], Any] | None = None) -> list[Tensor]:
        """Pooled features (n, d_i) that the neck is given, from images; or from what ``run`` takes in their place."""
        with tapped(self.backbone, self.read, self.pool, module=self.base) as read:
            output = (run or self.base)(inputs)
        if run is not None and self.backbone.head is None:  # no module of the base put these features out
            how = pooling_of(self.backbone, self.pool)
            read[PENULTIMATE] = pooled(output, self.backbone.penultimate, how)
        return [read[name] for name in self.read]

    def features(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """What the head sees."""
        return self.neck(self.parts(inputs))

    def from_block(self) -> FromBlock:
        """The same model, to be run on what goes into its tuned block. Raises ``CannotCut`` where that can't be."""
        return FromBlock(self)

    def plain_head(self) -> nn.Linear:
        """The head, where penultimate features are all that it sees: such a model is a plain one.

        Raises:
            SettingsError: the head sees more than the penultimate features.
        """
        if len(self.read) > 1:
            raise SettingsError(f"the head of method {self.method.name} sees more than a plain model's head could")
        return self.head

    def plain_base(self) -> nn.Module:
        """A copy of the base on the CPU, in eval mode, of the backbone's own modules: what was added is merged."""
        plain = copy.deepcopy(self.base).cpu().eval().requires_grad_(False)
        if self.method.adapt:
            lora.merge(plain)
        return plain.to(memory_format=torch.contiguous_format)  # which safetensors wants

    def train(self, mode: bool = True) -> TunableModel:
        """Training mode for modules that are trained whole, eval mode for the rest."""
        super().train(False)
        for module in self._modules_trained:
            module.train(mode)
        for norm in batch_norms(self) if self.warm else ():
            norm.train(False)
        self.training = mode
        return self

    def changed_state(self) -> dict[str, Tensor]:
        """All that training changes: what has gradients, and buffers of modules trained whole, by name."""
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


class FromBlock(Trainable):
    """A tunable model on what goes into its tuned block in place of images: same modules, same state."""

    def __init__(self, model: TunableModel):
        super().__init__()
        assert model.block is not None
        self.model, self.head = model, model.head
        self._suffix = Suffix(model.base, model.block)

    def features(self, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """What the head sees."""
        return self.model.neck(self.model.parts(inputs, self._suffix))

    def train(self, mode: bool = True) -> FromBlock:
        """As the whole model's."""
        self.model.train(mode)
        self.training = mode
        return self

    def changed_state(self) -> dict[str, Tensor]:
        """As the whole model's."""
        return self.model.changed_state()

    def load_changed_state(self, tensors: dict[str, Tensor]) -> None:
        """As the whole model's."""
        self.model.load_changed_state(tensors)


class HeadOnly(Trainable):
    """A new head on features already computed: how a linear probe trains without running the model again."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.head = head

    def features(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The inputs themselves."""
        return inputs

    def changed_state(self) -> dict[str, Tensor]:
        """The head's parameters."""
        return dict(self.named_parameters())

    def load_changed_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``changed_state`` gave."""
        self.load_state_dict(tensors)


def sum_padded(parts: list[Tensor], width: int) -> Float[Tensor, "n d"]:
    """Sum of features (n, d_i), each zero-padded on the right to ``width`` values."""
    total = functional.pad(parts[0], (0, width - parts[0].shape[1]))
    for part in parts[1:]:
        total = total + functional.pad(part, (0, width - part.shape[1]))
    return total
