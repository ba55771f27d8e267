"""What a head sees, and many heads at once: linear probes of different learning rates share every matrix product.

With a skip connection (SCL) the neck combines φ, the penultimate features, and z, the pooled output of the tuned block.
``align="pad"`` without scaling is the paper's parameter-free sum φ + P z, where P pads the shorter vector with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tightframe.errors import SettingsError
from tightframe.row import Row
from tightframe.tuning.loop import Inputs, collapse_of, judged, predict_features
from tightframe.tuning.recipe import Mix, Objective, Recipe, Split
from tightframe.tuning.state import HeadOnly

Align = Literal["pad", "concat", "project"]
SkipScale = Literal["none", "spread"]
SQUARE = 20.0
"""Mean square norm of features of a standard scale."""


class Neck(nn.Module):
    """Combines features (n, d_i) of one, two or, side by side, more layers into the vector (n, width) the head sees.

    Args:
        widths: d of φ and, with a skip connection, of z; or of each layer that is put side by side.
        align: ``"pad"`` adds them, the shorter zero-padded; ``"concat"`` puts them side by side; ``"project"`` adds
            to φ a learned linear map of z, which starts at zero.
        skip_scale: ``"spread"`` multiplies z by one number, so that it varies as much as φ does before tuning (see
            ``rescale``); ``"none"`` takes it as it is.

    Attributes:
        center, unit: what is subtracted from the vector and what then multiplies it, while a head is trained on it; see
            ``standardize``.
    """

    gain: Tensor
    center: Tensor
    unit: Tensor

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
        self.register_buffer("center", torch.zeros(self.width), persistent=False)
        self.register_buffer("unit", torch.ones(()), persistent=False)
        self.standard = False

    def rescale(self, parts: list[Float[Tensor, "n _"]]) -> None:
        """Set the gain from φ and z (n, d_i) before tuning; it stays 1 if either does not vary."""
        if self.skip_scale == "none" or len(parts) < 2:
            return
        spreads = [float(torch.linalg.matrix_norm(part - part.mean(0))) for part in parts]
        if min(spreads) > 0:
            self.gain.fill_(spreads[0] / spreads[1])

    @torch.no_grad()
    def standardize(self, parts: list[Float[Tensor, "n _"]]) -> None:
        """Let features that are ``parts`` (n, d_i) before tuning have mean 0 and mean square norm SQUARE.

        Heads on any model's features then learn at the same rate.
        """
        seen = self._combined([part.to(self.center.device) for part in parts])
        spread = float((seen - seen.mean(0)).square().sum(1).mean())
        self.center.copy_(seen.mean(0))
        self.unit.fill_((SQUARE / spread) ** 0.5 if spread > 0 else 1.0)
        self.standard = True

    @torch.no_grad()
    def fold_into(self, head: nn.Linear) -> None:
        """Make ``head`` do what ``standardize`` asked for, and no longer do it here: the logits stay the same."""
        if self.standard:
            head.weight.mul_(self.unit)
            head.bias.sub_(head.weight @ self.center)
            self.standard = False

    def forward(self, parts: list[Float[Tensor, "n _"]]) -> Float[Tensor, "n d"]:
        """The features of each layer, in the order of ``widths``, as one vector."""
        seen = self._combined(parts)
        return (seen - self.center) * self.unit if self.standard else seen

    def _combined(self, parts: list[Tensor]) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        features, *others = parts
        if self.skip_scale != "none":
            others = [other * self.gain for other in others]
        if self.align == "concat":
            return torch.cat([features, *others], 1)
        (skipped,) = others
        if self.project is not None:
            return features + self.project(skipped)
        longer, shorter = sorted((features, skipped), key=lambda part: -part.shape[1])
        return longer + functional.pad(shorter, (0, self.width - shorter.shape[1]))


def fit_heads(
    head: nn.Linear, inputs: Inputs, split: Split, recipes: Sequence[Recipe], *, device: torch.device
) -> list[list[Row]]:
    """Train a copy of ``head`` by each recipe, all together, and return for each a row an epoch, as ``fit`` does.

    The same numbers as one after the other, to rounding. ``head`` stays as it is. A head that diverges has losses that
    are not finite; the others don't notice. ``nc1`` is that of the features, which no head changes.

    Args:
        recipes: alike but for ``lr`` and ``weight_decay``, without a running average.
    """
    heads = _Heads(head, recipes, device)
    objective = Objective.of(recipes[0], split, device)
    held_out, seen = (
        predict_features(HeadOnly(head), inputs, rows, recipes[0].batch_size, device, "float32")
        for rows in (split.validation, split.training)
    )
    held_out, collapse = held_out.to(device), collapse_of(seen, split.labels[split.training])
    rows: list[list[Row]] = [[] for _ in recipes]
    for epoch in range(1, recipes[0].epochs + 1):
        trained = _epoch(heads, inputs, split, objective, epoch, device)
        logits = heads.logits(held_out).detach().cpu()
        for found, of_head, one in zip(rows, trained, logits, strict=True):
            found.append({"epoch": epoch, **of_head, "nc1": collapse} | judged(one, split.labels[split.validation]))
    return rows


class _Heads:
    """Weights (C, d, K) and biases (C, 1, K) of C heads, and SGD with momentum for each."""

    def __init__(self, head: nn.Linear, recipes: Sequence[Recipe], device: torch.device):
        self.recipes = recipes
        start = (head.weight.detach().T, head.bias.detach()[None])
        self.parameters = [
            one.to(device).expand(len(recipes), *one.shape).clone().requires_grad_(True) for one in start
        ]
        self._momenta = [torch.zeros_like(one) for one in self.parameters]
        self._decays = torch.tensor([recipe.weight_decay for recipe in recipes], device=device).view(-1, 1, 1)

    def logits(self, features: Tensor) -> Tensor:
        """Of features (n, d), shape (C, n, K)."""
        weight, bias = self.parameters
        return features @ weight + bias

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Tensor) -> None:
        """As ``torch.optim.SGD``, each head at its own learning rate (C,)."""
        for parameter, momentum, gradient in zip(self.parameters, self._momenta, gradients, strict=True):
            momentum.mul_(self.recipes[0].momentum).add_(gradient + self._decays * parameter)
            parameter.sub_(rates.view(-1, 1, 1) * momentum)


def _epoch(
    heads: _Heads, inputs: Inputs, split: Split, objective: Objective, epoch: int, device: torch.device
) -> list[Row]:
    recipes, count = heads.recipes, len(heads.recipes)
    order = recipes[0].order(epoch, split.training)
    steps = -(-len(order) // recipes[0].batch_size)
    _, views = recipes[0].draws(epoch, len(order), inputs.views)
    losses, right, weights = torch.zeros(count, device=device), torch.zeros(count, device=device), 0.0
    rates = torch.zeros(count)
    for step, (indices, batch) in enumerate(inputs.batches(order, recipes[0].batch_size, views)):
        rates = torch.tensor([one.lr_at((epoch - 1) * steps + step, one.epochs * steps) for one in recipes])
        target, mix = torch.from_numpy(split.labels[indices]).to(device), Mix.at(recipes[0], epoch, step)
        mixed, partners = mix.inputs(batch.to(device), target)
        logits = heads.logits(mixed)
        each = torch.stack([mix.of(partial(objective.total, mixed, one), target, partners) for one in logits])
        weight = mix.of(objective.weight, target, partners)
        heads.step(torch.autograd.grad((each / weight).sum(), heads.parameters), rates.to(device))
        losses += each.detach()
        right += (logits.detach().argmax(2) == target).sum(1)
        weights += float(weight)
    return [
        {"lr": rate, "train_loss": loss / weights, "train_accuracy": hits / len(order)}
        for rate, loss, hits in zip(rates.tolist(), losses.tolist(), right.tolist(), strict=True)
    ]
