"""Tune one model by several methods on the same images, with the same folds and the same time: one table.

Methods are compared by what each says of training images that it was not trained on, image by image. Test images are
shown beside that and choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tightframe.backbone import Backbone
from tightframe.decide.block import check_block, chosen_block
from tightframe.decide.choice import choose
from tightframe.decide.evidence import Evidence
from tightframe.deploy.tuned import Tuned
from tightframe.engine.stages import Stages, claim
from tightframe.errors import DataError, ModelError, TightframeError
from tightframe.features.workspace import Workspace
from tightframe.images import ImageSplits
from tightframe.jobs.tune import READING, Run, tune_auto, tune_by
from tightframe.report.result import Result
from tightframe.row import Row
from tightframe.tuning.config import Clock, TrainConfig
from tightframe.tuning.methods import AUTO, METHODS, unique_methods

UNJUDGED = (
    "no method is chosen: none was judged on held-out images (with folds at 0, or too few images a class); test "
    "accuracy is shown only"
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What ``compare`` made.

    Attributes:
        rows: a row a method: accuracies with intervals, NC1, trainable parameters, seconds; or the ``error`` it met.
        tuned: the tuned model of every method that did not fail, by the method's name.
        block: the first that was tuned.
        best: the method to use (see ``verdict``); ``None`` if nothing was held out to decide.
        result: everything above as one ``Result``.
    """

    rows: list[Row]
    tuned: dict[str, Tuned]
    block: str | None
    best: str | None
    result: Result

    def __repr__(self) -> str:
        return repr(self.result)

    def _repr_html_(self) -> str:
        return self.result._repr_html_()


def compare(
    data: ImageSplits,
    backbone: Backbone,
    methods: Sequence[str],
    *,
    block: str = "auto",
    out: Path | str,
    resume: bool = False,
    config: TrainConfig | None = None,
    log_to: Sequence[str] = (),
    workspace: Workspace | None = None,
) -> Comparison:
    """Tune ``backbone`` by every method in ``methods``, each into its own folder in ``out``, and compare them.

    The block is chosen once, for all methods that tune one. A method that fails has a row that says why.

    Args:
        data: The images.
        backbone: The pretrained model; it stays as it is.
        methods: Tuning methods to compare, each in a folder of its own: discriminant, linear, layer, scl, partial,
            full, bitfit, norm, lp-ft or lora; also auto (see ``tune``), which uses what the others made.
        block: The block to tune, for the methods that tune one, or the first that partial tunes; auto lets a few race,
            and means the middle one for partial.
        out: Folder for all of it.
        resume: Continue what an earlier call with the same settings left in the folder.
        config: How to choose and train.
        log_to: Also report every epoch to tensorboard, wandb or mlflow.
        workspace: Where and how the backbone runs, and what was computed before.

    Raises:
        SettingsError: unknown method, or ``out`` holds something and ``resume`` is off, or something else.
        LayerNotFound: no such block.
        ModelError: every method failed.
    """
    config, workspace, folder = config or TrainConfig(), workspace or Workspace(), Path(out)
    names = unique_methods(methods)
    check_block(backbone, block)
    settings = settings_of(data, names, block, config, workspace) | {"origin": backbone.origin}
    claim(folder, [settings, backbone.fingerprint], resume)
    return tune_each(data, backbone, names, block, config, folder, settings, log_to, workspace)


def settings_of(
    data: ImageSplits, methods: Sequence[str], block: str, config: TrainConfig, workspace: Workspace
) -> dict[str, Any]:
    """What tuning by several methods depends on, except for the model."""
    return {
        "data": data.name,
        "classes": list(data.classes),
        "training_images": len(data.train),
        "test_images": len(data.test) if data.test else 0,
        "images": [split.fingerprint for split in (data.train, data.test) if split],
        "methods": list(methods),
        "block": block,
        "config": asdict(config),
        "pool": workspace.pool,
        "precision": workspace.precision,
    }


