"""Fine-tune one model on one's own images: choose the block, learning rate and weight decay, train, judge, save."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tightframe.backbone import Backbone
from tightframe.decide.block import check_block, chosen_block
from tightframe.decide.choice import beside, choose
from tightframe.decide.evidence import Evidence
from tightframe.decide.reading import evidence_of, read_model
from tightframe.decide.start import model_of, trainer_of
from tightframe.decide.training import FOLD_SHARE, Session, Trained, Trainer
from tightframe.decide.zero_shot import texts_hash
from tightframe.deploy.neighbors import Neighbors
from tightframe.deploy.novelty import Familiar
from tightframe.deploy.tuned import Tuned, load_tuned
from tightframe.engine.stages import Stages, claim
from tightframe.errors import MeasureError, ModelError
from tightframe.features.inputs import PixelInputs
from tightframe.features.precision import on_device
from tightframe.features.workspace import Workspace
from tightframe.files import write_text
from tightframe.images import Images, ImageSplits
from tightframe.probes.results import accuracy_interval
from tightframe.processes import is_first, together
from tightframe.row import Row, plain
from tightframe.tuning.checkpoint import DESCRIPTION
from tightframe.tuning.config import Clock, TrainConfig
from tightframe.tuning.logs import check as check_logs
from tightframe.tuning.logs import keep as keep_logs
from tightframe.tuning.logs import logging_to
from tightframe.tuning.loop import Diverged, Inputs, collapse_of, logits_of, predict_features
from tightframe.tuning.methods import AUTO, METHODS, Method, method_named
from tightframe.tuning.state import Trainable
from tightframe.tuning.surgery import TunableModel, joined

UNFINISHED, HISTORY = "unfinished", "history.json"
"""Where checkpoints are until the result is there."""
JUDGE_BATCH = 64
READING, TRAINED = "discriminant", "partial"
"""What ``auto`` reads, and what it trains to add."""


def tune(
    data: ImageSplits,
    backbone: Backbone,
    *,
    method: str = "auto",
    block: str = "auto",
    out: Path | str | None = None,
    resume: bool = False,
    config: TrainConfig | None = None,
    log_to: Sequence[str] = (),
    workspace: Workspace | None = None,
) -> Tuned:
    """Fine-tune ``backbone`` on the training images, judge it on the test images, and save what was trained.

    Learning rate and weight decay are chosen on a stratified validation split of the training images, and
    cross-validation on all of them says what to expect; then all of them train the model that is returned. Test images
    are seen once, at the end.

    Args:
        data: The images.
        backbone: The pretrained model; it stays as it is.
        method: Tuning method: auto (reads all layers in closed form, trains partial too, and takes their mean where
            that does better on held-out training images), discriminant, linear, layer, scl, partial, full, bitfit,
            norm, lp-ft or lora.
        block: The block to tune, for the methods that tune one, or the first that partial tunes; auto lets a few race,
            and means the middle one for partial.
        out: Folder for the tuned model, with checkpoints while it is made.
        resume: Continue, or just load, what an earlier call with the same settings left in the folder.
        config: How to choose and train.
        log_to: Also report every epoch to tensorboard, wandb or mlflow; log.jsonl in the folder is always kept.
        workspace: Where and how the backbone runs, and what was computed before.

    Raises:
        SettingsError: unknown method, or ``out`` can't be written to, or holds something and ``resume`` is off.
        LayerNotFound: no such block.
        Diverged: every learning rate tried was too high.
    """
    config, workspace = config or TrainConfig(), workspace or Workspace()
    folder = Path(out) if out is not None else None
    run = Run(data, backbone, block, config, tuple(log_to), workspace, Clock.of(config))
    if method == AUTO:
        return tune_auto(run, folder, resume)
    return tune_by(method_named(method), run, folder, resume, beside_reading=config.recipe != "paper")


@dataclass(frozen=True)
class Run:
    """What tuning by any method is given; see ``tune``. ``clock`` says how much time is left."""

    data: ImageSplits
    backbone: Backbone
    block: str
    config: TrainConfig
    log_to: tuple[str, ...]
    workspace: Workspace
    clock: Clock

    def scope(self, method: str, block: str | None) -> str:
        """Everything that decides the result, as text: what is resumed must agree in it."""
        return json.dumps(
            {
                "model": self.backbone.fingerprint,
                "layers": [layer.name for layer in self.backbone.layers],
                "data": [split.fingerprint for split in (self.data.train, self.data.test) if split],
                "classes": list(self.data.classes),
                "method": method,
                "block": block,
                "config": asdict(self.config),
                "texts": texts_hash(self.backbone, self.data.classes, self.config.prompts),
                "pool": self.workspace.pool,
                "precision": self.workspace.precision,
            },
            sort_keys=True,
        )


def tune_by(method: Method, run: Run, folder: Path | None, resume: bool, *, beside_reading: bool = False) -> Tuned:
    """``tune`` by one method; with ``beside_reading``, a note compares it with what reading all layers gives."""
    together().check(run.config.batch_size)
    if method.needs_block:
        check_block(run.backbone, run.block)
    check_logs(run.log_to, folder)
    scope = run.scope(method.name, run.block if method.needs_block else None)
    finished = _begun(folder, scope, resume, run.backbone)
    if finished is not None:
        return finished
    title, started = f"{method.name} {run.backbone.name}", time.perf_counter()
    told = {"model": run.backbone.name, "data": run.data.name, **asdict(run.config)}
    with logging_to(run.log_to, folder, title, told) as tell:
        if method.closed_form:
            tuned, seen = _read(run, method)
        else:
            if beside_reading and not method.needs_block:  # one pass for both; of blocks another pass keeps more
                run.workspace.features(run.backbone, run.data.train)
            unfinished = folder / UNFINISHED if folder is not None else None
            model, trainer, race, notes = _prepared(run, method, Session(title, scope, unfinished, tell, run.clock))
            lrs, decays = run.config.choices(run.backbone.module, method)
            found = trainer.run(run.config, run.config.training(lrs[0], decays[0], method), lrs, decays)
            tuned = _with_history(run, model, found, race, notes)
            seen = _features(trainer.model, trainer.inputs, len(run.data.train), run.workspace)
            if beside_reading and tuned.evidence is not None:
                with suppress(MeasureError):  # too few images to read them, though they could be trained on
                    reading = evidence_of(run.data.train, run.backbone, run.config, run.workspace)
                    tuned = replace(tuned, notes=[beside(READING, reading, method.name, tuned.evidence), *tuned.notes])
    tuned = _judged(tuned, run, seen, time.perf_counter() - started)
    if method.name == TRAINED:  # what may be joined is not run again for that
        tuned = replace(tuned, seen=seen)
    if folder is not None:
        _save(tuned, folder, scope)
    return tuned


def tune_auto(run: Run, folder: Path | None, resume: bool, made: Mapping[str, Tuned] | None = None) -> Tuned:
    """What reads all layers, or its mean with what was trained, where the rule of ``decide.choice`` takes that.

    ``made`` holds what is tuned already, by the method's name.
    """
    check_block(run.backbone, run.block)
    check_logs(run.log_to, folder)
    scope = run.scope(AUTO, run.block)
    finished = _begun(folder, scope, resume, run.backbone)
    if finished is not None:
        return finished
    started, made = time.perf_counter(), {name: one for name, one in (made or {}).items() if name in (READING, TRAINED)}
    place = {name: folder / UNFINISHED / name if folder is not None else None for name in (READING, TRAINED)}
    reading = made.get(READING) or tune_by(METHODS[READING], run, place[READING], True)
    best, why = reading, ""
    if reading.evidence is None or not run.config.folds:
        why = f"{AUTO} is {READING}: without folds, nothing would say whether to add {TRAINED}"
    elif TRAINED not in made and run.clock.past(FOLD_SHARE):
        why = f"{AUTO} is {READING}: there was no time to train {TRAINED}"
    else:
        try:
            trained = made.get(TRAINED) or tune_by(METHODS[TRAINED], run, place[TRAINED], True)
            best, why = _joined(run, reading, trained)
        except (Diverged, ModelError) as error:
            why = f"{AUTO} is {READING}: {TRAINED} could not be trained ({error})"
    seconds = time.perf_counter() - started + sum(one.metrics.get("seconds", 0) for one in made.values())
    notes = list(dict.fromkeys([why, *best.notes]))
    best = replace(best, metrics=best.metrics | {"seconds": seconds}, notes=notes)
    if folder is not None:
        for source in place.values() if is_first() else ():
            if source is not None:
                keep_logs(source, folder)
        _save(best, folder, scope)
    return best


def _joined(run: Run, reading: Tuned, trained: Tuned) -> tuple[Tuned, str]:
    """What reads all layers, or its mean with what was trained, and why."""
    if reading.evidence is None or trained.evidence is None:
        return reading, f"{AUTO} is {READING}: nothing says how good {TRAINED} is on held-out images"
    together = f"the mean of {READING} and {TRAINED}"
    evidence = reading.evidence.averaged(trained.evidence)
    choice = choose({READING: reading.evidence, together: evidence}, READING, errors=1.0)
    why = f"{AUTO} is {choice.name}: {choice.reason}"
    if choice.name == READING:
        return reading, why
    model = joined(trained.model, reading.model)
    evidence, at = _calibrated(model, evidence)
    kept = {name: trained.metrics[name] for name in ("lr", "weight_decay", "epochs")}
    metrics = kept | {"temperature": at, **evidence.told()}
    told = [*reading.notes, *trained.notes]
    best = Tuned(run.backbone, model, run.data.classes, metrics, trained.history, told, evidence=evidence)
    if trained.seen is not None:
        features = run.workspace.features(run.backbone, run.data.train, reading.model.read)
        seen = torch.cat([trained.seen, *(torch.tensor(features[name]) for name in reading.model.read)], 1)
    else:
        seen = _seen_anew(model, run.data.train, run.workspace)
    if trained.test_logits is not None and reading.test_logits is not None:
        best = replace(best, test_logits=(trained.test_logits + reading.test_logits) / 2 / at)
    return _judged(best, run, seen, 0.0), why


def _begun(folder: Path | None, scope: str, resume: bool, backbone: Backbone) -> Tuned | None:
    """Take ``folder`` for this run; the result, if an earlier one left it there."""
    if folder is None:
        return None
    claim(folder, scope, resume)
    finished = _finished(folder, scope, backbone)
    together().wait()  # all have looked before the first begins to write
    return finished


def _read(run: Run, method: Method) -> tuple[Tuned, Tensor]:
    """A model in closed form, and what its head sees of each training image, (n, d)."""
    data, backbone = run.data, run.backbone
    found = read_model(data.train, backbone, method, run.config, run.workspace)
    metrics = {"lr": None, "weight_decay": None, "epochs": 0, **(found.left_out.told() if found.left_out else {})}
    tuned = Tuned(
        backbone, found.model, data.classes, metrics, [], [*data.notes, *found.notes], evidence=found.evidence
    )
    return tuned, found.features


def _prepared(run: Run, method: Method, session: Session) -> tuple[TunableModel, Trainer, list[Row], list[str]]:
    """The model, what trains it, a row for each trial of its block, and notes."""
    backbone, config, workspace, race = run.backbone, run.config, run.workspace, list[Row]()
    block: str | None = None
    if method.needs_block:
        race_for = partial(chosen_block, run.data.train, backbone, run.block, method, config, workspace, session.clock)
        block, race = Stages(session.folder).remember("block", session.scope, race_for)
    model = model_of(backbone, method, block, len(run.data.classes), config, workspace)
    trainer, notes = trainer_of(model, run.data.train, config, workspace, session)
    return model, trainer, race, notes


def _with_history(run: Run, model: TunableModel, found: Trained, race: list[Row], notes: list[str]) -> Tuned:
    """The trained model at the temperature of its evidence, with what is known of its training."""
    metrics: Row = {name: getattr(found.recipe, name) for name in ("lr", "weight_decay", "epochs")}
    evidence = found.evidence
    if evidence is not None:
        evidence, metrics["temperature"] = _calibrated(model, evidence)
        metrics |= evidence.told()
    model.neck.fold_into(model.head)
    told = [*run.data.notes, *notes, *found.notes]
    return Tuned(run.backbone, model, run.data.classes, metrics, [*race, *found.history], told, evidence=evidence)


def _calibrated(model: TunableModel, evidence: Evidence) -> tuple[Evidence, float]:
    """Bring the head to the temperature of least held-out loss; the evidence at it, and the temperature."""
    evidence, factor = evidence.calibrated()
    with torch.no_grad():
        model.head.weight.mul_(factor)
        model.head.bias.mul_(factor)
    return evidence, 1 / factor


def _judged(tuned: Tuned, run: Run, features: Tensor, seconds: float) -> Tuned:
    """The tuned model with its metrics: on training images, whose ``features`` its head sees, and on test images."""
    model, data, workspace = tuned.model, run.data, run.workspace
    metrics: Row = {
        "method": model.title,
        "block": model.block,
        "trainable_parameters": model.trainable_parameters,
        "all_parameters": model.all_parameters,
        "trainable_share": model.trainable_parameters / model.all_parameters,
        **tuned.metrics,
        "seconds": seconds,
        "bytes": sum(t.numel() * t.element_size() for t in model.changed_state().values()),
    }
    logits, test_logits = logits_of(model, features), None
    if not (torch.isfinite(logits).all() and torch.isfinite(features).all()):  # no later batch showed it
        raise Diverged(
            f"training diverged in its last steps at learning rate {tuned.metrics['lr']}: give a lower one (--lr)"
        )
    metrics["train_accuracy"] = float((logits.argmax(1).numpy() == data.train.labels).mean())
    metrics["nc1"] = collapse_of(features, data.train.labels)
    if data.test is not None:
        test_logits = tuned.test_logits
        if test_logits is None:
            test_logits = logits_of(model, _seen_anew(model, data.test, workspace))
        right = test_logits.argmax(1).numpy() == data.test.labels
        low, high = accuracy_interval(right, data.test.groups)
        metrics |= {"test_accuracy": float(right.mean()), "test_low": low, "test_high": high}
    familiar = Familiar.of(features, model.widths)
    neighbors = Neighbors.of(features, familiar, data.train.identifiers)
    known = replace(tuned, trained_on=data.train.digests, familiar=familiar, neighbors=neighbors)
    return replace(known, metrics=metrics, test_logits=test_logits)


def _seen_anew(model: TunableModel, images: Images, workspace: Workspace) -> Tensor:
    """What the head sees of images that are run for it."""
    on_device(model, workspace.device)
    pixels = workspace.pixels(images, model.backbone.preprocessing)
    return _features(model, PixelInputs(pixels, device=workspace.device), len(images), workspace)


def _features(model: Trainable, inputs: Inputs, count: int, workspace: Workspace) -> Tensor:
    """What the head sees of each image as it is, (n, d), in float32."""
    return predict_features(model, inputs, range(count), JUDGE_BATCH, workspace.device, "float32")


def _save(tuned: Tuned, folder: Path, scope: str) -> None:
    """Write the result, by the first of several processes, and take away what was unfinished."""
    if is_first():
        record = {"scope": scope, "history": tuned.history, "notes": tuned.notes}
        (folder / DESCRIPTION).unlink(missing_ok=True)  # nothing counts until all of it is there
        write_text(folder / HISTORY, json.dumps(plain(record), indent=1))
        tuned.save(folder)  # with a checksum of the record, too
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    together().wait()


def _finished(folder: Path, scope: str, backbone: Backbone) -> Tuned | None:
    """The result of an earlier call with these settings, if ``folder`` holds a whole one."""
    try:
        record = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # unfinished: the checkpoints in it are used where they fit
    saved = isinstance(record, dict) and record.get("scope") == scope and (folder / DESCRIPTION).is_file()
    if not saved or not all(isinstance(record.get(part), list) for part in ("history", "notes")):
        return None
    return replace(load_tuned(folder, backbone), history=record["history"], notes=record["notes"])
