"""Studies of collapse and accuracy in pretrained models as they are: across models, layers and datasets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from tightframe.backbone import Backbone
from tightframe.data.class_lists import class_list
from tightframe.features.extract import Features
from tightframe.images import ImageSplits
from tightframe.jobs.fewshot import fewshot
from tightframe.jobs.layers import layers
from tightframe.jobs.rank import rank
from tightframe.row import Row
from tightframe.studies import evidence
from tightframe.studies.evidence import DATASETS, MODELS, Evidence, among, only, ranks, ranks_within
from tightframe.studies.lab import Lab, probed, subset
from tightframe.studies.study import Point, declared


def _pairs(rows_of: Callable[[Lab, ImageSplits, Backbone], list[Row]]) -> Callable[[Lab], Iterator[Point]]:
    """A point for every dataset and model. The side of a model's images tells kinds of models apart."""

    def points(lab: Lab) -> Iterator[Point]:
        for data, backbone in product(lab.data, lab.models):
            side = backbone.preprocessing.input_size[0]
            labels = {"data": data.name, "model": backbone.name, "side": side}
            yield Point(labels, partial(rows_of, lab, data, backbone))

    return points


BASELINES = {
    "k-NN accuracy": "knn_accuracy",
    "source accuracy": "source_accuracy",
    "MACs": "macs",
    "the number of parameters": "parameters",
    "LogME": "logme",
}


def _ranked(lab: Lab, data: ImageSplits, backbone: Backbone) -> list[Row]:
    (row,) = rank(data, [backbone], workspace=lab.workspace).rows
    keys = ("test_accuracy", "nc1", "h_score", *BASELINES.values(), "error")
    return [{key: row[key] for key in keys if key in row}]


_nc1 = partial(ranks, score="-nc1", truth="test_accuracy", over=MODELS)
DOWNSTREAM_COLLAPSE = declared(
    "downstream-collapse",
    _pairs(_ranked),
    [
        _nc1("the more collapsed downstream, the more accurate the probe", within=["data"]),
        _nc1("the same among models with the same input size", within=["data", "side"]),
        *(
            evidence.if_known(_nc1(f"NC1 ranks models better than {baseline}", within=["data"], than=column))
            for baseline, column in BASELINES.items()
        ),
    ],
)


WAYS, SHOTS = 5, (1, 5)
SPLIT = "cifar-fs:test"
"""The classes used of a dataset that has them all."""


def _fewshot(lab: Lab, data: ImageSplits, backbone: Backbone) -> list[Row]:
    published = class_list(SPLIT)
    classes = published if set(published) <= set(data.classes) else data.classes
    ways, episodes = min(WAYS, len(classes)), lab.scale.episodes
    how: dict[str, Any] = {
        "ways": ways,
        "shots": SHOTS,
        "episodes": episodes,
        "classes": classes,
        "workspace": lab.workspace,
    }
    found = [row for row in fewshot(data, backbone, **how).rows if row["classifier"] == "logistic"]
    keys = ("shots", "accuracy", "accuracy_low", "accuracy_high", "nc1", "nc1_corrected")
    return [{"classes": len(classes)} | {key: row.get(key) for key in keys} for row in found]


_new_nc1 = partial(ranks, score="-nc1", truth="accuracy", over=MODELS)
_corrected = partial(ranks, score="-nc1_corrected", truth="accuracy", than="-nc1", over=MODELS)
FEW_SHOT = declared(
    "few-shot",
    _pairs(_fewshot),
    [
        *among(
            only(shots=1), _new_nc1("the more collapsed on new classes, the higher 1-shot accuracy", within=["data"])
        ),
        *among(
            only(shots=5), _new_nc1("the more collapsed on new classes, the higher 5-shot accuracy", within=["data"])
        ),
        _new_nc1("the same among models with the same input size", within=["data", "shots", "side"]),
        _corrected("NC1 corrected for the number of images predicts accuracy better", within=["data", "shots"]),
    ],
)


PROBED = ("dimension", "nc1", "ridge_test", "logistic_test", "center_test", "knn_test")


def _layers(lab: Lab, data: ImageSplits, backbone: Backbone) -> list[Row]:
    rows = layers(data, backbone, workspace=lab.workspace).rows
    keys = ("layer", *PROBED)
    return [{"position": position} | {key: row.get(key) for key in keys} for position, row in enumerate(rows, 1)]


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Rows without layers equal to the layer before: the last block, pooled, is often what the head sees."""
    kept: list[Row] = []
    for row in rows:
        if not kept or any(kept[-1].get(key) != row.get(key) for key in ("model", "data", *PROBED)):
            kept.append(row)
    return kept


def _most_collapsed(rows: Sequence[Row]) -> Evidence:
    """How much more accurate logistic regression is at the most collapsed layer than at the last."""
    finite = [row for row in rows if row["nc1"] is not None and math.isfinite(row["nc1"])]
    cells = []
    for (model, data), rows_of in evidence.grouped(finite, ["model", "data"]).items():
        best = min(rows_of, key=lambda row: row["nc1"])
        gain = best["logistic_test"] - rows_of[-1]["logistic_test"]
        cells.append({"model": model, "data": data, evidence.VALUE: gain})
    question = "the most collapsed layer classifies better than the last"
    return evidence.mean(question, evidence.GAP, cells, [MODELS, DATASETS])


_layer_nc1 = partial(ranks_within, score="-nc1", within=["model", "data"])
LAYERS = declared(
    "layers",
    _pairs(_layers),
    among(
        distinct,
        _layer_nc1("the more collapsed a model's layer, the better logistic regression", truth="logistic_test"),
        _layer_nc1("the more collapsed a model's layer, the better a ridge probe", truth="ridge_test"),
        _layer_nc1("the more collapsed a model's layer, the better k-NN", truth="knn_test"),
        _most_collapsed,
    ),
)


WHOLE, EQUAL = "whole dataset", "equal size"


def _models(lab: Lab) -> Iterator[Point]:
    for backbone in lab.models:
        yield Point({"model": backbone.name}, partial(_samples, lab, backbone))


def _samples(lab: Lab, backbone: Backbone) -> list[Row]:
    """Each dataset as a whole, and samples with as many classes and images per class as the smallest has."""
    fewest = min(len(data.classes) for data in lab.data)
    most = min(int(np.bincount(data.train.labels).min()) for data in lab.data)
    made = []
    for data in lab.data:
        train, test = lab.features(backbone, data.train), lab.features(backbone, data.test)
        count = len(data.classes)
        made.append({"data": data.name, "sample": WHOLE} | _sample(train, test, range(count), 0))
        for draw in lab.seeds:
            classes = np.random.default_rng(draw).permutation(count)[:fewest].tolist()
            made.append({"data": data.name, "sample": EQUAL} | _sample(train, test, classes, draw, most))
    return made


def _sample(train: Features, test: Features, classes: Sequence[int], draw: int, most: int | None = None) -> Row:
    seen = subset(train, classes, luck=np.random.default_rng(draw), most=most)
    counts = {"draw": draw, "classes": len(classes), "images": len(seen.labels)}
    return counts | probed(seen, subset(test, classes), len(classes))


_data_nc1 = partial(ranks, score="-nc1", truth="test_accuracy", within=["model", "draw"], over=DATASETS)
ACROSS_DATA = declared(
    "across-data",
    _models,
    [
        *among(only(sample=WHOLE), _data_nc1("the more collapsed a dataset, the more accurate the probe")),
        *among(only(sample=EQUAL), _data_nc1("the same with equal numbers of classes and of images per class")),
    ],
)
