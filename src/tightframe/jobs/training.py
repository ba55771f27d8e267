"""Choosing rate and decay, and training with them, whatever is trained on whatever inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightframe.data.selection import stratified
from tightframe.images import Images
from tightframe.jobs.plan import Clock, Plan
from tightframe.jobs.run import Run
from tightframe.probes.results import interval
from tightframe.processes import together
from tightframe.progress import Progress
from tightframe.row import Row
from tightframe.tuning.heads import fit_heads
from tightframe.tuning.logs import Tell
from tightframe.tuning.loop import Diverged, Inputs, fit
from tightframe.tuning.recipe import Recipe, Split
from tightframe.tuning.state import Trainable
from tightframe.tuning.surgery import HeadOnly

SEARCH_SHARE, TRAINING_SHARE = 0.5, 0.9
"""Of the time allowed: until when rates are tried, and until when training may go on, so that judging fits in."""
GAP, RISE = 0.15, 1.2
"""What is called overfitting: accuracy that falls by more, surely, or a validation loss that rises by this factor."""


@dataclass(frozen=True)
class Training:
    """What is trained, on which inputs, where; ``run`` does it.

    Attributes:
        data: the training images.
        inputs: what is made of them.
        model: trained in place.
        title: what it is, for people.
        work: folder for checkpoints.
        scope: all that decides the result, as text.
        tell: is given every row.
        clock: how long all may take.
        warm: starts the head from a probe fitted to the training images whose indices it is given; ``None`` where
            training starts from a head of zeros.
        notes: what is to be said beside what comes of it.
    """

    data: Images
    inputs: Inputs
    model: Trainable
    device: torch.device
    precision: str
    work: Path | None
    scope: str
    progress: Progress
    title: str
    tell: Tell
    clock: Clock
    warm: Callable[[np.ndarray], None] | None = None
    notes: tuple[str, ...] = ()

    def run(self, plan: Plan, rates: Sequence[float], decays: Sequence[float]) -> tuple[Recipe, list[Row], list[str]]:
        """Train the model; the recipe chosen, a row an epoch, and notes."""
        start = {name: tensor.detach().clone() for name, tensor in self.model.changed_state().items()}
        everything = np.arange(len(self.data))
        kept, held_out = stratified(self.data.labels, plan.validation_share, plan.seed)
        recipe, rows, notes = plan.recipe(rates[0], decays[0]), list[Row](), [*self.notes]
        pace = self._pace(recipe, kept, start) if self.clock.limited else 0.0
        if len(rates) * len(decays) > 1 and len(held_out):
            short = replace(recipe, epochs=plan.search_epochs or max(1, plan.epochs // 3), patience=None)
            short = self._affordable(short, len(rates) + len(decays) - 1, pace * len(kept), SEARCH_SHARE)
            found, rows, notes = self._search(short, {"rate": rates, "decay": decays}, kept, held_out, start, notes)
            recipe = replace(recipe, rate=found.rate, decay=found.decay)
            notes += overfitting(trial_of(rows, recipe.rate, recipe.decay), len(held_out), self.title)
        elif not len(held_out) and (len(rates) * len(decays) > 1 or plan.patience):
            notes.append("too few images a class to hold any out: the first rate and decay are used, to the end")
        training, validation = (kept, held_out) if plan.patience and len(held_out) else (everything, everything[:0])
        recipe = self._in_time(recipe, pace * len(training))
        if recipe.epochs < plan.epochs:
            notes.append(f"{self.title}: trained for {recipe.epochs} of {plan.epochs} epochs, for want of time")
        recipe, final, more = self._final(recipe, rows, training, validation, start)
        if len(validation):
            notes += overfitting(final, len(validation), self.title)
        return recipe, rows + final, list(dict.fromkeys(notes + more))

    def _final(
        self,
        recipe: Recipe,
        trials: list[Row],
        training: np.ndarray,
        validation: np.ndarray,
        start: dict[str, Tensor],
    ) -> tuple[Recipe, list[Row], list[str]]:
        """The training that counts; by the next lower rate that was tried where a rate turns out too high for it."""
        notes = list[str]()
        while True:
            self._begin(start, training)
            lower = [row for row in trials if row["initial_lr"] < recipe.rate]
            try:
                rows = self._fit(recipe, training, validation, "final", f"training on {len(training)} images")
                if not fell_apart(rows, trial_of(trials, recipe.rate, recipe.decay)):
                    return recipe, rows, notes
            except Diverged:
                if not lower:
                    raise
            failed = f"{self.title}: training fell apart at rate {recipe.rate:g}"
            if not lower:
                return recipe, rows, [*notes, f"{failed}, the lowest that was tried: give lower ones with --rates"]
            next_one = max(lower, key=lambda row: row["initial_lr"])
            notes.append(f"{failed}; {next_one['initial_lr']:g} was taken")
            recipe = replace(recipe, rate=next_one["initial_lr"], decay=next_one["decay"])

    def _search(
        self,
        first: Recipe,
        choices: dict[str, Sequence[Any]],
        kept: np.ndarray,
        held_out: np.ndarray,
        start: dict[str, Tensor],
        notes: list[str],
    ) -> tuple[Recipe, list[Row], list[str]]:
        """The best recipe, the rows of all trials, and the notes with what was left untried."""
        if isinstance(self.model, HeadOnly) and not first.average:
            grid = [replace(first, rate=rate, decay=decay) for rate in choices["rate"] for decay in choices["decay"]]
            self._begin(start, kept)
            tried = self._heads(self.model, grid, kept, held_out)
            return best(tried), [row for rows in tried.values() for row in rows], notes
        tried, chosen, left = dict[Recipe, list[Row]](), first, list[str]()
        for name, values in choices.items():
            for trial in [replace(chosen, **{name: value}) for value in values]:
                if tried and self.clock.past(SEARCH_SHARE):
                    left += [f"{name} {getattr(trial, name):g}"] * (trial not in tried)
                elif trial not in tried:
                    self._begin(start, kept)
                    tried[trial] = self._trial(trial, kept, held_out)
            chosen = best(tried)
        late = [f"{self.title}: not tried, for want of time: {', '.join(left)}"] if left else []
        return chosen, [row for rows in tried.values() for row in rows], notes + late

    def _heads(
        self, model: HeadOnly, grid: Sequence[Recipe], kept: np.ndarray, held_out: np.ndarray
    ) -> dict[Recipe, list[Row]]:
        """Linear probes by all recipes of the grid at once."""
        split = Split(self.data.labels, kept, held_out, len(self.data.classes))
        found = fit_heads(model.head, self.inputs, split, grid, device=self.device)
        named = {
            recipe: [_named("search", recipe) | row for row in rows] for recipe, rows in zip(grid, found, strict=True)
        }
        for recipe, rows in named.items():
            for row in rows:
                self.tell(_series("search", recipe), row)
        return named

    def _trial(self, recipe: Recipe, kept: np.ndarray, held_out: np.ndarray) -> list[Row]:
        """The rows of one trial, none if it diverged."""
        words = f"trying rate {recipe.rate:g}, decay {recipe.decay:g}"
        try:
            return self._fit(recipe, kept, held_out, "search", words)
        except Diverged:
            return []

    def _in_time(self, recipe: Recipe, seconds: float) -> Recipe:
        """The recipe with as many epochs of so many ``seconds`` as there is time for."""
        if not self.clock.limited:
            return recipe

        def epochs() -> int:
            return self._affordable(recipe, 1, seconds, TRAINING_SHARE).epochs

        return replace(recipe, epochs=Run(self.work).remember("epochs", self.scope, epochs) if self.work else epochs())

    def _affordable(self, recipe: Recipe, times: int, seconds: float, share: float) -> Recipe:
        """The recipe with as many epochs of so many ``seconds``, ``times`` over, as fit into a share of the time."""
        if not self.clock.limited:
            return recipe
        left = self.clock.left - (1 - share) * self.clock.seconds
        return replace(recipe, epochs=max(1, min(recipe.epochs, int(left / (times * max(seconds, 1e-6))))))

    def _pace(self, recipe: Recipe, training: np.ndarray, start: dict[str, Tensor]) -> float:
        """Seconds that training takes for one image, by an epoch that is thrown away."""
        split = Split(self.data.labels, training, training[:0], len(self.data.classes))
        once = replace(recipe, epochs=1, patience=None)
        self._begin(start, training)
        began = time.monotonic()
        with suppress(Diverged):  # it took as long
            fit(self.model, self.inputs, split, once, device=self.device, precision=self.precision)
        return together().agree((time.monotonic() - began) / max(1, len(training)))

    def _begin(self, start: dict[str, Tensor], training: np.ndarray) -> None:
        """Put the model back to where training starts."""
        self.model.load_changed_state(start)
        if self.warm:
            self.warm(training)

    def _fit(self, recipe: Recipe, training: np.ndarray, validation: np.ndarray, phase: str, words: str) -> list[Row]:
        ticks = iter(self.progress(range(recipe.epochs), f"tuning {self.title}: {words}", recipe.epochs))

        def on_epoch(row: Row) -> None:
            next(ticks, None)
            self.tell(_series(phase, recipe), row)

        try:
            rows = fit(
                self.model,
                self.inputs,
                Split(self.data.labels, training, validation, len(self.data.classes)),
                recipe,
                device=self.device,
                precision=self.precision,
                checkpoint=self.work / f"{_series(phase, recipe)}.safetensors" if self.work else None,
                scope=self.scope,
                on_epoch=on_epoch,
            )
        finally:
            _exhaust(ticks)  # epochs that never came did not tick
        return [_named(phase, recipe) | row for row in rows]


def best(tried: dict[Recipe, list[Row]]) -> Recipe:
    """The trial with the lowest validation loss in the end: of few images held out, accuracy says little."""
    judged = {trial: rows[-1] for trial, rows in tried.items() if rows and np.isfinite(rows[-1]["validation_loss"])}
    if not judged:
        rates = ", ".join(f"{rate:g}" for rate in sorted({trial.rate for trial in tried}))
        raise Diverged(f"training diverged at every rate tried ({rates}): give lower ones with --rates")
    return min(judged, key=lambda trial: judged[trial]["validation_loss"])


def fell_apart(rows: Sequence[Row], trial: Sequence[Row]) -> bool:
    """Whether training ended with half the accuracy, or less, that a shorter one by the same recipe had reached."""
    return bool(rows and trial) and rows[-1]["train_accuracy"] <= trial[-1]["train_accuracy"] / 2


def overfitting(rows: Sequence[Row], held_out: int, name: str) -> list[str]:
    """A note in plain words where a course of training learns its images by heart, none where it doesn't.

    Args:
        rows: of one course, with validation.
        held_out: images that validate.
        name: of what was trained.
    """
    if not rows or rows[-1]["validation_loss"] is None:
        return []
    last = rows[-1]
    right = round(last["validation_accuracy"] * held_out)
    _, high = interval(right, held_out)
    lowest = min(rows, key=lambda row: row["validation_loss"])
    advice = "More images, --augment crop, --smoothing 0.1, --patience 5 or a method that trains less may help"
    if last["train_accuracy"] - high > GAP:
        return [
            f"{name} overfits: right on {100 * last['train_accuracy']:.0f} % of the images that it trains on, on "
            f"{100 * last['validation_accuracy']:.0f} % of {held_out} held out. {advice}"
        ]
    if last["validation_loss"] > RISE * lowest["validation_loss"]:
        return [
            f"{name} overfits: the loss on images held out was lowest in epoch {lowest['epoch']} of {last['epoch']} "
            f"and is {last['validation_loss'] / lowest['validation_loss']:.1f} times that in the end. {advice}"
        ]
    return []


def trial_of(history: Sequence[Row], rate: float | None, decay: float | None) -> list[Row]:
    """The epochs of the trial of one rate and decay; none if they were not tried."""
    return [row for row in history if row["phase"] == "search" and (row["initial_lr"], row["decay"]) == (rate, decay)]


def _named(phase: str, recipe: Recipe) -> Row:
    return {"phase": phase, "initial_lr": recipe.rate, "decay": recipe.decay}


def _series(phase: str, recipe: Recipe) -> str:
    return f"{phase} {recipe.rate:g} {recipe.decay:g}"


def _exhaust(items: Iterable[Any]) -> None:
    for _ in items:
        pass
