"""Fine-tune one network on one's own pictures: choose the block, choose rate and decay, train, judge, save."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from tightframe.errors import SettingsError
from tightframe.features.extract import Running, extract
from tightframe.features.pixels import Pixels
from tightframe.features.precision import device_of, likely_precision, on_device
from tightframe.files import write_text
from tightframe.jobs.block import Trial, choose_block
from tightframe.jobs.run import Row, Run, plain
from tightframe.jobs.tuned import Tuned, load_tuned
from tightframe.metrics.folds import Folds
from tightframe.metrics.logistic_probe import cross_validated_logistic
from tightframe.metrics.probes import interval
from tightframe.protocols import PENULTIMATE, Backbone, ImageData, ImageSplits, Progress, silent
from tightframe.sources.selection import stratified
from tightframe.tuning.inputs import FeatureInputs, PixelInputs
from tightframe.tuning.loop import Diverged, Inputs, Recipe, Split, Trainable, collapse_of, fit
from tightframe.tuning.methods import Method, Owned, method_named
from tightframe.tuning.prefix import CannotCut, inputs_of
from tightframe.tuning.surgery import Align, HeadOnly, Scale, TunableNetwork

PLAIN_RATES, PLAIN_DECAYS = (0.1, 0.05, 0.01, 0.002), (1e-4, 5e-4)
TRANSFORMER_RATES, TRANSFORMER_DECAYS = (1e-2, 1e-3, 2e-4), (1e-4, 0.0)
"""The paper's start rates and weight decays, for networks with batch norm and with layer norm, and lower rates for
networks that the paper did not train."""


@dataclass(frozen=True)
class Plan:
    """How to choose and train.

    Attributes:
        epochs: of the final training, on all training pictures.
        search_epochs: of each trial of rate and decay; a third of ``epochs`` if ``None``.
        rates, decays: what to try, each rate with the first decay, then each decay with the best rate; if ``None``,
            the paper's for the kind of network and lower rates. One of each means no search.
        batch_size: pictures a step.
        validation_share: of the training pictures, held out while rate and decay are chosen.
        seed: of every random choice.
        align, scale: how the head of SCL sees the block's features beside the penultimate ones (see
            ``tuning.surgery.Neck``). ``align="pad", scale="none"`` is the paper's sum.
        cache_gb: gigabytes of disk for what goes into the tuned block, which then runs without what stands before it;
            0 to run the whole network.
    """

    epochs: int = 30
    search_epochs: int | None = None
    rates: tuple[float, ...] | None = None
    decays: tuple[float, ...] | None = None
    batch_size: int = 32
    validation_share: float = 0.2
    seed: int = 0
    align: Align = "pad"
    scale: Scale = "spread"
    cache_gb: float = 8.0

    def choices(self, module: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Rates and decays to try."""
        layer_norm = any(isinstance(m, nn.LayerNorm) for m in module.modules())
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
        transformer = layer_norm and not batch_norm
        rates = TRANSFORMER_RATES if transformer else PLAIN_RATES
        decays = TRANSFORMER_DECAYS if transformer else PLAIN_DECAYS
        return self.rates or rates, self.decays or decays

    def check(self) -> None:
        """Raise ``SettingsError`` for values out of range."""
        least = {
            "epochs": (self.epochs, 1),
            "search epochs": (self.search_epochs, 1),
            "batch size": (self.batch_size, 2),
        }
        for name, (value, lowest) in least.items():
            if value is not None and value < lowest:
                raise SettingsError(f"{name} is {value}; it must be {lowest} or more")
        if not 0 < self.validation_share < 1:
            raise SettingsError(f"validation share is {self.validation_share}; it must lie between 0 and 1")
        largest = torch.finfo(torch.float32).max  # also refuses NaN, which no comparison holds for
        sound = all(0 < rate <= largest for rate in self.rates or ())
        if not sound or not all(0 <= decay <= largest for decay in self.decays or ()):
            raise SettingsError("rates must be above 0 and decays 0 or more, and all of them finite")
        if not self.cache_gb >= 0:
            raise SettingsError(f"a cache of {self.cache_gb:g} GB: it must be 0 (none) or more")


