"""The training loop: SGD with momentum and a cosine schedule, resumable after any step to the same result.

Nothing random outlives a step: order and views are drawn from (seed, epoch), dropout and mixup from (seed, epoch,
step), so that training goes on from a checkpoint (see ``state``) to the same numbers. Several processes train as one
(see ``processes``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tightframe.errors import MeasureError, TightframeError
from tightframe.features.precision import autocast, sent
from tightframe.metrics.collapse import nc1
from tightframe.metrics.summary import moments_along_means
from tightframe.processes import Team, together
from tightframe.row import Row
from tightframe.tuning.batch_norm import synchronized
from tightframe.tuning.recipe import Mix, Objective, Recipe, Split
from tightframe.tuning.state import State, Trainable


class Diverged(TightframeError):
    """The loss became infinite or NaN."""


@runtime_checkable
class Goal(Protocol):
    """What is minimized: ``total`` over ``weight``."""

    def total(self, features: Tensor, logits: Tensor, target: Tensor, /) -> Tensor:
        """Sum of the losses, of features (n, d), what the head makes of them (n, K), and classes (n,)."""
        ...

    def weight(self, target: Tensor, /) -> Tensor:
        """What a total over samples of these classes (n,) is divided by to give a mean."""
        ...


@dataclass(frozen=True)
class Watch:
    """What is measured of the features (n, d) that the head sees, their classes (n,) and the head.

    Attributes:
        training: of those that an epoch's batches had.
        held_out: of validation inputs after it; its names are given ``validation_`` in front.
    """

    training: Callable[[Tensor, np.ndarray, nn.Linear], Row]
    held_out: Callable[[Tensor, np.ndarray, nn.Linear], Row] = lambda *_: {}


@runtime_checkable
class Inputs(Protocol):
    """Where batches come from: images made ready, or what was computed from them before."""

    @property
    def views(self) -> int:
        """How many views there are of each image."""
        ...

    def batches(
        self, order: np.ndarray | Sequence[int], size: int, views: np.ndarray | None = None, /
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Indices and inputs, ``size`` at a time, in the order given, of the views given for each."""
        ...


