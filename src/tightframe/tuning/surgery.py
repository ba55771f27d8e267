"""The network that is tuned: a copy of the backbone without its head, a new head, and a skip connection between.

With a skip connection (SCL) the head sees ``h = φ(x) + P z(x)``: φ the penultimate features, z the pooled output of the
tuned block, and P zero-padding of the shorter of the two, so that the connection has no parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tightframe.errors import SettingsError
from tightframe.features.taps import Pool, submodule, tapped
from tightframe.protocols import PENULTIMATE, Backbone
from tightframe.tuning.methods import Method


class TunableNetwork(nn.Module):
    """A backbone under one method: ``features`` (n, d) that the head sees, and logits (n, K) from ``forward``.

    Only what the method trains has gradients and, while training, is in training mode: BatchNorm of frozen blocks
    keeps its running statistics. The head starts at zero, so training is the same whatever was drawn before.
    """

    def __init__(self, backbone: Backbone, method: Method, layer: str | None, classes: int, pool: Pool = "auto"):
        super().__init__()
        if method.needs_layer == (layer is None):
            raise SettingsError(f"method {method.name} " + ("needs a layer" if layer is None else "takes no layer"))
        self.backbone, self.method, self.layer, self.pool = backbone, method, layer, pool
        self.base = copy.deepcopy(backbone.module).requires_grad_(False)
        if backbone.head:
            parent, _, name = backbone.head.rpartition(".")
            setattr(submodule(self.base, parent), name, nn.Identity())
        self.width = backbone.penultimate.dimension
        if method.skip and layer:
            self.width = max(self.width, backbone.layer(layer).dimension)
        self.head = nn.Linear(self.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for module in self.trained:
            module.requires_grad_(True)

    @property
    def trained(self) -> list[nn.Module]:
        """The modules that training changes, the head last."""
        if self.method.trains == "everything":
            return [self.base, self.head]
        return [submodule(self.base, self.layer), self.head] if self.layer else [self.head]

    @property
    def trained_parameters(self) -> int:
        """Number of parameters trained, the head included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def all_parameters(self) -> int:
        """Number of parameters of the whole tuned network, the new head included and the old one gone."""
        return sum(p.numel() for p in self.parameters())

    def features(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """What the head sees: φ, with P z added where the method has a skip connection."""
        wanted = [PENULTIMATE, self.layer] if self.method.skip and self.layer else [PENULTIMATE]
        with tapped(self.backbone, wanted, self.pool, module=self.base) as read:
            self.base(inputs)
        return sum_padded([read[name] for name in wanted], self.width)

    def forward(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self.features(inputs))

    def train(self, mode: bool = True) -> TunableNetwork:
        """Training mode for what is trained, eval mode for the rest."""
        super().train(False)
        for module in self.trained:
            module.train(mode)
        self.training = mode
        return self

    def changed_state(self) -> dict[str, Tensor]:
        """All that training changes: parameters and buffers of the trained modules, under their names here."""
        return dict(self._changed())

    def load_changed_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``changed_state`` gave. Shapes and names must agree: check them before."""
        with torch.no_grad():
            for name, tensor in self._changed():
                tensor.copy_(tensors[name])

    def _changed(self) -> Iterator[tuple[str, Tensor]]:
        within = {id(module) for top in self.trained for module in top.modules()}
        for prefix, module in self.named_modules():
            if id(module) in within:
                for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                    if tensor is not None and name not in module._non_persistent_buffers_set:
                        yield f"{prefix}.{name}", tensor


class HeadOnly(nn.Module):
    """A new head on features already computed: how a linear probe trains without running the network again."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.head = head

    def features(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The inputs themselves."""
        return inputs

    def forward(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(inputs)

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
