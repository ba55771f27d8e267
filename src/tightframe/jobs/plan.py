"""How long to train and what to try: everything about tuning that is not the method."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

import torch
from torch import nn

from tightframe.errors import SettingsError
from tightframe.processes import together
from tightframe.tuning.augment import Augment, Augmentation
from tightframe.tuning.lora import layer_norm_only
from tightframe.tuning.methods import Method
from tightframe.tuning.recipe import Recipe
from tightframe.tuning.surgery import Align, Scale

PLAIN_RATES, PLAIN_DECAYS = (0.05, 0.01, 0.002, 0.0005), (1e-4, 5e-4)
TRANSFORMER_RATES, TRANSFORMER_DECAYS = (1e-2, 1e-3, 2e-4), (1e-4, 0.0)
"""For models with batch norm and with layer norm: the paper's weight decays and start rates, but for 0.1, and lower
rates, which do better with few images."""
WARM_RATES = (2e-3, 5e-4, 1e-4, 2e-5)
"""From a probe on: its weights, which are large where features vary little, scale the steps of all before it."""
Start = Literal["auto", "probe", "zeros"]


@dataclass(frozen=True)
class Plan:
    """How to choose and train.

    Attributes:
        epochs: of the final training, on all training images.
        search_epochs: of each trial of rate and decay; a third of ``epochs`` if ``None``.
        rates, decays: what to try, each rate with the first decay, then each decay with the best rate; if ``None``,
            those above for the kind of model. One of each means no search.
        batch_size: images a step.
        validation_share: of the training images, held out while rate and decay are chosen.
        seed: of every random choice.
        align, scale: how the head of SCL sees the block's features beside the penultimate ones (see
            ``tuning.surgery.Neck``); the paper's sum unless told otherwise.
        start: of the head: ``"zeros"``, or ``"probe"``, a logistic regression on the features before tuning, whose
            statistics batch norms then keep; ``"auto"`` is the probe for LP-FT, and zeros for all others.
        cache_gb: gigabytes of disk for what goes into the tuned block, which then runs without what stands before it;
            0 to run the whole model.
        augment: how views of an image differ from it (see ``tuning.augment``).
        views: of each image, itself among them, where what goes into the block is kept; without that, each epoch
            has its own.
        smoothing, mixup, balance, accumulate, average: see ``tuning.recipe.Recipe``.
        patience: epochs without a lower validation loss after which the final training ends and goes back to its best
            epoch. It then holds out the validation share to the end; ``None`` trains on all images, to the end.
        minutes: that one tuning may take, about: fewer rates are tried and fewer epochs trained if need be. How much is
            done in them depends on the machine, and a run that is resumed starts the clock anew.
    """

    epochs: int = 30
    search_epochs: int | None = None
    rates: tuple[float, ...] | None = None
    decays: tuple[float, ...] | None = None
    batch_size: int = 32
    validation_share: float = 0.2
    seed: int = 0
    align: Align = "pad"
    scale: Scale = "none"
    start: Start = "auto"
    cache_gb: float = 8.0
    augment: Augmentation = "none"
    views: int = 5
    smoothing: float = 0.0
    mixup: float = 0.0
    balance: bool = False
    accumulate: int = 1
    average: float = 0.0
    patience: int | None = None
    minutes: float | None = None

    def choices(self, module: nn.Module, warm: bool = False) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Rates and decays to try; rates are lower if the head is ``warm``, started from a probe."""
        transformer = layer_norm_only(module)
        rates = WARM_RATES if warm else TRANSFORMER_RATES if transformer else PLAIN_RATES
        decays = TRANSFORMER_DECAYS if transformer else PLAIN_DECAYS
        return self.rates or rates, self.decays or decays

    def warm(self, method: Method) -> bool:
        """Whether the head starts from a probe."""
        return method.warm if self.start == "auto" else self.start == "probe"

    def recipe(self, rate: float, decay: float) -> Recipe:
        """Of the final training."""
        shared = {one.name for one in fields(Recipe)} & {one.name for one in fields(self)}
        return Recipe(rate, decay, **{name: getattr(self, name) for name in shared})

    def views_by(self) -> Augment | None:
        """What makes the views."""
        return None if self.augment == "none" else Augment(self.augment, self.seed)

    @property
    def kept_views(self) -> int:
        """Views of each image where they are kept."""
        return 1 if self.augment == "none" else self.views

    def check(self) -> None:
        """Raise ``SettingsError`` for values out of range."""
        least = {
            "epochs": (self.epochs, 1),
            "search epochs": (self.search_epochs, 1),
            "batch size": (self.batch_size, 2),
            "views": (self.views, 2),
            "parts of a batch": (self.accumulate, 1),
            "patience": (self.patience, 1),
        }
        for name, (value, lowest) in least.items():
            if value is not None and value < lowest:
                raise SettingsError(f"{name} is {value}; it must be {lowest} or more")
        if not 0 < self.validation_share < 1:
            raise SettingsError(f"validation share is {self.validation_share}; it must lie between 0 and 1")
        for name, share in (("smoothing", self.smoothing), ("average", self.average)):
            if not 0 <= share < 1:
                raise SettingsError(f"{name} is {share}; it must be 0 or more and below 1")
        largest = torch.finfo(torch.float32).max  # also refuses NaN, which no comparison holds for
        sound = all(0 < rate <= largest for rate in self.rates or ())
        if not sound or not all(0 <= decay <= largest for decay in (*(self.decays or ()), self.mixup)):
            raise SettingsError("rates must be above 0, decays and mixup 0 or more, and all of them finite")
        if not self.cache_gb >= 0:
            raise SettingsError(f"a cache of {self.cache_gb:g} GB: it must be 0 (none) or more")
        if self.minutes is not None and not self.minutes > 0:
            raise SettingsError(f"a time limit of {self.minutes:g} minutes: it must be above 0")
        if self.start not in get_args(Start):
            raise SettingsError(f'no start "{self.start}"; choose {", ".join(get_args(Start))}')
        self.views_by()


@dataclass(frozen=True)
class Clock:
    """How much of the time allowed is left."""

    seconds: float = math.inf
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, plan: Plan) -> Clock:
        """Started now."""
        return cls(math.inf if plan.minutes is None else 60 * plan.minutes)

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
