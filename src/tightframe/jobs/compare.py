"""Tune one model by several methods on the same images, with the same split and the same budget: one table.

Methods are compared on the training images that are held out while rate and decay are chosen. Test images are
shown beside them and choose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, Unpack

from tightframe.backbone import Backbone
from tightframe.data.selection import stratified
from tightframe.deploy.tuned import Tuned
from tightframe.errors import DataError, ModelError, SettingsError, TightframeError
from tightframe.features.extract import Running
from tightframe.images import ImageSplits
from tightframe.jobs.plan import Plan
from tightframe.jobs.run import Run, claim
from tightframe.jobs.training import trial_of
from tightframe.jobs.tune import choose_layer, tune
from tightframe.probes.results import interval
from tightframe.report.result import Result
from tightframe.report.tables import percent
from tightframe.row import Row
from tightframe.tuning.methods import METHODS, method_named

MAIN = "scl"
UNJUDGED = (
    "no method is chosen: no rates or decays were tried on images held out (one of each was given, or there are too "
    "few images a class); test accuracy is shown only"
)
Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What ``compare`` made.

    Attributes:
        rows: a row a method: accuracies with intervals, NC1, trained parameters, seconds; or ``error``, why it failed.
        tuned: what came of every method that did not fail, by its name.
        block: what was tuned by the methods that tune one block.
        best: the method to use: the one with the highest validation accuracy or, of those whose intervals overlap with
            its own, the one that trains the fewest parameters. ``None`` if nothing was held out to tell.
        result: everything above as one ``Result``.
    """

    rows: list[Row]
    tuned: dict[str, Tuned]
    block: str | None
    best: str | None
    result: Result


def compare(
    data: ImageSplits,
    backbone: Backbone,
    methods: Sequence[str],
    *,
    layer: str = "auto",
    plan: Plan | None = None,
    out: Path | str,
    resume: bool = False,
    log: Sequence[str] = (),
    **running: Unpack[Running],
) -> Comparison:
    """Tune ``backbone`` by every method in ``methods``, each into its own folder in ``out``, and compare them.

    The block is chosen once, for all methods that tune one. A method that fails has a row that says why.

    Raises:
        SettingsError: unknown method, a value out of range, or ``out`` holds something and ``resume`` is off, or
            something else.
        LayerNotFound: no such layer.
        ModelError: every method failed.
    """
    plan, folder = plan or Plan(), Path(out)
    plan.check()
    names = unique_methods(methods)
    settings = settings_of(data, names, layer, plan, running) | {"origin": backbone.origin}
    claim(folder, [settings, backbone.fingerprint], resume)
    return tune_each(data, backbone, names, layer, plan, folder, settings, log, running)


def unique_methods(names: Sequence[str]) -> list[str]:
    """The names without repetitions. Raises ``SettingsError`` for an unknown one, or if there is none."""
    if not names:
        raise SettingsError(f"no method is named; choose from {', '.join(METHODS)}")
    return [method_named(name).name for name in dict.fromkeys(names)]


def settings_of(data: ImageSplits, methods: Sequence[str], layer: str, plan: Plan, running: Running) -> dict[str, Any]:
    """What tuning by several methods depends on, but for the model."""
    return {
        "data": data.name,
        "classes": list(data.classes),
        "training_images": len(data.train),
        "test_images": len(data.test) if data.test else 0,
        "images": [split.fingerprint for split in (data.train, data.test) if split],
        "methods": list(methods),
        "layer": layer,
        "plan": asdict(plan),
        "pool": running.get("pool", "auto"),
        "precision": running.get("precision", "auto"),
    }


