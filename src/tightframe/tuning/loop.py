"""The training loop: SGD with momentum and a cosine schedule, a checkpoint every epoch, resumable to the same result.

The recipe is the paper's (Li et al., TMLR 2024): momentum 0.9, cosine from the start rate to 1e-4. Nothing random
outlives an epoch: order and dropout are seeded by (seed, epoch), so that a run stopped after any epoch goes on to the
same numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from tightframe.errors import MeasureError, TightframeError
from tightframe.features.precision import autocast
from tightframe.files import write_tensors
from tightframe.metrics.collapse import nc1
from tightframe.metrics.quick import moments_along_means
from tightframe.protocols import hash_of

Row = dict[str, Any]


class Diverged(TightframeError):
    """The loss became infinite or NaN."""


@runtime_checkable
class Trainable(Protocol):
    """A network with a linear head, and what of it training changes."""

    head: nn.Linear

    def features(self, inputs: Tensor, /) -> Tensor:
        """What the head sees, (n, d)."""
        ...

    def changed_state(self) -> dict[str, Tensor]:
        """All that training changes, by name."""
        ...

    def load_changed_state(self, tensors: dict[str, Tensor], /) -> None:
        """Put back what ``changed_state`` gave."""
        ...

    def train(self, mode: bool = True, /) -> Any:
        """Switch what is trained between training and eval mode."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters; those with gradients are trained."""
        ...


@runtime_checkable
class Inputs(Protocol):
    """Where batches come from: pictures made ready, or features already computed."""

    def batches(self, order: np.ndarray | Sequence[int], size: int, /) -> Iterator[tuple[list[int], Tensor]]:
        """Indices and inputs, ``size`` at a time, in the order given."""
        ...


