"""Two scikit-learn classifiers: ``TransferClassifier`` of images, ``LayerDiscriminant`` of features.

``TransferClassifier(...).fit(paths, labels).predict(paths)`` fine-tunes a model.

Images are paths, arrays of bytes (height, width, 3) or (n, height, width, 3), or images of Pillow's. Parameters are
plain values, so that ``clone``, ``cross_val_score``, ``GridSearchCV`` and joblib's workers treat it as any classifier.

**Pickles.** The pickle of a fitted classifier holds what ``Tuned.save`` writes: what was trained, not the base model.
The base model is loaded by its name at the first use, and refused if its weights have another hash;
``set_params(backbone=...)`` names it anew if it has moved. Unpickling runs whatever code the pickle's author chose:
open only your own pickles, and exchange models with others by ``tuned_.save`` and ``load_tuned``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from tightframe.backbone import Backbone
from tightframe.data.items import unlabeled
from tightframe.deploy.tuned import Tuned, load_tuned
from tightframe.errors import DataError, SettingsError
from tightframe.features.precision import Precision
from tightframe.features.taps import Pool
from tightframe.features.workspace import Workspace
from tightframe.files import write_bytes
from tightframe.images import Images, ImageSplits
from tightframe.jobs.tune import tune
from tightframe.models.backbones import load_backbone
from tightframe.probes.discriminant import read_layers
from tightframe.tuning.config import TrainConfig


class UnusableInput(DataError, ValueError):
    """Images or labels can't be used; also a ``ValueError``, as scikit-learn expects."""


class TransferClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fine-tune a pretrained model on images.

    Args:
        backbone: name of the pretrained model, as for ``load_backbone``.
        method: tuning method (see ``tightframe.tune``).
        block: block to tune, for methods that tune one; ``"auto"`` chooses it.
        epochs: epochs of the final training.
        lr, weight_decay: values to try, as tuples; by default those of ``TrainConfig``.
        batch_size: images in one optimizer step.
        seed: seed of every random choice.
        pool, precision, device: as for ``Workspace``.
        backbone_options: further arguments of ``load_backbone``, such as ``{"input_size": 64}``.

    Attributes:
        classes_: sorted labels (K,), the columns of ``predict_proba``.
        tuned_: the tuned model.
    """

    def __init__(
        self,
        backbone: str = "timm/resnet18",
        method: str = "auto",
        block: str = "auto",
        *,
        epochs: int = 30,
        lr: Sequence[float] | None = None,
        weight_decay: Sequence[float] | None = None,
        batch_size: int = 32,
        seed: int = 0,
        pool: Pool = "auto",
        precision: Precision = "auto",
        device: str = "auto",
        backbone_options: Mapping[str, Any] | None = None,
    ):
        self.backbone = backbone
        self.method = method
        self.block = block
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.seed = seed
        self.pool = pool
        self.precision = precision
        self.device = device
        self.backbone_options = backbone_options

    def fit(self, X: Any, y: Any, groups: Any = None) -> TransferClassifier:
        """Tune the model on images ``X`` with labels ``y`` (n,) of two classes or more.

        Images of the same value in ``groups`` (n,) belong together: none is held out from the others.

        Raises:
            UnusableInput: ``X`` or ``y`` has a type or shape that can't be used.
            SettingsError, ModelError, BadImage: as ``load_backbone`` and ``tune``.
        """
        images = _images(X)
        classes, labels = _encoded(y, len(images))
        shown = replace(
            images, labels=labels, classes=tuple(map(str, classes.tolist())), groups=_grouped(groups, len(images))
        )
        config = TrainConfig(
            epochs=self.epochs,
            lr=None if self.lr is None else tuple(self.lr),
            weight_decay=None if self.weight_decay is None else tuple(self.weight_decay),
            batch_size=self.batch_size,
            seed=self.seed,
        )
        self._tuned: Tuned | None = tune(
            ImageSplits("images", shown, None),
            self._base(),
            method=self.method,
            block=self.block,
            config=config,
            workspace=Workspace(device=self.device, precision=self.precision, pool=self.pool),
        )
        self._saved: dict[str, bytes] = {}
        self.classes_ = classes
        return self

    @property
    def tuned_(self) -> Tuned:
        """The tuned model; after unpickling, it is put together at the first use.

        Raises:
            SavedError: the base model has other weights now.
        """
        check_is_fitted(self, "classes_")
        if self._tuned is None:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in self._saved.items():
                    write_bytes(Path(folder) / name, content)
                self._tuned = load_tuned(folder, self._base())
        return self._tuned

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, K) of the classes in ``classes_``."""
        tuned = self.tuned_
        return tuned.probabilities(_images(X), device=self.device)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class (n,) of each image."""
        shares = self.predict_proba(X)
        return self.classes_[shares.argmax(1)]

    def _base(self) -> Backbone:
        if not isinstance(self.backbone, str):
            raise SettingsError(
                f"backbone is a {type(self.backbone).__name__}; give its name, timm/resnet18 or local-dir:PATH say, "
                "by which it is loaded again in other processes"
            )
        return load_backbone(self.backbone, **(self.backbone_options or {}))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        tuned = state.get("_tuned")
        if tuned is not None:
            with tempfile.TemporaryDirectory() as folder:
                tuned.save(folder)
                state["_saved"] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return state | {"_tuned": None} if "_tuned" in state else state


class LayerDiscriminant(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Shrunk linear discriminants of several layers' features, averaged (see ``read_layers``).

    Args:
        widths: number of columns of each layer, in the order of depth; by default all columns are one layer.
        balanced: take all classes for equally frequent.

    Attributes:
        classes_: sorted labels (K,), the columns of ``predict_proba``.
        reading_: the linear classifier, with its predictions of each sample left out.
    """

    def __init__(self, widths: Sequence[int] | None = None, *, balanced: bool = False):
        self.widths = widths
        self.balanced = balanced

    def fit(self, X: Any, y: Any, groups: Any = None) -> LayerDiscriminant:
        """Fit to features ``X`` (n, d), the layers side by side, with labels ``y`` (n,) of two classes or more.

        Samples of the same value in ``groups`` (n,) are left out together.

        Raises:
            UnusableInput: ``X`` or ``y`` can't be used, or ``widths`` don't add up to d.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = _encoded(y, len(X))
        if self.widths is not None and sum(self.widths) != X.shape[1]:
            raise UnusableInput(f"widths {list(self.widths)} don't add up to the {X.shape[1]} columns of X")
        self.reading_ = read_layers(
            self._layers(X), labels, len(self.classes_), balanced=self.balanced, groups=_grouped(groups, len(X))
        )
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits (n, K); for two classes, as scikit-learn has it, how far the second is ahead (n,)."""
        check_is_fitted(self, "classes_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        logits = self.reading_.logits(self._layers(X)).numpy()
        return logits if len(self.classes_) > 2 else logits[:, 1] - logits[:, 0]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, K) of the classes in ``classes_``."""
        logits = self.decision_function(X)
        logits = logits if logits.ndim == 2 else np.stack([np.zeros_like(logits), logits], 1)
        return softmax(logits, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class (n,) of each sample."""
        shares = self.predict_proba(X)
        return self.classes_[shares.argmax(1)]

    def _layers(self, X: np.ndarray) -> dict[str, np.ndarray]:
        widths = [X.shape[1]] if self.widths is None else self.widths
        return {str(place): part for place, part in enumerate(np.split(X, np.cumsum(widths)[:-1], 1))}


