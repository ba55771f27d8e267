"""What each command does with its arguments: load, run one job, show what came of it.

Imports are inside the functions: ``tightframe --help`` need not wait for PyTorch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tightframe.cli import terminal
from tightframe.errors import ModelError, SettingsError

SHOWN = 10
"""Most kinds of mistake, and epochs, that are shown."""
MOST_ROWS = 40
"""Of a study, for which all are shown."""
MODELS = {True: "it makes them", False: "--models"}
"""Of a study, by whether it pre-trains."""


def transfer(options: argparse.Namespace) -> None:
    """``tightframe transfer``."""
    import torch

    from tightframe.jobs import demo
    from tightframe.jobs.transfer import transfer
    from tightframe.report.columns import METHODS, RANKING, SAMPLES

    with terminal.progress() as progress:
        if options.models:
            data, models = _images(options, progress), options.models
        elif options.data in ("digits", demo.DOWNSTREAM):
            torch.set_num_threads(1)  # models this small would only wait for each other's threads
            data = demo.downstream(options.max_per_class, options.seed)
            models = demo.candidates(options.out.with_name(options.out.name + "-models"), progress)
        else:
            raise SettingsError(f"no models to choose from for {options.data}; name some with --models")
        run = transfer(
            data,
            models,
            out=options.out,
            methods=options.methods,
            block=options.block,
            sort_by=options.sort_by,
            config=_config(options),
            log_to=options.log,
            model_options=_model(options),
            workspace=_workspace(options, progress),
        )
    terminal.show("Models", RANKING, run.ranking.rows)
    terminal.show(f"Methods on {run.tuned.backbone.name}", METHODS, run.methods)
    if run.samples:
        terminal.show(f"What {run.tuned.model.method.name} says of test images", SAMPLES, run.samples[::3])
    terminal.close(run.result, options.json)


def measure(options: argparse.Namespace) -> None:
    """``tightframe measure``."""
    from tightframe.jobs.measure import measure
    from tightframe.models.backbones import load_backbone
    from tightframe.report.columns import LAYERS

    with terminal.progress() as progress:
        data = _images(options, progress)
        backbone = load_backbone(options.model, **_model(options))
        found = measure(
            data, backbone, weighting=options.weighting, seed=options.seed, workspace=_workspace(options, progress)
        )
    terminal.show(f"{backbone.name} on {data.train.name}", LAYERS, found.rows)
    terminal.close(found, options.json, options.data)


def layers(options: argparse.Namespace) -> None:
    """``tightframe layers``."""
    from tightframe.jobs.layers import layers
    from tightframe.models.backbones import load_backbone
    from tightframe.report.columns import PROBES

    with terminal.progress() as progress:
        data = _images(options, progress)
        backbone = load_backbone(options.model, **_model(options))
        found = layers(data, backbone, seed=options.seed, workspace=_workspace(options, progress))
    title = f"{backbone.name} on {data.name}: accuracy of probes while held out, then on test images"
    terminal.show(title, PROBES, found.rows)
    terminal.close(found, options.json, options.data)


def fewshot(options: argparse.Namespace) -> None:
    """``tightframe fewshot``."""
    from tightframe.data.class_lists import class_list
    from tightframe.data.loading import load_images
    from tightframe.jobs.fewshot import fewshot
    from tightframe.models.backbones import load_backbone
    from tightframe.report.columns import EPISODES

    classes = class_list(options.classes) if options.classes else None
    with terminal.progress() as progress:
        data = load_images(options.data, test_share=0.0, skip_bad=options.skip_bad, progress=progress)
        backbone = load_backbone(options.model, **_model(options))
        found = fewshot(
            data,
            backbone,
            ways=options.ways,
            shots=options.shots,
            episodes=options.episodes,
            queries=options.queries,
            classes=classes,
            seed=options.seed,
            workspace=_workspace(options, progress),
        )
    title = f"{backbone.name} on {data.name}: {options.episodes} episodes of {options.ways} classes"
    terminal.show(title, EPISODES, found.rows)
    terminal.close(found, options.json, options.data)


def rank(options: argparse.Namespace) -> None:
    """``tightframe rank``."""
    from tightframe.jobs.rank import rank
    from tightframe.report.columns import QUALITY, RANKING, SCORES

    with terminal.progress() as progress:
        data = _images(options, progress)
        found = rank(
            data,
            options.models,
            sort_by=options.sort_by,
            truth=options.truth,
            time_limit=options.time_limit,
            model_options=_model(options),
            seed=options.seed,
            workspace=_workspace(options, progress),
        )
    terminal.show(f"Models on {data.train.name}", RANKING, found.rows)
    terminal.show(
        "Scores, higher is better except NC1, CDNV and VCI", SCORES, [row for row in found.rows if "nc1" in row]
    )
    if found.further:
        terminal.show("How well each column ranks these models", QUALITY, found.further["quality"])
    terminal.close(found, options.json, options.data)
    if all("error" in row for row in found.rows):
        raise ModelError("none of the models could be measured; each says above why")


def tune(options: argparse.Namespace) -> None:
    """``tightframe tune``."""
    from tightframe.jobs.compare import compare
    from tightframe.jobs.tune import tune
    from tightframe.models.backbones import load_backbone
    from tightframe.report.columns import METHODS
    from tightframe.tuning.methods import unique_methods

    compared = None if options.compare is None else [name.strip() for name in options.compare.split(",")]
    names = compared and unique_methods(compared)  # before anything is loaded
    with terminal.progress() as progress:
        data = _images(options, progress)
        backbone = load_backbone(options.model, **_model(options))
        given: Any = {"block": options.block, "config": _config(options), "out": options.out, "resume": options.resume}
        given |= {"log_to": options.log, "workspace": _workspace(options, progress)}
        if names:
            result = compare(data, backbone, names, **given).result
        else:
            result = tune(data, backbone, method=options.method, **given).result(options.out)
    terminal.show(f"{backbone.name} on {data.name}", METHODS, result.rows)
    terminal.close(result, options.json)


def pretrain(options: argparse.Namespace) -> None:
    """``tightframe pretrain``."""
    from tightframe.jobs.pretrain import Pretraining, pretrain
    from tightframe.report.columns import EPOCHS

    names = (
        "arch",
        "loss",
        "projector",
        "augment",
        "epochs",
        "lr",
        "weight_decay",
        "batch_size",
        "grad_accum_steps",
        "seed",
    )
    how = Pretraining(input_size=options.input_size, **{name: getattr(options, name) for name in names})
    with terminal.progress() as progress:
        found = pretrain(
            _images(options, progress),
            options.out,
            how,
            resume=options.resume,
            log=options.log,
            device=options.device,
            precision=options.precision,
            progress=progress,
        )
    terminal.show(f"{how.arch} on {found.settings['data']}", EPOCHS, spaced(found.rows))
    terminal.close(found, options.json, options.data)


def study(options: argparse.Namespace) -> None:
    """``tightframe study``."""
    from tightframe.models.fetching import nearest
    from tightframe.report.columns import STUDIES_LISTED
    from tightframe.studies import STUDIES, run_study

    if options.name == "list":
        known = STUDIES.values()
        rows = [
            {"name": one.name, "claim": one.claim, "models": MODELS[one.pretrains], "minutes": one.minutes}
            for one in known
        ]
        terminal.show("What the paper claims, study by study", STUDIES_LISTED, rows)
        return
    if options.name not in STUDIES:
        raise SettingsError(
            f'no study "{options.name}"' + nearest(options.name, list(STUDIES)) + "; `tightframe study list` shows all"
        )
    asked = STUDIES[options.name]
    folder = options.out or Path("runs") / f"study-{asked.name}"
    with terminal.progress() as progress:
        found = run_study(
            asked,
            folder,
            scale=options.scale,
            data=options.data,
            models=options.models,
            seeds=options.repeats,
            epochs=options.epochs,
            max_per_class=options.max_per_class,
            model_options=_model(options),
            workspace=_workspace(options, progress),
        )
    if len(found.rows) <= MOST_ROWS:
        terminal.show(f"{asked.name}: every point", asked.columns, found.rows)
    terminal.close(found, options.json)
    terminal.where(folder / "report.html", "page, with image.png and rows.csv beside it")


def spaced(rows: list[Any]) -> list[Any]:
    """About ``SHOWN`` of them, evenly, and the last."""
    step = -(-len(rows) // SHOWN)
    return rows[::-1][::step][::-1]


def predict(options: argparse.Namespace) -> None:
    """``tightframe predict``."""
    from tightframe.deploy.tuned import load_tuned
    from tightframe.report.columns import PREDICTIONS
    from tightframe.report.result import Result

    rows = load_tuned(options.folder, options.model).predict(options.images, device=options.device)
    terminal.show("Predictions", PREDICTIONS, rows)
    terminal.close(Result("predict", rows, {"folder": str(options.folder)}), options.json)
    if any("error" in row for row in rows):
        raise SystemExit(1)


def evaluate(options: argparse.Namespace) -> None:
    """``tightframe evaluate``."""
    from tightframe.deploy.evaluate import evaluate, mistaken
    from tightframe.deploy.tuned import load_tuned
    from tightframe.report.columns import CLASSES, CONFUSIONS, EVALUATION, SAMPLES

    with terminal.progress() as progress:
        tuned = load_tuned(options.folder, options.model)
        found = evaluate(tuned, _judged(options, progress), device=options.device)
    terminal.show(
        f"{tuned.backbone.name} ({tuned.model.method.name}) on {found.settings['data']}", EVALUATION, found.rows
    )
    terminal.show("Each class", CLASSES, found.further["classes"])
    if found.further["mistakes"]:
        terminal.show("What was taken for what", CONFUSIONS, mistaken(found.further["confusion"])[:SHOWN])
        terminal.show("The surest mistakes", SAMPLES, found.further["mistakes"])
    terminal.close(found, options.json)


def merge(options: argparse.Namespace) -> None:
    """``tightframe merge``."""
    from tightframe.deploy.merge import merge
    from tightframe.deploy.tuned import load_tuned
    from tightframe.report.columns import MERGED

    found = merge(load_tuned(options.folder, options.model), options.out)
    terminal.show(f"A plain model in {options.out}", MERGED, found.rows)
    terminal.close(found, options.json)


def export(options: argparse.Namespace) -> None:
    """``tightframe export``."""
    from tightframe.deploy.export import export_onnx
    from tightframe.deploy.tuned import load_tuned
    from tightframe.report.columns import EXPORTED

    with terminal.progress() as progress:
        data = _judged(options, progress) if options.data else None
        tuned = load_tuned(options.folder, options.model)
        found = export_onnx(tuned, options.onnx, data, pixels=options.pixels, tolerance=options.tolerance)
    terminal.show(f"{options.onnx} beside PyTorch", EXPORTED, found.rows)
    terminal.close(found, options.json)


def push(options: argparse.Namespace) -> None:
    """``tightframe push``."""
    from tightframe.deploy.hub import push_to_hub
    from tightframe.report.columns import PUSHED

    found = push_to_hub(
        options.folder, options.repository, private=True if options.private else None, license=options.license
    )
    terminal.show("On the hub", PUSHED, found.rows)
    terminal.close(found, options.json)


def _judged(options: argparse.Namespace, progress: Any) -> Any:
    """The images that ``tune`` held out, or all."""
    from tightframe.data.loading import load_images

    share = 0.0 if options.all else options.test_share
    return load_images(options.data, test_share=share, seed=options.seed, skip_bad=options.skip_bad, progress=progress)


def _images(options: argparse.Namespace, progress: Any) -> Any:
    from tightframe.data.loading import load_images

    return load_images(
        options.data,
        test_share=options.test_share,
        seed=options.seed,
        max_per_class=options.max_per_class,
        skip_bad=options.skip_bad,
        progress=progress,
    )


def _model(options: argparse.Namespace) -> dict[str, Any]:
    size = options.input_size
    if size and len(size) > 2:
        raise SettingsError("--input-size takes one number, or height and width")
    given = {
        "layers": options.layers,
        "input_size": (size[0], size[-1]) if size else None,
        "mean": options.mean,
        "std": options.std,
    }
    return {key: value for key, value in given.items() if value} | (
        {"pretrained": False} if options.no_pretrained else {}
    )


def _workspace(options: argparse.Namespace, progress: Any) -> Any:
    from tightframe.features.workspace import Workspace

    cache = getattr(options, "feature_cache", None)  # transfer keeps its own
    return Workspace(cache, device=options.device, precision=options.precision, pool=options.pool, progress=progress)


def _config(options: argparse.Namespace) -> Any:
    from dataclasses import fields

    from tightframe.tuning.config import TrainConfig

    given: dict[str, Any] = {
        field.name: getattr(options, field.name) for field in fields(TrainConfig) if hasattr(options, field.name)
    }
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return TrainConfig(**given)
