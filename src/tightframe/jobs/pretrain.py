"""Pre-train a model from scratch on one's own images, and follow its collapse epoch by epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from tightframe.backbone import Preprocessing
from tightframe.engine.stages import MARK, Stages, claim
from tightframe.errors import MeasureError, ModelError, SettingsError
from tightframe.features.augment import Distort
from tightframe.features.inputs import PixelInputs
from tightframe.features.pixels import Pixels
from tightframe.features.precision import likely_precision, on_device
from tightframe.features.workspace import Workspace
from tightframe.files import write_tensors, write_text
from tightframe.images import Images, ImageSplits
from tightframe.metrics.collapse import Head
from tightframe.metrics.summary import quick_collapse
from tightframe.models import cifar  # noqa: F401 - adds its models to timm's
from tightframe.models.fetching import nearest, one_line
from tightframe.pretraining.losses import loss_named
from tightframe.pretraining.model import MOST_LAYERS, Goal, PretrainedModel
from tightframe.processes import is_first, together
from tightframe.report.result import Result
from tightframe.row import Row
from tightframe.tuning.config import TrainConfig
from tightframe.tuning.logs import check as check_logs
from tightframe.tuning.logs import logging_to
from tightframe.tuning.loop import Diverged, Watch, fit
from tightframe.tuning.recipe import Recipe, Split

WEIGHTS, CONFIG, CHECKPOINT = "model.safetensors", "config.json", "checkpoint.safetensors"
TERMINAL = 0.999
"""Training accuracy in the terminal phase of training, at least."""
FOLLOWED = {"nc1": "nc1", "nc2": "nc2_etf", "nc3": "nc3"}
"""Columns that follow the collapse, and the measures in them."""


@dataclass(frozen=True)
class Pretraining:
    """How to pre-train.

    Attributes:
        arch: Architecture by timm's name; cifar_resnet20 and others for images of 32 px are added to timm's.
        loss: Loss: cross-entropy, mse, label-smoothing, focal or supcon.
        projector: Hidden layers of a projection head between features and loss, 0 to 3; it is dropped at the end.
        augment: Strength of augmentation, from 0 (none) to 1.
        epochs: Epochs of training.
        lr: Initial learning rate of the cosine schedule.
        weight_decay: Weight decay.
        batch_size: Images in one optimizer step.
        grad_accum_steps: Run each batch in this many parts, which takes less memory.
        seed: Seed of the initial weights and of every other random choice.
        input_size: Side of the images in pixels; the architecture's own by default.
        arguments: Further arguments of the architecture, such as ``{"channels": (8, 16, 32)}``.
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
        """How the training loop runs. Raises ``SettingsError`` for values out of range."""
        config = TrainConfig(
            epochs=self.epochs,
            lr=(self.lr,),
            weight_decay=(self.weight_decay,),
            batch_size=self.batch_size,
            grad_accum_steps=self.grad_accum_steps,
            seed=self.seed,
        )
        return replace(config.training(self.lr, self.weight_decay), copies=loss_named(self.loss).copies)

    @property
    def views(self) -> Distort | None:
        """What makes the views. Raises ``SettingsError`` for a strength out of range."""
        return Distort(self.augment, self.seed) if self.augment else None

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return int(self.input_size or timm.get_pretrained_cfg(self.arch).input_size[-1])

    @property
    def model_arguments(self) -> Row:
        """Arguments of the architecture; transformers are also told how large images are."""
        known = timm.get_pretrained_cfg(self.arch)
        sized = known.fixed_input_size and self.side != known.input_size[-1]
        return {**({"img_size": self.side} if sized else {}), **self.arguments}

    def check(self) -> None:
        """Raise ``SettingsError`` for values out of range, ``ModelError`` for an unknown architecture."""
        loss, copies = loss_named(self.loss), self.recipe.copies
        if self.input_size is not None and self.input_size < 1:
            raise SettingsError(f"--input-size is {self.input_size}; it must be 1 or more")
        if not timm.is_model(self.arch):
            raise ModelError(f'no architecture "{self.arch}"' + nearest(self.arch, timm.list_models()))
        if not 0 <= self.projector <= MOST_LAYERS:
            raise SettingsError(f"a projection head of {self.projector} layers: choose 0 to {MOST_LAYERS}")
        if loss.of_embeddings and (self.grad_accum_steps > 1 or self.batch_size < 2 * copies):
            raise SettingsError(
                f"{self.loss} compares images of a batch: it needs {2 * copies} or more, --grad-accum-steps 1"
            )
        if self.batch_size % copies:
            raise SettingsError(f"a batch of {self.batch_size} for {self.loss}: it takes {copies} views of each image")
        _ = self.views


