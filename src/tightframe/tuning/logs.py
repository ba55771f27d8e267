"""Where the rows of training are told as they come: ``log.jsonl``, TensorBoard, Weights & Biases, MLflow.

All but the first are trackers of Hugging Face Accelerate. Each trial is a series, whose name stands in front of its
numbers. A run that was resumed tells the rows of the epochs done before once more, so that every log is whole.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from tightframe.errors import PackageMissing, SettingsError, TightframeError
from tightframe.processes import is_first
from tightframe.row import Row

Tell = Callable[[str, Row], None]
"""Takes the name of a series and a row of it, whose ``epoch`` counts from 1."""
TRACKERS = {
    "tensorboard": "see that the folder of the result can be written to",
    "wandb": "run `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "set MLFLOW_TRACKING_URI to a server or a database that can be reached",
}
"""Names of trackers, and what to do where one can't start."""
LOG = "log.jsonl"


class LogFailed(TightframeError):
    """A log was asked for, and its package can't start it."""


@contextmanager
def logging_to(names: Sequence[str], folder: Path | None, title: str, settings: Mapping[str, Any]) -> Iterator[Tell]:
    """Open ``log.jsonl`` and the trackers called ``names``, and yield the function that tells a row to all of them.

    Args:
        names: names in ``TRACKERS``.
        folder: the folder of ``log.jsonl`` and of TensorBoard's files; without it there is neither.
        title: name of the run.
        settings: settings of the run, flat.

    Raises:
        SettingsError: there is no such log, or TensorBoard has no folder.
        PackageMissing: Accelerate or the tracker's package is not installed.
        LogFailed: a tracker can't start.
    """
    check(names, folder)
    tells: list[Tell] = []
    with ExitStack() as stack:
        if is_first() and folder is not None:
            tells.append(partial(_write, stack.enter_context((folder / LOG).open("w", encoding="utf-8"))))
        for name in dict.fromkeys(names) if is_first() else ():
            tracker = _started(name, folder, title, settings)
            stack.callback(tracker.finish)
            tells.append(partial(_track, tracker))

        def tell(series: str, row: Row) -> None:
            for one in tells:
                one(series, row)

        yield tell


def check(names: Sequence[str], folder: Path | None) -> None:
    """Raise ``SettingsError`` for names of no log, and for TensorBoard without a folder."""
    for name in names:
        if name not in TRACKERS:
            raise SettingsError(f'no log "{name}"; choose {", ".join(TRACKERS)} (log.jsonl is always written to --out)')
        if folder is None and name == "tensorboard":
            raise SettingsError("the log tensorboard is kept in the folder of the result: give one with --out (out=…)")


def keep(source: Path, folder: Path) -> None:
    """Move what was logged into the folder ``source`` to ``folder``, in place of an earlier run's."""
    for name in (LOG, *TRACKERS):
        if (source / name).exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            (source / name).replace(folder / name)


def _write(file: TextIO, series: str, row: Row) -> None:
    known = {key: value if not isinstance(value, float) or math.isfinite(value) else None for key, value in row.items()}
    file.write(json.dumps({"series": series, **known}) + "\n")
    file.flush()


def _track(tracker: Any, series: str, row: Row) -> None:
    numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}
    epoch = numbers.pop("epoch")
    named = {re.sub(r"[^\w\-. /]", "_", f"{series}/{key}"): float(value) for key, value in numbers.items()}
    if tracker.name == "wandb":  # its own steps never go back, as epochs do from one series to the next
        tracker.log({"epoch": epoch, **named})
    else:
        tracker.log(named, step=epoch)


def _started(name: str, folder: Path | None, title: str, settings: Mapping[str, Any]) -> Any:
    """The tracker called ``name``, which has been told the settings."""
    try:
        tracker = _tracker(name, folder, title)
        tracker.start()
        tracker.store_init_configuration({key: _flat(value) for key, value in settings.items()})
        if name == "wandb":
            tracker.tracker.define_metric("*", step_metric="epoch")
    except ImportError as error:
        raise PackageMissing(f"the log {name} can't start ({error}): pip install accelerate {name}") from error
    except Exception as error:  # whatever the tracker's package raises
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise LogFailed(f"the log {name} can't start ({why[0]}): {TRACKERS[name]}") from error
    return tracker


def _tracker(name: str, folder: Path | None, title: str) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    PartialState()  # which trackers ask whether this is the first process
    if name == "wandb":
        return WandBTracker("tightframe", name=title, dir=folder)
    if name == "mlflow":
        return MLflowTracker("tightframe", run_name=title)
    assert folder is not None, "checked"
    shutil.rmtree(folder / name, ignore_errors=True)  # of a run that was stopped
    return TensorBoardTracker(name, folder)


def _flat(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float) else str(value)
