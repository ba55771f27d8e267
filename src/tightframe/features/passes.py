"""A pass over images in parts, which several processes may run, and its gathering into one.

Parts are the same whoever runs them, and are put together in one fixed order: what comes out is the same to the bit,
whatever the number of workers and the order in which they end. What is gathered in a folder is gone on with there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tightframe.backbone import OUTPUT, Backbone
from tightframe.errors import MeasureError
from tightframe.features.inputs import PixelInputs
from tightframe.features.moments import FIELDS, ClassMoments
from tightframe.features.pixels import Pixels
from tightframe.features.precision import autocast, device_of, on_device
from tightframe.features.taps import Pool, tapped
from tightframe.files import write_tensors
from tightframe.images import Images

PARTS = 32
"""Of a pass, or more where they would hold more than ``LARGEST`` images."""
LARGEST = 8192
ROWS = 2048
"""Features that are folded into moments at a time."""
FAN_IN = 8
"""Moments that are merged at a time."""
SAME_BATCH = 2
"""Times that a part is tried with the batch size asked for; then with half of it."""


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive images of a pass.

    Attributes:
        images: n of them.
        kept: mask (n,) of those whose features are kept.
    """

    images: Images
    kept: np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """What a model says of a part.

    Attributes:
        rows: kept features of each layer, float32 (kept, d).
        moments: of the features of all its images, by layer, where they are asked for.
        counts: its images by class (K,).
        digest: a hash of their identities, in order.
    """

    rows: dict[str, np.ndarray]
    moments: dict[str, ClassMoments]
    counts: np.ndarray
    digest: str


@dataclass(frozen=True, eq=False)
class ReadLayers:
    """The work of a pass: a model runs on parts, and its layers are read.

    Attributes:
        layers: names.
        precision: ``"float32"`` or ``"bfloat16"``.
        device: as for ``Workspace``.
        moments: whether class moments are wanted.
    """

    backbone: Backbone
    layers: tuple[str, ...]
    pool: Pool
    precision: str
    device: str
    batch_size: int
    moments: bool = False

    def do(self, part: Part, attempt: int) -> Found:
        """What the model says of one part."""
        size = batch_of(self.batch_size, attempt)
        pixels = Pixels(part.images, self.backbone.preprocessing, keep_bytes=0)
        batches = PixelInputs(pixels, device=device_of(self.device)).batches(range(len(part.images)), size)
        return next(self.over(batches, [part]))

    def over(self, batches: Iterable[tuple[list[int], Tensor]], parts: Sequence[Part]) -> Iterator[Found]:
        """What the model says of each of ``parts``, of which no batch straddles two."""
        device, ahead = device_of(self.device), iter(parts)
        part = next(ahead)
        gathering = _Gathering(self.layers, self.moments, part)
        for _, read in outputs(self.backbone, batches, self.layers, self.pool, device, self.precision):
            gathering.add(read)
            if gathering.seen == len(part.images):
                yield gathering.finish()
                if (following := next(ahead, None)) is None:
                    return
                part, gathering = following, _Gathering(self.layers, self.moments, following)


def outputs(
    backbone: Backbone,
    batches: Iterable[tuple[list[int], Tensor]],
    layers: Iterable[str],
    pool: Pool,
    device: torch.device,
    precision: str,
) -> Iterator[tuple[list[int], Mapping[str, Tensor]]]:
    """Indices and pooled outputs (b, d) of layers on the device, batch by batch."""
    module = on_device(backbone.module, device)
    with tapped(backbone, layers, pool) as read:
        for indices, batch in batches:
            with torch.inference_mode(), autocast(device, precision):
                module(batch)
            yield indices, read


class _Gathering:
    """Features of one part, on their way to rows and moments. Only rows that are kept leave the device."""

    def __init__(self, layers: Sequence[str], moments: bool, part: Part):
        self.part, self.seen = part, 0
        self._rows: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
        self._folded = [layer for layer in layers if moments and layer != OUTPUT]
        self._waiting: dict[str, list[Tensor]] = {layer: [] for layer in self._folded}
        self._since, self._moments = 0, dict[str, ClassMoments]()

    def add(self, read: Mapping[str, Tensor]) -> None:
        """One more batch."""
        size = len(next(read[layer] for layer in self._rows))
        rows = np.flatnonzero(self.part.kept[self.seen : self.seen + size])
        for layer, kept in self._rows.items():
            values = read[layer].float()
            if layer in self._waiting:
                self._waiting[layer].append(values.cpu() if values.device.type == "mps" else values)  # has no float64
            kept.append((values if len(rows) == size else values[torch.from_numpy(rows)]).cpu().numpy())
        self.seen += size
        if self.seen - self._since >= ROWS:
            self._fold()

    def finish(self) -> Found:
        """All of the part."""
        self._fold()
        images = self.part.images
        counts = np.bincount(images.labels, minlength=len(images.classes))
        rows = {layer: np.concatenate(parts) for layer, parts in self._rows.items()}
        moments = {layer: _on_cpu(one) for layer, one in self._moments.items()}
        return Found(rows, moments, counts, identity(images))

    def _fold(self) -> None:
        labels = torch.tensor(self.part.images.labels[self._since : self.seen])
        for layer, waiting in self._waiting.items():
            if not waiting:
                continue
            values = torch.cat(waiting)
            known = self._moments.get(layer)
            if known is None:
                known = ClassMoments.zero(len(self.part.images.classes), values.shape[1], values.device)
            self._moments[layer] = known.update(values, labels)
            waiting.clear()
        self._since = self.seen


