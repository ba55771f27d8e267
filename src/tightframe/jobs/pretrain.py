"""Making a model: trained from scratch on one's own images, with its collapse followed epoch by epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from tightframe.backbone import Preprocessing
from tightframe.errors import MeasureError, ModelError, SettingsError
from tightframe.features.inputs import PixelInputs
from tightframe.features.pixels import Pixels
from tightframe.features.precision import Precision, device_of, likely_precision, on_device
from tightframe.features.stages import MARK, Stages, claim
from tightframe.files import write_tensors, write_text
from tightframe.images import Images, ImageSplits
from tightframe.metrics.collapse import Head
from tightframe.metrics.summary import quick_collapse
from tightframe.models import cifar  # noqa: F401 - adds its models to timm's
from tightframe.models.fetching import nearest, one_line
from tightframe.pretraining.losses import loss_named
from tightframe.pretraining.model import MOST_LAYERS, Goal, PretrainedModel
from tightframe.processes import is_first, together
from tightframe.progress import Progress, silent
from tightframe.report.result import Result
from tightframe.row import Row
from tightframe.tuning.augment import Distort
from tightframe.tuning.logs import check as check_logs
from tightframe.tuning.logs import logging_to
from tightframe.tuning.loop import Diverged, Watch, fit
from tightframe.tuning.recipe import Recipe, Split

WEIGHTS, CONFIG, CHECKPOINT = "model.safetensors", "config.json", "checkpoint.safetensors"
TOLD_APART = 0.999
"""Training accuracy from which on we speak of the terminal phase."""
FOLLOWED = {"nc1": "nc1", "nc2": "nc2_etf", "nc3": "nc3"}
"""What is followed, and the measure that it is."""


@dataclass(frozen=True)
class Pretraining:
    """How to pre-train.

    Attributes:
        arch: a model of timm's, by its name there; ``cifar_resnet20`` and others for images of 32 px are added to
            it (see ``sources.cifar``).
        loss: a name in ``pretraining.losses.LOSSES``.
        projector: hidden layers of a projection head between features and loss, 0 to 3; dropped when all is done.
        augment: strength of augmentation, 0 (none) to 1 (see ``tuning.augment.Distort``).
        epochs, lr, weight_decay, batch_size, grad_accum_steps, seed: see ``tuning.recipe.Recipe``; the seed is also
            that of the weights.
        input_size: side of the images; the architecture's own if ``None``.
        arguments: others of the architecture's, such as ``{"channels": (8, 16, 32)}``.
    """

    arch: str = "cifar_resnet20"
    loss: str = "cross-entropy"
    projector: int = 0
    augment: float = 0.25
    epochs: int = 200
    lr: float = 0.1
    weight_decay: float = 5e-4
    batch_size: int = 128
    grad_accum_steps: int = 1
    seed: int = 0
    input_size: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """Of the training loop."""
        names = ("epochs", "lr", "weight_decay", "batch_size", "grad_accum_steps", "seed")
        shared = {name: getattr(self, name) for name in names}
        return Recipe(**shared, copies=loss_named(self.loss).copies)

    def check(self) -> None:
        """Raise ``SettingsError`` for values out of range, ``ModelError`` for an unknown architecture."""
        for name, lowest in (("epochs", 1), ("batch_size", 2), ("grad_accum_steps", 1), ("input_size", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise SettingsError(f"{name.replace('_', ' ')} is {value}; it must be {lowest} or more")
        if not 0 <= self.seed < 2**63:
            raise SettingsError(f"seed {self.seed}: must be 0 or more, and below 2 to the 63")
        largest = torch.finfo(torch.float32).max
        if not 0 < self.lr <= largest or not 0 <= self.weight_decay <= largest:
            raise SettingsError(
                f"learning rate {self.lr:g} and weight decay {self.weight_decay:g}: the first must be above 0, and "
                "neither below"
            )
        if not timm.is_model(self.arch):
            raise ModelError(f'no architecture "{self.arch}"' + nearest(self.arch, timm.list_models()))
        loss = loss_named(self.loss)
        copies = loss.copies
        if not 0 <= self.projector <= MOST_LAYERS:
            raise SettingsError(f"a projection head of {self.projector} layers: choose 0 to {MOST_LAYERS}")
        if loss.of_embeddings and (self.grad_accum_steps > 1 or self.batch_size < 2 * copies):
            raise SettingsError(
                f"{self.loss} compares images of a batch: it needs {2 * copies} or more, --grad-accum-steps 1"
            )
        if self.batch_size % copies:
            raise SettingsError(f"a batch of {self.batch_size} for {self.loss}: it takes {copies} views of each image")
        Distort(self.augment, self.seed)


def pretrain(
    data: ImageSplits,
    out: Path | str,
    how: Pretraining | None = None,
    *,
    resume: bool = False,
    log: Sequence[str] = (),
    device: str = "auto",
    precision: Precision = "auto",
    progress: Progress = silent,
) -> Result:
    """Train a model from random weights and write it in timm's layout, as ``local-dir:OUT`` for every command.

    Rows, one an epoch: ``epoch``, ``lr``, ``train_loss``, ``train_accuracy`` and ``nc1``, ``nc2`` (distance from a
    simplex), ``nc3`` of the training batches as they were seen, ``seconds`` that the epoch's training took; and, where
    there are test images, ``test_loss``, ``test_accuracy``, ``test_nc1``, ``test_nc2``, ``test_nc3`` after it. All
    are of the features that are transferred, before a projection head, and of one linear head on them (see
    ``pretraining.model``). Nothing is chosen by test images. ``train_loss`` is what is minimized, with that
    of a head that only watches; ``test_loss`` is the head's cross-entropy, whatever the loss.

    Features of an epoch are kept until it ends: as many bytes as 4 × images × their dimension. Of several processes
    each contrasts (``supcon``) its own part of a batch only; all else is what one process does.

    Args:
        data: source images.
        out: a folder for the model, with a checkpoint while it is trained.
        how: architecture, loss, projection head, augmentation and recipe.
        resume: go on with, or just load, what an earlier call with the same settings left in ``out``.
        log: also told every epoch, see ``tune``.
        device: where it runs.
        precision: ``"auto"`` is bfloat16 where that is faster.
        progress: see ``load_images``.

    Raises:
        SettingsError: a value out of range, or ``out`` holds something else.
        ModelError: an unknown architecture, or one that can't be trained on such images.
        Diverged: the learning rate is too high.
    """
    how = how or Pretraining()
    how.check()
    together().check(how.batch_size)
    folder = Path(out)
    check_logs(log, folder)
    work, settings = _Work(data, folder, how, device, precision, progress), _settings(data, how, precision)
    work.check()
    claim(folder, settings, resume)
    try:
        rows = Stages(folder).remember("rows", settings, lambda: work.done(log, settings))
    except Diverged:
        _forget(folder)
        raise
    together().wait()  # the first may still be writing
    if not (folder / WEIGHTS).is_file():
        raise SettingsError(f"{folder} lacks {WEIGHTS}; delete the folder to train anew, or choose another --out")
    following = [f"tightframe measure DATA --model local-dir:{folder}"]
    return Result("pretrain", rows, settings, [*data.notes, *_reading(rows)], following)


def _forget(folder: Path) -> None:
    """Leave the folder as free as it was: nothing came of what was begun there."""
    if is_first():
        for name in (CHECKPOINT, "log.jsonl", MARK):
            (folder / name).unlink(missing_ok=True)


def _settings(data: ImageSplits, how: Pretraining, precision: str) -> Row:
    return {
        "data": data.name,
        "images": len(data.train),
        "classes": list(data.classes),
        "fingerprints": [part.fingerprint for part in (data.train, data.test) if part is not None],
        "precision": precision,
        **asdict(how),
    }


def _reading(rows: Sequence[Row]) -> list[str]:
    """Where the terminal phase begins, and how collapsed the end is."""
    late = takewhile(lambda row: row["train_accuracy"] >= TOLD_APART, reversed(rows))
    perfect = [row["epoch"] for row in late][::-1]
    last = rows[-1]
    found = "" if last["nc1"] is None else f"; NC1 of the training images is {last['nc1']:.3g} at the end"
    if perfect:
        return [f"from epoch {perfect[0]} on training images are told apart (the terminal phase){found}"]
    return [f"training images are not all told apart ({100 * last['train_accuracy']:.1f} %){found}"]


@dataclass(frozen=True)
class _Work:
    """One pre-training under way."""

    data: ImageSplits
    folder: Path
    how: Pretraining
    device: str
    precision: Precision
    progress: Progress

    def check(self) -> None:
        """Raise for what can't be made or run, before the folder is taken."""
        likely_precision(self.model, device_of(self.device), self.precision)

    def done(self, log: Sequence[str], settings: Row) -> list[Row]:
        """Train and save; a row an epoch."""
        model, pixels = self.model, self._pixels()
        config = _config(model.base, self.how, pixels.preprocessing, self.data.classes)
        device = device_of(self.device)
        title = f"pre-training {self.how.arch} on {self.data.name}"
        ticks = iter(self.progress(range(self.how.epochs), title, self.how.epochs))
        rows: list[Row] = []
        with logging_to(log, self.folder, title, settings) as tell:

            def on_epoch(row: Row) -> None:
                rows.append(_renamed(row))
                tell(self.how.loss, rows[-1])
                next(ticks, None)

            fit(
                model,
                PixelInputs(pixels, Distort(self.how.augment, self.how.seed) if self.how.augment else None, device),
                self._split(),
                self.how.recipe,
                device=device,
                precision=likely_precision(model, device, self.precision),
                checkpoint=self.folder / CHECKPOINT,
                scope=json.dumps(settings, sort_keys=True),
                on_epoch=on_epoch,
                goal=Goal(model, loss_named(self.how.loss)),
                watch=Watch(_collapse, _collapse),
            )
        for _ in ticks:
            pass
        write_tensors(self.folder / WEIGHTS, model.weights(config["pretrained_cfg"]["classifier"]))
        write_text(self.folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False))
        if is_first():
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return rows

    @cached_property
    def model(self) -> PretrainedModel:
        """With random weights until it is trained, on the device."""
        how, side = self.how, self._side
        loss = loss_named(how.loss)
        try:
            model = PretrainedModel(
                how.arch, len(self.data.classes), loss, how.projector, _arguments(how, side), how.seed
            )
            model.eval()
            with torch.no_grad():
                model.features(torch.zeros(2, 3, side, side))
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise ModelError(f"{how.arch} can't be made for images of {side} px: {one_line(error)}") from error
        on_device(model, device_of(self.device))
        return model

    @property
    def _side(self) -> int:
        return int(self.how.input_size or timm.get_pretrained_cfg(self.how.arch).input_size[-1])

    def _pixels(self) -> Pixels:
        """The images, standardized by those for training."""
        side = self._side
        pixels = Pixels(self._everything(), Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3, 1.0))
        mean, std = _colors(pixels, len(self.data.train))
        pixels.preprocessing = replace(pixels.preprocessing, mean=mean, std=std)
        return pixels

    def _everything(self) -> Images:
        """Training images, and then those of the test set."""
        return self.data.train.joined(self.data.test) if self.data.test is not None else self.data.train

    def _split(self) -> Split:
        everything, count = self._everything(), len(self.data.train)
        return Split(everything.labels, np.arange(count), np.arange(count, len(everything)), len(self.data.classes))


