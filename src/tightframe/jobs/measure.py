"""How collapsed every layer of a network is on one's own pictures."""

from __future__ import annotations

import shlex
from typing import Unpack

from tightframe.features.extract import Features, Running, extract
from tightframe.features.moments import Weighting
from tightframe.jobs.run import Result, Row
from tightframe.metrics.collapse import cautions
from tightframe.metrics.correction import corrected
from tightframe.metrics.folds import Folds
from tightframe.metrics.ridge import cross_validated_ridge
from tightframe.metrics.summary import collapse_metrics
from tightframe.protocols import PENULTIMATE, Backbone, ImageData, ImageSplits, Progress, silent


def measure(
    data: ImageSplits | ImageData,
    backbone: Backbone,
    *,
    weighting: Weighting = "class",
    seed: int = 0,
    **running: Unpack[Running],
) -> Result:
    """Collapse metrics and a cross-validated probe for every layer, from one pass over the training pictures.

    Rows, in order of depth and ending with the penultimate features: ``layer``, ``dimension``, ``parameters``,
    ``nc1`` and the other names of ``collapse_metrics``, ``rank_between``, estimates of what more pictures would show
    (``nc1_corrected``, ``cdnv_corrected``, ``vci_corrected``: ``None`` where these pictures can't tell;
    ``nc1_at_least`` is a lower bound; see ``metrics.correction``), ``probe_accuracy`` with its 95 % interval
    ``probe_low`` … ``probe_high``.
    """
    pictures = data.train if isinstance(data, ImageSplits) else data
    features = extract(backbone, pictures, **running)
    rows = layer_rows(backbone, features, weighting, seed, running.get("progress", silent))
    best = min(rows, key=lambda row: row["nc1"])
    last = rows[-1]
    notes = list(data.notes) if isinstance(data, ImageSplits) else []
    notes += [reading(best, last), *cautions(features.moments(PENULTIMATE), weighting)]
    settings = {
        "data": pictures.name,
        "pictures": len(pictures),
        "classes": len(pictures.classes),
        "model": backbone.origin,
        "weighting": weighting,
        "pool": features.pool,
        "precision": features.precision,
        "seed": seed,
    }
    model = shlex.quote(backbone.origin.get("uri", backbone.name))
    random = "" if backbone.origin.get("pretrained", True) else " --no-pretrained"
    return Result("measure", rows, settings, notes, [f"tightframe tune DATA --model {model}{random} --out DIR"])


def layer_rows(
    backbone: Backbone, features: Features, weighting: Weighting = "class", seed: int = 0, progress: Progress = silent
) -> list[Row]:
    """One row a layer of ``features``, see ``measure``."""
    rows: list[Row] = []
    for name in progress(list(features), f"measuring {backbone.name}", len(features)):
        layer, moments = backbone.layer(name), features.moments(name)
        metrics = collapse_metrics(moments, weighting=weighting)
        many = corrected(moments)
        probe = cross_validated_ridge(Folds.of(features[name], features.labels, len(features.classes), seed=seed))
        rows.append(
            {
                "network": backbone.name,
                "layer": name,
                "position": len(rows) + 1,
                "dimension": layer.dimension,
                "parameters": layer.parameters,
                **metrics,
                "rank_between": metrics.rank_between,
                "nc1_corrected": many.nc1.value,
                "nc1_at_least": many.nc1.lower,
                "cdnv_corrected": many.cdnv.value,
                "vci_corrected": many.vci.value,
                "probe_accuracy": probe.accuracy,
                "probe_low": probe.low,
                "probe_high": probe.high,
            }
        )
    return rows


def reading(best: Row, last: Row) -> str:
    """One line on where features are most collapsed."""
    if best["layer"] == last["layer"]:
        return f"features are most collapsed where the head sees them (NC1 {last['nc1']:.3g})"
    less = 1 - best["nc1"] / last["nc1"]
    lowest = f"{best['layer']} is the most collapsed: NC1 {best['nc1']:.3g}"
    return f"{lowest}, {100 * less:.0f} % below the penultimate features"
