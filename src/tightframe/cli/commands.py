"""The commands: each says which functions its options come from, runs one job and shows what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from tightframe.cli import terminal
from tightframe.cli.options import GROUPS, MACHINE, REQUIRED, Given, Source, as_size, command
from tightframe.data.class_lists import class_list
from tightframe.data.loading import load_images
from tightframe.errors import ModelError, SettingsError
from tightframe.features.workspace import Workspace
from tightframe.jobs import compare, demo, fewshot, layers, measure, pretrain, rank, transfer, tune
from tightframe.models.backbones import load_backbone
from tightframe.models.fetching import nearest
from tightframe.studies import STUDIES
from tightframe.studies.runner import run_study
from tightframe.tuning.config import TrainConfig
from tightframe.tuning.methods import AUTO, unique_methods

MADE = {True: "pre-trains them", False: "--models"}
"""Where a study has its models from, by whether it pre-trains."""
MOST_ROWS = 40
"""Most rows of a study that are shown."""
FIRST = ("epochs", "lr", "weight_decay", "batch_size", "augment", "patience", "time_limit", "seed")
"""Training options that people use first."""
REST = tuple(field.name for field in fields(TrainConfig) if field.name not in FIRST)

OPTIONS, IMAGES, MODELS = GROUPS["Options"], GROUPS["Images"], GROUPS["Models"]
DATA = Source(load_images, ["source"], OPTIONS, {"source": "data"}, positional=["source"])
MODEL = Source(load_backbone, ["uri"], OPTIONS, {"uri": "model"})
LIMITS = ["max_params", "max_macs", "max_latency_ms"]
WHERE = ["groups_from", "root", "download", "image_column", "label_column", "split_column", "group_column"]
"""Where the images of a named set or a table are, and which belong together."""
DECODING = ["max_pixels", "white_level"]
READING = Source(load_images, ["skip_bad", "seed", *DECODING, *WHERE], IMAGES)
SPLITTING = Source(load_images, ["max_per_class", "test_share", "skip_bad", "seed", *DECODING, *WHERE], IMAGES)
BUILDING = Source(load_backbone, ["pretrained", "layers", "input_size", "mean", "std"], MODELS)
HOW = ["device", "precision", "pool", "engine", "workers"]
RUNNING = Source(Workspace, HOW, MACHINE)
CACHED = Source(Workspace, ["folder", *HOW], MACHINE, {"folder": "feature_cache"})
TRAINING = Source(TrainConfig, FIRST, GROUPS["Training"])
MORE_TRAINING = Source(TrainConfig, REST, GROUPS["More training options"])


@command(
    Source(load_images, ["source"], OPTIONS, {"source": "data"}, ["source"], {"source": "digits"}),
    Source(
        transfer.transfer,
        ["models", "out", "methods", "block", "sort_by", *LIMITS, "log_to"],
        OPTIONS,
        defaults={"models": (), "out": Path("runs/transfer")},
    ),
    TRAINING,
    SPLITTING,
    BUILDING,
    RUNNING,
    MORE_TRAINING,
)
def transfer_command(given: Given) -> None:
    """Rank, choose, tune, save, report."""
    methods = unique_methods(_names(given.methods))  # before anything is loaded
    with terminal.progress() as progress:
        models: list[Any] = given.models or []
        if models:
            data = given.call(load_images, progress=progress)
        elif given.data in ("digits", demo.DOWNSTREAM) and given.groups_from is None:
            torch.set_num_threads(1)  # models this small would only wait for each other's threads
            data = demo.downstream(given.max_per_class, given.seed)
            models = demo.candidates(_beside(given.out), progress)
        else:
            data = given.call(load_images, progress=progress)
        more = {"methods": methods, "config": _config(given), **_shared(given, progress)}
        run = given.call(transfer.transfer, data, *([models] if models else []), **more)
    terminal.show("Models", "rank", run.ranking.rows)
    terminal.show(f"Methods on {run.tuned.backbone.name}", "compare", run.methods)
    if run.samples:
        terminal.show(f"{run.tuned.model.title}: sample predictions", "samples", run.samples[::3])
    terminal.close(run.result, given.json)


@command(DATA, MODEL, Source(measure.measure, ["weighting", "seed"], OPTIONS), SPLITTING, BUILDING, CACHED)
def measure_command(given: Given) -> None:
    """Collapse of every layer."""
    with terminal.progress() as progress:
        data, backbone = _loaded(given, progress)
        found = given.call(measure.measure, data, backbone, workspace=_workspace(given, progress))
    terminal.show(f"{backbone.name} on {data.train.name}", "measure", found.rows)
    terminal.close(found, given.json, typed(given))


@command(DATA, MODEL, Source(layers.layers, ["seed"], OPTIONS), SPLITTING, BUILDING, CACHED)
def layers_command(given: Given) -> None:
    """Probes of every layer."""
    with terminal.progress() as progress:
        data, backbone = _loaded(given, progress)
        found = given.call(layers.layers, data, backbone, workspace=_workspace(given, progress))
    title = f"{backbone.name} on {data.name}: accuracy of probes while held out, then on test images"
    terminal.show(title, "layers", found.rows)
    terminal.close(found, given.json, typed(given))


@command(
    DATA,
    MODEL,
    Source(fewshot.fewshot, ["ways", "shots", "queries", "episodes", "classes"], GROUPS["Training"]),
    READING,
    BUILDING,
    CACHED,
)
def fewshot_command(given: Given) -> None:
    """Few-shot episodes."""
    named = given.classes or ()
    classes = class_list(named[0]) if named and not named[1:] else named or None
    with terminal.progress() as progress:
        data = given.call(load_images, test_share=0.0, progress=progress)
        backbone = given.call(load_backbone, **_size(given))
        workspace = _workspace(given, progress)
        found = given.call(fewshot.fewshot, data, backbone, classes=classes, seed=given.seed, workspace=workspace)
    title = f"{backbone.name} on {data.name}: {given.episodes} episodes of {given.ways} classes"
    terminal.show(title, "fewshot", found.rows)
    terminal.close(found, given.json, typed(given))


@command(
    DATA,
    Source(rank.rank, ["models", "sort_by", "truth", "time_limit", *LIMITS, "prompts"], OPTIONS),
    SPLITTING,
    BUILDING,
    CACHED,
)
def rank_command(given: Given) -> None:
    """Models, the best first."""
    with terminal.progress() as progress:
        data = given.call(load_images, progress=progress)
        found = given.call(rank.rank, data, given.models, seed=given.seed, **_shared(given, progress))
    terminal.show(f"Models on {data.train.name}", "rank", found.rows)
    scored = [row for row in found.rows if "nc1" in row]
    if scored:
        terminal.show("Scores, higher is better except NC1, CDNV and VCI", "scores", scored)
    if found.tables:
        terminal.show("How well each column ranks these models", "quality", found.tables["quality"])
    terminal.close(found, given.json, typed(given))
    if all("error" in row for row in found.rows):
        raise ModelError("none of the models could be measured; each row above says why")


@command(
    DATA,
    MODEL,
    Source(tune.tune, ["out"], OPTIONS, defaults={"out": REQUIRED}),
    Source(tune.tune, ["method", "block", "resume", "log_to"], OPTIONS),
    Source(compare.compare, ["methods"], OPTIONS, {"methods": "compare"}, defaults={"methods": ()}),
    TRAINING,
    SPLITTING,
    BUILDING,
    CACHED,
    MORE_TRAINING,
)
def tune_command(given: Given) -> None:
    """Fine-tune by one method, or compare several."""
    compared = _names(given.compare or ())
    names = unique_methods(compared) if compared else []  # before anything is loaded
    if names and given.method != AUTO:
        raise SettingsError("give --method or --compare, not both")
    with terminal.progress() as progress:
        data, backbone = _loaded(given, progress)
        more: dict[str, Any] = {"config": _config(given), "workspace": _workspace(given, progress)}
        if names:
            more |= {"block": given.block, "out": given.out, "resume": given.resume, "log_to": given.log_to or ()}
            result = compare.compare(data, backbone, names, **more).result
        else:
            result = given.call(tune.tune, data, backbone, **more).result(given.out)
    terminal.show(f"{backbone.name} on {data.name}", "compare", result.rows)
    terminal.close(result, given.json)


@command(
    DATA,
    Source(pretrain.pretrain, ["out", "resume", "log_to"], OPTIONS),
    Source(
        pretrain.Pretraining,
        [field.name for field in fields(pretrain.Pretraining) if field.name != "arguments"],
        GROUPS["Training"],
    ),
    SPLITTING,
    Source(Workspace, ["device", "precision"], MACHINE),
)
def pretrain_command(given: Given) -> None:
    """Train from random weights."""
    how = given.call(pretrain.Pretraining)
    with terminal.progress() as progress:
        data = given.call(load_images, progress=progress)
        found = given.call(pretrain.pretrain, data, config=how, workspace=_workspace(given, progress))
    terminal.show(f"{how.arch} on {found.settings['data']}", "pretrain", terminal.spaced(found.rows))
    terminal.close(found, given.json, typed(given))


@command(
    Source(run_study, ["study"], OPTIONS, {"study": "name"}, ["study"]),
    Source(run_study, ["out"], OPTIONS, defaults={"out": None}),
    Source(run_study, ["scale", "data", "models", "seeds", "epochs", "max_per_class", "root", "download"], OPTIONS),
    BUILDING,
    CACHED,
)
def study_command(given: Given) -> None:
    """A study of the paper."""
    if given.name == "list":
        rows = [
            {"name": s.name, "claim": s.claim, "models_from": MADE[s.pretrains], "minutes": s.minutes}
            for s in STUDIES.values()
        ]
        terminal.show("What the paper claims, study by study", "studies", rows)
        return
    if given.name not in STUDIES:
        known = nearest(given.name, list(STUDIES))
        raise SettingsError(f'no study "{given.name}"{known}; `tightframe study list` shows all')
    asked = STUDIES[given.name]
    folder = given.out or Path("runs") / f"study-{asked.name}"
    with terminal.progress() as progress:
        found = given.call(run_study, asked, out=folder, **_shared(given, progress))
    if len(found.rows) <= MOST_ROWS:
        terminal.show(f"{asked.name}: every point", asked.columns, found.rows)
    terminal.close(found, given.json)
    terminal.where(folder / "report.html", "page, with plot.png and rows.csv beside it")


def _names(typed: Sequence[str]) -> list[str]:
    """Names that commas or spaces are between."""
    return [name.strip() for names in typed for name in names.split(",")]


def typed(given: Given) -> list[str]:
    """How the images were named, to be typed again."""
    told = {name: given.values[name] for name in WHERE if name != "download"}
    options = [[f"--{name.replace('_', '-')}", str(value)] for name, value in told.items() if value is not None]
    return [given.data, *(word for option in options for word in option)]


def _beside(out: Path) -> Path:
    """Where the models of the built-in digits go."""
    named = out if out.name not in ("", "..") else out.resolve()
    if not named.name:
        raise SettingsError(f"--out {out} leaves no place for models beside it; name a folder in it")
    return named.with_name(f"{named.name}-models")


def _loaded(given: Given, progress: Any) -> tuple[Any, Any]:
    data = given.call(load_images, progress=progress)
    return data, given.call(load_backbone, **_size(given))


def _size(given: Given) -> dict[str, Any]:
    return {"input_size": as_size(given.values.get("input_size"))}


def _shared(given: Given, progress: Any) -> dict[str, Any]:
    """How models are built and run, for jobs that load them."""
    options = {name: given.values.get(name) for name in BUILDING.names} | _size(given)
    known = {name: value for name, value in options.items() if value is not None and value is not True}
    return {"model_options": known, "workspace": _workspace(given, progress)}


def _workspace(given: Given, progress: Any) -> Workspace:
    return given.call(Workspace, progress=progress)


def _config(given: Given) -> TrainConfig:
    typed: dict[str, Any] = {name: given.values[name] for name in (*FIRST, *REST) if name in given.values}
    typed = {name: tuple(value) if isinstance(value, list) else value for name, value in typed.items()}
    return TrainConfig(**typed)
