"""How to train, as numbers: the recipe, who trains and who validates, and what is minimized.

The schedule is the paper's (Li et al., TMLR 2024): momentum 0.9, cosine from the start rate to 1e-4. Label smoothing is
Szegedy et al.'s (CVPR 2016), mixup Zhang et al.'s (ICLR 2018), of whatever the model is fed: where that is what goes
into a block, it is manifold mixup (Verma et al., ICML 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        rate: learning rate at the start of the cosine.
        decay: weight decay.
        epochs: passes over the training images.
        batch_size: images a step.
        momentum: of SGD.
        final_rate: at the end of the cosine.
        seed: of order, views, dropout and mixup.
        smoothing: share of the target that goes to all classes alike.
        mixup: α of the Beta(α, α) that images are mixed by; 0 to mix none.
        balance: whether rare classes weigh more: every class as much as any other in all.
        accumulate: parts that a batch is run in, one after the other, to save memory; batch norms see a part.
        average: decay of the exponential moving average of the weights, which is what is judged and kept; 0 for none.
        patience: epochs without a lower validation loss after which training ends and goes back to the best epoch.
        copies: rows of a batch that each image takes, one after the other, each a view of its own.
    """

    rate: float = 0.1
    decay: float = 1e-4
    epochs: int = 30
    batch_size: int = 32
    momentum: float = 0.9
    final_rate: float = 1e-4
    seed: int = 0
    smoothing: float = 0.0
    mixup: float = 0.0
    balance: bool = False
    accumulate: int = 1
    average: float = 0.0
    patience: int | None = None
    copies: int = 1

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate at ``step`` of ``steps``."""
        final = min(self.final_rate, self.rate)
        return final + (self.rate - final) * (1 + math.cos(math.pi * step / steps)) / 2

    def order(self, epoch: int, training: np.ndarray) -> np.ndarray:
        """Indices of training images in the order in which ``epoch`` takes them."""
        order = np.random.default_rng((self.seed, epoch)).permutation(training).repeat(self.copies)
        if len(order) % self.batch_size == 1 and len(order) > 1:
            order = order[:-1]  # batch norm can't train on one image; another one sits out next epoch
        return order

    def draws(self, epoch: int, count: int, views: int) -> tuple[int, np.ndarray | None]:
        """What else an epoch of ``count`` images is drawn by: a seed for its steps, and a view (n,) of each."""
        random = np.random.default_rng((self.seed, epoch, 1))
        return int(random.integers(2**62)), random.integers(views, size=count) if views > 1 else None


@dataclass(frozen=True)
class Split:
    """Labels (n,) of all inputs, and which of them train and which validate."""

    labels: np.ndarray
    training: np.ndarray
    validation: np.ndarray
    classes: int


@dataclass(frozen=True)
class Objective:
    """What is minimized: cross-entropy, with the weights of classes (K,) and the smoothing of the recipe."""

    weights: Float[Tensor, " k"]
    smoothing: float

    @classmethod
    def of(cls, recipe: Recipe, split: Split, device: torch.device) -> Objective:
        """For these training images; weights are 1 on average over them."""
        counts = np.bincount(split.labels[split.training], minlength=split.classes)
        shares = (
            len(split.training) / ((counts > 0).sum() * np.maximum(counts, 1)) if recipe.balance else counts * 0 + 1
        )
        return cls(torch.tensor(shares, dtype=torch.float32, device=device), recipe.smoothing)

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
        if not recipe.mixup:
            return cls()
        random = np.random.default_rng((recipe.seed, epoch, 2, step))
        return cls(float(random.beta(recipe.mixup, recipe.mixup)), random)

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