def pretrain(
    data: ImageSplits,
    out: Path | str,
    config: Pretraining | None = None,
    *,
    resume: bool = False,
    log_to: Sequence[str] = (),
    workspace: Workspace | None = None,
) -> Result:
    """Train a model from random weights and write it in timm's layout, as ``local-dir:OUT`` for every command.

    Rows, one an epoch: ``epoch``, ``lr``, ``train_loss``, ``train_accuracy`` and ``nc1``, ``nc2`` (distance from a
    simplex), ``nc3`` of the training batches as they were seen, ``seconds`` of the epoch's training; and, where there
    are test images, ``test_loss``, ``test_accuracy``, ``test_nc1``, ``test_nc2``, ``test_nc3`` after it. All are of the
    features that are transferred, before a projection head, and of one linear head on them (see ``pretraining.model``).
    Test images choose nothing. ``train_loss`` is what is minimized, including the loss of a head that only watches;
    ``test_loss`` is the head's cross-entropy, whatever the loss.

    Features of an epoch are kept in memory until it ends: 4 × images × dimension bytes. Of several processes each
    contrasts (``supcon``) its own part of a batch only; all else is as with one process.

    Args:
        data: Images to train on.
        out: Folder for the model, with a checkpoint while it is trained.
        config: Architecture, loss, projection head, augmentation and training.
        resume: Continue, or just load, what an earlier call with the same settings left in the folder.
        log_to: Also report every epoch to tensorboard, wandb or mlflow; log.jsonl in the folder is always kept.
        workspace: Where and how the model runs.

    Raises:
        SettingsError: a value out of range, or ``out`` holds something else.
        ModelError: an unknown architecture, or one that can't be trained on such images.
        Diverged: the learning rate is too high.
    """
    config, workspace, folder = config or Pretraining(), workspace or Workspace(), Path(out)
    config.check()
    together().check(config.batch_size)
    check_logs(log_to, folder)
    settings = {
        "data": data.name,
        "images": len(data.train),
        "classes": list(data.classes),
        "fingerprints": [part.fingerprint for part in (data.train, data.test) if part is not None],
        "precision": workspace.precision,
        **asdict(config),
    }
    model = _model(config, len(data.classes), workspace)
    claim(folder, settings, resume)
    work = partial(_trained, model, data, folder, config, settings, log_to, workspace)
    try:
        rows = Stages(folder).remember("rows", settings, work)
    except Diverged:
        _forget(folder)
        raise
    together().wait()  # the first may still be writing
    if not (folder / WEIGHTS).is_file():
        raise SettingsError(f"{folder} lacks {WEIGHTS}; delete the folder to train anew, or choose another --out")
    next_steps = [f"tightframe measure DATA --model local-dir:{folder}"]
    return Result("pretrain", rows, settings, [*data.notes, *_reading(rows)], next_steps)


def _forget(folder: Path) -> None:
    """Leave the folder as free as it was: nothing came of what was begun there."""
    if is_first():
        for name in (CHECKPOINT, "log.jsonl", MARK):
            (folder / name).unlink(missing_ok=True)


def _reading(rows: Sequence[Row]) -> list[str]:
    """The epoch in which the terminal phase begins, and how collapsed the end is."""
    late = takewhile(lambda row: row["train_accuracy"] >= TERMINAL, reversed(rows))
    perfect = [row["epoch"] for row in late][::-1]
    last = rows[-1]
    found = "" if last["nc1"] is None else f"; NC1 of the training images is {last['nc1']:.3g} at the end"
    if perfect:
        return [f"from epoch {perfect[0]} on, all training images are classified right (the terminal phase){found}"]
    return [f"not all training images are classified right ({100 * last['train_accuracy']:.1f} %){found}"]


