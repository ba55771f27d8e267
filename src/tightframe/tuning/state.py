"""What training is made of between two steps, kept in one safetensors file: training that was stopped goes on from it.

Weights that are trained, momentum, running average, best weights so far, rows of the epochs done, and how far the epoch
under way has come.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tightframe.backbone import hash_of
from tightframe.files import write_tensors
from tightframe.row import Row

SAVE_SECONDS = 10.0
"""Between two checkpoints, at least."""
UNREAD = 32
"""Steps between two looks at what they found."""


class Trainable(nn.Module, ABC):
    """A model with a linear head, and what of it training changes: parameters that have gradients, and buffers."""

    head: nn.Linear

    @abstractmethod
    def features(self, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """What the head sees."""

    @abstractmethod
    def changed_state(self) -> dict[str, Tensor]:
        """All that training changes, by name."""

    @abstractmethod
    def load_changed_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``changed_state`` gave. Shapes and names must agree: check them before."""

    def forward(self, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self.features(inputs))


class HeadOnly(Trainable):
    """A new head on features computed before: a linear probe that trains without running the model."""

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


@dataclass
class Underway:
    """How far an epoch has come.

    What a step leaves is read some steps later, all at once: a GPU need not stop for it.

    Attributes:
        step: steps done.
        loss, weight: sums over them, of the losses and of what they are divided by.
        right: predictions that were right.
        seconds: that they took.
        seen: what the head saw, (b, d) a step.
    """

    step: int = 0
    loss: float = 0.0
    weight: float = 0.0
    right: float = 0.0
    seconds: float = 0.0
    seen: list[Tensor] = field(default_factory=list)
    _unread: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def stepped(self, sums: Tensor, seen: Tensor) -> None:
        """Note what a step found: loss, weight and right predictions (3,), and what the head saw (b, d)."""
        self.step += 1
        self._unread.append((sums, seen))
        if len(self._unread) >= UNREAD:
            self.read()

    def read(self) -> None:
        """Wait for all that was noted, and add it up."""
        for sums in torch.stack([sums for sums, _ in self._unread]).tolist() if self._unread else ():
            self.loss, self.weight, self.right = self.loss + sums[0], self.weight + sums[1], self.right + sums[2]
        self.seen += [seen.cpu() for _, seen in self._unread]
        self._unread.clear()

    def told(self) -> Row:
        """All but what was seen, as JSON has it."""
        return {name: value for name, value in self.__dict__.items() if name not in ("seen", "_unread")}


class State:
    """Training between two steps.

    Attributes:
        rows: of the epochs done.
        underway: of the epoch that is not.
    """

    def __init__(
        self, model: Trainable, optimizer: torch.optim.Optimizer, average: float, path: Path | None, identity: str
    ):
        self.model, self.optimizer, self.decay = model, optimizer, average
        self.path, self.identity = path, identity
        self.rows: list[Row] = []
        self.underway = Underway()
        self._average = _copy(model) if average else {}
        self._best: dict[str, Tensor] = {}
        self._steps = 0
        self._saved = time.monotonic()

    @property
    def best_epoch(self) -> int:
        """The epoch of the lowest validation loss, 0 before the first."""
        losses = ((row, row["validation_loss"]) for row in self.rows)
        judged = [row for row, loss in losses if loss is not None and math.isfinite(loss)]
        return min(judged, key=lambda row: row["validation_loss"])["epoch"] if judged else 0

    def stepped(self) -> None:
        """Note that a step was made: follow with the running average, save now and then."""
        self._steps += 1
        share = min(self.decay, self._steps / (self._steps + 9))  # young averages follow faster
        for name, tensor in self.model.changed_state().items() if self._average else ():
            if tensor.is_floating_point():
                self._average[name].lerp_(tensor.detach(), 1 - share)
            else:
                self._average[name].copy_(tensor)
        self.save()

    def epoch_done(self, row: Row, keep_best: bool) -> None:
        """Add the row of the epoch under way; with ``keep_best``, keep these weights if none were better."""
        self.rows.append(row)
        self.underway = Underway()
        if keep_best and self.best_epoch == row["epoch"]:
            self._best = _copy(self.model) if not self._average else {k: t.clone() for k, t in self._average.items()}
        self.save()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The running average in the model's place, if there is one."""
        own = _copy(self.model) if self._average else {}
        if own:
            self.model.load_changed_state(self._average)
        yield
        if own:
            self.model.load_changed_state(own)

    def finish(self) -> None:
        """Save, and leave in the model what is to be kept: the best weights, the average, or the last ones."""
        self.save(now=True)
        if self._best or self._average:
            self.model.load_changed_state(self._best or self._average)

    def save(self, now: bool = False) -> None:
        """Write the file if there is one and the last time is long enough ago, or ``now``."""
        if self.path is None or not (now or time.monotonic() - self._saved >= SAVE_SECONDS):
            return
        self.underway.read()
        told = json.dumps({"rows": self.rows, "underway": self.underway.told(), "steps": self._steps})
        tensors = self._tensors()
        metadata = {"identity": self.identity, "told": told, "digest": _digest(tensors, told)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path, tensors, metadata)
        self._saved = time.monotonic()

    def load(self) -> None:
        """Go back to what the file holds, if it was written by this very run."""
        kept = _read(self.path) if self.path is not None else None
        if kept is None or kept[0].get("identity") != self.identity:
            return
        metadata, tensors = kept
        own = self.model.changed_state()
        shapes = {name: tensor.shape for name, tensor in _under("state", tensors).items()}
        if shapes != {name: tensor.shape for name, tensor in own.items()}:
            return
        told = json.loads(metadata["told"])
        self.rows, self._steps = told["rows"], told["steps"]
        seen = list(_under("seen", tensors).values())
        self.underway = Underway(**told["underway"], seen=seen)
        self.model.load_changed_state(_under("state", tensors))
        for name, tensor in self._average.items():
            tensor.copy_(tensors[f"average.{name}"])
        self._best = {name: tensor.to(own[name].device) for name, tensor in _under("best", tensors).items()}
        for index, parameter in enumerate(self._parameters()):
            if f"momentum.{index}" in tensors:
                buffer = tensors[f"momentum.{index}"].to(parameter.device)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"state": self.model.changed_state(), "average": self._average, "best": self._best}
        tensors = {f"{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
        for index, parameter in enumerate(self._parameters()):
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{index}"] = momentum
        if self.underway.seen:
            tensors["seen.all"] = torch.cat(self.underway.seen)
        return tensors

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _copy(model: Trainable) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.changed_state().items()}


def _under(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """Metadata and tensors of a checkpoint that is whole."""
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError):
        return None
    return (metadata, tensors) if metadata.get("digest") == _digest(tensors, metadata.get("told", "")) else None


def _digest(tensors: dict[str, Tensor], told: str) -> str:
    """A hash of a checkpoint's contents: a damaged one must not be gone on from."""
    return hashlib.sha256((told + hash_of(tensors)).encode()).hexdigest()
