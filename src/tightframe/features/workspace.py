"""What is computed once for (images, backbone) and shared by jobs, methods and folds.

A workspace holds how models run (device, precision, pooling, progress), so that nothing else hands that on. It gives
four things, each computed in the fewest passes and kept in memory or in a folder: ``features``, ``moments``,
``block_inputs`` and ``remember``. Several processes may share the folder.
"""

from __future__ import annotations

import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tightframe.backbone import PENULTIMATE, SPREAD, Backbone, Preprocessing
from tightframe.engine.choice import engine_of
from tightframe.engine.engine import Engine, Here
from tightframe.engine.stages import Stages, fingerprint_of
from tightframe.features.capture import Capture
from tightframe.features.extract import Features, feature_key, safe_precision
from tightframe.features.inputs import KeptInputs, PixelInputs, Views
from tightframe.features.moments import ClassMoments
from tightframe.features.passes import Found, Gathered, ReadLayers, outputs, parts_of, sample_of
from tightframe.features.pixels import Pixels
from tightframe.features.precision import Precision, device_of, on_device
from tightframe.features.store import FeatureStore, Kept
from tightframe.features.taps import Pool, pooling_of
from tightframe.images import Images
from tightframe.processes import is_first
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
        engine: Where models run: local, ray, or ray://ADDRESS:PORT; TIGHTFRAME_ENGINE by default.
        workers: Processes to share the work; with Ray one a GPU or processor by default.
        batch_size: Images in one forward pass.
        progress: Shows work going on.

    Raises:
        SettingsError: no such device, precision, pooling or engine.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        pool: Pool = "auto",
        engine: str | Engine = "",
        workers: int | None = None,
        batch_size: int = BATCH_SIZE,
        progress: Progress = silent,
    ):
        self.folder = Path(folder) if folder is not None else None
        self.device = device_of(device)
        self.precision, self.pool, self.batch_size, self.progress = precision, pool, batch_size, progress
        self.engine = engine if isinstance(engine, Engine) else engine_of(engine, workers)
        self._asked = device  # which another process may have where this one has not
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
        return Workspace(folder, engine=self.engine, progress=self.progress, **self._how)

    def __reduce__(self) -> tuple[Callable[[], Workspace], tuple[()]]:
        """Sent to another process it works there alone, and has in common with this one what is in its folder."""
        return partial(Workspace, self.folder and self.folder.absolute(), engine="local", **self._how), ()

    @property
    def _how(self) -> dict[str, Any]:
        named = {"device": self._asked, "precision": self.precision, "pool": self.pool}
        return named | {"batch_size": self.batch_size}

    def features(
        self, backbone: Backbone, images: Images, layers: Sequence[str] | None = None, most: int | None = None
    ) -> Features:
        """Features of ``images`` at ``layers`` (all blocks and the penultimate features, unless named).

        One pass computes all those that are not kept; the engine's workers share it.

        Args:
            backbone: that is run.
            images: that it is run on.
            layers: names.
            most: keep features of no more images than that, drawn by a hash of their identity; class moments are of
                all of them all the same, and memory does not grow with the number of images.

        Raises:
            BadImage: an image can't be decoded.
            LayerNotFound: a name in ``layers`` is not a layer.
            WorkerLost: no worker lived through a part of the pass.
        """
        names = tuple(layers) if layers is not None else every_layer(backbone)
        sampled = most if most is not None and most < len(images) else None
        keys = self._keys(backbone, images, names, sampled)
        found = {name: self._store.find(key) for name, key in keys.items()}
        missing = [name for name, kept in found.items() if kept is None]
        if missing:
            more = () if layers is not None or sampled else self._unread(backbone, images, names)
            found |= self._pass(backbone, images, [*missing, *more], most=sampled)[0]
        kept = {name: found[name] for name in names}
        return self._read(backbone, images, {name: one for name, one in kept.items() if one is not None}, sampled)

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

    def _keys(
        self, backbone: Backbone, images: Images, names: Sequence[str], most: int | None = None
    ) -> dict[str, dict[str, Any]]:
        how, precision = pooling_of(backbone, self.pool), self.precision_for(backbone, images)
        keys = {name: feature_key(backbone, images, backbone.layer(name).name, how, precision) for name in names}
        return keys if most is None else {name: key | {"most": most} for name, key in keys.items()}

    def _read(self, backbone: Backbone, images: Images, kept: dict[str, Kept], most: int | None) -> Features:
        """What was kept, as one mapping; moments are shared while the same images and backbone are asked for."""
        precision, how = self.precision_for(backbone, images), pooling_of(backbone, self.pool)
        name = "|".join((backbone.fingerprint, images.fingerprint, how, precision, str(most)))
        if name not in self._moments:
            self._moments = {name: {}}
        return Features(
            {layer: one.read for layer, one in kept.items()},
            images if most is None else images.subset(self._sample(images, most)),
            self._moments[name],
            folded={layer: one.moments for layer, one in kept.items() if one.moments is not None},
            total=len(images),
            precision=precision,
            pool=how,
            seconds=max((one.seconds for one in kept.values()), default=0.0),
        )

    def _sample(self, images: Images, most: int) -> np.ndarray:
        return self.once(("sample", images.fingerprint, most), lambda: sample_of(images, most))

    def _pass(
        self,
        backbone: Backbone,
        images: Images,
        layers: Sequence[str],
        blocks: Sequence[str] = (),
        budget_gb: float = 0.0,
        augment: Views | None = None,
        views: int = 1,
        most: int | None = None,
    ) -> tuple[dict[str, Kept], dict[str, KeptInputs]]:
        """Features of ``layers`` and what goes into ``blocks``, from one pass a view."""
        keys = self._keys(backbone, images, layers, most)
        if blocks:
            return self._captured(backbone, images, keys, blocks, budget_gb, augment, views)
        name = fingerprint_of([self.batch_size, sorted(keys.items())])[:32]  # parts are whole batches
        with self.stages.held(f"pass {name}"):  # of several runs at the same, one computes
            known = {layer: self._store.find(key) for layer, key in keys.items()}
            done = {layer: kept for layer, kept in known.items() if kept is not None}
            if len(done) == len(keys):
                return done, {}
            with self._place(name, most is not None) as place:
                return self._gathered(backbone, images, keys, place, most), {}

    @contextmanager
    def _place(self, name: str, needed: bool) -> Iterator[Path | None]:
        """A folder in which parts of a pass wait for the others; none, where memory does."""
        if self.folder is not None and is_first():
            yield self.folder / "features" / f".pass-{name}"  # as hidden as what else is unfinished there
        elif needed:
            with tempfile.TemporaryDirectory(prefix="tightframe-") as folder:
                yield Path(folder)
        else:
            yield None

    def _gathered(
        self, backbone: Backbone, images: Images, keys: dict[str, Any], place: Path | None, most: int | None
    ) -> dict[str, Kept]:
        """Features of the layers of ``keys``, and class moments where only ``most`` images' features are kept."""
        started, layers = time.perf_counter(), tuple(keys)
        mask = np.zeros(len(images), dtype=bool)
        mask[slice(None) if most is None else self._sample(images, most)] = True
        gathered = Gathered(parts_of(images, mask, self.batch_size), place, most is not None)
        precision = self.precision_for(backbone, images)
        work = ReadLayers(backbone, layers, self.pool, precision, self._asked, self.batch_size, most is not None)
        for index, found in self._found(work, images, gathered):
            gathered.add(index, found)
        with self._store.writer(keys) as writer:
            for rows in gathered.rows():
                writer.add(rows)
            kept = writer.finish(time.perf_counter() - started, gathered.moments())
        gathered.clear()
        return kept

    def _found(self, work: ReadLayers, images: Images, gathered: Gathered) -> Iterator[tuple[int, Found]]:
        """What the model says of the parts that are missing, as it comes."""
        missing, title = gathered.missing(), f"{work.backbone.name} on {images.name}"
        parts = [gathered.parts[index] for index in missing]
        if not isinstance(self.engine, Here):
            answers = self.engine.run(work, parts)
            for answer in self.progress(answers, f"{title}, parts by {self.engine.workers} workers", len(parts)):
                yield missing[answer.index], answer.get()
            return
        if not parts:
            return
        starts = np.cumsum([0, *(len(part.images) for part in gathered.parts)])
        order = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in missing])
        wants = work.backbone.preprocessing
        pixels = Pixels(images, wants, keep_bytes=0) if work.moments else self.pixels(images, wants)
        batches = PixelInputs(pixels, device=self.device).batches(order, self.batch_size)
        shown = self.progress(batches, title, -(-len(order) // self.batch_size))
        yield from zip(missing, work.over(shown, parts), strict=True)

    def _captured(
        self,
        backbone: Backbone,
        images: Images,
        keys: dict[str, Any],
        blocks: Sequence[str],
        budget_gb: float,
        augment: Views | None,
        views: int,
    ) -> tuple[dict[str, Kept], dict[str, KeptInputs]]:
        precision, module = self.precision_for(backbone, images), on_device(backbone.module, self.device)
        inputs = PixelInputs(self.pixels(images, backbone.preprocessing), augment, self.device)
        capture = Capture(module, blocks, len(images), views, budget_gb)
        tap = {*keys, *(block for block in blocks if block == PENULTIMATE)}
        started, steps = time.perf_counter(), -(-len(images) // self.batch_size)
        with self._store.writer(keys) as writer, capture.listening():
            for view in range(views):
                every = np.full(len(images), view)
                batches = inputs.batches(range(len(images)), self.batch_size, every)
                title = f"{backbone.name} on {images.name}" + (f", view {view + 1} of {views}" if view else "")
                shown = self.progress(batches, title, steps)
                for indices, read in outputs(backbone, shown, tap, self.pool, self.device, precision):
                    if view == 0:
                        writer.add({name: read[name].cpu().numpy() for name in keys})
                    capture.add(view, indices, read.get(PENULTIMATE) if PENULTIMATE in blocks else None)
            seconds = time.perf_counter() - started
            return (writer.finish(seconds) if keys else {}), capture.finish()


def every_layer(backbone: Backbone) -> tuple[str, ...]:
    """Names of all blocks in the order in which they run, and of the penultimate features."""
    return (*(layer.name for layer in backbone.layers), PENULTIMATE)


def read_in_closed_form(backbone: Backbone, pool: Pool = "auto") -> tuple[str, ...]:
    """Names of all that discriminants read: every layer and, with pool ``"auto"``, how its maps vary over space."""
    spread = {layer.name for layer in backbone.layers if layer.has_spread and pool == "auto"}
    both = ((name, f"{name}{SPREAD}") if name in spread else (name,) for name in every_layer(backbone))
    return tuple(name for names in both for name in names)
