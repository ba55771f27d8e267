"""A tuned model: predicts, judges itself, saves megabytes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tightframe.backbone import Backbone
from tightframe.data.items import unlabeled
from tightframe.errors import SavedError
from tightframe.features.inputs import PixelInputs
from tightframe.features.pixels import Pixels
from tightframe.features.precision import device_of, on_device
from tightframe.images import Images
from tightframe.models.backbones import BUILDER, load_backbone
from tightframe.report.result import Result, versions
from tightframe.row import Row
from tightframe.tuning import checkpoint
from tightframe.tuning.loop import logits_of, predict_features
from tightframe.tuning.surgery import TunableModel


@dataclass(frozen=True, eq=False)
class Tuned:
    """A backbone with what was trained on it.

    Attributes:
        backbone: the base model, as it was.
        model: a copy of it with its trained block and new head, in eval mode.
        classes: class names, in the order of the probabilities.
        metrics: measured when it was tuned: accuracies with intervals, NC1, parameters, seconds, rate, decay.
        history: a row an epoch of training.
        notes: what a reader should know, in plain words.
        test_logits: of the test images (n, K), as they were judged; not saved.
    """

    backbone: Backbone
    model: TunableModel
    classes: tuple[str, ...]
    metrics: Row = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    test_logits: torch.Tensor | None = None

    def predict(
        self, images: Sequence[str | Path | Image.Image], *, skip_bad: bool = False, device: str = "auto"
    ) -> list[Row]:
        """One row an image, in order: ``path``, ``predicted``, ``probability`` of it, and ``probabilities`` of all.

        Args:
            images: paths, or images already open.
            skip_bad: a file that can't be read is a row with ``path`` and ``error`` instead of the end.
            device: where to run.

        Raises:
            BadImage: a file can't be read as an image.
        """
        loose = unlabeled(images, self.classes)
        faults = loose.faults() if skip_bad else {}
        good = [index for index in range(len(loose)) if index not in faults]
        rows: dict[int, Row] = {
            index: {"path": loose.identifiers[index], "error": reason} for index, reason in faults.items()
        }
        for index, shares in zip(good, self.probabilities(loose.subset(good), device=device), strict=True):
            rows[index] = {
                "path": loose.identifiers[index],
                "predicted": self.classes[int(shares.argmax())],
                "probability": float(shares.max()),
                "probabilities": dict(zip(self.classes, map(float, shares), strict=True)),
            }
        return [rows[index] for index in range(len(loose))]

    def probabilities(self, data: Images, batch_size: int = 64, device: str = "auto") -> np.ndarray:
        """Class probabilities, shape (n, K), of every image in ``data``."""
        logits = self.logits_and_features(data, batch_size, device)[0]
        return torch.softmax(logits, 1).numpy()

    def logits_and_features(
        self, data: Images, batch_size: int = 64, device: str = "auto"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, K) and the features (n, d) that the head sees, on the CPU, in float32."""
        where = device_of(device)
        on_device(self.model, where)
        inputs = PixelInputs(Pixels(data, self.backbone.preprocessing, keep_bytes=0), device=where)
        features = predict_features(self.model, inputs, range(len(data)), batch_size, where, "float32")
        return logits_of(self.model, features), features

    def result(self, folder: Path | str) -> Result:
        """The rows of a table about it, for what was saved in ``folder``."""
        settings = {"origin": self.backbone.origin, "model": self.backbone.name, "classes": list(self.classes)}
        return Result("tune", [self.metrics], settings, self.notes, [self.predict_command(folder)])

    def predict_command(self, folder: Path | str) -> str:
        """How to predict with what was saved in ``folder``; a model from a builder has to be named."""
        uri = str(self.backbone.origin.get("uri", ""))
        named = f" --model {shlex.quote(uri)}" if BUILDER.fullmatch(uri) else ""
        return f"tightframe predict {shlex.quote(str(folder))} IMAGE…{named}"

    def save(self, folder: Path | str) -> None:
        """Write what was trained into ``folder``, without the base model: see ``tuning.checkpoint``."""
        description = checkpoint.Description(
            backbone=self.backbone.origin,
            weights=self.backbone.weights,
            method=self.model.method.name,
            block=self.model.block,
            pool=self.model.pool,
            align=self.model.neck.align,
            skip_scale=self.model.neck.skip_scale,
            classes=list(self.classes),
            preprocessing=asdict(self.backbone.preprocessing),
            metrics=self.metrics,
            versions=versions(),
        )
        checkpoint.write(Path(folder), self.model, description)


def load_tuned(folder: Path | str, model: str | Backbone | None = None) -> Tuned:
    """Load what ``Tuned.save`` or ``tightframe tune --out`` wrote.

    Args:
        folder: the saved folder.
        model: the base model, where it has to be told: its files have moved, or it comes from a builder (a Python
            file is run only when you name it, never because a saved folder does).

    Raises:
        SavedError: the folder is damaged, or belongs to a model with other weights.
    """
    folder = Path(folder)
    description = checkpoint.read(folder)
    backbone = model if isinstance(model, Backbone) else _base(folder, description, model)
    restored = checkpoint.restore(folder, description, backbone)
    return Tuned(backbone, restored, tuple(description.classes), description.metrics)


def _base(folder: Path, description: checkpoint.Description, model: str | None) -> Backbone:
    origin: dict[str, Any] = dict(description.backbone)
    named = str(origin.pop("uri"))
    if model is None and BUILDER.fullmatch(named):
        raise SavedError(
            f"{folder} was tuned on {named}; a saved folder may not run a Python file by itself: "
            "if you trust that file, name it with --model (model=…)"
        )
    try:
        return load_backbone(model or named, **origin)
    except TypeError as error:
        raise SavedError(f"{folder}/tightframe.json asks for unknown settings of its model ({error})") from error
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise SavedError(f"{folder}/tightframe.json names a model that can't be read ({why})") from error
