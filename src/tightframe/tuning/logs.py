"""Where rows of training are also told as they come: a JSONL file, TensorBoard, Weights & Biases, MLflow.

Each trial is a series of its own, named by phase, rate and decay. A run that was resumed tells the epochs done before
once more, so that every log is whole by itself.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tightframe.errors import SettingsError, TightframeError
from tightframe.processes import is_first

Row = dict[str, Any]
Tell = Callable[[str, Row], None]
"""Takes the name of a series and a row of it, whose ``epoch`` counts from 1."""


class LogMissing(TightframeError, ModuleNotFoundError):
    """A log was asked for, and the package that keeps it is not there."""


class LogFailed(TightframeError):
    """A log was asked for, and its package can't keep it."""


@contextmanager
def logging_to(names: Sequence[str], folder: Path | None, title: str, settings: Mapping[str, Any]) -> Iterator[Tell]:
    """Open the logs called ``names``; what it gives tells a row to all of them.

    Args:
        names: of ``LOGS``.
        folder: that ``jsonl`` and ``tensorboard`` are written into.
        title: of the run.
        settings: of the run, flat.

    Raises:
        SettingsError: no such log, or one that needs a folder has none.
        LogMissing: its package is not installed.
    """
    check(names, folder)
    with ExitStack() as stack:
        wanted = dict.fromkeys(names) if is_first() else ()
        tells = [stack.enter_context(LOGS[name](folder, title, settings)) for name in wanted]

        def tell(series: str, row: Row) -> None:
            for one in tells:
                one(series, row)

        yield tell


def check(names: Sequence[str], folder: Path | None) -> None:
    """Raise ``SettingsError`` for names of no log, and for a log that has no folder to be in."""
    for name in names:
        if name not in LOGS:
            raise SettingsError(f'no log "{name}"; choose {", ".join(LOGS)}')
        if folder is None and name in IN_FOLDER:
            raise SettingsError(f"the log {name} is kept in the folder of the result: give one with --out (out=…)")


@contextmanager
def _jsonl(folder: Path, title: str, settings: Mapping[str, Any]) -> Iterator[Tell]:
    with (folder / "log.jsonl").open("w", encoding="utf-8") as file:

        def tell(series: str, row: Row) -> None:
            known = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
            file.write(json.dumps({"series": series, **known}) + "\n")
            file.flush()

        yield tell


@contextmanager
def _tensorboard(folder: Path, title: str, settings: Mapping[str, Any]) -> Iterator[Tell]:
    _need("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writers: dict[str, SummaryWriter] = {}

    def tell(series: str, row: Row) -> None:
        if series not in writers:
            shutil.rmtree(folder / "tensorboard" / series, ignore_errors=True)  # of a run that was stopped
            writers[series] = SummaryWriter(str(folder / "tensorboard" / series))
            writers[series].add_text("settings", json.dumps(dict(settings), indent=1, default=str))
        for key, value in _numbers(row).items():
            writers[series].add_scalar(key, value, row["epoch"])
        writers[series].flush()

    try:
        yield tell
    finally:
        for writer in writers.values():
            writer.close()


@contextmanager
def _wandb(folder: Path | None, title: str, settings: Mapping[str, Any]) -> Iterator[Tell]:
    wandb = _need("wandb", "wandb")
    where = str(folder) if folder else None
    with _starting("wandb", "run `wandb login`, or set WANDB_MODE=offline"):
        run = wandb.init(project="tightframe", name=title, config=dict(settings), dir=where)
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    try:
        yield lambda series, row: run.log(
            {"epoch": row["epoch"]} | {f"{series}/{key}": value for key, value in _numbers(row).items()}
        )
    finally:
        run.finish()


@contextmanager
def _mlflow(folder: Path | None, title: str, settings: Mapping[str, Any]) -> Iterator[Tell]:
    mlflow = _need("mlflow", "mlflow")
    with _starting("mlflow", "set MLFLOW_TRACKING_URI to a server or a database that is there"):
        client = mlflow.MlflowClient()
        experiment = mlflow.set_experiment("tightframe").experiment_id
        run = client.create_run(experiment, run_name=title).info.run_id
        for key, value in settings.items():
            client.log_param(run, key, value)
    status = "FAILED"

    def tell(series: str, row: Row) -> None:
        for key, value in _numbers(row).items():
            client.log_metric(run, re.sub(r"[^\w\-. /]", "_", f"{series}/{key}"), value, step=row["epoch"])

    try:
        yield tell
        status = "FINISHED"
    finally:
        client.set_terminated(run, status)


LOGS: dict[str, Callable[..., Any]] = {
    "jsonl": _jsonl,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
IN_FOLDER = ("jsonl", "tensorboard")


@contextmanager
def _starting(name: str, advice: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever its package raises
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise LogFailed(f"the log {name} can't start ({why[0]}): {advice}") from error


def _need(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise LogMissing(f"the log {module} needs a package that is not here: pip install {package}") from error


def _numbers(row: Row) -> dict[str, float]:
    """Its finite numbers, the epoch left out."""
    kept = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "epoch"}
    return {key: float(value) for key, value in kept.items() if math.isfinite(value)}
