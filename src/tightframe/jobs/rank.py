"""Which model suits one's own images: one row a model, the best first."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

from tightframe.backbone import OUTPUT, PENULTIMATE, Backbone
from tightframe.decide.evidence import Evidence
from tightframe.decide.race import Contender, race
from tightframe.decide.ranking import (
    CORRECT,
    EXPECTED,
    MERIT,
    PARTS,
    PRETRAINED,
    PROBABLE,
    known_accuracies,
    notes_of,
    ordered,
    orders,
    parts_of,
    quality,
    scores,
    told,
)
from tightframe.decide.reading import reading_of
from tightframe.decide.recommendation import Outcome
from tightframe.decide.zero_shot import TEXTS, by_name_alone, zero_shot_notes
from tightframe.engine.engine import Answer
from tightframe.errors import DataError, SettingsError, TightframeError
from tightframe.features.extract import Features
from tightframe.features.precision import likely_precision
from tightframe.features.taps import Pool
from tightframe.features.workspace import Workspace, read_in_closed_form
from tightframe.images import ImageSplits
from tightframe.metrics.collapse import check_measurable
from tightframe.metrics.folds import Folds
from tightframe.models.backbones import load_backbone
from tightframe.models.clip import checked_prompts
from tightframe.models.lists import Limits, listed
from tightframe.models.names import short_name, tune_command
from tightframe.probes.discriminant import read_layers
from tightframe.probes.knn import neighbors_accuracy
from tightframe.probes.linear import cross_validated_lda, cross_validated_ridge
from tightframe.probes.results import ProbeResult
from tightframe.report.result import Result
from tightframe.row import Row

Load = Callable[[str | Backbone], Backbone]
LDA_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def rank(
    data: ImageSplits,
    models: Sequence[str | Backbone] = ("default",),
    *,
    sort_by: str = EXPECTED,
    truth: str | Mapping[str, float] | None = None,
    time_limit: float | None = None,
    max_params: float | None = None,
    max_macs: float | None = None,
    max_latency_ms: float | None = None,
    prompts: Sequence[str] | None = None,
    model_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    workspace: Workspace | None = None,
) -> Result:
    """Rank models by how well a classifier that reads all their layers would do on these images, with intervals.

    Rows, best first: ``model``, ``uri``; ``expected_accuracy`` of that classifier (``tune --method discriminant``) on
    new images, with its 95 % interval, and ``p_best`` (see ``decide.recommendation``), ``tied`` with the first; the
    baselines ``probe_accuracy`` (5-fold cross-validated ridge, with its 95 % interval), ``knn_accuracy``,
    ``source_accuracy`` where known, ``parameters`` and ``macs``; every transferability score that applies, NC1, CDNV
    and VCI; ``test_accuracy`` of the ridge probe where there is a test set (never used for the order); ``seconds``;
    ``given`` (place in ``models``). With ``prompts``, rows ``zero_shot`` follow. A model that can't be loaded or run is
    a row with its ``error``, at the end; one that is named twice is measured once.

    Args:
        data: The images.
        models: Models by name, each as for ``load_backbone`` (timm/NAME, torchvision/NAME, open_clip/NAME/PRETRAINED,
            hf/NAME, local-dir:PATH, or PATH.py:FUNCTION, which runs that file), or backbones; also a list by one word
            (default, fast or accurate) or a pattern (timm/*resnet*), whose weights are downloaded one after the other.
        sort_by: Column to sort by: expected_accuracy, probe_accuracy, knn_accuracy, nc1, logme or another score.
        truth: Also judge every score against known accuracies: a CSV file (model,accuracy), or probe for the ridge
            probe on the test images.
        time_limit: Minutes to spend: models then race, and images go to those that can still win.
        max_params: Leave out models with more parameters than so many millions.
        max_macs: Leave out models with more multiplications and additions an image than so many millions.
        max_latency_ms: Leave out models that take longer than so many milliseconds for one image, on this machine.
        prompts: Sentences about a class, such as "a photo of a {}.": zero-shot rows for models of open_clip.
        model_options: Further arguments of ``load_backbone`` for models given by name.
        seed: Seed of every random choice.
        workspace: Where and how backbones run, and what was computed before.
    """
    workspace, options = workspace or Workspace(), dict(model_options or {})
    if sort_by not in orders():
        raise SettingsError(f'can\'t sort by "{sort_by}"; choose {", ".join(orders())}')
    if not models:
        raise SettingsError("no models to rank; name some with --models")
    prompts = None if prompts is None else checked_prompts(prompts)
    known, models = known_accuracies(truth, data), listed(models)
    make = partial(_loaded, options=options, limits=Limits(max_params, max_macs, max_latency_ms, workspace.device))
    places = [place for place, model in enumerate(models) if model not in models[:place]]
    once = [models[place] for place in places]
    if time_limit is None:
        answers = workspace.engine.run(_OneRow(data, make, prompts, seed, workspace), once, tries=2)
        shown = workspace.progress(answers, "models", len(once))
        given = [_answered(answer, once[answer.index]) | {"given": answer.index} for answer in shown]
        rows = ordered(sorted(given, key=lambda row: row["given"]), sort_by, seed, data.train.groups)
    else:
        _check_race(time_limit, sort_by, truth)
        rows = _raced(data, once, time_limit, make, prompts, seed, workspace)
    rows = [row | {"given": places[row["given"]]} for row in rows]
    good = [row for row in rows if "error" not in row]
    settings = {
        "data": data.name,
        "images": len(data.train),
        "test_images": len(data.test) if data.test else 0,
        "classes": len(data.classes),
        "sort_by": sort_by,
        "time_limit": time_limit,
        "prompts": list(prompts) if prompts is not None else None,
        "pool": workspace.pool,
        "seed": seed,
    }
    inner = (CORRECT, PROBABLE, PRETRAINED, PARTS, MERIT, TEXTS)
    told = [{key: value for key, value in row.items() if key not in inner} for row in rows]
    by_name = sorted((row[TEXTS] for row in good if TEXTS in row), key=lambda row: -row[EXPECTED])
    told[len(good) : len(good)] = by_name
    tables = {"quality": quality(good, known, seed)} if truth is not None else {}
    spared = [_spared(good, len(data.train))] if time_limit is not None else []
    notes = [*data.notes, *spared, *notes_of(good, sort_by), *zero_shot_notes(by_name, prompts)]
    return Result("rank", told, settings, notes, _next_steps(good, options, prompts), tables=tables)


def _check_race(minutes: float, sort_by: str, truth: str | Mapping[str, float] | None) -> None:
    if not minutes > 0:
        raise SettingsError(f"--time-limit is {minutes:g} minutes; it must be above 0")
    if sort_by != EXPECTED or truth is not None:
        raise SettingsError(
            "models race for the best expected accuracy: leave out --sort-by and --truth, or --time-limit"
        )


def _raced(
    data: ImageSplits,
    models: Sequence[str | Backbone],
    minutes: float,
    make: Load,
    prompts: Sequence[str] | None,
    seed: int,
    workspace: Workspace,
) -> list[Row]:
    """Rows of a race: those still in it at the end, then the others, the later they left the earlier."""
    known = partial(_kept_row, data, seed, prompts, workspace)
    layers = partial(_read, workspace.pool)
    contenders = [Contender(_name(model), partial(make, model), layers, known) for model in models]
    finalists = race(contenders, data.train, _outcome, minutes, seed, workspace)
    if all(contender.row is not None or contender.error is not None for contender in contenders):
        rows = [one.row or _failed(one.name, one.error or TightframeError("not run")) for one in contenders]
        rows = [row | {"given": place, "images_seen": 0} for place, row in enumerate(rows)]
        return ordered(rows, EXPECTED, seed, data.train.groups)
    rows = []
    for place, contender in enumerate(contenders):
        if contender.error is not None or contender.standing is None:
            rows.append(_failed(contender.name, contender.error or TightframeError("not run")) | {"given": place})
            continue
        row = dict(contender.row or {"model": contender.name, "parameters": contender.parameters})
        if contender in finalists and contender.row is None:
            features = contender.features(data.train)
            folds = _folds(features, seed)
            backbone = contender.load()
            row = _scored(
                backbone, features, contender.outcome or _outcome(features), folds, cross_validated_ridge(folds)
            )
            row |= by_name_alone(backbone, features, prompts)
        model = models[place]
        uri = model if isinstance(model, str) else model.origin.get("uri")
        row |= {"uri": uri, "images_seen": len(contender.order), "seconds": contender.seconds, "given": place}
        rows.append(row | told(contender.standing) | {"tied": contender in finalists and contender.standing.tied})
    return sorted(rows, key=lambda r: ("error" in r, -r.get("images_seen", 0), -r.get(MERIT, 0.0)))


def _name(model: str | Backbone) -> str:
    return short_name(model) if isinstance(model, str) else model.name


def _loaded(model: str | Backbone, options: Mapping[str, Any], limits: Limits) -> Backbone:
    backbone = load_backbone(model, **options) if isinstance(model, str) else model
    limits.check(backbone)
    return backbone


def _spared(good: list[Row], images: int) -> str:
    passes, all_passes = sum(row["images_seen"] for row in good), len(good) * images
    if not passes:
        return "no model was run: what they say of these images was kept, and there was nothing to race for"
    return (
        f"{passes:,} forward passes in place of {all_passes:,}: models left the race once they were unlikely to win. "
        "What is expected of those is what fewer images said; chances are among the models of their last round"
    )


@dataclass(frozen=True, eq=False)
class _OneRow:
    """The work of ranking: the row of each model."""

    data: ImageSplits
    make: Load
    prompts: Sequence[str] | None
    seed: int
    workspace: Workspace

    def do(self, model: str | Backbone, attempt: int) -> Row:
        workspace = self.workspace
        if attempt:
            workspace = copy(workspace)
            workspace.batch_size = max(1, workspace.batch_size // 2)
        return _whole_row(self.data, self.seed, self.prompts, workspace, self.make(model))


def _answered(answer: Answer, model: str | Backbone) -> Row:
    if isinstance(answer.error, DataError | SettingsError):
        raise answer.error  # the same for every model: said once, at once
    if answer.error is not None:  # one bad model must not end the list, whatever it raises
        return _failed(_name(model), answer.error)
    row: Row = answer.value
    return row


def _whole_row(
    data: ImageSplits, seed: int, prompts: Sequence[str] | None, workspace: Workspace, backbone: Backbone
) -> Row:
    """What all images say of a model."""
    layers = _read(workspace.pool, backbone)
    key = {
        "model": backbone.fingerprint,
        "data": [split.fingerprint for split in (data.train, data.test) if split],
        "seed": seed,
        "layers": layers,
        "running": [workspace.pool, likely_precision(backbone.module, workspace.device, workspace.precision)],
    }
    row: Row = workspace.remember(f"rank {backbone.name}", key, lambda: _measured(data, backbone, seed, workspace))
    if prompts is not None:
        row = row | by_name_alone(backbone, workspace.features(backbone, data.train, layers), prompts)
    return row | {"uri": backbone.origin.get("uri")}  # the same weights may lie in two places


def _kept_row(
    data: ImageSplits, seed: int, prompts: Sequence[str] | None, workspace: Workspace, backbone: Backbone
) -> Row | None:
    """The same, if no image has to be run for it."""
    kept = workspace.keeps(backbone, data.train, _read(workspace.pool, backbone))
    if not kept or (data.test is not None and not workspace.keeps(backbone, data.test, [PENULTIMATE])):
        return None
    return _whole_row(data, seed, prompts, workspace, backbone)


def _failed(name: str, error: Exception) -> Row:
    said = str(error) if isinstance(error, TightframeError) else f"{type(error).__name__}: {error}"
    return {"model": name, "error": said}


def _measured(data: ImageSplits, backbone: Backbone, seed: int, workspace: Workspace) -> Row:
    started = time.perf_counter()
    features = workspace.features(backbone, data.train, _read(workspace.pool, backbone))
    found = reading_of(data.train, backbone, workspace)[0]
    outcome = Outcome.of(Evidence(found.held_out.numpy(), features.labels, features.groups))
    folds = _folds(features, seed)
    ridge = cross_validated_ridge(folds)
    row = _scored(backbone, features, outcome, folds, ridge) | {"seconds": time.perf_counter() - started}
    if data.test is not None:
        unseen = workspace.features(backbone, data.test, [PENULTIMATE])
        row["test_accuracy"] = ridge.head.accuracy(unseen[PENULTIMATE], data.test.labels)
    return row


def _read(pool: Pool, backbone: Backbone) -> list[str]:
    return [*read_in_closed_form(backbone, pool), *([OUTPUT] if backbone.head is not None else [])]


def _folds(features: Features, seed: int) -> Folds:
    labels, classes = features.labels, len(features.classes)
    folds = Folds.of(features[PENULTIMATE], labels, classes, seed=seed, groups=features.groups)
    check_measurable(folds.total)
    return folds


def _outcome(features: Features) -> Outcome:
    """What the reading of all layers says of each image left out, with its group."""
    layers = {name: features[name] for name in features if name != OUTPUT}
    found = read_layers(layers, features.labels, len(features.classes), groups=features.groups)
    return Outcome.of(Evidence(found.held_out.numpy(), features.labels, features.groups))


def _scored(backbone: Backbone, features: Features, outcome: Outcome, folds: Folds, ridge: ProbeResult) -> Row:
    """All that features of training images say, beside the ``outcome`` of their reading."""
    return {
        "model": backbone.name,
        "uri": backbone.origin.get("uri"),
        "zero_shot": False,
        "probe_accuracy": ridge.accuracy,
        "probe_low": ridge.low,
        "probe_high": ridge.high,
        "lda_accuracy": cross_validated_lda(folds, LDA_PENALTIES).accuracy,
        "knn_accuracy": neighbors_accuracy(
            folds.features, folds.labels, folds.total.classes, groups=folds.groups
        ).accuracy,
        "source_accuracy": backbone.source_accuracy,
        **scores(features, folds),
        PARTS: parts_of(features),
        "parameters": backbone.parameters,
        "macs": backbone.macs,
        "images": len(features.labels),
        "saturated": len(features.labels) <= backbone.penultimate.dimension + 1,
        "dimension": backbone.penultimate.dimension,
        "precision": features.precision,
        PRETRAINED: backbone.origin.get("pretrained", True),
        CORRECT: [int(right) for right in outcome.correct],
        PROBABLE: [round(float(share), 6) for share in outcome.probability],
    }


def _next_steps(good: list[Row], options: Mapping[str, Any], prompts: Sequence[str] | None) -> list[str]:
    if not good:
        return []
    command = tune_command(good[0]["uri"] or good[0]["model"], options)
    return [f"{command} {shlex.join(['--prompts', *(prompts or ())])}" if TEXTS in good[0] else command]
