"""Studies of models pre-trained in different ways on one dataset, and what each is worth on others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.errors import DataError
from tightframe.images import ImageSplits
from tightframe.pretraining.losses import LOSSES, MANY
from tightframe.pretraining.model import MOST_LAYERS
from tightframe.probes.episodes import Episodes, accuracies, draw
from tightframe.row import Row
from tightframe.studies.evidence import SEEDS, Units, among, gains, ranks, ranks_within
from tightframe.studies.lab import Lab, Labeled, probed
from tightframe.studies.study import Point, Study, attempted, declared
from tightframe.studies.threshold import falling, rising

WAYS, SHOTS, QUERIES = 5, 5, 15
"""Of few-shot episodes."""
Choices = Callable[[Lab], Sequence[Mapping[str, Any]]]
"""Fields of ``Pretraining`` that differ from point to point."""


def _variants(choices: Choices, names: Sequence[str]) -> Callable[[Lab], Iterator[Point]]:
    """A point for every seed and way of pre-training, with a row for every dataset that is transferred to.

    A model of 0 epochs stays as it was drawn, and is made once for all seeds. ``names`` are the fields that tell
    points apart. The first dataset is the source.
    """

    def points(lab: Lab) -> Iterator[Point]:
        episodes = [_episodes(data, lab.scale.episodes) for data in lab.data[1:]]
        for seed in lab.seeds:
            for choice in choices(lab):
                how = {"epochs": lab.scale.epochs, **choice, "seed": seed}
                if how["epochs"] or not seed:
                    labels = {name: how[name] for name in names} | {"seed": seed}
                    yield Point(labels, partial(_transferred, lab, how, episodes))

    return points


def _episodes(data: ImageSplits, count: int) -> Episodes:
    """Few-shot tasks on all images of a dataset, training images first; with fewer queries where images are few."""
    assert data.test is not None  # `run_study` has seen to it
    everything = data.train.joined(data.test)
    labels = everything.labels
    sizes = np.sort(np.bincount(labels, minlength=len(data.classes)))[::-1]
    ways = min(WAYS, len(data.classes))
    queries = min(QUERIES, int(sizes[ways - 1]) - SHOTS)
    if queries < 1:
        raise DataError(f"{data.name}: {SHOTS}-shot episodes need {ways} classes of {SHOTS + 1} images; give more")
    return draw(labels, ways, SHOTS, queries, count, groups=everything.groups)


def _transferred(lab: Lab, how: Mapping[str, Any], episodes: Sequence[Episodes]) -> list[Row]:
    """A row for every dataset but the source; one that fails takes no other with it."""
    source, *others = lab.data
    backbone, known = lab.pretrain(source, how)
    made: list[Row] = []
    for data, drawn in zip(others, episodes, strict=True):
        rows = attempted(partial(_on, data, lab, backbone, drawn))
        made += [{"data": data.name} | known | row for row in rows]
    return made


def _on(data: ImageSplits, lab: Lab, backbone: Backbone, episodes: Episodes) -> list[Row]:
    """NC1 on a dataset, the accuracy of a probe, and that of logistic regression in few-shot episodes."""
    train, test = lab.features(backbone, data.train), lab.features(backbone, data.test)
    seen, unseen = train[PENULTIMATE], test[PENULTIMATE]
    (correct,) = accuracies(np.concatenate([seen, unseen]), episodes, ["logistic"]).values()
    found = probed(Labeled(seen, train.labels, train.groups), Labeled(unseen, test.labels), len(data.classes))
    return [found | {"fewshot_accuracy": float(correct.mean())}]


LOSSES_USED, FORMS = Units("loss", "losses", ("loss",)), Units("way", "ways of pre-training", ("loss", "epochs"))
"""Units of source-collapse. Another seed is not another way of pre-training."""
SHORTER = (10, 3)
"""Models are trained for all epochs, for so many times fewer, and not at all."""
LR, LRS = 0.1, {"mse": 0.2}
"""Learning rates. Where MSE is not rescaled, its gradients, means over classes, are smaller."""


def _losses_and_lengths(lab: Lab) -> list[Mapping[str, Any]]:
    epochs = lab.scale.epochs
    lengths = sorted({epochs, *(max(1, epochs // part) for part in SHORTER)})
    rates = LRS if len(lab.data[0].classes) <= MANY else {}
    trained = [{"loss": loss, "epochs": length, "lr": rates.get(loss, LR)} for loss in LOSSES for length in lengths]
    return [{"loss": "untrained", "epochs": 0}, *trained]


def _trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["epochs"]]


def _fully_trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["epochs"] == max(row["epochs"] for row in rows)]


_full = partial(ranks, within=["data", "seed"], over=LOSSES_USED)
_any = partial(ranks, truth="test_accuracy", within=["data", "seed"], over=FORMS)
SOURCE_COLLAPSE = declared(
    "source-collapse",
    _variants(_losses_and_lengths, ["loss", "epochs"]),
    [
        *among(
            _fully_trained,
            _full("fully trained: the less source collapse, the better the probe", "source_nc1", "test_accuracy"),
            _full("the same for few-shot accuracy", "source_nc1", "fewshot_accuracy"),
            _full("the same for NC1 on source test images", "source_test_nc1", "test_accuracy"),
        ),
        *among(
            _trained,
            _any("all trained models: the less source collapse, the better the probe", "source_nc1"),
            _any("all trained models: the more collapse downstream, the better the probe", "-nc1"),
        ),
        rising(FORMS),
        falling(FORMS),
    ],
)


def _graded(name: str, knob: str, levels: Sequence[int] | Sequence[float], what: str, more: str) -> Study:
    """A study of one field of ``Pretraining``, turned up from none.

    Args:
        name: of the study.
        knob: the field.
        levels: its values, rising; the first is none of it.
        what: is turned up, in words that follow "with".
        more: is more of it, in words that precede a comma.
    """
    compared = partial(gains, by=knob, first=levels[1:], second=levels[:1], pairs=["seed"], over=[SEEDS])
    models = Units("pre-trained model", "pre-trained models", (knob, "seed"))
    less = partial(ranks_within, score=knob, truth="source_nc1", within=["seed", "data"], over=[SEEDS])
    better = partial(ranks, score="source_nc1", truth="test_accuracy", within=["data"], over=models)
    return declared(
        name,
        _variants(lambda lab: [{knob: level} for level in levels], [knob]),
        [
            compared(f"with {what} the probe is more accurate", "test_accuracy"),
            compared(f"with {what} few-shot accuracy is higher", "fewshot_accuracy"),
            less(f"{more}, the less source collapse"),
            better("the less source collapse, the better the probe"),
        ],
    )


PROJECTION_HEAD = _graded(
    "projection-head", "projector", range(MOST_LAYERS + 1), "a projection head", "the deeper the projection head"
)
AUGMENTATION = _graded(
    "augmentation", "augment", (0.0, 0.25, 0.5, 1.0), "augmentation", "the stronger the augmentation"
)
