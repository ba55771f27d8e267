"""The main job: from images and a list of models to a chosen, tuned, saved model and a report.

Everything lands in one folder, and a run that was stopped at any moment goes on from there: finished models,
features and trainings are reused, the training that was cut off goes on from its last epoch.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tightframe.backbone import Backbone
from tightframe.checks.quick import quick_notes
from tightframe.decide.block import check_block
from tightframe.decide.reading import reading_of
from tightframe.deploy.evaluate import Answers
from tightframe.deploy.tuned import Tuned
from tightframe.engine.stages import claim
from tightframe.errors import LayerNotFound, ModelError, TightframeError
from tightframe.features.workspace import Workspace
from tightframe.images import Images, ImageSplits
from tightframe.jobs.compare import Comparison, settings_of, tune_each
from tightframe.jobs.measure import layer_rows
from tightframe.jobs.rank import rank
from tightframe.jobs.story import epoch_rows, write_story
from tightframe.jobs.tune import READING
from tightframe.models.backbones import load_backbone
from tightframe.models.clip import has_texts
from tightframe.models.lists import listed
from tightframe.probes.discriminant import LayerReading
from tightframe.report.formats import percent
from tightframe.report.result import Result
from tightframe.row import Row
from tightframe.tuning.config import TrainConfig
from tightframe.tuning.methods import unique_methods

DEFAULT = ("discriminant", "linear", "partial", "auto")
"""Methods to choose from: what costs seconds, what everyone knows, what trains, and what the first and the third make
together."""


@dataclass(frozen=True, eq=False)
class Transfer:
    """What ``transfer`` made: rows of every step, the tuned model, and where it all is.

    Attributes:
        folder: holds ``report.html``, ``result.json`` and a saved folder for each method.
        ranking: rows of ``rank``.
        layers: rows of ``measure`` for the model chosen.
        methods: a row a method: accuracies, NC1, share of parameters, seconds.
        tuned: the model to use: by the method that does best on held-out training images (see ``compare``) or, where
            none were held out, by the first of the methods asked for.
        samples: a few test images, some right, some wrong: their true class and the prediction of ``tuned``.
        result: everything above as one ``Result``.
    """

    folder: Path
    ranking: Result
    layers: list[Row]
    methods: list[Row]
    tuned: Tuned
    samples: list[Row]
    result: Result

    def __repr__(self) -> str:
        return repr(self.result)

    def _repr_html_(self) -> str:
        return self.result._repr_html_()


def transfer(
    data: ImageSplits,
    models: Sequence[str | Backbone] = ("default",),
    *,
    out: Path | str,
    methods: Sequence[str] = DEFAULT,
    block: str = "auto",
    sort_by: str = "expected_accuracy",
    max_params: float | None = None,
    max_macs: float | None = None,
    max_latency_ms: float | None = None,
    config: TrainConfig | None = None,
    log_to: Sequence[str] = (),
    model_options: Mapping[str, Any] | None = None,
    workspace: Workspace | None = None,
) -> Transfer:
    """Rank models, choose one and its block, tune it by every method asked for, save, and write a report.

    Everything lands in one folder. A run that was stopped at any moment continues from there, to the same result.

    Args:
        data: The images.
        models: Models by name, each as for ``load_backbone`` (timm/NAME, torchvision/NAME, open_clip/NAME/PRETRAINED,
            hf/NAME, local-dir:PATH, or PATH.py:FUNCTION, which runs that file), or backbones; also a list by one word
            (default, fast or accurate) or a pattern (timm/*resnet*), whose weights are downloaded one after the other.
        out: Folder for all of it.
        methods: Tuning methods to choose from: discriminant, linear, layer, scl, partial, full, bitfit, norm, lp-ft or
            lora; also auto (see ``tune``), which uses what the others made.
        block: The block to tune, for the methods that tune one, or the first that partial tunes; auto lets a few race,
            and means the middle one for partial.
        sort_by: Column of the ranking that chooses the model: expected_accuracy, probe_accuracy, nc1, logme or another
            score.
        max_params: Leave out models with more parameters than so many millions.
        max_macs: Leave out models with more multiplications and additions an image than so many millions.
        max_latency_ms: Leave out models that take longer than so many milliseconds for one image, on this machine.
        config: How to choose and train.
        log_to: Also report every epoch to tensorboard, wandb or mlflow; log.jsonl is always kept.
        model_options: Further arguments of ``load_backbone`` for models given by name.
        workspace: Where and how backbones run; its features are kept in ``out`` if it has no folder of its own.

    Raises:
        SettingsError: ``out`` holds a run with other settings or images.
        ModelError: none of the models could be used.
    """
    config, folder, options = config or TrainConfig(), Path(out), dict(model_options or {})
    names, models = unique_methods(methods), listed(models)
    asked: dict[str, Any] = {"models": [m if isinstance(m, str) else m.name for m in models], "model_options": options}
    workspace = (workspace or Workspace()).in_folder(folder)
    most = {"max_params": max_params, "max_macs": max_macs, "max_latency_ms": max_latency_ms}
    settings = settings_of(data, names, block, config, workspace) | asked | {"sort_by": sort_by} | most
    if block != "auto":
        _check_known(block, models, options)  # before the folder is taken for a run with it
    claim(folder, settings)
    unseen = replace(data, test=None)  # test images are for the saved models alone
    how: dict[str, Any] = {"sort_by": sort_by, **most, "model_options": options, "seed": config.seed}
    ranking = rank(unseen, models, **how, prompts=config.prompts, workspace=workspace)
    backbone = _winner(ranking.rows, models, options)
    if not has_texts(backbone):
        config = replace(config, prompts=None)  # they are for those models that have a text encoder
    compared = tune_each(data, backbone, names, block, config, folder, settings, log_to, workspace)
    features = workspace.features(backbone, data.train)
    measured = partial(layer_rows, backbone, features, "class", config.seed, workspace.progress)
    layers = workspace.remember("layers", [settings, backbone.fingerprint], measured)
    layers = [row | {"chosen": row["layer"] == compared.block} for row in layers]
    checking = partial(_checked, data, backbone, compared, config, workspace)
    checked = workspace.remember("check", [settings, backbone.fingerprint], checking)
    return _reported(folder, data, ranking, layers, compared, checked, workspace)


def _check_known(block: str, models: Sequence[str | Backbone], options: Mapping[str, Any]) -> None:
    """Raise ``LayerNotFound`` if none of the models that can be loaded has such a block."""
    missing: TightframeError | None = None
    for model in models:
        try:
            return check_block(model if isinstance(model, Backbone) else load_backbone(model, **options), block)
        except LayerNotFound as error:
            missing = missing or error
        except ModelError:
            continue  # it has a row of its own that says why
    if missing is not None:
        raise missing


def _reported(
    folder: Path,
    data: ImageSplits,
    ranking: Result,
    layers: list[Row],
    compared: Comparison,
    checked: list[str],
    workspace: Workspace,
) -> Transfer:
    """All that was found, written into ``folder``."""
    tuned, rows, settings = compared.tuned, compared.rows, compared.result.settings
    name = compared.best or next(iter(tuned))
    main = tuned[name]
    where = f" at block {main.model.block}" if main.model.block else ""
    chosen = f"chosen: {main.backbone.name} by {main.model.title}{where}"
    if main.metrics.get("expected_accuracy") is not None:
        value, low, high = (main.metrics[f"expected_{end}"] for end in ("accuracy", "low", "high"))
        chosen += (
            f"; expect {percent(value)} on new images like these (95 % interval {percent(low)} to {percent(high)})"
        )
    notes = list(dict.fromkeys([chosen, *compared.result.notes, *ranking.notes, *checked]))
    next_steps = [
        main.predict_command(folder / name),
        f"open {shlex.quote(str(folder / 'report.html'))} in a browser",
    ]
    epochs = epoch_rows({name: outcome.history for name, outcome in tuned.items()})
    tables = {"rank": ranking.rows, "measure": layers, "epochs": epochs}
    shown = None
    if data.test is not None:  # as its images were decoded for judging
        shown = workspace.pixels(data.test, main.backbone.preprocessing).data
        tables |= Answers(shown, main.classes, shown.labels, _logits(main, shown, workspace)).tables()
    result = Result("transfer", rows, settings, notes, next_steps, tables=tables)
    write_story(folder / "report.html", result, shown)
    result.to_json(folder / "result.json")
    return Transfer(folder, ranking, layers, rows, main, tables.get("samples", []), result)


def _checked(
    data: ImageSplits, backbone: Backbone, compared: Comparison, config: TrainConfig, workspace: Workspace
) -> list[str]:
    """What is wrong with the images, by what is known already (see ``checks.quick``)."""
    splits = {"train": data.train} | ({"test": data.test} if data.test is not None else {})
    pixels = {name: workspace.pixels(split, backbone.preprocessing) for name, split in splits.items()}
    logits = None
    if READING in compared.tuned and data.test is not None:
        logits = _logits(compared.tuned[READING], pixels["test"].data, workspace).numpy()

    def reading() -> LayerReading:
        how: dict[str, Any] = {"balanced": config.class_weights == "balanced", "prompts": config.prompts}
        return reading_of(data.train, backbone, workspace, **how)[0]

    return quick_notes(data, pixels, reading, logits, seed=config.seed)


def _logits(tuned: Tuned, test: Images, workspace: Workspace) -> Tensor:
    """Logits (n, K) of the test images, as they were judged; in a run that continues, judged again."""
    if tuned.test_logits is None:
        return tuned.logits_and_features(test, device=str(workspace.device))[0]
    return tuned.test_logits


def _winner(rows: list[Row], models: Sequence[str | Backbone], options: Mapping[str, Any]) -> Backbone:
    best = rows[0]
    if "error" in best:
        raise ModelError("none of the models could be used; the first failed with: " + best["error"])
    model = models[best["given"]]
    return model if isinstance(model, Backbone) else load_backbone(model, **options)
