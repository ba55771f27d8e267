"""Losses of pre-training.

Each loss takes outputs (n, m), which are logits (m = K) or embeddings, and classes (n,), and returns one value for each
image, (n,), in float32. The supervised contrastive loss is written out here in eight lines: pytorch-metric-learning
returns means instead of sums, and means of parts of a batch can't be added up over processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tightframe.errors import SettingsError

SMOOTHING = 0.1
GAMMA = 2.0
TEMPERATURE = 0.1
MANY = 42
"""Number of classes above which the squared loss is rescaled."""


def cross_entropy(outputs: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """−log p of the class."""
    return functional.cross_entropy(outputs, target, reduction="none")


def label_smoothing(outputs: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy with a tenth of the target spread over all classes (Szegedy et al., CVPR 2016)."""
    return functional.cross_entropy(outputs, target, reduction="none", label_smoothing=SMOOTHING)


def focal(outputs: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """−(1 − p)² log p of the class, which weighs well-classified images less (Lin et al., ICCV 2017)."""
    surprise = cross_entropy(outputs, target)
    return (1 - torch.exp(-surprise)) ** GAMMA * surprise


def squared(outputs: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Mean squared distance of the outputs from one-hot targets (Hui & Belkin, ICLR 2021).

    As in that paper, with more than 42 classes the target of the true class is 30 and its error counts 15-fold.
    """
    weight, aim = (15.0, 30.0) if outputs.shape[1] > MANY else (1.0, 1.0)
    own = outputs.gather(1, target[:, None])[:, 0]
    return (outputs.square().sum(1) - own.square() + weight * (own - aim) ** 2) / outputs.shape[1]


def supervised_contrastive(outputs: Float[Tensor, "n m"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """−log of a softmax over cosine similarities, averaged over images of the same class (Khosla et al., NeurIPS 2020).

    This is their L_out, at temperature 0.1. An image that is the only one of its class in the batch counts as 0.
    """
    embedded = functional.normalize(outputs, dim=1)
    likeness = embedded @ embedded.T / TEMPERATURE
    itself = torch.eye(len(target), dtype=torch.bool, device=target.device)
    shares = functional.log_softmax(likeness.masked_fill(itself, -torch.inf), dim=1)
    alike = (target[:, None] == target) & ~itself
    return -shares.masked_fill(~alike, 0).sum(1) / alike.sum(1).clamp(min=1)


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes:
        function: from outputs and classes to the loss of each image.
        of_embeddings: whether the outputs are embeddings instead of logits.
        copies: views of each image in a batch.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    of_embeddings: bool = False
    copies: int = 1


LOSSES = {
    "cross-entropy": Loss(cross_entropy),
    "mse": Loss(squared),
    "label-smoothing": Loss(label_smoothing),
    "focal": Loss(focal),
    "supcon": Loss(supervised_contrastive, of_embeddings=True, copies=2),
}


def loss_named(name: str) -> Loss:
    """The loss called ``name``. Raises ``SettingsError`` if there is none."""
    if name not in LOSSES:
        raise SettingsError(f'no loss "{name}"; choose {", ".join(LOSSES)}')
    return LOSSES[name]