def _images(X: Any) -> Images:
    """The images in ``X``, without labels. Raises ``UnusableInput``."""
    if isinstance(X, str | Path):
        raise UnusableInput(f"X is one path, {X}; give a list of them")
    try:
        images = unlabeled(X)
    except DataError as error:
        raise UnusableInput(f"X can't be used: {error}") from error
    if not len(images):
        raise UnusableInput("X holds 0 images, and at least 1 is needed")
    return images


def _encoded(y: Any, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted classes (K,), and labels (n,) that index them. Raises ``UnusableInput``."""
    if y is None:
        raise UnusableInput("fitting requires y to be passed, but the target y is None; give every image's label")
    try:
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
    except ValueError as error:
        raise UnusableInput(f"y can't be labels of classes ({error}); give one label an image") from error
    if len(labels) != images:
        raise UnusableInput(f"X has {images} images and y {len(labels)} labels; give one label an image")
    classes, encoded = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise UnusableInput(f"y has 1 class, {classes[0]!r}; 2 are needed to tell apart")
    return classes, encoded.astype(np.int64)


def _grouped(groups: Any, images: int) -> np.ndarray | None:
    """Numbers (n,) of ``groups``, whatever names them. Raises ``UnusableInput``."""
    if groups is None:
        return None
    try:
        given = column_or_1d(groups)
        assert_all_finite(given, input_name="groups")
    except ValueError as error:
        raise UnusableInput(f"groups can't be used ({error}); give one value an image") from error
    if len(given) != images:
        raise UnusableInput(f"X has {images} images and groups {len(given)} values; give one value an image")
    return np.unique(given, return_inverse=True)[1].astype(np.int64)
