"""How collapsed every layer of a model is on one's own images."""

from __future__ import annotations

from math import inf, isfinite

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.decide.layers import spreads
from tightframe.features.extract import SAMPLE, Features, sampled
from tightframe.features.moments import Weighting
from tightframe.features.samples import group_numbers
from tightframe.features.workspace import Workspace
from tightframe.images import Images, ImageSplits
from tightframe.metrics.collapse import cautions
from tightframe.metrics.correction import corrected
from tightframe.metrics.folds import Folds
from tightframe.metrics.intervals import Interval, collapse_intervals, corrected_intervals
from tightframe.metrics.summary import collapse_metrics
from tightframe.models.names import tune_command
from tightframe.probes.linear import cross_validated_ridge
from tightframe.progress import Progress, silent
from tightframe.report.result import Result
from tightframe.row import Row

DRAWS = 12
"""Of which an interval around a corrected value is made; Student's t makes up for their being few."""
GROUPED = (
    "probes and their intervals go by groups; collapse metrics, their corrections and intervals take images for "
    "independent, and intervals are too narrow where images of a group are alike"
)


def measure(
    data: ImageSplits | Images,
    backbone: Backbone,
    *,
    weighting: Weighting = "class",
    seed: int = 0,
    workspace: Workspace | None = None,
) -> Result:
    """Measure how collapsed every layer of a model is on these images, with intervals.

    Rows, in order of depth and ending with the penultimate features: ``layer``, ``dimension``, ``parameters``,
    ``nc1`` and the other names of ``collapse_metrics``, each with its 95 % interval over images (``…_low``,
    ``…_high``); ``rank_between``; ``nc1_corrected``, ``cdnv_corrected`` and ``vci_corrected``, estimates of what any
    number of images would show (see ``metrics.correction``): where these images can't tell, the value is ``None``
    and ``…_low`` a bound from below. Intervals of the estimates themselves are given for the penultimate features,
    by which models are compared. ``probe_accuracy`` with ``probe_low`` … ``probe_high``.

    Args:
        data: The images.
        backbone: The pretrained model.
        weighting: Weights of classes in the spread between them: class (all alike) or sample (by their images).
        seed: Seed of the draws behind intervals.
        workspace: Where and how the backbone runs, and what was computed before.
    """
    images = data.train if isinstance(data, ImageSplits) else data
    workspace = workspace or Workspace()
    features = workspace.features(backbone, images, most=SAMPLE)
    rows = layer_rows(backbone, features, weighting, seed, workspace.progress)
    notes = list(data.notes) if isinstance(data, ImageSplits) else []
    notes += [f"{backbone.name}: {note}" for note in backbone.notes]
    notes += [reading(rows, spreads([features.moments(row["layer"]) for row in rows]))]
    notes += [*cautions(features.moments(PENULTIMATE), weighting), *sampled(features)]
    if group_numbers(images.groups, len(images)) is not None:
        notes.append(GROUPED)
    settings = {
        "data": images.name,
        "images": len(images),
        "classes": len(images.classes),
        "origin": backbone.origin,
        "weighting": weighting,
        "pool": features.pool,
        "precision": features.precision,
        "seed": seed,
    }
    return Result(
        "measure", rows, settings, notes, [tune_command(backbone.origin.get("uri", backbone.name), backbone.origin)]
    )


def layer_rows(
    backbone: Backbone, features: Features, weighting: Weighting = "class", seed: int = 0, progress: Progress = silent
) -> list[Row]:
    """One row a layer of ``features``, see ``measure``."""
    rows: list[Row] = []
    for name in progress(list(features), f"measuring {backbone.name}", len(features)):
        layer, moments = backbone.layer(name), features.moments(name)
        metrics = collapse_metrics(moments, weighting=weighting)
        folds = Folds.of(features[name], features.labels, len(features.classes), seed=seed, groups=features.groups)
        probe = cross_validated_ridge(folds)
        rows.append(
            {
                "model": backbone.name,
                "layer": name,
                "position": len(rows) + 1,
                "dimension": layer.dimension,
                "parameters": layer.parameters,
                **metrics,
                "rank_between": metrics.rank_between,
                "samples_per_class": list(metrics.samples_per_class),
                "notes": list(metrics.notes),
                **_ends(collapse_intervals(folds, weighting=weighting, seed=seed)),
                **_corrections(folds, name == PENULTIMATE, seed),
                "probe_accuracy": probe.accuracy,
                "probe_low": probe.low,
                "probe_high": probe.high,
            }
        )
    return rows


def _ends(found: dict[str, Interval], suffix: str = "") -> Row:
    ends = {f"{name}{suffix}_low": one.low for name, one in found.items()}
    return ends | {f"{name}{suffix}_high": one.high for name, one in found.items()}


def _corrections(folds: Folds, with_intervals: bool, seed: int) -> Row:
    """What any number of images would show, or a bound from below where these can't tell."""
    estimates = corrected(folds.total).by_name
    row: Row = {f"{name}_corrected": estimate.value for name, estimate in estimates.items()}
    if with_intervals:
        return row | _ends(corrected_intervals(folds, draws=DRAWS, seed=seed), "_corrected")
    return row | {f"{name}_corrected_low": one.lower for name, one in estimates.items() if one.value is None}


def reading(rows: list[Row], spread: list[float]) -> str:
    """One line on where features are most collapsed, by their ``spread`` within classes (see ``metrics.choice``)."""
    best, last = spread.index(min(spread)), len(rows) - 1
    if not isfinite(spread[best]):
        return "class means coincide at every layer: these features don't tell the classes apart at all"
    less = round(100 * (1 - spread[best] / spread[last])) if 0 < spread[last] < inf else 0
    if less < 1:
        return f"features are most collapsed where the head sees them (NC1 {rows[last]['nc1']:.3g})"
    told = f"{rows[best]['layer']} is the most collapsed: {less} % less spread within classes"
    return f"{told} than the penultimate features"