def _colors(pixels: Pixels, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the colors of the first ``count`` images, in 0 … 1."""
    sums, area = torch.zeros(2, 3, dtype=torch.float64), 0
    for _, batch in pixels.batches(range(count), 256):
        values = batch.double() / 255
        sums += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
        area += values.numel() // 3
    mean, square = sums / area
    deviation = (square - mean.square()).clamp(min=1e-4).sqrt()
    return tuple(mean.numpy().round(4).tolist()), tuple(deviation.numpy().round(4).tolist())


def _arguments(how: Pretraining, side: int) -> Row:
    """The architecture's; transformers are also told how large images are."""
    known = timm.get_pretrained_cfg(how.arch)
    sized = known.fixed_input_size and side != known.input_size[-1]
    return {**({"img_size": side} if sized else {}), **how.arguments}


def _collapse(features: Tensor, labels: np.ndarray, head: nn.Linear) -> Row:
    """NC1 to NC3, ``None`` where there is not enough to have them."""
    trained = Head(head.weight.detach().cpu(), head.bias.detach().cpu())
    try:
        found = quick_collapse(features, torch.from_numpy(labels), head.out_features, head=trained)
    except MeasureError:
        return dict.fromkeys(FOLLOWED)
    return {name: found[measure] for name, measure in FOLLOWED.items()}


def _renamed(row: Row) -> Row:
    """What the loop calls validation is the test set here."""
    return {name.replace("validation_", "test_"): value for name, value in row.items()}


def _config(base: nn.Module, how: Pretraining, wants: Preprocessing, classes: Sequence[str]) -> Row:
    """What timm makes the model again from."""
    told: Any = base.pretrained_cfg
    side = wants.input_size[0]
    return {
        "architecture": how.arch,
        "num_classes": len(classes),
        **({"model_args": _arguments(how, side)} if _arguments(how, side) else {}),
        "pretrained_cfg": {
            "input_size": [3, *wants.input_size],
            "mean": list(wants.mean),
            "std": list(wants.std),
            "crop_pct": wants.crop_pct,
            "interpolation": wants.interpolation,
            "classifier": told["classifier"],
            "first_conv": told["first_conv"],
            "label_names": list(classes),
        },
    }
