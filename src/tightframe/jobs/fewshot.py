"""How well a frozen model tells new classes apart from a few images of each: the field's few-shot evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.errors import SettingsError
from tightframe.features.moments import ClassMoments
from tightframe.features.workspace import Workspace
from tightframe.images import Images, ImageSplits
from tightframe.metrics.collapse import cautions, nc1
from tightframe.metrics.correction import corrected
from tightframe.probes.episodes import Episodes, accuracies, draw, mean_and_margin
from tightframe.progress import Progress
from tightframe.report.result import Result
from tightframe.row import Row

READING = (
    "intervals are over episodes, which share these images and classes: they don't say how other images or classes "
    "would do"
)


def fewshot(
    data: ImageSplits | Images,
    backbone: Backbone,
    *,
    ways: int = 5,
    shots: Sequence[int] = (1, 5),
    episodes: int = 600,
    queries: int = 15,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    workspace: Workspace | None = None,
) -> Result:
    """Evaluate a model on few-shot episodes: new classes told apart from a few images of each.

    Training and test images are put together: every episode draws its own classes and images, and learns from none of
    a group that it is judged on. Logistic regression
    follows Tian et al. (ECCV 2020), but for their augmented copies of the support images; see ``metrics.episodes``.

    Args:
        data: Images of classes that the model was not trained on.
        backbone: The pretrained model; it stays as it is.
        ways: Classes in one episode.
        shots: Images of each class to learn from; one or more numbers, whose episodes share classes and queries.
        episodes: Number of episodes.
        queries: Images of each class to classify in an episode.
        classes: Draw from these classes only: names, a file with one name a line, or the split of a benchmark such as
            cifar-fs:test.
        seed: Seed of the episodes.
        workspace: Where and how the backbone runs, and what was computed before.

    Returns:
        A row for each number of shots and classifier: ``shots``, ``classifier``, ``accuracy`` with ``margin``,
        half the length of its 95 % interval over episodes, and the interval's ends, ``accuracy_low`` and
        ``accuracy_high``; beside, ``nc1`` of the features over all classes and ``nc1_corrected``, or None and a bound
        from below in ``nc1_corrected_low`` (see ``measure``).
    """
    workspace = workspace or Workspace()
    parts = _parts(data, classes)
    kept, labels = np.unique(np.concatenate([part.labels for part in parts]), return_inverse=True)
    counts = _counts(shots)
    groups = reduce(Images.joined, parts).groups
    drawn = draw(labels, ways, counts[-1], queries, episodes, seed, groups)
    passes = [workspace.features(backbone, part, [PENULTIMATE]) for part in parts]
    features = np.concatenate([found[PENULTIMATE] for found in passes])
    moments = ClassMoments.from_features(features, labels, len(kept))
    same = {"model": backbone.name, "ways": ways, "queries": queries, "episodes": episodes, **_collapse(moments)}
    rows = _rows(features, drawn, counts, same, workspace.progress)
    settings = {
        "data": data.name,
        "images": len(labels),
        "classes": [parts[0].classes[label] for label in kept],
        "origin": backbone.origin,
        "ways": ways,
        "shots": counts,
        "episodes": episodes,
        "queries": queries,
        "pool": passes[0].pool,
        "precision": passes[0].precision,
        "seed": seed,
    }
    notes = [*(data.notes if isinstance(data, ImageSplits) else []), *_left_out(parts, labels, counts[-1] + queries)]
    return Result("fewshot", rows, settings, [*notes, READING, *cautions(moments)])


def _parts(data: ImageSplits | Images, classes: Sequence[str] | None) -> list[Images]:
    """Training and test images of these classes, where there are any."""
    splits = [data.train, data.test] if isinstance(data, ImageSplits) else [data]
    parts = [part if classes is None else part.of_classes(classes) for part in splits if part is not None]
    return [part for part in parts if len(part)] or parts[:1]


def _counts(shots: Sequence[int]) -> list[int]:
    """Numbers of shots, each once, ascending."""
    if not shots or min(shots) < 1:
        raise SettingsError(f"shots must be numbers of 1 or more, not {list(shots)}; try 1 and 5")
    return sorted(set(shots))


def _left_out(parts: list[Images], labels: np.ndarray, least: int) -> list[str]:
    """A note on classes that have too few images for an episode."""
    present = np.unique(np.concatenate([part.labels for part in parts]))
    small = [parts[0].classes[label] for label in present[np.bincount(labels) < least]]
    if not small:
        return []
    named = ", ".join(small[:5]) + (", …" if len(small) > 5 else "")
    return [f"{len(small)} of {len(present)} classes have fewer than {least} images and are in no episode: {named}"]


def _collapse(moments: ClassMoments) -> Row:
    many = corrected(moments).nc1
    row: Row = {"nc1": nc1(moments), "nc1_corrected": many.value}
    return row if many.value is not None else row | {"nc1_corrected_low": many.lower}


def _rows(features: np.ndarray, drawn: Episodes, counts: list[int], same: Row, progress: Progress) -> list[Row]:
    """A row for each number of shots and classifier."""
    rows: list[Row] = []
    for shots in counts:
        for classifier, right in accuracies(features, drawn.with_shots(shots), progress=progress).items():
            mean, margin = mean_and_margin(right)
            rows.append(
                {
                    "shots": shots,
                    "classifier": classifier,
                    "accuracy": mean,
                    "margin": margin,
                    "accuracy_low": mean - margin,
                    "accuracy_high": mean + margin,
                    **same,
                }
            )
    return rows