def fit(
    model: Trainable,
    inputs: Inputs,
    split: Split,
    recipe: Recipe,
    *,
    device: torch.device,
    precision: str = "float32",
    checkpoint: Path | None = None,
    scope: str = "",
    on_epoch: Callable[[Row], None] = lambda row: None,
    goal: Goal | None = None,
    watch: Watch | None = None,
) -> list[Row]:
    """Train ``model`` in place and return a row an epoch.

    Rows hold ``epoch``, ``lr``, ``train_loss``, ``train_accuracy`` and ``nc1`` of the features that the head sees,
    all as seen by the training batches of that epoch, ``seconds`` that they took, and ``validation_loss`` and
    ``validation_accuracy`` after it (``None`` without validation inputs). ``watch`` puts other measurements in the
    place of ``nc1``, and ``goal`` another loss in the place of the recipe's.

    With ``checkpoint``, training goes on from that file if it was written under the same recipe, split and ``scope``
    (whatever else decides the result: model, method, images). ``on_epoch`` is given every row, those of epochs
    done before included.

    Raises:
        Diverged: the loss is no longer finite; a lower learning rate is needed.
    """
    optimizer = torch.optim.SGD(
        _parameter_groups(model, recipe),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    state = State(model, optimizer, recipe.ema_decay, checkpoint, _identity(recipe, split, scope))
    team = together()
    state.load()
    team.wait()  # what is loaded must not be written over by one that is ahead
    for row in state.rows:
        on_epoch(row)
    goal = goal or Objective.of(recipe, split, device)
    watch = watch or Watch(lambda seen, labels, head: {"nc1": collapse_of(seen, labels)})
    run = _Run(model, inputs, split, recipe, goal, watch, state, device, precision, team)
    while not run.finished:
        run.train(len(state.rows) + 1)
        state.epoch_done(run.row(len(state.rows) + 1), keep_best=recipe.patience is not None)
        on_epoch(state.rows[-1])
    state.finish()
    return state.rows


@dataclass(frozen=True)
class _Run:
    model: Trainable
    inputs: Inputs
    split: Split
    recipe: Recipe
    goal: Goal
    watch: Watch
    state: State
    device: torch.device
    precision: str
    team: Team

    @property
    def finished(self) -> bool:
        done, patience = len(self.state.rows), self.recipe.patience
        tired = patience is not None and self.state.best_epoch > 0 and done - self.state.best_epoch >= patience
        return done >= self.recipe.epochs or tired

    def train(self, epoch: int) -> None:
        """Train for what is left of ``epoch``. Raises ``Diverged``."""
        recipe, underway = self.recipe, self.state.underway
        order = recipe.order(epoch, self.split.training)
        steps = -(-len(order) // recipe.batch_size)
        first, views = recipe.draws(epoch, len(order), self.inputs.views)
        mine, size = self.team.share(order, recipe.batch_size)
        mine = mine[underway.step * size :]
        batches = self.inputs.batches(order[mine], size, None if views is None else views[mine])
        self.model.train(True)
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            synchronized(self.model, self.team),
        ):
            started = time.perf_counter()
            for indices, batch in batches:
                for group in self.state.optimizer.param_groups:
                    step = (epoch - 1) * steps + underway.step
                    group["lr"] = recipe.lr_at(step, recipe.epochs * steps, group["initial"])
                torch.manual_seed(first + underway.step)
                whole = min(recipe.batch_size, len(order) - underway.step * recipe.batch_size)
                parts = max(1, min(recipe.grad_accum_steps, whole // self.team.size // 2))  # the same for all processes
                target = torch.from_numpy(self.split.labels[indices])
                self._step(target, batch, Mix.at(recipe, epoch, underway.step), parts)
                underway.seconds += time.perf_counter() - started
                self.state.stepped()
                started = time.perf_counter()
            underway.read()
            underway.seconds += time.perf_counter() - started
        if not math.isfinite(underway.loss):
            raise Diverged(
                f"the loss became {underway.loss} in epoch {epoch} at learning rate {recipe.lr:g}: give a lower one"
            )

    def row(self, epoch: int) -> Row:
        """What the training batches of ``epoch`` showed, and validation after it."""
        recipe, underway = self.recipe, self.state.underway
        order, seen = recipe.order(epoch, self.split.training), torch.cat(underway.seen)
        row: Row = {
            "epoch": epoch,
            "lr": self.state.optimizer.param_groups[0]["lr"],
            "train_loss": underway.loss / underway.weight,
            "train_accuracy": underway.right / len(seen),
            **self.watch.training(seen, self.split.labels[order[: len(seen)]], self.model.head),
            "seconds": underway.seconds,
        }
        held_out = self.split.validation
        labels = self.split.labels[held_out]
        with self.state.averaged():
            features = predict_features(
                self.model, self.inputs, held_out, recipe.batch_size, self.device, self.precision
            )
            watched = self.watch.held_out(features, labels, self.model.head) if len(labels) else {}
            row |= {f"validation_{name}": value for name, value in watched.items()}
            return row | judged(logits_of(self.model, features), labels)

    def _step(self, target: Tensor, batch: Tensor, mix: Mix, parts: int) -> None:
        """One step of the optimizer, its batch run in so many parts."""
        target, batch = sent(target, self.device), sent(batch, self.device)
        mixed, partners = mix.inputs(batch, target)
        weight = mix.of(self.goal.weight, target, partners)
        self.team.add_up([weight])
        found, seen = torch.zeros(2, device=self.device), list[Tensor]()
        self.state.optimizer.zero_grad()
        for inputs, own, others in zip(*(each.tensor_split(parts) for each in (mixed, target, partners)), strict=True):
            with autocast(self.device, self.precision):
                features = self.model.features(inputs)
                logits = self.model.head(features).float()
            loss = mix.of(partial(self.goal.total, features, logits), own, others)
            (loss / weight).backward()
            found += torch.stack([loss.detach(), (logits.argmax(1) == own).sum()])
            seen.append(features.detach().float())
        self.team.add_up([parameter.grad for parameter in self.model.parameters() if parameter.grad is not None])
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.state.optimizer.param_groups[0]["params"], self.recipe.clip)
        self.state.optimizer.step()
        self.team.add_up([found])
        self.state.underway.stepped(torch.stack([found[0], weight, found[1]]), self.team.gather(torch.cat(seen)))


def _parameter_groups(model: Trainable, recipe: Recipe) -> list[dict[str, Any]]:
    """What is trained, and the learning rate at which each group begins: the head last, if it has one of its own."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.head_lr is None:
        return [{"params": trained, "initial": recipe.lr}]
    head = {id(parameter) for parameter in model.head.parameters()}
    others = [parameter for parameter in trained if id(parameter) not in head]
    own = [parameter for parameter in trained if id(parameter) in head]
    return [{"params": others, "initial": recipe.lr}, {"params": own, "initial": recipe.head_lr}]


def logits_of(model: Trainable, features: Tensor) -> Tensor:
    """What the head makes of features (n, d) that are on the CPU: logits (n, K), there too."""
    return functional.linear(features, model.head.weight.detach().cpu(), model.head.bias.detach().cpu())


def predict_features(
    model: Trainable,
    inputs: Inputs,
    order: np.ndarray | Sequence[int],
    batch_size: int,
    device: torch.device,
    precision: str,
) -> Tensor:
    """Features (n, d) that the head sees, in eval mode, on the CPU."""
    model.train(False)
    with torch.inference_mode(), autocast(device, precision):
        batches = inputs.batches(order, batch_size)
        parts = [model.features(sent(batch, device)).float().cpu() for _, batch in batches]
    return torch.cat(parts) if parts else torch.zeros(0, model.head.in_features)


def collapse_of(features: Tensor, labels: np.ndarray) -> float | None:
    """NC1 of features (n, d) with labels (n,), or ``None`` where there are too few samples to have one."""
    present, dense = np.unique(labels, return_inverse=True)
    if not 1 < len(present) < len(labels):
        return None
    try:
        return nc1(moments_along_means(features, torch.from_numpy(dense), len(present)))
    except MeasureError:
        return None


def judged(logits: Tensor, labels: np.ndarray) -> Row:
    """Validation loss and accuracy of logits (n, K), ``None`` where there are none."""
    if not len(labels):
        return {"validation_loss": None, "validation_accuracy": None}
    target = torch.from_numpy(labels)
    return {
        "validation_loss": float(functional.cross_entropy(logits, target)),
        "validation_accuracy": float((logits.argmax(1) == target).double().mean()),
    }


def _identity(recipe: Recipe, split: Split, scope: str) -> str:
    """All that must agree for a checkpoint to be gone on from."""
    parts = {name: getattr(split, name).tolist() for name in ("labels", "training", "validation")}
    return json.dumps({"recipe": asdict(recipe), "split": parts, "scope": scope}, sort_keys=True)
