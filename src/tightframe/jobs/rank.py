"""Which network suits one's own pictures: one row a network, the best first."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from tightframe.errors import DataError, SettingsError, TightframeError
from tightframe.features.extract import Running, extract
from tightframe.jobs.run import Result, Row, Run
from tightframe.metrics.collapse import collapse_metrics
from tightframe.metrics.probes import cross_validated_ridge
from tightframe.metrics.scores import h_score, logme
from tightframe.protocols import PENULTIMATE, Backbone, ImageSplits, silent
from tightframe.sources.backbones import load_backbone, short_name

ORDERS = {"probe_accuracy": True, "nc1": False, "h_score": True, "logme": True}
"""Columns that a ranking can go by, and whether higher is better."""


def rank(
    data: ImageSplits,
    models: Sequence[str | Backbone],
    *,
    by: str = "probe_accuracy",
    model_options: dict[str, Any] | None = None,
    seed: int = 0,
    run: Run | None = None,
    **running: Unpack[Running],
) -> Result:
    """Score every network on the penultimate features of the training pictures.

    Rows, best first: ``network``, ``model``, ``nc1``, ``h_score``, ``logme``, ``probe_accuracy`` (5-fold
    cross-validated ridge) with its 95 % interval, ``test_accuracy`` of that probe where there is a test set (never
    used for the order), ``tied`` with the first, ``parameters``, ``seconds``, ``given`` (place in ``models``). A
    network that can't be loaded or run is a row with its ``error``, at the end.

    Args:
        models: names as for ``load_backbone``, or backbones.
        by: the column to go by, a key of ``ORDERS``.
        model_options: further arguments of ``load_backbone`` for all of ``models`` given by name.
        run: where finished rows are remembered.
    """
    if by not in ORDERS:
        raise SettingsError(f'can\'t rank by "{by}"; choose {", ".join(ORDERS)}')
    if not models:
        raise SettingsError("no networks to rank; name some with --models")
    listed = running.get("progress", silent)(models, "networks", len(models))
    given = [
        _row(data, model, model_options or {}, seed, run, running) | {"given": place}
        for place, model in enumerate(listed)
    ]
    rows = ordered(given, by)
    good = [row for row in rows if "error" not in row]
    settings = {
        "data": data.name,
        "pictures": len(data.train),
        "test_pictures": len(data.test) if data.test else 0,
        "classes": len(data.classes),
        "by": by,
        "pool": running.get("pool", "auto"),
        "seed": seed,
    }
    told = [{key: value for key, value in row.items() if key != "correct"} for row in rows]
    return Result("rank", told, settings, [*data.notes, *_notes(good, by)], _following(good))


def ordered(rows: list[Row], by: str) -> list[Row]:
    """Rows best first, those with an error last, each told whether it ties with the first.

    Two networks tie when the accuracies of their probes, held out on the same pictures, differ by less than twice the
    standard error of the paired difference.
    """
    good = [row for row in rows if "error" not in row]
    good.sort(key=lambda row: row[by], reverse=ORDERS[by])
    for row in good:
        row["tied"] = row is not good[0] and _tied(good[0]["correct"], row["correct"])
    return good + [row for row in rows if "error" in row]


def _tied(first: list[int], second: list[int]) -> bool:
    difference = np.asarray(first, float) - np.asarray(second, float)
    error = float(difference.std(ddof=1)) / len(difference) ** 0.5
    return bool(abs(difference.mean()) <= 2 * error)


def _row(
    data: ImageSplits, model: str | Backbone, options: dict[str, Any], seed: int, run: Run | None, running: Running
) -> Row:
    name = short_name(model) if isinstance(model, str) else model.name
    try:
        backbone = load_backbone(model, **options) if isinstance(model, str) else model
        if run is None:
            return _measured(data, backbone, seed, running)
        key = {
            "network": backbone.fingerprint,
            "data": [split.fingerprint for split in (data.train, data.test) if split],
            "seed": seed,
            "running": [running.get("pool"), running.get("precision")],
        }
        return run.remember(f"rank {backbone.name}", key, lambda: _measured(data, backbone, seed, running))
    except (DataError, SettingsError):
        raise  # the same for every network: said once, at once
    except TightframeError as error:
        return {"network": name, "error": str(error)}
    except Exception as error:  # one bad network must not end the list, whatever it raises
        return {"network": name, "error": f"{type(error).__name__}: {error}"}


def _measured(data: ImageSplits, backbone: Backbone, seed: int, running: Running) -> Row:
    started = time.perf_counter()
    features = extract(backbone, data.train, layers=[PENULTIMATE], **running)
    moments = features.moments(PENULTIMATE)
    probe = cross_validated_ridge(features[PENULTIMATE], data.train.labels, len(data.classes), seed=seed)
    row: Row = {
        "network": backbone.name,
        "model": backbone.origin.get("uri"),
        "nc1": collapse_metrics(moments)["nc1"],
        "h_score": h_score(moments),
        "logme": logme(moments),
        "probe_accuracy": probe.accuracy,
        "probe_low": probe.low,
        "probe_high": probe.high,
        "parameters": backbone.parameters,
        "dimension": backbone.penultimate.dimension,
        "precision": features.precision,
        "seconds": time.perf_counter() - started,
        "correct": [int(right) for right in probe.correct],
    }
    if data.test is not None:
        held_out = extract(backbone, data.test, layers=[PENULTIMATE], **running)
        row["test_accuracy"] = probe.head.accuracy(held_out[PENULTIMATE], data.test.labels)
    return row


def _notes(good: list[Row], by: str) -> list[str]:
    notes = []
    tied = [row["network"] for row in good if row["tied"]]
    if tied:
        notes.append(f"these pictures can't tell {good[0]['network']} from {', '.join(tied)}: more of them would")
    if by != "probe_accuracy" and len({row["dimension"] for row in good}) > 1:
        notes.append(f"{by} is compared across different dimensions here: read it with care")
    return notes


def _following(good: list[Row]) -> list[str]:
    if not good:
        return []
    model = shlex.quote(good[0]["model"] or good[0]["network"])
    return [f"tightframe tune DATA --model {model} --out DIR"]
