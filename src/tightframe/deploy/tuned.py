"""A tuned model: it predicts, and saves what was trained in megabytes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tightframe.backbone import Backbone, Preprocessing
from tightframe.data.decoding import MAX_PIXELS, WHITE, decoding
from tightframe.data.items import ImageLike, unlabeled
from tightframe.decide.evidence import Evidence
from tightframe.deploy.neighbors import Neighbors
from tightframe.deploy.novelty import Familiar, rejected
from tightframe.deploy.training_set import TrainingSet
from tightframe.engine.choice import engine_of
from tightframe.errors import SavedError, SettingsError
from tightframe.features.inputs import PixelInputs
from tightframe.features.passes import batch_of, parts_of
from tightframe.features.pixels import Pixels
from tightframe.features.precision import device_of, on_device
from tightframe.images import Images, undecodable
from tightframe.models.backbones import load_backbone
from tightframe.models.names import BUILDER
from tightframe.report.result import Result, versions
from tightframe.row import Row
from tightframe.tuning import checkpoint
from tightframe.tuning.loop import logits_of, predict_features
from tightframe.tuning.surgery import TunableModel

KEPT_BYTES = 1 << 30
"""Decoded images that ``predict`` keeps in memory between finding the bad ones and running the model."""
NONE = "none of these"
"""What is predicted of an image that is rejected."""
NAMED = 5
"""Most class names in one line."""


@dataclass(frozen=True, eq=False, repr=False)
class Tuned:
    """A backbone and what was trained on it.

    Attributes:
        backbone: the pretrained model, unchanged.
        model: a copy of it with the trained block and the new head, in eval mode.
        classes: class names, in the order of the probabilities.
        metrics: measured after tuning: accuracies with intervals, NC1, parameters, seconds, learning rate, ….
        history: one row for each epoch of training.
        notes: what a reader should know, in plain words.
        test_logits: logits (n, K) of the test images; not saved.
        evidence: out-of-fold predictions of the training images, where they were made.
        trained_on: hashes of the training images.
        familiar: where what the head sees of training images lies.
        neighbors: by which the nearest training images are found.
        seen: what the head sees of each training image, (n, d), where that is kept for ``auto``; not saved.
    """

    backbone: Backbone
    model: TunableModel
    classes: tuple[str, ...]
    metrics: Row = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    test_logits: torch.Tensor | None = None
    evidence: Evidence | None = None
    trained_on: tuple[str, ...] = ()
    familiar: Familiar | None = None
    neighbors: Neighbors | None = None
    seen: torch.Tensor | None = None

    def __repr__(self) -> str:
        model = self.model
        where = f" at block {model.block}" if model.block else ""
        measured = [
            f"{what} accuracy {100 * self.metrics[key]:.1f} %"
            for what, key in (("test", "test_accuracy"), ("training", "train_accuracy"))
            if self.metrics.get(key) is not None
        ]
        return (
            f"Tuned {self.backbone.name} by {model.title}{where} "
            f"({100 * model.trainable_parameters / model.all_parameters:.2g} % of parameters trained)\n"
            f"  {len(self.classes)} classes: {listed(self.classes)}\n"
            f"  {', '.join(measured) or 'not judged'}"
        )

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike] | Images,
        *,
        on_error: Literal["row", "raise"] = "row",
        reject: float | None = None,
        explain: int = 0,
        max_pixels: int = MAX_PIXELS,
        white_level: int = WHITE,
        device: str = "auto",
        engine: str = "",
        workers: int | None = None,
    ) -> list[Row]:
        """Classify images with a tuned model.

        Rows, one an image and in order: ``path``, ``predicted``, its ``probability``, and the ``probabilities`` of all
        classes.

        Args:
            images: One or several images: paths, folders (all images in them), arrays of bytes (height, width, 3) or
                (n, height, width, 3), images of Pillow's; or ``Images``.
            on_error: What becomes of a file that can't be read: ``"row"`` gives it a row with ``path`` and ``error``,
                ``"raise"`` raises.
            reject: Say "none of these" of images that the model is unsure of, or that are far from those it was trained
                on, so that this share of images like those, at most, is rejected wrongly.
            explain: Name so many of the training images that are nearest in what the model's head sees, as ``nearest``.
            max_pixels: Most pixels that an image file may declare.
            white_level: The 16-bit gray that becomes white, as for training.
            device: Where the model runs: auto (a GPU if there is one), cpu, cuda, ….
            engine: What runs it: local, ray, or ray://ADDRESS:PORT; TIGHTFRAME_ENGINE by default.
            workers: Processes to share the images between; with Ray one a GPU or processor by default.

        Raises:
            BadImage: a file can't be read as an image, with ``on_error="raise"``.
            DataError: a folder without images, or an array of another type or shape.
            SettingsError: ``reject`` is not between 0 and 1, the model was tuned without held-out predictions, or it
                does not know its training images.
        """
        if reject is not None and (self.evidence is None or self.familiar is None):
            raise SettingsError(
                "this model was tuned without predictions of held-out images (--folds 0), so there is nothing to tell "
                "which images are none of its classes; tune again, or leave out --reject"
            )
        if explain < 0:
            raise SettingsError(f"--explain is {explain}; it must be 0 or more training images")
        if explain and (self.neighbors is None or self.familiar is None):
            raise SettingsError("this model does not know its training images; tune again, or leave out --explain")
        how = decoding(max_pixels, white_level)
        shown = images if isinstance(images, Images) else unlabeled(images, self.classes, how)
        shown = shown.decoded_once(KEPT_BYTES)
        faults = undecodable(shown.items) if on_error == "row" else {}
        good = [index for index in range(len(shown)) if index not in faults]
        rows: list[Row] = [{"path": name, "error": faults.get(index)} for index, name in enumerate(shown.identifiers)]
        logits, features = self.logits_and_features(shown.subset(good), device=device, engine=engine, workers=workers)
        probabilities = torch.softmax(logits, 1).numpy()
        for index, shares in zip(good, probabilities, strict=True):
            rows[index] = {
                "path": shown.identifiers[index],
                "predicted": self.classes[int(shares.argmax())],
                "probability": float(shares.max()),
                "probabilities": dict(zip(self.classes, map(float, shares), strict=True)),
            }
        if explain and self.neighbors is not None and self.familiar is not None:
            near = self.neighbors.nearest(features, self.familiar, explain)
            for index, names in zip(good, near, strict=True):
                rows[index]["nearest"] = names
        if reject is not None and self.evidence is not None and self.familiar is not None:
            strange = rejected(probabilities, features, self.evidence, self.familiar, reject)
            for index, rejecting in zip(good, strange.tolist(), strict=True):
                rows[index] |= {"rejected": rejecting} | ({"predicted": NONE} if rejecting else {})
        return rows

    def probabilities(self, data: Images, batch_size: int = 64, device: str = "auto") -> np.ndarray:
        """Class probabilities (n, K) of the images."""
        logits = self.logits_and_features(data, batch_size, device)[0]
        return torch.softmax(logits, 1).numpy()

    def logits_and_features(
        self,
        data: Images,
        batch_size: int = 64,
        device: str = "auto",
        engine: str = "",
        workers: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, K) of the images, and the features (n, d) that the head sees, on the CPU, in float32.

        They are the same whatever ``engine`` and ``workers`` run the model, see ``Workspace``.
        """
        work = _Features(self.model, self.backbone.preprocessing, batch_size, device)
        with closing(engine_of(engine, workers)) as made:
            parts = parts_of(data, np.ones(len(data), dtype=bool), batch_size) if made.workers else []
            answers = made.run(work, [part.images for part in parts] or [data])
            features = torch.cat([answer.get() for answer in sorted(answers, key=lambda answer: answer.index)])
        return logits_of(self.model, features), features

    def result(self, folder: Path | str) -> Result:
        """What tuning found, and how to predict with what was saved in ``folder``."""
        settings = {"origin": self.backbone.origin, **self.settings}
        return Result("tune", [self.metrics], settings, self.notes, [self.predict_command(folder)])

    @property
    def settings(self) -> Row:
        """What every result about this model states: model, method and class names."""
        return {"model": self.backbone.name, "method": self.model.title, "classes": list(self.classes)}

    def predict_command(self, folder: Path | str) -> str:
        """The command that predicts with the model saved in ``folder``; it names a builder's model."""
        uri = str(self.backbone.origin.get("uri", ""))
        named = f" --model {shlex.quote(uri)}" if BUILDER.fullmatch(uri) else ""
        return f"tightframe predict {shlex.quote(str(folder))} IMAGE…{named}"

    def save(self, folder: Path | str) -> None:
        """Write what was trained into ``folder``, without the base model (see ``tuning.checkpoint``)."""
        description = checkpoint.Description(
            backbone=self.backbone.origin,
            weights=self.backbone.weights,
            method=self.model.method.name,
            block=self.model.block,
            read=self.model.read,
            beside=self.model.beside,
            pool=self.model.pool,
            align=self.model.neck.align,
            skip_scale=self.model.neck.skip_scale,
            classes=list(self.classes),
            preprocessing=asdict(self.backbone.preprocessing),
            metrics=self.metrics,
            versions=versions(),
        )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / checkpoint.DESCRIPTION).unlink(missing_ok=True)  # nothing counts until all of it is there
        TrainingSet(self.trained_on, self.evidence, self.familiar, self.neighbors).write(folder)
        checkpoint.write(folder, self.model, description)