def tune_each(
    data: ImageSplits,
    backbone: Backbone,
    names: Sequence[str],
    block: str,
    config: TrainConfig,
    folder: Path,
    settings: dict[str, Any],
    log_to: Sequence[str],
    workspace: Workspace,
) -> Comparison:
    """``compare`` in a ``folder`` that is already the caller's own, for a run with these ``settings``."""
    chosen: str | TightframeError | None = None
    racing = [METHODS[name] for name in names if name != AUTO and METHODS[name].races]
    if racing:
        method = next((method for method in racing if method.skip), racing[0])
        race = partial(chosen_block, data.train, backbone, block, method, config, workspace)
        try:
            chosen = Stages(folder).remember("block", [settings, backbone.fingerprint], race)[0]
        except DataError:
            raise  # images that can't be used are no method's own failure
        except (TightframeError, RuntimeError, MemoryError) as error:
            if block != "auto":
                raise
            chosen = _explained(error)
    outcomes = dict[str, Tuned | TightframeError]()
    for name in names:
        races = name != AUTO and METHODS[name].races
        if races and isinstance(chosen, TightframeError):
            outcomes[name] = chosen
            continue
        own = chosen if races and isinstance(chosen, str) else block
        run = Run(data, backbone, own, config, tuple(log_to), workspace, Clock.of(config))
        try:
            if name == AUTO:
                made = {name: found for name, found in outcomes.items() if isinstance(found, Tuned)}
                outcomes[name] = tune_auto(run, folder / name, True, made)
            else:
                outcomes[name] = tune_by(METHODS[name], run, folder / name, resume=True)
        except DataError:
            raise
        except TightframeError as error:
            outcomes[name] = error
        except (RuntimeError, MemoryError) as error:
            outcomes[name] = _explained(error)
    block_of = (found.model.block for found in outcomes.values() if isinstance(found, Tuned) and found.model.block)
    known = settings | {"model": backbone.name, "block": next(block_of, None)}
    return _compared(outcomes, folder, known)


def _explained(error: Exception) -> TightframeError:
    """What went wrong, as a row says it; too little memory, say, is no error of ours."""
    return error if isinstance(error, TightframeError) else TightframeError(f"{type(error).__name__}: {error}")


def _compared(outcomes: dict[str, Tuned | TightframeError], folder: Path, settings: dict[str, Any]) -> Comparison:
    """The outcomes of all methods, side by side."""
    tuned = {name: found for name, found in outcomes.items() if isinstance(found, Tuned)}
    rows = [_row(name, found) for name, found in outcomes.items()]
    if not tuned:
        first = rows[0]
        raise ModelError(f"no method could tune {settings['model']}; {first['method']} failed with: {first['error']}")
    best, told = verdict({name: found.evidence for name, found in tuned.items() if found.evidence is not None})
    by_weight = sorted(tuned, key=lambda name: name != AUTO)  # what it took is the first thing to know
    notes = list(dict.fromkeys([told, *(note for name in by_weight for note in tuned[name].notes)]))
    next_steps = [tuned[best].predict_command(folder / best)] if best else []
    return Comparison(rows, tuned, settings["block"], best, Result("compare", rows, settings, notes, next_steps))


def _row(name: str, found: Tuned | TightframeError) -> Row:
    if isinstance(found, TightframeError):
        return {"method": name, "error": str(found)}
    return found.metrics | {"method": name}


def verdict(evidence: Mapping[str, Evidence]) -> tuple[str | None, str]:
    """The method to use by what each said of held-out images, or ``None``, and why.

    The first is ``auto``, which ``discriminant`` is no rival of, else ``discriminant`` or, without either, the method
    that loses least: see ``decide.choice``.
    """
    if not evidence:
        return None, UNJUDGED
    rivals = {name: one for name, one in evidence.items() if name != READING or AUTO not in evidence}
    least = min(rivals, key=lambda name: rivals[name].log_loss)
    choice = choose(rivals, next((name for name in (AUTO, READING) if name in rivals), least))
    return choice.name, choice.why