def tune_each(
    data: ImageSplits,
    backbone: Backbone,
    names: Sequence[str],
    layer: str,
    plan: Plan,
    folder: Path,
    settings: dict[str, Any],
    log: Sequence[str],
    running: Running,
) -> Comparison:
    """``compare`` in a ``folder`` that is already the caller's own, for a run with these ``settings``."""
    block: str | TightframeError | None = None
    with_block = [METHODS[name] for name in names if METHODS[name].needs_layer]
    if with_block and layer == "auto":
        method = METHODS[MAIN] if METHODS[MAIN] in with_block else with_block[0]
        run, key = Run(folder), [settings, backbone.fingerprint]
        block = _attempt(
            lambda: run.remember("block", key, lambda: choose_layer(data, backbone, method, plan, running))[0]
        )
    elif with_block:
        block = backbone.layer(layer).name

    def outcome(name: str) -> Tuned | TightframeError:
        own = block if METHODS[name].needs_layer else None
        if isinstance(own, TightframeError):
            return own
        named, out = own or "auto", folder / name
        return _attempt(
            lambda: tune(data, backbone, method=name, layer=named, plan=plan, out=out, resume=True, log=log, **running)
        )

    outcomes = {name: outcome(name) for name in names}
    known = settings | {"model": backbone.name, "layer": None if isinstance(block, TightframeError) else block}
    return _compared(data, plan, outcomes, folder, known)


def _attempt(work: Callable[[], Found]) -> Found | TightframeError:
    """What ``work`` gives, or why it failed."""
    try:
        return work()
    except DataError:
        raise  # images that can't be used are no method's own failure
    except TightframeError as error:
        return error


def _compared(
    data: ImageSplits,
    plan: Plan,
    outcomes: dict[str, Tuned | TightframeError],
    folder: Path,
    settings: dict[str, Any],
) -> Comparison:
    """What came of every method, side by side."""
    tuned = {name: found for name, found in outcomes.items() if isinstance(found, Tuned)}
    held_out = len(stratified(data.train.labels, plan.validation_share, plan.seed)[1])
    rows = [_row(name, found, held_out) for name, found in outcomes.items()]
    if not tuned:
        first = rows[0]
        raise ModelError(f"no method could tune {settings['model']}; {first['method']} said: {first['error']}")
    best, told = verdict(rows, held_out)
    notes = list(dict.fromkeys([told, *(note for found in tuned.values() for note in found.notes)]))
    following = [tuned[best].predict_command(folder / best)] if best else []
    return Comparison(rows, tuned, settings["layer"], best, Result("compare", rows, settings, notes, following))


def _row(name: str, found: Tuned | TightframeError, held_out: int) -> Row:
    """What is known of a method, with the accuracy of its chosen trial on the ``held_out`` training images."""
    if isinstance(found, TightframeError):
        return {"method": name, "error": str(found)}
    trial = chosen_trial(found.history)
    if not trial:
        return found.metrics | {"validation_accuracy": None}
    accuracy = trial[-1]["validation_accuracy"]
    low, high = interval(round(accuracy * held_out), held_out)
    return found.metrics | {"validation_accuracy": accuracy, "validation_low": low, "validation_high": high}


def chosen_trial(history: Sequence[Row]) -> list[Row]:
    """The epochs of the trial whose rate and decay were chosen; none if nothing was searched."""
    final = next((row for row in history if row["phase"] == "final"), Row())
    return trial_of(history, final.get("initial_lr"), final.get("decay"))


def verdict(rows: Sequence[Row], held_out: int) -> tuple[str | None, str]:
    """The method to use by rows of ``compare``, or ``None``, and why."""
    judged = [row for row in rows if row.get("validation_accuracy") is not None]
    if not judged:
        return None, UNJUDGED
    first = max(judged, key=lambda row: (row["validation_accuracy"], -row["parameters"]))
    alike = [row for row in judged if row is not first and row["validation_high"] >= first["validation_low"]]
    best = min([first, *alike], key=lambda row: row["parameters"])["method"]
    told = f"{first['method']} validates best: {percent(first['validation_accuracy'])} of {held_out} training images "
    told += "held out"
    if alike:
        others = ", ".join(row["method"] for row in alike)
        told += f"; intervals overlap with {others}, and of these methods {best} trains the fewest parameters"
    return best, told
