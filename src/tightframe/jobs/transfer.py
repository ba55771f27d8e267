"""The main job: from pictures and a list of networks to a chosen, tuned, saved network and a report.

Everything lands in one folder, and a run that was stopped at any moment goes on from there: finished networks,
features and trainings are reused, the training that was cut off goes on from its last epoch.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from tightframe.errors import ModelError, SettingsError
from tightframe.features.extract import Running, extract
from tightframe.features.store import FeatureStore
from tightframe.files import write_text
from tightframe.jobs.measure import layer_rows
from tightframe.jobs.rank import rank
from tightframe.jobs.run import Result, Row, Run, fingerprint_of
from tightframe.jobs.story import sample_rows, write_story
from tightframe.jobs.tune import Plan, choose_layer, tune
from tightframe.jobs.tuned import Tuned
from tightframe.protocols import Backbone, ImageSplits
from tightframe.sources.backbones import load_backbone
from tightframe.tuning.methods import METHODS, PAPER, method_named

MAIN = "scl"


@dataclass(frozen=True, eq=False)
class Transfer:
    """What ``transfer`` made: rows of every step, the tuned network, and where it all is.

    Attributes:
        folder: holds ``report.html``, ``result.json`` and a saved folder for each method.
        ranking: rows of ``rank``.
        layers: rows of ``measure`` for the network chosen.
        methods: a row a method: accuracies, NC1, share of parameters, seconds.
        tuned: the network tuned by SCL (or by the first of the methods asked for).
        samples: a few test pictures, some right, some wrong: what they are and what ``tuned`` says of them.
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
    model_options: dict[str, Any] | None = None,
    **running: Unpack[Running],
) -> Transfer:
    """Rank the networks, choose one and its layer, tune it by every method asked for, save, and write the report.

    Raises:
        SettingsError: ``out`` holds a run with other settings or pictures.
        ModelError: none of the networks could be used.
    """
    plan, folder = plan or Plan(), Path(out)
    plan.check()
    chosen_methods = [method_named(name).name for name in dict.fromkeys(methods)]
    settings = _settings(data, models, chosen_methods, layer, by, plan, model_options or {}, running)
    _claim(folder, settings)
    running["store"] = FeatureStore(folder / "features")
    run = Run(folder)
    ranking = rank(data, models, by=by, model_options=model_options, seed=plan.seed, run=run, **running)
    backbone = _winner(ranking.rows, models, model_options or {})
    features = extract(backbone, data.train, **running)
    key = [settings, backbone.fingerprint]
    layers = run.remember("layers", key, lambda: layer_rows(backbone, features, "class", plan.seed))
    chosen = None
    with_block = [METHODS[name] for name in chosen_methods if METHODS[name].needs_layer]
    if with_block and layer == "auto":
        method = METHODS[MAIN] if METHODS[MAIN] in with_block else with_block[0]
        chosen = run.remember("block", key, lambda: choose_layer(data, backbone, method, plan, running))[0]
    elif with_block:
        chosen = backbone.layer(layer).name
    layers = [row | {"chosen": row["layer"] == chosen} for row in layers]

    tuned = {
        name: tune(
            data,
            backbone,
            method=name,
            layer=chosen if chosen and METHODS[name].needs_layer else "auto",
            plan=plan,
            out=folder / name,
            resume=True,
            **running,
        )
        for name in chosen_methods
    }
    settings |= {"network": backbone.name, "layer": chosen}
    return _reported(folder, data, ranking, layers, tuned, settings, running.get("device", "auto"))


def _reported(
    folder: Path,
    data: ImageSplits,
    ranking: Result,
    layers: list[Row],
    tuned: dict[str, Tuned],
    settings: dict[str, Any],
    device: str,
) -> Transfer:
    """All that was found, written into ``folder``."""
    main = tuned.get(MAIN) or next(iter(tuned.values()))
    rows = [outcome.metrics for outcome in tuned.values()]
    told = [*ranking.notes, *(note for outcome in tuned.values() for note in outcome.notes)]
    notes = [*_outcome(main.backbone, settings["layer"], rows), *dict.fromkeys(told)]
    following = [
        main.predict_command(folder / main.network.method.name),
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
    return {
        "data": data.name,
        "classes": list(data.classes),
        "training_pictures": len(data.train),
        "test_pictures": len(data.test) if data.test else 0,
        "pictures": [split.fingerprint for split in (data.train, data.test) if split],
        "models": [model if isinstance(model, str) else model.name for model in models],
        "model_options": options,
        "methods": list(methods),
        "layer": layer,
        "by": by,
        "plan": asdict(plan),
        "pool": running.get("pool", "auto"),
        "precision": running.get("precision", "auto"),
    }


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make ``folder`` this run's, or see that it already is."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; give --out a folder")
    mark, wanted = folder / "run.txt", fingerprint_of(settings)
    if mark.is_file():
        if mark.read_text(encoding="utf-8").strip() != wanted:
            raise SettingsError(
                f"{folder} holds a run with other settings or pictures; choose another --out, "
                "or delete it to start anew"
            )
        return
    if folder.exists() and any(not entry.name.endswith(".unfinished") for entry in folder.iterdir()):
        raise SettingsError(f"{folder} is not empty and holds no run of tightframe; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(mark, wanted + "\n")


def _winner(rows: list[Row], models: Sequence[str | Backbone], options: dict[str, Any]) -> Backbone:
    best = rows[0]
    if "error" in best:
        raise ModelError("none of the networks could be used; the first said: " + best["error"])
    model = models[best["given"]]
    return model if isinstance(model, Backbone) else load_backbone(model, **options)


def _outcome(backbone: Backbone, layer: str | None, rows: list[Row]) -> list[str]:
    """What was chosen and which method did best."""
    notes = [f"chosen: {backbone.name}" + (f", block {layer}" if layer else "")]
    judged = [row for row in rows if row.get("test_accuracy") is not None]
    if judged:
        best = max(judged, key=lambda row: row["test_accuracy"])
        close = [r["method"] for r in judged if r is not best and r["test_high"] >= best["test_low"]]
        told = f"best on the test pictures: {best['method']} ({100 * best['test_accuracy']:.1f} %)"
        notes.append(told + (f"; intervals overlap with {', '.join(close)}" if close else ""))
    return notes