def tune(
    data: ImageSplits,
    backbone: Backbone,
    *,
    method: str = "scl",
    layer: str = "auto",
    plan: Plan | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    **running: Unpack[Running],
) -> Tuned:
    """Adapt ``backbone`` to the training pictures and judge it on the test pictures.

    Rate and decay are chosen on a stratified validation split of the training pictures; then all of them train the
    network that is returned. Test pictures are looked at once, at the end.

    Args:
        method: a name in ``tuning.methods.METHODS``.
        layer: the block to tune, for the methods that tune one; ``"auto"`` lets a few race (see ``jobs.block``).
        plan: epochs, rates and decays to try, batch size, seed.
        out: a folder for the result, with a checkpoint every epoch while it is made.
        resume: go on with, or just load, what an earlier call with the same settings left in ``out``.

    Raises:
        SettingsError: unknown method, a value out of range, or ``out`` can't be written to, or holds something and
            ``resume`` is off.
        LayerNotFound: no such layer.
        Diverged: every rate tried was too high.
    """
    plan = plan or Plan()
    plan.check()
    chosen = method_named(method)
    folder = Path(out) if out is not None else None
    scope = _scope(data, backbone, chosen, layer, plan, running)
    finished = _finished(folder, scope, backbone, resume) if folder is not None else None
    if finished is not None:
        return finished
    if folder is not None:
        _make(folder)
    started = time.perf_counter()
    block, trials = None, list[Row]()
    if chosen.needs_layer:
        block, trials = _remembered(folder, scope, lambda: _block(data, backbone, layer, chosen, plan, running))
    pool = running.get("pool", "auto")
    network = TunableNetwork(backbone, chosen, block, len(data.classes), pool, plan.align, plan.scale)
    _start(network, data, running)
    training = _training(data, network, plan.cache_gb, running, folder, scope)
    recipe, rows, notes = training.run(plan, *plan.choices(backbone.module))
    rows, notes = [*trials, *rows], [*data.notes, *notes]
    tuned = Tuned(backbone, network, data.classes, {}, rows, notes)
    seconds = time.perf_counter() - started
    tuned = replace(tuned, metrics=_judge(tuned, data, recipe, seconds, running.get("device", "auto")))
    if folder is not None:
        tuned.save(folder)
        record = {"scope": scope, "history": rows, "notes": notes}
        write_text(folder / "history.json", json.dumps(plain(record), indent=1))
        shutil.rmtree(folder / "unfinished", ignore_errors=True)
    return tuned


def _block(
    data: ImageSplits, backbone: Backbone, layer: str, method: Method, plan: Plan, running: Running
) -> tuple[str, list[Row]]:
    if layer == "auto":
        return choose_layer(data, backbone, method, plan, running)
    if layer == PENULTIMATE:
        raise SettingsError(f"{PENULTIMATE} names features, not a block to tune; `tightframe measure` lists the blocks")
    return backbone.layer(layer).name, []


def choose_layer(
    data: ImageSplits, backbone: Backbone, method: Method, plan: Plan, running: Running
) -> tuple[str, list[Row]]:
    """The block that ``--layer auto`` tunes, and the trials that it was chosen by (see ``jobs.block``)."""
    rates, decays = plan.choices(backbone.module)
    rate = sorted(rates)[:2][-1]  # the second lowest: few pictures want low rates, few epochs not the lowest
    recipe = Recipe(rate, decays[0], plan.epochs, plan.batch_size, seed=plan.seed)
    trial = Trial(recipe, plan.validation_share, plan.align, plan.scale, plan.cache_gb)
    features = extract(backbone, data.train, **running)
    return choose_block(data.train, backbone, features, method, trial, running)


def _start(network: TunableNetwork, data: ImageSplits, running: Running) -> None:
    """Scale the skip connection by what features are before tuning; fit a probe where training starts from one."""
    if len(network.read) == 1 and not network.method.warm:
        return
    found = extract(network.backbone, data.train, layers=network.read, **running)
    parts = [torch.from_numpy(found[name]) for name in network.read]
    network.neck.rescale(parts)
    if network.method.warm:
        seen = network.neck(parts).detach()
        head = cross_validated_logistic(Folds.of(seen, data.train.labels, len(data.classes))).result.head
        with torch.no_grad():
            network.head.weight.copy_(head.weight)
            network.head.bias.copy_(head.bias)


