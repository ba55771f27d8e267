"""The main job: from images and a list of models to a chosen, tuned, saved model and a report.

Everything lands in one folder, and a run that was stopped at any moment goes on from there: finished models,
features and trainings are reused, the training that was cut off goes on from its last epoch.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from tightframe.backbone import Backbone
from tightframe.deploy.tuned import Tuned
from tightframe.errors import ModelError
from tightframe.features.extract import Running, extract
from tightframe.features.store import FeatureStore
from tightframe.images import ImageSplits
from tightframe.jobs.compare import MAIN, Comparison, settings_of, tune_each, unique_methods
from tightframe.jobs.measure import layer_rows
from tightframe.jobs.plan import Plan
from tightframe.jobs.rank import rank
from tightframe.jobs.run import Run, claim
from tightframe.jobs.story import sample_rows, write_story
from tightframe.models.backbones import load_backbone
from tightframe.report.result import Result
from tightframe.row import Row
from tightframe.tuning.methods import PAPER


@dataclass(frozen=True, eq=False)
class Transfer:
    """What ``transfer`` made: rows of every step, the tuned model, and where it all is.

    Attributes:
        folder: holds ``report.html``, ``result.json`` and a saved folder for each method.
        ranking: rows of ``rank``.
        layers: rows of ``measure`` for the model chosen.
        methods: a row a method: accuracies, NC1, share of parameters, seconds.
        tuned: the model tuned by SCL (or by the first of the methods asked for).
        samples: a few test images, some right, some wrong: what they are and what ``tuned`` says of them.
        result: everything above as one ``Result``.
    """

    folder: Path
    ranking: Result
    layers: list[Row]
    methods: list[Row]
    tuned: Tuned
    samples: list[Row]
    result: Result


def transfer(
    data: ImageSplits,
    models: Sequence[str | Backbone],
    *,
    out: Path | str,
    methods: Sequence[str] = PAPER,
    layer: str = "auto",
    by: str = "expected_accuracy",
    plan: Plan | None = None,
    log: Sequence[str] = (),
    model_options: dict[str, Any] | None = None,
    **running: Unpack[Running],
) -> Transfer:
    """Rank the models, choose one and its layer, tune it by every method asked for, save, and write the report.

    Raises:
        SettingsError: ``out`` holds a run with other settings or images.
        ModelError: none of the models could be used.
    """
    plan, folder = plan or Plan(), Path(out)
    plan.check()
    names = unique_methods(methods)
    settings = _settings(data, models, names, layer, by, plan, model_options or {}, running)
    claim(folder, settings)
    running["store"] = FeatureStore(folder / "features")
    run = Run(folder)
    ranking = rank(data, models, by=by, model_options=model_options, seed=plan.seed, run=run, **running)
    backbone = _winner(ranking.rows, models, model_options or {})
    features = extract(backbone, data.train, **running)
    key = [settings, backbone.fingerprint]
    layers = run.remember("layers", key, lambda: layer_rows(backbone, features, "class", plan.seed))
    compared = tune_each(data, backbone, names, layer, plan, folder, settings, log, running)
    layers = [row | {"chosen": row["layer"] == compared.block} for row in layers]
    return _reported(folder, data, ranking, layers, compared, running.get("device", "auto"))


def _reported(
    folder: Path, data: ImageSplits, ranking: Result, layers: list[Row], compared: Comparison, device: str
) -> Transfer:
    """All that was found, written into ``folder``."""
    tuned, rows, settings = compared.tuned, compared.rows, compared.result.settings
    main = tuned.get(MAIN) or next(iter(tuned.values()))
    chosen = f"chosen: {main.backbone.name}" + (f", block {compared.block}" if compared.block else "")
    notes = list(dict.fromkeys([chosen, *compared.result.notes, *ranking.notes]))
    following = [
        main.predict_command(folder / main.model.method.name),
        f"open {shlex.quote(str(folder / 'report.html'))} in a browser",
    ]
    result = Result("transfer", rows, settings, notes, following)
    said = main.probabilities(data.test, device=device) if data.test is not None else None
    samples = sample_rows(data.test, said) if data.test is not None and said is not None else []
    finished = Transfer(folder, ranking, layers, rows, main, samples, result)
    histories = {name: outcome.history for name, outcome in tuned.items()}
    write_story(folder / "report.html", data, finished, histories, said)
    result.save(folder / "result.json")
    return finished


def _settings(
    data: ImageSplits,
    models: Sequence[str | Backbone],
    methods: Sequence[str],
    layer: str,
    by: str,
    plan: Plan,
    options: dict[str, Any],
    running: Running,
) -> dict[str, Any]:
    return settings_of(data, methods, layer, plan, running) | {
        "models": [model if isinstance(model, str) else model.name for model in models],
        "model_options": options,
        "by": by,
    }


def _winner(rows: list[Row], models: Sequence[str | Backbone], options: dict[str, Any]) -> Backbone:
    best = rows[0]
    if "error" in best:
        raise ModelError("none of the models could be used; the first said: " + best["error"])
    model = models[best["given"]]
    return model if isinstance(model, Backbone) else load_backbone(model, **options)
