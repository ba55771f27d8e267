"""The model that is pre-trained: a base, a projection head that is dropped later, and a linear head on its features.

Where the loss takes logits and there is no projection head, the linear head is the classifier that is trained.
Otherwise the head only watches: it learns from the features, and sends no gradient to the base. Either way it is one
linear map of the features that are transferred, so that accuracy, NC3 and what is saved mean the same for every loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tightframe.errors import ModelError
from tightframe.pretraining.losses import Loss
from tightframe.tuning.state import Trainable

EMBEDDING = 128
"""Dimension of the embeddings of a projection head."""
MOST_LAYERS = 3
"""Most hidden layers of a projection head."""


class PretrainedModel(Trainable):
    """A model of timm's with random weights, which computes ``features`` (n, d), and the heads that train it.

    Args:
        arch: timm's name of the architecture.
        classes: number of classes K.
        loss: the loss, which decides what follows the features.
        projector: hidden layers of the projection head, 0 to ``MOST_LAYERS``.
        arguments: arguments of the architecture.
        seed: seed of the weights.

    Raises:
        ModelError: timm has no such model, or one that does not end in one linear map.
    """

    def __init__(self, arch: str, classes: int, loss: Loss, projector: int, arguments: dict[str, object], seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.base = timm.create_model(arch, pretrained=False, num_classes=classes, **arguments)
            head = self.base.get_classifier()
            if not isinstance(head, nn.Linear):
                raise ModelError(f"{arch} does not end in one linear map, so that no head can be watched; take another")
            width = head.in_features
            self.head = nn.Linear(width, classes)
            self.projector = _projector(width, projector, EMBEDDING if loss.of_embeddings else classes)
        self.watches = loss.of_embeddings or projector > 0
        self.base.reset_classifier(0)

    def features(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The features that are transferred."""
        return self.base(inputs)

    def changed_state(self) -> dict[str, Tensor]:
        """The whole state: all of it is trained."""
        return self.state_dict()

    def load_changed_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``changed_state`` gave."""
        self.load_state_dict(tensors)

    def weights(self, classifier: str) -> dict[str, Tensor]:
        """The state dict of the model with its linear head, which timm calls ``classifier``."""
        head = {f"{classifier}.{name}": tensor for name, tensor in self.head.state_dict().items()}
        return {name: tensor.cpu().clone() for name, tensor in (self.base.state_dict() | head).items()}


def _projector(width: int, layers: int, outputs: int) -> nn.Module:
    """Hidden layers and a linear map; without hidden layers, the identity."""
    hidden = [nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(*hidden, nn.Linear(width, outputs)) if layers else nn.Identity()


@dataclass(frozen=True)
class Goal:
    """The objective of pre-training (see ``tuning.loop``): the loss, plus cross-entropy of a head that only watches."""

    model: PretrainedModel
    loss: Loss

    def total(
        self, features: Float[Tensor, "n d"], logits: Float[Tensor, "n k"], target: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """Sum of the losses."""
        if not self.model.watches:
            return self.loss.function(logits, target).sum()
        watched = functional.cross_entropy(self.model.head(features.detach().float()), target, reduction="sum")
        return self.loss.function(self.model.projector(features.float()), target).sum() + watched

    def weight(self, target: Int[Tensor, " n"]) -> Tensor:
        """The number of images."""
        return torch.ones(len(target), device=target.device).sum()