def _training(
    data: ImageSplits, network: TunableNetwork, cache_gb: float, running: Running, folder: Path | None, scope: str
) -> _Training:
    """What is trained on which inputs: what is a constant while training is computed once."""
    where, progress = device_of(running.get("device", "auto")), running.get("progress", silent)
    title = f"tuning {network.method.name} {network.backbone.name}"
    further = (folder / "unfinished" if folder is not None else None, scope, progress, title)
    if network.method.owns(network.base, network.layer) == Owned([], []):
        features = extract(network.backbone, data.train, layers=[PENULTIMATE], **running)[PENULTIMATE]
        head = HeadOnly(network.head).to(where)
        return _Training(data.train, FeatureInputs(torch.tensor(features)), head, where, "float32", *further)
    precision = likely_precision(network.base, where, running.get("precision", "auto"))
    on_device(network, where)
    notes = []
    if network.layer is not None and cache_gb:
        pictures = PixelInputs(Pixels(data.train, network.backbone.preprocessing, keep_bytes=0))
        try:
            part = network.from_block()
            kept = inputs_of(
                network.base,
                [network.layer],
                pictures,
                len(data.train),
                device=where,
                precision=precision,
                budget=cache_gb,
                progress=progress,
            )[network.layer]
            return _Training(data.train, kept, part, where, precision, *further)
        except CannotCut as error:
            notes.append(f"trained whole, which takes longer: {error}")
    inputs = PixelInputs(Pixels(data.train, network.backbone.preprocessing))
    return _Training(data.train, inputs, network, where, precision, *further, notes=tuple(notes))