def batch_of(size: int, attempt: int) -> int:
    """Images in a batch where ``size`` are asked for, when a part is tried for the ``attempt``-th time (from 0)."""
    return size if attempt < SAME_BATCH else max(1, size // 2)


def parts_of(images: Images, kept: np.ndarray, batch_size: int) -> list[Part]:
    """``images`` in parts of whole batches: as many and as large as the numbers of images and of a batch say."""
    batches = max(1, min(-(-len(images) // (PARTS * batch_size)), LARGEST // batch_size))
    size = batches * batch_size
    ranges = [np.arange(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    return [Part(images.subset(rows), kept[rows]) for rows in ranges]


def sample_of(images: Images, most: int) -> np.ndarray:
    """Rows of ``most`` of the images, those whose identities have the smallest hashes; in order.

    A sample of a union is a sample of the samples, so parts need not know of each other.
    """
    if len(images) <= most:
        return np.arange(len(images))
    hashes = [_hash(name, digest) for name, digest in zip(images.identifiers, images.digests, strict=True)]
    return np.sort(np.argsort(np.array(hashes), kind="stable")[:most])


def identity(images: Images) -> str:
    """A hash of the identities of the images, in order."""
    digest = blake2b(digest_size=16)
    for name, content, label in zip(images.identifiers, images.digests, images.labels.tolist(), strict=True):
        digest.update(repr((name, content, label)).encode())
    return digest.hexdigest()


class Gathered:
    """What is known of the parts of a pass: in ``folder``, where an interrupted pass goes on, or in memory.

    Moments are merged as they come, ``FAN_IN`` neighbors at a time, so that there are never many of them.
    """

    def __init__(self, parts: Sequence[Part], folder: Path | None, moments: bool):
        self.parts, self.folder, self._moments = parts, folder, moments
        self._memory: dict[int, dict[str, np.ndarray]] = {}
        self._sizes = [len(parts)]  # nodes of every level of the tree
        while self._sizes[-1] > 1:
            self._sizes.append(-(-self._sizes[-1] // FAN_IN))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def missing(self) -> list[int]:
        """Parts that are still to be run."""
        return [index for index in range(len(self.parts)) if not self._known(index)]

    def add(self, index: int, found: Found) -> None:
        """What was found of part ``index``. Raises ``MeasureError`` if that is not all of it, once."""
        part = self.parts[index]
        expected = np.bincount(part.images.labels, minlength=len(part.images.classes))
        rows = {len(values) for values in found.rows.values()}
        folded = [one.counts.numpy() for one in found.moments.values()]
        counts = [found.counts, *folded]
        if found.digest != identity(part.images) or rows != {int(part.kept.sum())}:
            raise MeasureError(f"part {index + 1} of {part.images.name} came back with other images than it was sent")
        if any(not np.array_equal(one, expected) for one in counts):
            raise MeasureError(f"part {index + 1} of {part.images.name} came back with images counted twice, or not")
        if self.folder is None:
            self._memory[index] = found.rows
            return
        write_tensors(self._rows(index), {name: torch.tensor(rows) for name, rows in found.rows.items()})
        if self._moments:
            _write(self._node(0, index), found.moments)
            self._settle(0, index)

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """Kept features of each part, in order; parts that are in memory are given away."""
        for index in range(len(self.parts)):
            if self.folder is None:
                yield self._memory.pop(index)
                continue
            with safe_open(str(self._rows(index)), "np") as file:
                yield {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)

    def moments(self) -> dict[str, ClassMoments]:
        """Of all images, by layer."""
        if not self._moments:
            return {}
        for index in range(0, len(self.parts), FAN_IN):  # what an interruption left unmerged
            self._settle(0, index)
        return _read(self._node(len(self._sizes) - 1, 0))

    def clear(self) -> None:
        """All of it is kept elsewhere by now."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _known(self, index: int) -> bool:
        if self.folder is None:
            return index in self._memory
        if not _whole(self._rows(index)):
            return False
        nodes = [self._node(level, index // FAN_IN**level) for level in range(len(self._sizes))]
        return not self._moments or any(map(_whole, nodes))

    def _settle(self, level: int, index: int) -> None:
        """Merge the group of this node if it is whole, and the groups above it."""
        if level + 1 == len(self._sizes):
            return
        above = index // FAN_IN
        group = range(above * FAN_IN, min((above + 1) * FAN_IN, self._sizes[level]))
        members = [self._node(level, member) for member in group]
        parent = self._node(level + 1, above)
        if not parent.is_file():
            if not all(member.is_file() for member in members):
                return
            _write(parent, _merged([_read(member) for member in members]))
        for member in members:
            member.unlink(missing_ok=True)
        self._settle(level + 1, above)

    def _rows(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"rows-{index:06d}.safetensors"

    def _node(self, level: int, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"moments-{level}-{index:06d}.safetensors"


def _merged(members: list[dict[str, ClassMoments]]) -> dict[str, ClassMoments]:
    return {layer: reduce(ClassMoments.merge, [member[layer] for member in members]) for layer in members[0]}


def _write(path: Path, moments: Mapping[str, ClassMoments]) -> None:
    write_tensors(path, {f"{layer}/{name}": getattr(one, name) for layer, one in moments.items() for name in FIELDS})


def _read(path: Path) -> dict[str, ClassMoments]:
    with safe_open(str(path), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    layers = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    return {layer: ClassMoments(**{name: tensors[f"{layer}/{name}"] for name in FIELDS}) for layer in layers}


def _whole(path: Path) -> bool:
    try:
        with safe_open(str(path), "np"):
            return True
    except (OSError, SafetensorError):
        return False


def _on_cpu(moments: ClassMoments) -> ClassMoments:
    return replace(moments, **{name: getattr(moments, name).cpu() for name in FIELDS})


def _hash(name: str, digest: str) -> int:
    return int.from_bytes(blake2b(repr((name, digest)).encode(), digest_size=8).digest(), "big") >> 1
