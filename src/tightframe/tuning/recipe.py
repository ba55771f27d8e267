"""How to train, as numbers: the recipe, which images train and which validate, and what is minimized.

The schedule is the paper's (Li et al., TMLR 2024): momentum 0.9, cosine from the initial learning rate to 1e-4. Label
smoothing is Szegedy et al.'s (CVPR 2016), mixup Zhang et al.'s (ICLR 2018), of whatever the model is fed: where
that is what goes into a block, it is manifold mixup (Verma et al., ICML 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True)
class Recipe:
    """How one training runs: a ``TrainConfig`` with its learning rate and weight decay chosen.

    ``loop.fit`` obeys all of it, and ``heads.fit_heads``, which searches for linear probes, all but ``ema_decay`` and
    ``patience``.

    Attributes:
        lr: learning rate at the start of the cosine schedule.
        weight_decay: of SGD.
        epochs: passes over the training images.
        batch_size: images in one optimizer step.
        momentum: of SGD.
        final_lr: learning rate at the end of the cosine schedule.
        seed: of order, views, dropout and mixup.
        label_smoothing: share of the target that is spread over all classes.
        mixup_alpha: images are mixed by Beta(α, α); 0 for none.
        class_weights: ``"balanced"`` gives every class the same total weight in the loss.
        grad_accum_steps: parts that a batch is run in, one after the other, to save memory; batch norms see a part.
        ema_decay: decay of the exponential moving average of the weights, which is judged and kept; 0 for none.
        patience: epochs without a lower validation loss after which training stops and returns to the best epoch.
        copies: rows of a batch that each image takes, one after the other, each a view of its own.
        head_lr: learning rate of the head at the start; ``None`` for that of all else.
        clip: largest norm of the gradient of all but the head; ``None`` for any.
    """

    lr: float = 0.1
    weight_decay: float = 1e-4
    epochs: int = 30
    batch_size: int = 32
    momentum: float = 0.9
    final_lr: float = 1e-4
    seed: int = 0
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    class_weights: ClassWeights = "none"
    grad_accum_steps: int = 1
    ema_decay: float = 0.0
    patience: int | None = None
    copies: int = 1
    head_lr: float | None = None
    clip: float | None = None

    def lr_at(self, step: int, steps: int, initial: float | None = None) -> float:
        """Learning rate at ``step`` of ``steps``, for one that is ``initial`` at the start instead of ``lr``."""
        first = self.lr if initial is None else initial
        final = min(self.final_lr, first)
        return final + (first - final) * (1 + math.cos(math.pi * step / steps)) / 2

    def order(self, epoch: int, training: np.ndarray) -> np.ndarray:
        """Indices of training images in the order in which ``epoch`` takes them."""
        order = np.random.default_rng((self.seed, epoch)).permutation(training).repeat(self.copies)
        if len(order) % self.batch_size == 1 and len(order) > 1:
            order = order[:-1]  # batch norm can't train on one image; another one sits out next epoch
        return order

    def draws(self, epoch: int, count: int, views: int) -> tuple[int, np.ndarray | None]:
        """What else is random in an epoch of ``count`` images: a seed for its steps, and a view (n,) of each image."""
        random = np.random.default_rng((self.seed, epoch, 1))
        return int(random.integers(2**62)), random.integers(views, size=count) if views > 1 else None


@dataclass(frozen=True)
class Split:
    """Labels (n,) of all inputs, and the indices of those that train and those that validate."""

    labels: np.ndarray
    training: np.ndarray
    validation: np.ndarray
    classes: int


@dataclass(frozen=True)
class Objective:
    """What is minimized: cross-entropy, with the weights of classes (K,) and the recipe's label smoothing."""

    weights: Float[Tensor, " k"]
    smoothing: float

    @classmethod
    def of(cls, recipe: Recipe, split: Split, device: torch.device) -> Objective:
        """For these training images; weights are 1 on average over them."""
        counts = np.bincount(split.labels[split.training], minlength=split.classes)
        shares = (
            len(split.training) / ((counts > 0).sum() * np.maximum(counts, 1))
            if recipe.class_weights == "balanced"
            else counts * 0 + 1
        )
        return cls(torch.tensor(shares, dtype=torch.float32, device=device), recipe.label_smoothing)

    def total(self, features: Float[Tensor, "n d"], logits: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Tensor:
        """Sum of the weighted losses of the logits that the head makes of the features."""
        return functional.cross_entropy(logits, target, self.weights, reduction="sum", label_smoothing=self.smoothing)

    def weight(self, target: Int[Tensor, " n"]) -> Tensor:
        """Sum of the weights: what a total is divided by to give a mean."""
        return self.weights[target].sum()


@dataclass(frozen=True)
class Mix:
    """Mixup of one step: each input takes ``1 - share`` of a partner's place."""

    share: float = 1.0
    random: np.random.Generator | None = None

    @classmethod
    def at(cls, recipe: Recipe, epoch: int, step: int) -> Mix:
        """Drawn for one step; nothing is mixed where the recipe doesn't."""
        if not recipe.mixup_alpha:
            return cls()
        random = np.random.default_rng((recipe.seed, epoch, 2, step))
        return cls(float(random.beta(recipe.mixup_alpha, recipe.mixup_alpha)), random)

    def inputs(self, batch: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (b, …) mixed, and the partners' targets (b,)."""
        if self.random is None:
            return batch, target
        partners = torch.from_numpy(self.random.permutation(len(batch)))
        return self.share * batch + (1 - self.share) * batch[partners], target[partners]

    def of(self, value: Callable[[Tensor], Tensor], target: Tensor, partners: Tensor) -> Tensor:
        """What ``value`` gives for targets, mixed as the inputs are."""
        own = value(target)
        return own if self.random is None else self.share * own + (1 - self.share) * value(partners)