@dataclass(frozen=True, eq=False)
class _Features:
    """The work of predicting: what the head of a model sees of images."""

    model: TunableModel
    preprocessing: Preprocessing
    batch_size: int
    device: str

    def do(self, images: Images, attempt: int) -> torch.Tensor:
        where, size = device_of(self.device), batch_of(self.batch_size, attempt)
        on_device(self.model, where)
        inputs = PixelInputs(Pixels(images, self.preprocessing, keep_bytes=0), device=where)
        return predict_features(self.model, inputs, range(len(images)), size, where, "float32")


def load_tuned(folder: Path | str, model: str | Backbone | None = None) -> Tuned:
    """Load a tuned model that ``Tuned.save`` or ``tightframe tune --out`` wrote.

    Args:
        folder: Folder of a tuned model, as ``tightframe tune --out`` wrote it.
        model: The base model, where its files have moved or it comes from a builder of your own: a Python file is run
            only when you name it, never because a saved folder does.

    Raises:
        SavedError: the folder is damaged, or was tuned on other weights.
    """
    folder = Path(folder)
    description = checkpoint.read(folder)
    backbone = model if isinstance(model, Backbone) else _base(folder, description, model)
    checkpoint.verify(folder, description)
    restored = checkpoint.restore(folder, description, backbone)
    seen = TrainingSet.read(folder, len(description.classes), restored.head.in_features)
    return Tuned(
        backbone,
        restored,
        tuple(description.classes),
        description.metrics,
        evidence=seen.evidence,
        trained_on=seen.digests,
        familiar=seen.familiar,
        neighbors=seen.neighbors,
    )


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


def listed(names: Sequence[str]) -> str:
    """The first names in quotes, and how many more there are."""
    more = len(names) - NAMED
    shown = ", ".join(f'"{name}"' for name in names[:NAMED])
    return f"{shown} and {more} more" if more > 0 else shown