@dataclass(frozen=True)
class Recipe:
    """How to train. ``rate`` is the start of the cosine, ``decay`` the weight decay."""

    rate: float = 0.1
    decay: float = 1e-4
    epochs: int = 30
    batch_size: int = 32
    momentum: float = 0.9
    final_rate: float = 1e-4
    seed: int = 0

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate at ``step`` of ``steps``."""
        final = min(self.final_rate, self.rate)
        return final + (self.rate - final) * (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class Split:
    """Labels (n,) of all inputs, and which of them train and which validate."""

    labels: np.ndarray
    training: np.ndarray
    validation: np.ndarray
    classes: int


def fit(
    network: Trainable,
    inputs: Inputs,
    split: Split,
    recipe: Recipe,
    *,
    device: torch.device,
    precision: str = "float32",
    checkpoint: Path | None = None,
    scope: str = "",
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Train ``network`` in place and return a row an epoch.

    Rows hold ``epoch``, ``rate``, ``train_loss``, ``train_accuracy`` and ``nc1`` of the features that the head sees,
    all as seen by the training batches of that epoch, and ``validation_loss`` and ``validation_accuracy`` after it
    (``None`` without validation inputs).

    With ``checkpoint``, training goes on from that file if it was written under the same recipe, split and ``scope``
    (whatever else decides the result: network, method, pictures).

    Raises:
        Diverged: the loss is no longer finite; a lower rate is needed.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.decay)
    state = _Checkpoint(checkpoint, network, optimizer, parameters, _identity(recipe, split, scope))
    rows = state.load()
    for epoch in range(len(rows) + 1, recipe.epochs + 1):
        row = {"epoch": epoch} | _train_epoch(network, inputs, split, recipe, optimizer, epoch, device, precision)
        seen = predict_features(network, inputs, split.validation, recipe.batch_size, device, precision)
        rows.append(row | _judged(logits_of(network, seen), split.labels[split.validation]))
        state.save(rows)
        on_epoch(rows[-1])
    return rows


def logits_of(network: Trainable, features: Tensor) -> Tensor:
    """What the head makes of features (n, d) that are on the CPU: logits (n, K), there too."""
    return functional.linear(features, network.head.weight.detach().cpu(), network.head.bias.detach().cpu())


def predict_features(
    network: Trainable,
    inputs: Inputs,
    order: np.ndarray | Sequence[int],
    batch_size: int,
    device: torch.device,
    precision: str,
) -> Tensor:
    """Features (n, d) that the head sees, in eval mode, on the CPU."""
    network.train(False)
    with torch.inference_mode(), autocast(device, precision):
        parts = [network.features(batch.to(device)).float().cpu() for _, batch in inputs.batches(order, batch_size)]
    return torch.cat(parts) if parts else torch.zeros(0, network.head.in_features)


def _train_epoch(
    network: Trainable,
    inputs: Inputs,
    split: Split,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    device: torch.device,
    precision: str,
) -> Row:
    started = time.perf_counter()
    order = np.random.default_rng((recipe.seed, epoch)).permutation(split.training)
    if len(order) % recipe.batch_size == 1 and len(order) > 1:
        order = order[:-1]  # batch norm can't train on one picture; another one sits out next epoch
    labels = torch.from_numpy(split.labels).to(device)
    steps = -(-len(order) // recipe.batch_size)
    seen: list[Tensor] = []
    shown: list[np.ndarray] = []
    total_loss = right = 0.0
    network.train(True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.default_rng((recipe.seed, epoch, 1)).integers(2**62)))
        for step, (indices, batch) in enumerate(inputs.batches(order, recipe.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at((epoch - 1) * steps + step, recipe.epochs * steps)
            target = labels[indices]
            with autocast(device, precision):
                features = network.features(batch.to(device))
                logits = network.head(features).float()
                loss = functional.cross_entropy(logits, target)
            if not torch.isfinite(loss.detach()):
                raise Diverged(
                    f"the loss became {float(loss.detach())} in epoch {epoch} at rate {recipe.rate:g}: "
                    "give a lower one (--rates)"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += float(loss.detach()) * len(indices)
            right += int((logits.argmax(1) == target).sum())
            seen.append(features.detach().float().cpu())
            shown.append(split.labels[indices])
    return {
        "rate": optimizer.param_groups[0]["lr"],
        "train_loss": total_loss / len(order),
        "train_accuracy": right / len(order),
        "nc1": collapse_of(torch.cat(seen), np.concatenate(shown)),
        "seconds": time.perf_counter() - started,
    }


def collapse_of(features: Tensor, labels: np.ndarray) -> float | None:
    """NC1 of features (n, d) with labels (n,), or ``None`` where there are too few samples to have one."""
    present, dense = np.unique(labels, return_inverse=True)
    if not 1 < len(present) < len(labels):
        return None
    try:
        return nc1(moments_along_means(features, torch.from_numpy(dense), len(present)))
    except MeasureError:
        return None


def _judged(logits: Tensor, labels: np.ndarray) -> Row:
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


def _digest(tensors: dict[str, Tensor], rows: str) -> str:
    """A hash of a checkpoint's contents: a damaged one must not be gone on from."""
    return hashlib.sha256((rows + hash_of(tensors)).encode()).hexdigest()


class _Checkpoint:
    """What must survive between epochs, in one safetensors file: changed tensors, momentum, rows so far."""

    def __init__(
        self,
        path: Path | None,
        network: Trainable,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        identity: str,
    ):
        self.path, self.network, self.optimizer = path, network, optimizer
        self.parameters, self.identity = parameters, identity

    def save(self, rows: list[Row]) -> None:
        if self.path is None:
            return
        tensors = {f"state.{name}": tensor for name, tensor in self.network.changed_state().items()}
        for index, parameter in enumerate(self.parameters):
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{index}"] = momentum
        told = json.dumps(rows)
        metadata = {"identity": self.identity, "rows": told, "digest": _digest(tensors, told)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path, tensors, metadata)

    def load(self) -> list[Row]:
        """Rows so far, after putting the state back; none if there is no checkpoint of this very run."""
        if self.path is None or not self.path.exists():
            return []
        try:
            with safe_open(str(self.path), "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError):
            return []
        expected = {f"state.{name}": tensor.shape for name, tensor in self.network.changed_state().items()}
        found = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("state.")}
        if metadata.get("identity") != self.identity or expected != found:
            return []
        if metadata.get("digest") != _digest(tensors, metadata.get("rows", "")):
            return []
        self.network.load_changed_state(
            {name.removeprefix("state."): t for name, t in tensors.items() if name in found}
        )
        for index, parameter in enumerate(self.parameters):
            if f"momentum.{index}" in tensors:
                buffer = tensors[f"momentum.{index}"].to(parameter.device)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        rows: list[Row] = json.loads(metadata["rows"])
        return rows
