"""Choosing learning rate and weight decay on held-out training images, and training with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tightframe.data.selection import stratified
from tightframe.decide.evidence import Evidence
from tightframe.engine.stages import Stages
from tightframe.features.workspace import Workspace
from tightframe.metrics.folds import can_hold_out, fold_of
from tightframe.probes.results import interval
from tightframe.processes import together
from tightframe.row import Row
from tightframe.tuning.config import Clock, TrainConfig
from tightframe.tuning.heads import fit_heads
from tightframe.tuning.logs import Tell
from tightframe.tuning.loop import Diverged, Inputs, fit, logits_of, predict_features
from tightframe.tuning.recipe import Recipe, Split
from tightframe.tuning.state import HeadOnly, Trainable

SEARCH_SHARE, FOLD_SHARE, TRAINING_SHARE = 0.4, 0.6, 0.9
"""Of the time allowed: until when rates are tried, until when folds are trained, and until when training may go on, so
that judging fits in."""
GAP, RISE = 0.15, 1.2
"""What is called overfitting: held-out accuracy that is surely lower by more, or a loss that rises by this factor."""


@dataclass(frozen=True)
class Session:
    """Where one tuning is kept and reported.

    Attributes:
        title: what is tuned, for people.
        scope: everything that decides the result, as text.
        folder: for checkpoints; ``None`` to keep none.
        tell: is given every row.
        clock: how long all of it may take.
    """

    title: str
    scope: str = ""
    folder: Path | None = None
    tell: Tell = lambda series, row: None
    clock: Clock = field(default_factory=Clock)


class Trained(NamedTuple):
    """What came of training.

    Attributes:
        recipe: the learning rate and weight decay chosen, and all else.
        history: a row an epoch.
        notes: what a reader should know.
        evidence: out-of-fold predictions of the training images, where they were asked for and could be made.
    """

    recipe: Recipe
    history: list[Row]
    notes: list[str]
    evidence: Evidence | None


@dataclass(frozen=True)
class Trainer:
    """A model and its inputs; ``run`` chooses learning rate and weight decay, and trains it in place.

    Attributes:
        model: what is trained.
        inputs: of all training images.
        labels: of them, (n,).
        classes: how many there are.
        workspace: says where the model runs.
        precision: in which it runs.
        session: where training is kept and reported.
        warm: starts the head from a probe fitted to the images whose indices it is given; ``None`` where training
            starts from a head of zeros.
        groups: of the images, (n,): nothing held out parts one; ``None`` where each stands alone.
    """

    model: Trainable
    inputs: Inputs
    labels: np.ndarray
    classes: int
    workspace: Workspace
    precision: str
    session: Session
    warm: Callable[[np.ndarray], None] | None = None
    groups: np.ndarray | None = None

    def run(self, config: TrainConfig, recipe: Recipe, lrs: Sequence[float], decays: Sequence[float]) -> Trained:
        """Choose by a short ``recipe`` for each of ``lrs`` and ``decays``, then train the model on all images."""
        clock, title, notes, rows = self.session.clock, self.session.title, list[str](), list[Row]()
        start = {name: tensor.detach().clone() for name, tensor in self.model.changed_state().items()}
        kept, held_out = stratified(self.labels, config.validation_share, config.seed, self.groups)
        pace = self._pace(recipe, kept, start) if clock.limited else 0.0
        if len(lrs) * len(decays) > 1 and len(held_out):
            short = replace(recipe, epochs=config.search_epochs or max(1, config.epochs // 3), patience=None)
            short = self._affordable(short, len(lrs) + len(decays) - 1, pace * len(kept), SEARCH_SHARE)
            found, rows, notes = self._search(
                short, {"lr": lrs, "weight_decay": decays}, self._split(kept, held_out), start
            )
            recipe = replace(recipe, lr=found.lr, weight_decay=found.weight_decay)
        elif not len(held_out) and (len(lrs) * len(decays) > 1 or config.patience):
            notes.append("too few images a class to hold any out: the first learning rate and weight decay are used")
        evidence = self._out_of_fold(replace(recipe, patience=None), config, pace, start)
        if evidence is None:
            notes += overfitting(trial_of(rows, recipe.lr, recipe.weight_decay), len(held_out), title)
        split = self._split(kept, held_out) if config.patience and len(held_out) else self._split()
        recipe = self._in_time(recipe, pace * len(split.training))
        if recipe.epochs < config.epochs:
            notes.append(f"{title}: trained for {recipe.epochs} of {config.epochs} epochs, within the time limit")
        recipe, final, more = self._final(recipe, rows, split, start)
        notes += more
        if len(split.validation):
            notes += overfitting(final, len(split.validation), title)
        elif evidence is not None:
            held = {"validation_accuracy": evidence.correct.mean(), "validation_loss": evidence.log_loss}
            notes += overfitting([final[-1] | held], len(self.labels), title)
        return Trained(recipe, rows + final, list(dict.fromkeys(notes)), evidence)

    def _out_of_fold(
        self, recipe: Recipe, config: TrainConfig, pace: float, start: dict[str, Tensor]
    ) -> Evidence | None:
        """What models trained by ``recipe`` on all folds but one say of that one; ``None`` where none can be trained.

        Where time is limited, they train for as many epochs as there is time for.
        """
        clock, images = self.session.clock, len(self.labels)
        if not config.folds or clock.past(FOLD_SHARE) or not can_hold_out(self.labels, self.groups):
            return None
        recipe = self._affordable(recipe, config.folds, pace * images, FOLD_SHARE)
        assigned = fold_of(self.labels, config.folds, config.seed, self.groups)
        said = np.empty((images, self.classes))
        for fold in np.unique(assigned):
            training, held = np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)
            self._begin(start, training)
            words = f"on all but fold {fold + 1} of {assigned.max() + 1}"
            try:
                with self._told(f"fold {fold + 1}", recipe, words) as given:
                    fit(self.model, self.inputs, self._split(training), recipe, **given)
            except Diverged:
                return None
            features = predict_features(
                self.model, self.inputs, held, recipe.batch_size, self.workspace.device, self.precision
            )
            said[held] = logits_of(self.model, features).double().log_softmax(1).numpy()
        return Evidence(said, self.labels, self.groups)

    def _final(
        self, recipe: Recipe, trials: list[Row], split: Split, start: dict[str, Tensor]
    ) -> tuple[Recipe, list[Row], list[str]]:
        """The training that counts, at the next lower learning rate that was tried where it collapses at this one."""
        notes = list[str]()
        while True:
            self._begin(start, split.training)
            lower = [row for row in trials if row["initial_lr"] < recipe.lr]
            try:
                with self._told("final", recipe, f"training on {len(split.training)} images") as given:
                    rows = [
                        _named("final", recipe) | row for row in fit(self.model, self.inputs, split, recipe, **given)
                    ]
                if not fell_apart(rows, trial_of(trials, recipe.lr, recipe.weight_decay)):
                    return recipe, rows, notes
            except Diverged:
                if not lower:
                    raise
            failed = f"{self.session.title}: training collapsed at learning rate {recipe.lr:g}"
            if not lower:
                return recipe, rows, [*notes, f"{failed}, the lowest that was tried: give lower ones with --lr"]
            next_one = max(lower, key=lambda row: row["initial_lr"])
            notes.append(f"{failed}; {next_one['initial_lr']:g} was used instead")
            recipe = replace(recipe, lr=next_one["initial_lr"], weight_decay=next_one["weight_decay"])

    def _search(
        self, first: Recipe, choices: Mapping[str, Sequence[float]], split: Split, start: dict[str, Tensor]
    ) -> tuple[Recipe, list[Row], list[str]]:
        """The best recipe, the rows of all trials, and a note on what was left untried."""
        if isinstance(self.model, HeadOnly) and not first.ema_decay:
            tried = self._heads(self.model, first, choices, split, start)
            return best(tried), [row for rows in tried.values() for row in rows], []
        tried, chosen, left = dict[Recipe, list[Row]](), first, list[str]()
        for name, values in choices.items():
            for trial in [_with(chosen, name, value) for value in values]:
                if tried and self.session.clock.past(SEARCH_SHARE):
                    left += [f"{name} {getattr(trial, name):g}"] * (trial not in tried)
                elif trial not in tried:
                    self._begin(start, split.training)
                    tried[trial] = []
                    words = f"trying learning rate {trial.lr:g}, weight decay {trial.weight_decay:g}"
                    with suppress(Diverged), self._told("search", trial, words) as given:
                        found = fit(self.model, self.inputs, split, trial, **given)
                        tried[trial] = [_named("search", trial) | row for row in found]
            chosen = best(tried)
        late = [f"{self.session.title}: not tried for lack of time: {', '.join(left)}"] if left else []
        return chosen, [row for rows in tried.values() for row in rows], late

    def _heads(
        self,
        model: HeadOnly,
        first: Recipe,
        choices: Mapping[str, Sequence[float]],
        split: Split,
        start: dict[str, Tensor],
    ) -> dict[Recipe, list[Row]]:
        """Linear probes by every pair of learning rate and weight decay at once."""
        self._begin(start, split.training)
        grid = [replace(first, lr=lr, weight_decay=decay) for lr in choices["lr"] for decay in choices["weight_decay"]]
        found = fit_heads(model.head, self.inputs, split, grid, device=self.workspace.device)
        named = {
            recipe: [_named("search", recipe) | row for row in rows] for recipe, rows in zip(grid, found, strict=True)
        }
        for recipe, rows in named.items():
            for row in rows:
                self.session.tell(_series("search", recipe), row)
        return named

    def _split(self, training: np.ndarray | None = None, validation: np.ndarray | None = None) -> Split:
        training = np.arange(len(self.labels)) if training is None else training
        return Split(self.labels, training, training[:0] if validation is None else validation, self.classes)

    def _begin(self, start: dict[str, Tensor], training: np.ndarray) -> None:
        """Put the model back to where training starts."""
        self.model.load_changed_state(start)
        if self.warm:
            self.warm(training)

    @contextmanager
    def _told(self, phase: str, recipe: Recipe, words: str) -> Iterator[dict[str, Any]]:
        """The arguments of ``fit`` that say where it runs, is kept and is reported, epoch by epoch."""
        series, session = _series(phase, recipe), self.session
        title = f"tuning {session.title}: {words}"
        ticks = iter(self.workspace.progress(range(recipe.epochs), title, recipe.epochs))

        def on_epoch(row: Row) -> None:
            next(ticks, None)
            session.tell(series, row)

        try:
            yield {
                "device": self.workspace.device,
                "precision": self.precision,
                "checkpoint": session.folder / f"{series}.safetensors" if session.folder else None,
                "scope": session.scope,
                "on_epoch": on_epoch,
            }
        finally:
            for _ in ticks:  # epochs that never came did not tick
                pass

    def _in_time(self, recipe: Recipe, seconds: float) -> Recipe:
        """The recipe with as many epochs, of so many ``seconds`` each, as there is time for."""
        if not self.session.clock.limited:
            return recipe
        affordable = self._affordable(recipe, 1, seconds, TRAINING_SHARE).epochs
        epochs = Stages(self.session.folder).remember("epochs", self.session.scope, lambda: affordable)
        return replace(recipe, epochs=epochs)

    def _affordable(self, recipe: Recipe, times: int, seconds: float, share: float) -> Recipe:
        """The recipe with as many epochs, of so many ``seconds``, ``times`` over, as fit into a share of the time."""
        clock = self.session.clock
        if not clock.limited:
            return recipe
        left = clock.left - (1 - share) * clock.seconds
        return replace(recipe, epochs=max(1, min(recipe.epochs, int(left / (times * max(seconds, 1e-6))))))

    def _pace(self, recipe: Recipe, training: np.ndarray, start: dict[str, Tensor]) -> float:
        """Seconds that training takes per image, measured on an epoch that is thrown away."""
        once = replace(recipe, epochs=1, patience=None)
        self._begin(start, training)
        began = time.monotonic()
        with suppress(Diverged):  # it took as long
            where: dict[str, Any] = {"device": self.workspace.device, "precision": self.precision}
            fit(self.model, self.inputs, self._split(training), once, **where)
        return together().agree((time.monotonic() - began) / max(1, len(training)))


def best(tried: Mapping[Recipe, list[Row]]) -> Recipe:
    """The trial with the lowest validation loss in the end: on few held-out images, accuracy says little."""
    judged = {trial: rows[-1] for trial, rows in tried.items() if rows and np.isfinite(rows[-1]["validation_loss"])}
    if not judged:
        lrs = ", ".join(f"{lr:g}" for lr in sorted({trial.lr for trial in tried}))
        raise Diverged(f"training diverged at every learning rate tried ({lrs}): give lower ones with --lr")
    return min(judged, key=lambda trial: judged[trial]["validation_loss"])


def fell_apart(rows: Sequence[Row], trial: Sequence[Row]) -> bool:
    """Whether training ended with at most half the accuracy that a shorter one by the same recipe had reached."""
    return bool(rows and trial) and rows[-1]["train_accuracy"] <= trial[-1]["train_accuracy"] / 2


def overfitting(rows: Sequence[Row], held_out: int, name: str) -> list[str]:
    """A note in plain words where training memorizes its images, none where it doesn't.

    Args:
        rows: of one training, with validation.
        held_out: images that validate.
        name: of what was trained.
    """
    if not rows or rows[-1]["validation_loss"] is None:
        return []
    last = rows[-1]
    right = round(last["validation_accuracy"] * held_out)
    _, high = interval(right, held_out)
    lowest = min(rows, key=lambda row: row["validation_loss"])
    advice = "More images, --augment crop, --label-smoothing 0.1, --patience 5 or a method that trains less may help"
    if last["train_accuracy"] - high > GAP:
        return [
            f"{name} overfits: {100 * last['train_accuracy']:.0f} % accuracy on the images that it trains on, "
            f"{100 * last['validation_accuracy']:.0f} % on {held_out} held out. {advice}"
        ]
    if last["validation_loss"] > RISE * lowest["validation_loss"]:
        return [
            f"{name} overfits: the loss on held-out images was lowest in epoch {lowest['epoch']} of {last['epoch']} "
            f"and is {last['validation_loss'] / lowest['validation_loss']:.1f} times that in the end. {advice}"
        ]
    return []


def trial_of(history: Sequence[Row], lr: float | None, decay: float | None) -> list[Row]:
    """The epochs of the trial of one learning rate and weight decay; none if they were not tried."""
    return [
        row for row in history if row["phase"] == "search" and (row["initial_lr"], row["weight_decay"]) == (lr, decay)
    ]


def chosen_trial(history: Sequence[Row]) -> list[Row]:
    """The epochs of the trial whose learning rate and weight decay were chosen; none if nothing was searched."""
    final = next((row for row in history if row["phase"] == "final"), Row())
    return trial_of(history, final.get("initial_lr"), final.get("weight_decay"))


def _with(recipe: Recipe, name: str, value: Any) -> Recipe:
    return replace(recipe, **{name: value})


def _named(phase: str, recipe: Recipe) -> Row:
    return {"phase": phase, "initial_lr": recipe.lr, "weight_decay": recipe.weight_decay}


def _series(phase: str, recipe: Recipe) -> str:
    return f"{phase} {recipe.lr:g} {recipe.weight_decay:g}"
