"""Fine-tune one model on one's own images: choose the block, choose rate and decay, train, judge, save."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.deploy.tuned import Tuned, load_tuned
from tightframe.errors import SettingsError
from tightframe.features.extract import Running, extract
from tightframe.features.pixels import Pixels
from tightframe.features.precision import device_of, likely_precision, on_device
from tightframe.files import write_text
from tightframe.images import ImageSplits
from tightframe.jobs.block import Trial, choose_block
from tightframe.jobs.plan import Clock, Plan
from tightframe.jobs.run import Run
from tightframe.jobs.start import model_of, start_of
from tightframe.jobs.training import Training
from tightframe.probes.results import interval
from tightframe.processes import is_first, together
from tightframe.progress import Progress, silent
from tightframe.row import Row, plain
from tightframe.tuning.checkpoint import DESCRIPTION
from tightframe.tuning.inputs import KeptInputs, PixelInputs
from tightframe.tuning.logs import Tell, logging_to
from tightframe.tuning.logs import check as check_logs
from tightframe.tuning.loop import Diverged, collapse_of
from tightframe.tuning.methods import Method, Owned, method_named
from tightframe.tuning.prefix import CannotCut, features_of_views, inputs_of
from tightframe.tuning.recipe import Recipe
from tightframe.tuning.state import Trainable
from tightframe.tuning.surgery import HeadOnly, TunableModel

UNFINISHED, MARK = "unfinished", "run.txt"
"""Where checkpoints are until the result is there, and the file by which such a folder is known as ours."""


def tune(
    data: ImageSplits,
    backbone: Backbone,
    *,
    method: str = "scl",
    layer: str = "auto",
    plan: Plan | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    log: Sequence[str] = (),
    **running: Unpack[Running],
) -> Tuned:
    """Adapt ``backbone`` to the training images and judge it on the test images.

    Rate and decay are chosen on a stratified validation split of the training images; then all of them train the
    model that is returned. Test images are looked at once, at the end.

    Args:
        method: a name in ``tuning.methods.METHODS``.
        layer: the block to tune, for the methods that tune one; ``"auto"`` lets a few race (see ``jobs.block``).
        plan: epochs, rates and decays to try, batch size, seed.
        out: a folder for the result, with checkpoints while it is made.
        resume: go on with, or just load, what an earlier call with the same settings left in ``out``.
        log: where each epoch is also reported as it ends: ``"tensorboard"``, ``"wandb"``, ``"mlflow"``. The file
            ``log.jsonl`` is always written to ``out``.

    Raises:
        SettingsError: unknown method, a value out of range, or ``out`` can't be written to, or holds something and
            ``resume`` is off.
        LayerNotFound: no such layer.
        Diverged: every rate tried was too high.
    """
    plan = plan or Plan()
    plan.check()
    together().check(plan.batch_size)
    chosen = method_named(method)
    folder = Path(out) if out is not None else None
    check_logs(log, folder)
    scope = _scope(data, backbone, chosen, layer, plan, running)
    finished = _finished(folder, scope, backbone, resume) if folder is not None else None
    together().wait()  # all have looked before the first begins to write
    if finished is not None:
        return finished
    if folder is not None:
        _make(folder)
    title, settings = f"{chosen.name} {backbone.name}", {"model": backbone.name, "data": data.name, **asdict(plan)}
    with logging_to(log, folder, title, settings) as tell:
        tuned = _tuned(backbone, chosen, layer, _Setting(data, plan, running, folder, scope, Clock.of(plan), tell))
    if folder is not None:
        _save(tuned, folder, scope)
    return tuned


def _save(tuned: Tuned, folder: Path, scope: str) -> None:
    """Write the result, by the first of several processes, and take away what was unfinished."""
    if is_first():
        tuned.save(folder)
        record = {"scope": scope, "history": tuned.history, "notes": tuned.notes}
        write_text(folder / "history.json", json.dumps(plain(record), indent=1))
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    together().wait()


def _tuned(backbone: Backbone, method: Method, layer: str, asked: _Setting) -> Tuned:
    data, plan, running, started = asked.data, asked.plan, asked.running, time.perf_counter()
    block, trials = None, list[Row]()
    if method.needs_layer:
        block, trials = _remembered(
            asked.folder, asked.scope, lambda: _block(data, backbone, layer, method, plan, running, asked.clock)
        )
    model = model_of(backbone, method, block, len(data.classes), plan, running.get("pool", "auto"))
    warm = _start(model, data, running)
    recipe, rows, notes = asked.training(model, warm).run(plan, *plan.choices(backbone.module, model.warm))
    tuned = Tuned(backbone, model, data.classes, {}, [*trials, *rows], [*data.notes, *notes])
    seconds = time.perf_counter() - started
    return replace(tuned, metrics=_judge(tuned, data, recipe, seconds, running.get("device", "auto")))


def _block(
    data: ImageSplits, backbone: Backbone, layer: str, method: Method, plan: Plan, running: Running, clock: Clock
) -> tuple[str, list[Row]]:
    if layer == "auto":
        return choose_layer(data, backbone, method, plan, running, clock)
    if layer == PENULTIMATE:
        raise SettingsError(f"{PENULTIMATE} names features, not a block to tune; `tightframe measure` lists the blocks")
    return backbone.layer(layer).name, []


def choose_layer(
    data: ImageSplits, backbone: Backbone, method: Method, plan: Plan, running: Running, clock: Clock | None = None
) -> tuple[str, list[Row]]:
    """The block that ``--layer auto`` tunes, and the trials that it was chosen by (see ``jobs.block``)."""
    rates, decays = plan.choices(backbone.module, plan.warm(method))
    rate = sorted(rates)[-2:][0]  # the second highest: few epochs want a high rate, few images not the highest
    trial = Trial(plan, plan.recipe(rate, decays[0]), clock or Clock.of(plan))
    features = extract(backbone, data.train, **running)
    return choose_block(data.train, backbone, features, method, trial, running)


def _start(model: TunableModel, data: ImageSplits, running: Running) -> Callable[[np.ndarray], None] | None:
    """Make the model ready to be trained (see ``jobs.start``)."""
    if len(model.read) == 1 and not model.warm:
        return None
    return start_of(model, extract(model.backbone, data.train, layers=model.read, **running), data.train.labels)


@dataclass(frozen=True)
class _Setting:
    """What ``tune`` was asked for, for the parts of it."""

    data: ImageSplits
    plan: Plan
    running: Running
    folder: Path | None
    scope: str
    clock: Clock
    tell: Tell

    @property
    def device(self) -> torch.device:
        return device_of(self.running.get("device", "auto"))

    @property
    def progress(self) -> Progress:
        return self.running.get("progress", silent)

    def training(self, model: TunableModel, warm: Callable[[np.ndarray], None] | None) -> Training:
        """What is trained on which inputs: what is a constant while training is computed once."""
        notes: tuple[str, ...] = ()
        part: Trainable = model
        inputs, precision = self._constant(model), "float32"
        if inputs is not None:
            part = HeadOnly(model.head).to(self.device)
        else:
            precision = self._ready(model)
            try:
                inputs, part = self._kept(model, precision)
            except CannotCut as error:
                notes = (f"trained whole, which takes longer: {error}",)
        title = f"{model.method.name} {model.backbone.name}"
        work = self.folder / UNFINISHED if self.folder is not None else None
        return Training(
            self.data.train,
            inputs or self._images(model, once=False),
            part,
            self.device,
            precision,
            work,
            self.scope,
            self.progress,
            title,
            self.tell,
            self.clock,
            warm,
            notes,
        )

    def _ready(self, model: TunableModel) -> str:
        """Move the model to where it runs; in which precision it is to run there."""
        on_device(model, self.device)
        return likely_precision(model.base, self.device, self.running.get("precision", "auto"))

    def _constant(self, model: TunableModel) -> KeptInputs | None:
        """Features of all training images where nothing but the head is trained."""
        if model.owned != Owned([], []):
            return None
        if self.plan.kept_views == 1:
            found = extract(model.backbone, self.data.train, layers=[PENULTIMATE], **self.running)[PENULTIMATE]
            return KeptInputs(torch.tensor(found))
        precision = self._ready(model)
        model.train(False)
        return features_of_views(
            model.features,
            self._images(model),
            len(self.data.train),
            self.plan.kept_views,
            device=self.device,
            precision=precision,
            progress=self.progress,
        )

    def _kept(self, model: TunableModel, precision: str) -> tuple[KeptInputs | None, Trainable]:
        """What goes into the tuned block, and the model from there on; the whole model where none is tuned."""
        if model.layer is None or not self.plan.cache_gb:
            return None, model
        part = model.from_block()
        kept = inputs_of(
            model.base,
            [model.layer],
            self._images(model),
            len(self.data.train),
            device=self.device,
            precision=precision,
            budget=self.plan.cache_gb,
            views=self.plan.kept_views,
            progress=self.progress,
        )
        return kept[model.layer], part

    def _images(self, model: TunableModel, once: bool = True) -> PixelInputs:
        """Training images; decoded ones are kept unless they are run ``once``."""
        looks = model.backbone.preprocessing
        pixels = Pixels(self.data.train, looks, keep_bytes=0) if once else Pixels(self.data.train, looks)
        return PixelInputs(pixels, self.plan.views_by(), self.device)


def _judge(tuned: Tuned, data: ImageSplits, recipe: Recipe, seconds: float, device: str) -> Row:
    model = tuned.model
    metrics: Row = {
        "method": model.method.name,
        "layer": model.layer,
        "parameters": model.trained_parameters,
        "all_parameters": model.all_parameters,
        "share": model.trained_parameters / model.all_parameters,
        "rate": recipe.rate,
        "decay": recipe.decay,
        "epochs": recipe.epochs,
        "seconds": seconds,
        "bytes": sum(t.numel() * t.element_size() for t in model.changed_state().values()),
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
            "model": backbone.fingerprint,
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
    if not any((folder / name).is_file() for name in ("history.json", f"{UNFINISHED}/{MARK}")):
        raise SettingsError(f"{folder} is not empty and holds no run of tightframe; choose another --out")
    try:
        record = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # unfinished: the checkpoints in it are used where they fit
    if not isinstance(record, dict):
        return None
    if record.get("scope") != scope:
        raise SettingsError(f"{folder} holds the result of other settings or images; choose another --out")
    saved = (folder / DESCRIPTION).is_file()
    if not saved or not all(isinstance(record.get(part), list) for part in ("history", "notes")):
        return None
    return replace(load_tuned(folder, backbone), history=record["history"], notes=record["notes"])


def _remembered(folder: Path | None, scope: str, choose: Callable[[], tuple[str, list[Row]]]) -> tuple[str, list[Row]]:
    """What ``choose`` gives, or gave in an earlier call with these settings that was stopped."""
    if folder is None:
        return choose()
    block, rows = Run(folder / UNFINISHED).remember("block", scope, choose)
    return block, rows


def _make(folder: Path) -> None:
    """Make ``folder`` and see that it takes files, before time is spent on what goes into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        (folder / UNFINISHED).mkdir(exist_ok=True)
        write_text(folder / UNFINISHED / MARK, "a run of tightframe\n")
    except OSError as error:
        raise SettingsError(f"{folder} can't be written to ({error.strerror}); choose another --out") from error
