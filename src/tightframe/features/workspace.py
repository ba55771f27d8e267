"""What is computed once for (images, backbone) and shared by jobs, methods and folds.

A workspace holds how models run (device, precision, pooling, progress), so that nothing else hands that on. It gives
four things, each computed in the fewest passes and kept in memory or in a folder: ``features``, ``moments``,
``block_inputs`` and ``remember``. Several processes may share the folder.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from tightframe.backbone import PENULTIMATE, SPREAD, Backbone, Preprocessing
from tightframe.features.capture import Capture
from tightframe.features.extract import Features, feature_key, safe_precision
from tightframe.features.inputs import KeptInputs, PixelInputs, Views
from tightframe.features.moments import ClassMoments
from tightframe.features.pixels import Pixels
from tightframe.features.precision import Precision, autocast, device_of, on_device
from tightframe.features.stages import Stages
from tightframe.features.store import FeatureStore, Kept
from tightframe.features.taps import Pool, pooling_of, tapped
from tightframe.images import Images
from tightframe.progress import Progress, silent

BATCH_SIZE = 64
ONCE = 16
"""Values kept in memory, for as many models."""
DECODED_BYTES = 2**30
"""Decoded images kept for the next backbone, which may want another size."""

Made = TypeVar("Made")


class Workspace:
    """Features, class moments, block inputs and results of stages, each computed once.

    Args:
        folder: Keep features in this folder and reuse them; in memory by default.
        device: Where models run: auto (a GPU if there is one), cpu, cuda, cuda:1, ….
        precision: auto (bfloat16 where fast and safe), float32 or bfloat16.
        pool: How tokens become one vector: auto (as the model's own head does it; discriminants also read how maps vary
            over space), mean or cls.
        batch_size: Images in one forward pass.
        progress: Shows work going on.

    Raises:
        SettingsError: no such device, precision or pooling.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        pool: Pool = "auto",
        batch_size: int = BATCH_SIZE,
        progress: Progress = silent,
    ):
        self.folder = Path(folder) if folder is not None else None
        self.device = device_of(device)
        self.precision, self.pool, self.batch_size, self.progress = precision, pool, batch_size, progress
        self.stages = Stages(self.folder)
        self.remember = self.stages.remember
        self._store = FeatureStore(self.folder / "features" if self.folder is not None else None)
        self._moments: dict[str, dict[str, ClassMoments]] = {}
        self._made: OrderedDict[Any, Any] = OrderedDict()
        self._inputs: tuple[Any, dict[str, KeptInputs]] = (None, {})
        self._pixels: dict[str, Pixels] = {}
        self._precisions: dict[str, str] = {}

    def in_folder(self, folder: Path) -> Workspace:
        """The same workspace, or, if it keeps everything in memory, one like it that keeps everything in ``folder``."""
        if self.folder is not None:
            return self
        return Workspace(
            folder,
            device=str(self.device),
            precision=self.precision,
            pool=self.pool,
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def features(self, backbone: Backbone, images: Images, layers: Sequence[str] | None = None) -> Features:
        """Features of ``images`` at ``layers`` (all blocks and the penultimate features, unless named).

        One pass computes all those that are not kept.

        Raises:
            BadImage: an image can't be decoded.
            LayerNotFound: a name in ``layers`` is not a layer.
        """
        names = tuple(layers) if layers is not None else every_layer(backbone)
        keys = self._keys(backbone, images, names)
        found = {name: self._store.find(key) for name, key in keys.items()}
        missing = [name for name, kept in found.items() if kept is None]
        if missing:
            more = () if layers is not None else self._unread(backbone, images, names)
            found |= self._pass(backbone, images, [*missing, *more])[0]
            found = {name: found[name] for name in names}
        return self._read(backbone, images, {name: kept for name, kept in found.items() if kept is not None})

    def keeps(self, backbone: Backbone, images: Images, layers: Sequence[str]) -> bool:
        """Whether features of ``images`` at all ``layers`` are kept, so that no pass is needed."""
        return all(self._store.find(key) is not None for key in self._keys(backbone, images, layers).values())

    def once(self, key: Any, make: Callable[[], Made]) -> Made:
        """What ``make`` gives, or gave before under the same ``key``: in memory, the last ``ONCE`` of them."""
        if key not in self._made:
            self._made[key] = make()
            if len(self._made) > ONCE:
                self._made.popitem(last=False)
        return self._made[key]

    def moments(self, backbone: Backbone, images: Images, layer: str = PENULTIMATE) -> ClassMoments:
        """Class moments of one layer's features."""
        return self.features(backbone, images, [layer]).moments(layer)

    def block_inputs(
        self,
        backbone: Backbone,
        images: Images,
        blocks: Sequence[str],
        *,
        budget_gb: float = 8.0,
        augment: Views | None = None,
        views: int = 1,
    ) -> dict[str, KeptInputs]:
        """What goes into each of ``blocks``, in half precision on disk; those asked for last are kept.

        The pass that collects it also computes the features of all layers that are not kept. ``"penultimate"`` stands
        for what goes into the head.

        Args:
            backbone: stays as it is.
            images: that the blocks will be trained on.
            blocks: dotted names, the most wanted first: those that ``budget_gb`` has no room for are left out.
            budget_gb: gigabytes of disk.
            augment: makes the views.
            views: of each image; view 0 is the image as it is.

        Raises:
            CannotCut: there is no room for any.
        """
        key = (*(backbone.fingerprint, images.fingerprint, self.pool, self.precision), repr(augment), views)
        if self._inputs[0] != key or not set(blocks) <= set(self._inputs[1]):
            missing = self._unread(backbone, images)
            self._inputs = (None, {})  # what was kept makes room
            self._inputs = key, self._pass(backbone, images, missing, blocks, budget_gb, augment, views)[1]
        kept = {block: inputs for block, inputs in self._inputs[1].items() if block in blocks}
        self._inputs = key, kept
        return kept

    def pixels(self, images: Images, preprocessing: Preprocessing) -> Pixels:
        """Images as a backbone with this preprocessing wants them; all that memory has room for are decoded once."""
        known = self._pixels.get(images.fingerprint)
        if known is None or known.preprocessing != preprocessing:
            decoded = known.data if known is not None else images.decoded_once(DECODED_BYTES)
            known = self._pixels[images.fingerprint] = Pixels(decoded, preprocessing)
        return known

    def precision_for(self, backbone: Backbone, images: Images) -> str:
        """The precision for ``backbone``, ``"float32"`` or ``"bfloat16"``, tried out on the first ``images`` given."""
        key = backbone.fingerprint
        if key not in self._precisions:
            on_device(backbone.module, self.device)
            inputs = PixelInputs(self.pixels(images, backbone.preprocessing), device=self.device)
            self._precisions[key] = safe_precision(backbone, inputs, self.precision)
        return self._precisions[key]

    def _unread(self, backbone: Backbone, images: Images, known: Sequence[str] = ()) -> list[str]:
        """What discriminants read and is not kept, but for what is ``known`` to be seen to."""
        names = [name for name in read_in_closed_form(backbone, self.pool) if name not in known]
        keys = self._keys(backbone, images, names)
        return [name for name, key in keys.items() if self._store.find(key) is None]

    def _keys(self, backbone: Backbone, images: Images, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        how, precision = pooling_of(backbone, self.pool), self.precision_for(backbone, images)
        return {name: feature_key(backbone, images, backbone.layer(name).name, how, precision) for name in names}

    def _read(self, backbone: Backbone, images: Images, kept: dict[str, Kept]) -> Features:
        """What was kept, as one mapping; moments are shared while the same images and backbone are asked for."""
        precision, how = self.precision_for(backbone, images), pooling_of(backbone, self.pool)
        name = "|".join((backbone.fingerprint, images.fingerprint, how, precision))
        if name not in self._moments:
            self._moments = {name: {}}
        seconds = max((one.seconds for one in kept.values()), default=0.0)
        arrays = {layer: one.read for layer, one in kept.items()}
        return Features(arrays, images, self._moments[name], precision=precision, pool=how, seconds=seconds)

    def _pass(
        self,
        backbone: Backbone,
        images: Images,
        layers: Sequence[str],
        blocks: Sequence[str] = (),
        budget_gb: float = 0.0,
        augment: Views | None = None,
        views: int = 1,
    ) -> tuple[dict[str, Kept], dict[str, KeptInputs]]:
        """Features of ``layers`` and what goes into ``blocks``, from one pass a view."""
        precision, module = self.precision_for(backbone, images), on_device(backbone.module, self.device)
        inputs = PixelInputs(self.pixels(images, backbone.preprocessing), augment, self.device)
        writer = self._store.writer(self._keys(backbone, images, layers))
        capture = Capture(module, blocks, len(images), views, budget_gb)
        tap = {*layers, *(block for block in blocks if block == PENULTIMATE)}
        started, steps = time.perf_counter(), -(-len(images) // self.batch_size)
        with (
            writer,
            tapped(backbone, tap, self.pool) as read,
            capture.listening(),
            torch.inference_mode(),
            autocast(self.device, precision),
        ):
            for view in range(views):
                every = np.full(len(images), view)
                batches = inputs.batches(range(len(images)), self.batch_size, every)
                title = f"{backbone.name} on {images.name}" + (f", view {view + 1} of {views}" if view else "")
                for indices, batch in self.progress(batches, title, steps):
                    module(batch)
                    if view == 0:
                        writer.add({name: read[name].cpu().numpy() for name in layers})
                    if blocks:
                        capture.add(view, indices, read.get(PENULTIMATE) if PENULTIMATE in blocks else None)
            seconds = time.perf_counter() - started
            return (writer.finish(seconds) if layers else {}), capture.finish()


def every_layer(backbone: Backbone) -> tuple[str, ...]:
    """Names of all blocks in the order in which they run, and of the penultimate features."""
    return (*(layer.name for layer in backbone.layers), PENULTIMATE)


def read_in_closed_form(backbone: Backbone, pool: Pool = "auto") -> tuple[str, ...]:
    """Names of all that discriminants read: every layer and, with pool ``"auto"``, how its maps vary over space."""
    spread = {layer.name for layer in backbone.layers if layer.has_spread and pool == "auto"}
    both = ((name, f"{name}{SPREAD}") if name in spread else (name,) for name in every_layer(backbone))
    return tuple(name for names in both for name in names)
