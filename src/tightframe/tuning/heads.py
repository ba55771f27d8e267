"""Many heads at once: linear probes that differ in learning rate and weight decay share every matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tightframe.row import Row
from tightframe.tuning.loop import Inputs, collapse_of, judged, predict_features
from tightframe.tuning.recipe import Mix, Objective, Recipe, Split
from tightframe.tuning.surgery import HeadOnly


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