def _model(config: Pretraining, classes: int, workspace: Workspace) -> PretrainedModel:
    """The model with random weights, on the device. Raises for one that can't be made or run."""
    side = config.side
    try:
        model = PretrainedModel(
            config.arch, classes, loss_named(config.loss), config.projector, config.model_arguments, config.seed
        )
        model.eval()
        with torch.no_grad():
            model.features(torch.zeros(2, 3, side, side))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"{config.arch} can't be made for images of {side} px: {one_line(error)}") from error
    likely_precision(model, workspace.device, workspace.precision)
    on_device(model, workspace.device)
    return model


def _trained(
    model: PretrainedModel,
    data: ImageSplits,
    folder: Path,
    config: Pretraining,
    settings: Row,
    log_to: Sequence[str],
    workspace: Workspace,
) -> list[Row]:
    """Train and save the model; a row an epoch."""
    images = data.train.joined(data.test) if data.test is not None else data.train
    count, device = len(data.train), workspace.device
    pixels = _standardized(images, count, config.side)
    title, rows = f"pre-training {config.arch} on {data.name}", list[Row]()
    ticks = iter(workspace.progress(range(config.epochs), title, config.epochs))
    with logging_to(log_to, folder, title, settings) as tell:

        def on_epoch(row: Row) -> None:  # what the loop calls validation is the test set here
            rows.append({name.replace("validation_", "test_"): value for name, value in row.items()})
            tell(config.loss, rows[-1])
            next(ticks, None)

        fit(
            model,
            PixelInputs(pixels, config.views, device),
            Split(images.labels, np.arange(count), np.arange(count, len(images)), len(data.classes)),
            config.recipe,
            device=device,
            precision=likely_precision(model, device, workspace.precision),
            checkpoint=folder / CHECKPOINT,
            scope=json.dumps(settings, sort_keys=True),
            on_epoch=on_epoch,
            goal=Goal(model, loss_named(config.loss)),
            watch=Watch(_collapse, _collapse),
        )
    next(ticks, None)
    _save(model, folder, config, pixels.preprocessing, data.classes)
    return rows


def _standardized(images: Images, count: int, side: int) -> Pixels:
    """Images that are normalized by the mean and deviation of the colors of the first ``count``."""
    pixels = Pixels(images, Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3, 1.0))
    colors = StandardScaler()
    for _, batch in pixels.batches(range(count), 64):
        colors.partial_fit(batch.movedim(1, -1).reshape(-1, 3).numpy())
    mean, std = (colors.mean_ / 255).round(4), (np.sqrt(colors.var_) / 255).clip(0.01).round(4)
    pixels.preprocessing = replace(pixels.preprocessing, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    return pixels


def _collapse(features: Tensor, labels: np.ndarray, head: nn.Linear) -> Row:
    """NC1 to NC3; ``None`` where there are too few samples."""
    trained = Head(head.weight.detach().cpu(), head.bias.detach().cpu())
    try:
        found = quick_collapse(features, torch.from_numpy(labels), head.out_features, head=trained)
    except MeasureError:
        return dict.fromkeys(FOLLOWED)
    return {name: found[measure] for name, measure in FOLLOWED.items()}


def _save(
    model: PretrainedModel, folder: Path, config: Pretraining, wants: Preprocessing, classes: Sequence[str]
) -> None:
    """Write the model in timm's layout, and take the checkpoint away."""
    told: Any = model.base.pretrained_cfg
    arguments = config.model_arguments
    content = {
        "architecture": config.arch,
        "num_classes": len(classes),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            **asdict(wants),
            "input_size": [3, *wants.input_size],
            "classifier": told["classifier"],
            "first_conv": told["first_conv"],
            "label_names": list(classes),
        },
    }
    write_tensors(folder / WEIGHTS, model.weights(told["classifier"]))
    write_text(folder / CONFIG, json.dumps(content, indent=1, ensure_ascii=False))
    if is_first():
        (folder / CHECKPOINT).unlink(missing_ok=True)
