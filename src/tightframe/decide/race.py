"""Ranking within a budget: images are spent only on models that can still win.

Every round doubles the images that the models still in the race have seen. After it those leave that hardly ever
come first when images are drawn anew and accuracies move on as they do when images come in (see
``decide.recommendation``); and no more stay than ``STAYING`` allows: a list of ten or more costs a third of all
forward passes or little more, whatever the images say. A model whose features are kept costs no pass: it is loaded once
and measured on all images, and where that holds for all of them there is nothing to race for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from tightframe.backbone import Backbone
from tightframe.data.selection import stratified
from tightframe.decide.recommendation import Outcome, Standing, standings
from tightframe.errors import DataError, SettingsError
from tightframe.features.extract import Features
from tightframe.features.workspace import Workspace
from tightframe.images import Images
from tightframe.row import Row

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of every class's training images, seen by the end of each round."""
STAYING = (1.0, 0.6, 0.3, 0.15)
"""Share of the list that may go on after each round but the last, and two models in any case."""
HOPE = 0.02
"""A model with a smaller chance of coming out first leaves."""
LEAST = 2
"""Images of every class below which a round says too little to be held."""
Judge = Callable[[Features], Outcome]


@dataclass
class Contender:
    """A model in the race: how to get it, what is known of it so far, and, if it failed, why.

    Attributes:
        load: builds it; called once a round, so that one model at a time is in memory.
        order: the images seen, indices of the training images, in the order of ``parts``.
        parts: their features, round by round.
        measure: gives the model's row on all images, ``None`` where their features are not kept.
        row: that row.
        whole: features of all images, where they are kept.
        standing: where it stood after its last round.
    """

    name: str
    load: Callable[[], Backbone]
    layers: Callable[[Backbone], Sequence[str]]
    measure: Callable[[Backbone], Row | None]
    order: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    parts: list[Features] = field(default_factory=list)
    row: Row | None = None
    whole: Features | None = None
    outcome: Outcome | None = None
    parameters: int = 0
    seconds: float = 0.0
    standing: Standing | None = None
    error: Exception | None = None

    def see(self, data: Images, upto: np.ndarray, workspace: Workspace) -> None:
        """Run the model on those of the images ``upto`` that it has not seen, if its features are not kept."""
        with self._alone():
            if self.whole is None:
                backbone = self.load()
                self.parameters, layers = backbone.parameters, self.layers(backbone)
                self.row = None if self.parts else self.measure(backbone)
                if self.row is not None:
                    self.whole = workspace.features(backbone, data, layers)
                else:
                    fresh = np.setdiff1d(upto, self.order)
                    self.parts.append(workspace.features(backbone, data.subset(fresh), layers))
            self.order = np.sort(upto) if self.whole is not None else np.concatenate([self.order, fresh])

    def judged(self, data: Images, judge: Judge) -> None:
        """Judge the model on all images that it has seen."""
        with self._alone():
            self.outcome = judge(self.features(data))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Count the time, and keep what fails to this model."""
        started = time.perf_counter()
        try:
            yield
        except (DataError, SettingsError):
            raise  # the same for every model: said once, at once
        except Exception as error:  # one bad model must not end the race, whatever it raises
            self.error = error
        self.seconds += time.perf_counter() - started

    def features(self, data: Images) -> Features:
        """Features of all images seen, in the order that they have in ``data``."""
        order = np.argsort(self.order)
        if self.whole is not None:
            first = self.whole
            arrays = {layer: first[layer][self.order] for layer in first}
        else:
            first = self.parts[0]
            arrays = {layer: np.concatenate([part[layer] for part in self.parts])[order] for layer in first}
        return Features(
            {layer: (lambda array=array: array) for layer, array in arrays.items()},  # type: ignore[misc]
            data.subset(self.order[order]),
            precision=first.precision,
            pool=first.pool,
            seconds=self.seconds,
        )


def race(
    contenders: Sequence[Contender], data: Images, judge: Judge, minutes: float, seed: int, workspace: Workspace
) -> list[Contender]:
    """Run the race; those still in it at the end, the likely best first. All are told where they stand.

    A round is run by as many of the likeliest as ``minutes`` still pay for, going by what images cost each so far;
    the race ends where that is none. The first round is always run. Where features of all models are kept, none stands
    anywhere: each has its ``row``.
    """
    deadline = time.perf_counter() + 60 * minutes
    going = list(contenders)
    rounds = _rounds(data, seed)
    for number, upto in enumerate(rounds):
        payable = going if number == 0 else _payable(going, len(upto), deadline - time.perf_counter())
        if not payable:
            break
        for contender in workspace.progress(payable, f"round {number + 1}: {len(upto)} images", len(payable)):
            contender.see(data, upto, workspace)
        going = [contender for contender in payable if contender.error is None]
        if all(contender.whole is not None for contender in going):
            return going
        for contender in going:
            contender.judged(data, judge)
        going = _standing([contender for contender in going if contender.error is None], len(data), seed)
        left = len(rounds) - number - 1
        if left == 0 or len(going) < 2:
            break
        room = max(2, ceil(STAYING[len(STAYING) - left] * len(contenders)))
        hopeful = [c for c in going if c.standing is not None and c.standing.p_best >= HOPE]
        going = (hopeful or going[:1])[:room]
    return going


def _rounds(data: Images, seed: int) -> list[np.ndarray]:
    """Images to be seen by the end of each round, every one holding the one before."""
    shares = [stratified(data.labels, share, seed)[1] for share in SHARES[:-1]]
    smallest = [np.bincount(data.labels[held], minlength=len(data.classes)).min() for held in shares]
    held = [images for images, least in zip(shares, smallest, strict=True) if least >= LEAST]
    return [*held, np.arange(len(data))]


def _payable(going: list[Contender], upto: int, seconds: float) -> list[Contender]:
    """As many of the likeliest as ``seconds`` allow."""
    spent, payable = 0.0, []
    for contender in going:
        spent += contender.seconds / len(contender.order) * (upto - len(contender.order))
        if spent > seconds:
            break
        payable.append(contender)
    return payable


def _standing(going: list[Contender], eventually: int, seed: int) -> list[Contender]:
    """Those still going, told where they stand among each other, the likely best first."""
    if going:
        outcomes = [contender.outcome for contender in going if contender.outcome is not None]
        found = standings(outcomes, [contender.parameters for contender in going], seed, eventually)
        for contender, standing in zip(going, found, strict=True):
            contender.standing = standing
    return sorted(going, key=lambda c: c.standing.merit if c.standing else 0.0, reverse=True)