@dataclass(frozen=True)
class _Training:
    """Choosing a recipe and training with it, whatever is trained on whatever inputs."""

    data: ImageData
    inputs: Inputs
    network: Trainable
    device: torch.device
    precision: str
    work: Path | None
    scope: str
    progress: Progress
    title: str
    notes: tuple[str, ...] = ()

    def run(self, plan: Plan, rates: Sequence[float], decays: Sequence[float]) -> tuple[Recipe, list[Row], list[str]]:
        """Train the network in place; the recipe chosen, a row an epoch, and notes."""
        start = {name: tensor.detach().clone() for name, tensor in self.network.changed_state().items()}
        kept, held_out = stratified(self.data.labels, plan.validation_share, plan.seed)
        recipe = Recipe(rates[0], decays[0], epochs=plan.epochs, batch_size=plan.batch_size, seed=plan.seed)
        rows, notes = list[Row](), [*self.notes]
        if len(rates) * len(decays) > 1 and len(held_out):
            short = replace(recipe, epochs=plan.search_epochs or max(1, plan.epochs // 3))
            found, rows = self._search(short, {"rate": rates, "decay": decays}, kept, held_out, start)
            recipe = replace(found, epochs=plan.epochs)
        elif len(rates) * len(decays) > 1:
            notes.append("too few pictures a class to hold any out: the first rate and decay are used unchosen")
        self.network.load_changed_state(start)
        everything = np.arange(len(self.data))
        rows += self._fit(recipe, everything, everything[:0], "final", "training on all pictures")
        return recipe, rows, notes

    def _search(
        self,
        first: Recipe,
        choices: dict[str, Sequence[Any]],
        kept: np.ndarray,
        held_out: np.ndarray,
        start: dict[str, Tensor],
    ) -> tuple[Recipe, list[Row]]:
        """The best recipe, found one choice after the other, and the rows of all trials."""
        tried: dict[Recipe, list[Row]] = {}
        best = first
        for name, values in choices.items():
            for trial in [replace(best, **{name: value}) for value in values]:
                if trial not in tried:
                    self.network.load_changed_state(start)
                    tried[trial] = self._trial(trial, kept, held_out)
            best = _best(tried)
        return best, [row for rows in tried.values() for row in rows]

    def _trial(self, recipe: Recipe, kept: np.ndarray, held_out: np.ndarray) -> list[Row]:
        """The rows of one trial, none if it diverged."""
        words = f"trying rate {recipe.rate:g}, decay {recipe.decay:g}"
        try:
            return self._fit(recipe, kept, held_out, "search", words)
        except Diverged:
            return []

    def _fit(self, recipe: Recipe, training: np.ndarray, validation: np.ndarray, phase: str, words: str) -> list[Row]:
        ticks = iter(self.progress(range(recipe.epochs), f"{self.title}: {words}", recipe.epochs))
        name = f"{phase} {recipe.rate:g} {recipe.decay:g}.safetensors"
        try:
            rows = fit(
                self.network,
                self.inputs,
                Split(self.data.labels, training, validation, len(self.data.classes)),
                recipe,
                device=self.device,
                precision=self.precision,
                checkpoint=self.work / name if self.work else None,
                scope=self.scope,
                on_epoch=lambda row: next(ticks, None),
            )
        finally:
            for _ in ticks:
                pass  # epochs that were resumed, or never came, did not tick
        return [{"phase": phase, "start_rate": recipe.rate, "decay": recipe.decay} | row for row in rows]


def _best(tried: dict[Recipe, list[Row]]) -> Recipe:
    """The trial with the highest validation accuracy; of those alike, the lowest validation loss, then the first."""
    judged = {trial: rows[-1] for trial, rows in tried.items() if rows and np.isfinite(rows[-1]["validation_loss"])}
    if not judged:
        rates = ", ".join(f"{rate:g}" for rate in sorted({trial.rate for trial in tried}))
        raise Diverged(f"training diverged at every rate tried ({rates}): give lower ones with --rates")
    return min(judged, key=lambda trial: (-judged[trial]["validation_accuracy"], judged[trial]["validation_loss"]))


def _judge(tuned: Tuned, data: ImageSplits, recipe: Recipe, seconds: float, device: str) -> Row:
    network = tuned.network
    metrics: Row = {
        "method": network.method.name,
        "layer": network.layer,
        "parameters": network.trained_parameters,
        "all_parameters": network.all_parameters,
        "share": network.trained_parameters / network.all_parameters,
        "rate": recipe.rate,
        "decay": recipe.decay,
        "epochs": recipe.epochs,
        "seconds": seconds,
        "bytes": sum(t.numel() * t.element_size() for t in network.changed_state().values()),
    }
    logits, features = tuned.logits_and_features(data.train, device=device)
    if not (torch.isfinite(logits).all() and torch.isfinite(features).all()):  # no later batch showed it
        raise Diverged(f"training diverged in its last steps at rate {recipe.rate:g}: give a lower one (--rates)")
    metrics["train_accuracy"] = float((logits.argmax(1).numpy() == data.train.labels).mean())
    metrics["nc1"] = collapse_of(features, data.train.labels)
    if data.test is not None:
        logits, _ = tuned.logits_and_features(data.test, device=device)
        right = int((logits.argmax(1).numpy() == data.test.labels).sum())
        low, high = interval(right, len(data.test))
        metrics |= {"test_accuracy": right / len(data.test), "test_low": low, "test_high": high}
    return metrics


def _scope(data: ImageSplits, backbone: Backbone, method: Method, layer: str, plan: Plan, running: Running) -> str:
    """All that decides the result, as text: what is resumed must agree in it."""
    return json.dumps(
        {
            "network": backbone.fingerprint,
            "layers": [block.name for block in backbone.layers],
            "data": [split.fingerprint for split in (data.train, data.test) if split],
            "classes": list(data.classes),
            "method": method.name,
            "layer": layer if method.needs_layer else None,
            "plan": asdict(plan),
            "pool": running.get("pool", "auto"),
            "precision": running.get("precision", "auto"),
        },
        sort_keys=True,
    )


def _finished(folder: Path, scope: str, backbone: Backbone, resume: bool) -> Tuned | None:
    """The result of an earlier call with these settings, if ``folder`` holds it. Raises if it holds another."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; give --out a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not resume:
        raise SettingsError(f"{folder} is not empty; add --resume to go on with it, or choose another --out")
    try:
        record = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # unfinished: the checkpoints in it are used where they fit
    if not isinstance(record, dict):
        return None
    if record.get("scope") != scope:
        raise SettingsError(f"{folder} holds the result of other settings or pictures; choose another --out")
    if not all(isinstance(record.get(part), list) for part in ("history", "notes")):
        return None
    return replace(load_tuned(folder, backbone), history=record["history"], notes=record["notes"])


def _remembered(folder: Path | None, scope: str, choose: Callable[[], tuple[str, list[Row]]]) -> tuple[str, list[Row]]:
    """What ``choose`` gives, or gave in an earlier call with these settings that was stopped."""
    if folder is None:
        return choose()
    block, rows = Run(folder / "unfinished").remember("block", scope, choose)
    return block, rows


def _make(folder: Path) -> None:
    """Make ``folder`` and see that it takes files, before time is spent on what goes into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SettingsError(f"{folder} can't be written to ({error.strerror}); choose another --out") from error
