"""Everything about training that is not the method: how long, what to try, and within which time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

import torch
from torch import nn

from tightframe.errors import SettingsError
from tightframe.features.augment import Augment, Augmentation
from tightframe.processes import together
from tightframe.tuning.heads import Align, SkipScale
from tightframe.tuning.lora import layer_norm_only
from tightframe.tuning.methods import Method
from tightframe.tuning.recipe import ClassWeights, Recipe

LRS, WEIGHT_DECAYS = (0.05, 0.01, 0.002, 0.0005), (1e-4, 5e-4)
TRANSFORMER_LRS, TRANSFORMER_WEIGHT_DECAYS = (1e-2, 1e-3, 2e-4), (1e-4, 0.0)
"""Tried for models with batch norm and for those with layer norm: the paper's weight decays and learning rates, without
its 0.1 and with lower rates, which do better on few images."""
HEAD_LR, CLIP = 0.05, 5.0
"""Of the head, whose features have a standard scale, and of gradients of all else, where training is steady."""
PROBE_LRS = (2e-3, 5e-4, 1e-4, 2e-5)
"""Tried where the head starts from a probe, whose weights, large where features vary little, scale all other steps."""
HeadInit = Literal["auto", "probe", "zeros"]
Protocol = Literal["steady", "paper"]


@dataclass(frozen=True)
class TrainConfig:
    """How to choose a learning rate and weight decay, and how to train with them.

    Attributes:
        epochs: Epochs of the final training, on all training images.
        recipe: How to train: steady, which few images can't ruin (batch norms keep their statistics, the head sees
            features of a standard scale and has a learning rate of its own, .05, gradients are clipped), or paper (as
            Li et al. trained: one learning rate for all, from several that are tried).
        lr: Initial learning rates to try, each with the first weight decay. By default .03 for one block and .005 for
            more; by the paper's recipe, for methods other than layer, scl, partial and full, and for linear probes .05
            .01 .002 .0005; for transformers .01 .001 .0002; for a head that starts from a probe .002 .0005 .0001
            .00002. One rate and one weight decay mean no search.
        weight_decay: Weight decays to try, each with the best learning rate. By default .0001 .0005, the first alone
            where there is one learning rate; for transformers .0001 0.
        batch_size: Images in one optimizer step.
        augment: Augmentation: none, flip (horizontal), crop (35 to 100 % of the area, and flip) or randaugment (both,
            and two random changes of color or shape).
        patience: Hold out validation images to the end, stop after this many epochs without a lower validation loss,
            and return to the best epoch. By default all images train, to the end.
        time_limit: Minutes that one tuning may take, approximately: fewer rates are tried and fewer epochs trained if
            need be. A resumed run starts the clock anew.
        seed: Seed of every random choice.
        label_smoothing: Share of the target that is spread over all classes.
        mixup_alpha: Mix images by Beta(α, α); 0 for none.
        class_weights: balanced gives rare classes the same total weight in the loss as frequent ones.
        ema_decay: Decay of an exponential moving average of the weights, which is then judged and kept; 0 for none.
        grad_accum_steps: Run each batch in this many parts, which takes less memory.
        search_epochs: Epochs of each trial of a learning rate and weight decay; a third of the epochs by default.
        validation_share: Share of the training images held out while learning rate and weight decay are chosen.
        folds: Folds of cross-validation that tell what to expect of a trained model on new images; 0 for none, which
            saves the time of as many trainings.
        views: Views kept of each image, the image itself among them, where augmentation meets a frozen prefix;
            elsewhere every epoch draws its own.
        head_init: Start of the new head: zeros, or probe (a logistic regression on the features, whose statistics batch
            norms then keep); auto means probe for lp-ft and zeros for all others.
        prompts: Sentences about a class, {} in place of its name, for models of open_clip: heads start from what the
            text encoder says of them, and the discriminants take that in as far as it helps on images left out. Without
            a sentence, it is "a photo of a {}.".
        align: How SCL joins the block's features to the last ones: pad (the paper's sum), concat or project.
        skip_scale: Scale of the block's features in SCL: none, or spread (so that they vary as much as the last ones).
        prefix_cache_gb: Gigabytes of disk for what goes into the tuned block, which then trains without the blocks
            before it; 0 to run the whole model.
    """

    epochs: int = 30
    recipe: Protocol = "steady"
    lr: tuple[float, ...] | None = None
    weight_decay: tuple[float, ...] | None = None
    batch_size: int = 32
    augment: Augmentation = "none"
    patience: int | None = None
    time_limit: float | None = None
    seed: int = 0
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    class_weights: ClassWeights = "none"
    ema_decay: float = 0.0
    grad_accum_steps: int = 1
    search_epochs: int | None = None
    validation_share: float = 0.2
    folds: int = 5
    views: int = 5
    head_init: HeadInit = "auto"
    prompts: tuple[str, ...] | None = None
    align: Align = "pad"
    skip_scale: SkipScale = "none"
    prefix_cache_gb: float = 8.0

    def __post_init__(self) -> None:
        """Raise ``SettingsError`` for values out of range."""
        least = {
            "epochs": 1,
            "search_epochs": 1,
            "batch_size": 2,
            "views": 2,
            "grad_accum_steps": 1,
            "patience": 1,
            "prefix_cache_gb": 0,
        }
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise SettingsError(f"{option(name)} is {value:g}; it must be {lowest} or more")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"{option(name)} is {getattr(self, name):g}; it must be 0 or more and below 1")
        if self.folds < 0 or self.folds == 1:
            raise SettingsError(f"--folds is {self.folds}; it must be 2 or more, or 0 for no cross-validation")
        if not 0 <= self.seed < 2**63:
            raise SettingsError(f"--seed is {self.seed}; it must be 0 or more and below 2 to the 63")
        if not 0 < self.validation_share < 1:
            raise SettingsError(f"--validation-share is {self.validation_share:g}; it must lie between 0 and 1")
        largest = torch.finfo(torch.float32).max  # also refuses NaN, which no comparison holds for
        if not all(0 < lr <= largest for lr in self.lr or ()):
            raise SettingsError("learning rates (--lr) must be above 0 and finite")
        if not all(0 <= value <= largest for value in (*(self.weight_decay or ()), self.mixup_alpha)):
            raise SettingsError("--weight-decay and --mixup-alpha must be 0 or more and finite")
        if self.prompts is not None and self.head_init != "auto":
            raise SettingsError(f"--prompts start the head: leave out --head-init {self.head_init}, or --prompts")
        if self.time_limit is not None and not self.time_limit > 0:
            raise SettingsError(f"--time-limit is {self.time_limit:g} minutes; it must be above 0")
        for name, kind in CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise SettingsError(f'{option(name)} is "{getattr(self, name)}"; choose {", ".join(get_args(kind))}')

    def choices(self, module: nn.Module, method: Method) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Learning rates and weight decays to try for this model and method."""
        transformer = layer_norm_only(module)
        lrs: tuple[float, ...]
        lrs = PROBE_LRS if self.from_probe(method) else TRANSFORMER_LRS if transformer else LRS
        decays: tuple[float, ...]
        decays = TRANSFORMER_WEIGHT_DECAYS if transformer else WEIGHT_DECAYS
        if self.steady(method) and method.lr is not None and not transformer:
            lrs, decays = (method.lr,), decays[:1]
        return self.lr or lrs, self.weight_decay or decays

    def steady(self, method: Method) -> bool:
        """Whether training is kept from ruining what it starts from; a linear probe or a fitted head needs no help."""
        return self.recipe == "steady" and not method.head_only and not self.from_probe(method)

    def from_probe(self, method: Method) -> bool:
        """Whether the head starts from a probe."""
        return method.warm and self.prompts is None if self.head_init == "auto" else self.head_init == "probe"

    def training(self, lr: float, weight_decay: float, method: Method | None = None) -> Recipe:
        """The final training with these, by ``method`` if one is tuned by."""
        shared = {one.name for one in fields(Recipe)} & {one.name for one in fields(self)} - {"lr", "weight_decay"}
        found = Recipe(lr, weight_decay, **{name: getattr(self, name) for name in shared})
        return replace(found, head_lr=HEAD_LR, clip=CLIP) if method and self.steady(method) else found

    def views_by(self) -> Augment | None:
        """What makes the views."""
        return None if self.augment == "none" else Augment(self.augment, self.seed)

    @property
    def kept_views(self) -> int:
        """Views of each image where they are kept."""
        return 1 if self.augment == "none" else self.views


CHOICES = {
    "recipe": Protocol,
    "augment": Augmentation,
    "class_weights": ClassWeights,
    "head_init": HeadInit,
    "align": Align,
    "skip_scale": SkipScale,
}
"""Fields that take one of a few words."""


def option(name: str) -> str:
    """The command-line option of a field."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Clock:
    """How much of the time allowed is left."""

    seconds: float = math.inf
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, config: TrainConfig) -> Clock:
        """Started now."""
        return cls(math.inf if config.time_limit is None else 60 * config.time_limit)

    @property
    def left(self) -> float:
        """Seconds, by the first process's clock; infinite without a limit."""
        return together().agree(self.seconds - (time.monotonic() - self.started)) if self.limited else math.inf

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.seconds < math.inf

    def past(self, share: float) -> bool:
        """Whether this share of the time is gone."""
        return self.limited and self.left < (1 - share) * self.seconds
