"""Studies of tuned models: which block to tune, by which method, and on how few images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import numpy as np

from tightframe.backbone import Backbone
from tightframe.images import ImageSplits
from tightframe.row import Row
from tightframe.studies.evidence import LEAST_SHARE, Claim, Statistic, among, gains, if_known, ranks_within
from tightframe.studies.lab import Lab, few
from tightframe.studies.study import Point, declared

UNIT = ("model", "data", "seed")


def _given(lab: Lab) -> Iterator[tuple[Row, ImageSplits, Backbone, int]]:
    """Every seed, dataset and model, with the labels of its points."""
    for seed, data, backbone in product(lab.seeds, lab.data, lab.models):
        yield {"data": data.name, "model": backbone.name, "seed": seed}, data, backbone, seed


def _sampled(lab: Lab, data: ImageSplits, seed: int) -> ImageSplits:
    """The dataset with the scale's training images per class; as it is if the scale says nothing or it has fewer."""
    return (few(data, lab.scale.per_class, seed) or data) if lab.scale.per_class else data


def _blocks(lab: Lab) -> Iterator[Point]:
    """Some blocks of each model, spread evenly over its depth, the last among them."""
    for labels, data, backbone, seed in _given(lab):
        images, count = _sampled(lab, data, seed), len(backbone.layers)
        for index in sorted({int(place) for place in np.linspace(0, count - 1, min(count, lab.scale.blocks)).round()}):
            yield Point(labels | {"position": index + 1}, partial(_block, lab, images, backbone, index, seed))


def _block(lab: Lab, data: ImageSplits, backbone: Backbone, index: int, seed: int) -> list[Row]:
    block, depth = backbone.layers[index].name, (index + 1) / len(backbone.layers)
    metrics = lab.tune(data, backbone, block, seed)
    return [{"block": block, "depth": depth} | {key: metrics[key] for key in METRICS}]


_deeper = partial(ranks_within, score="depth", within=UNIT)
_collapsed = partial(ranks_within, score="-nc1", truth="test_accuracy", within=UNIT)
TUNED_LAYER = declared(
    "tuned-layer",
    _blocks,
    [
        _collapsed("the more collapsed the penultimate features after tuning, the higher the accuracy"),
        _deeper("the deeper the tuned block, the higher the accuracy", truth="test_accuracy"),
        _deeper("the deeper the tuned block, the more collapsed the penultimate features", truth="-nc1"),
    ],
)


OTHERS = {"full": "full fine-tuning", "linear": "the linear probe", "layer": "tuning the block alone (Layer FT)"}
FURTHER = {"lora": "LoRA", "bitfit": "BitFit", "norm": "tuning the normalization layers", "lp-ft": "LP-FT"}
"""What SCL is compared with: the paper's methods, and those that only some scales have."""
METRICS = ("test_accuracy", "train_accuracy", "nc1", "trainable_share", "seconds", "lr")
KEPT = ("method", "block", *METRICS, "trainable_parameters", "bytes", "error")
NOT_BEHIND = Statistic("paired difference + 0.5", LEAST_SHARE, share=True)
_scl = partial(gains, value="test_accuracy", by="method", first=["scl"])
_not_behind = partial(_scl, pairs=UNIT, statistic=NOT_BEHIND, handicap=LEAST_SHARE)


def _by_method(lab: Lab, labels: Row, data: ImageSplits, backbone: Backbone, seed: int) -> list[Row]:
    rows = lab.compare(labels, data, backbone, seed)
    return [{key: row[key] for key in KEPT if key in row} for row in rows]


def _ahead(pairs: Sequence[str]) -> tuple[Claim, ...]:
    """By how much SCL is more accurate than each other method."""

    def than(method: str, name: str) -> Claim:
        return _scl(f"SCL is more accurate than {name}", second=[method], pairs=pairs)

    further = (if_known(than(method, name)) for method, name in FURTHER.items())
    return *(than(method, name) for method, name in OTHERS.items()), *further


def _methods(lab: Lab) -> Iterator[Point]:
    for labels, data, backbone, seed in _given(lab):
        images = _sampled(lab, data, seed)
        yield Point(labels, partial(_by_method, lab, labels, images, backbone, seed))


METHODS = declared(
    "methods",
    _methods,
    [
        _not_behind("SCL is at least as accurate as full fine-tuning, to within half a point", second=["full"]),
        *_ahead(UNIT),
        _collapsed("across methods, the more collapsed the penultimate features, the higher the accuracy"),
    ],
)


FEW_CLASSES, MANY_CLASSES = (3, 10, 32, 100, 316), (7, 17, 38, 87, 200)
"""The paper's numbers of images per class of CIFAR-10 and of CIFAR-100."""
MANY = 20
SCARCE_UNIT = ("model", "data", "shots", "seed")


def _shots(lab: Lab) -> Iterator[Point]:
    """As many images per class as in the paper, where there are that many and they are not too many in all."""
    for given, data, backbone, seed in _given(lab):
        for shots in FEW_CLASSES if len(data.classes) <= MANY else MANY_CLASSES:
            images, labels = few(data, shots, seed), given | {"shots": shots}
            if images is not None and len(images.train) <= lab.scale.max_images:
                yield Point(labels, partial(_by_method, lab, labels, images, backbone, seed))


def _with_drop(rows: Sequence[Row]) -> list[Row]:
    return [row | {"drop": row["train_accuracy"] - row["test_accuracy"]} for row in rows]


_drop = partial(gains, value="drop", by="method", first=["full"], second=["scl"], pairs=SCARCE_UNIT)
_overfits = _drop("full fine-tuning loses more accuracy from training to test images than SCL")
_than_full, *_than_others = _ahead(SCARCE_UNIT)
SCARCE_DATA = declared("scarce-data", _shots, [_than_full, *among(_with_drop, _overfits), *_than_others])
