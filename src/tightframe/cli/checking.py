"""The command that checks images before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tightframe.checks import check
from tightframe.cli import terminal
from tightframe.cli.commands import BUILDING, CACHED, DATA, DECODING, IMAGES, OPTIONS, WHERE, typed
from tightframe.cli.options import Given, Source, as_size, command
from tightframe.data.loading import load_images
from tightframe.errors import DataError, ModelError
from tightframe.features.workspace import Workspace
from tightframe.jobs import demo
from tightframe.models.backbones import load_backbone
from tightframe.models.lists import LISTS


@command(
    DATA,
    Source(load_backbone, ["uri"], OPTIONS, {"uri": "model"}, defaults={"uri": None}),
    Source(check.check, ["out"], OPTIONS, defaults={"out": Path("runs/check")}),
    Source(check.check, ["csv", "write_clean"], OPTIONS, written=["csv", "write_clean"]),
    Source(load_images, ["max_per_class", "test_share", "seed", *DECODING, *WHERE], IMAGES),
    BUILDING,
    CACHED,
)
def check_command(given: Given) -> None:
    """What is wrong before training."""
    with terminal.progress() as progress:
        data = _all_readable(given, progress)
        backbone, missing = _checking_model(given, progress)
        found = given.call(
            check.check, data, backbone, seed=given.seed, workspace=given.call(Workspace, progress=progress)
        )
    found.notes.extend(missing)
    terminal.show(f"Findings in {data.name}", "checks", found.tables["checks"])
    worst = [row for row in found.rows if row["severity"] != "note" and row["path"]][: terminal.SHOWN]
    if worst:
        terminal.show("The worst of them", ("finding", "path", "class", "likely", "other"), worst)
    terminal.close(found, given.json, typed(given))


def _all_readable(given: Given, progress: Any) -> Any:
    """The images, those that can't be used left out: at first without decoding each to find them, which costs most."""
    try:
        return given.call(load_images, progress=progress)
    except DataError:
        return given.call(load_images, skip_bad=True, progress=progress)


def _checking_model(given: Given, progress: Any) -> tuple[Any, list[str]]:
    """The model to look through, or ``None`` and why: one that was not asked for need not be there."""
    if given.model is not None:
        return given.call(load_backbone, input_size=as_size(given.values.get("input_size"))), []
    if str(given.data).partition(":")[0] == "digits":
        torch.set_num_threads(1)
        return load_backbone(str(demo.candidates(Path("runs/transfer-models"), progress)[0])), []
    cheapest = LISTS["fast"][0]
    try:
        return load_backbone(cheapest), []
    except ModelError as error:
        return None, [f"{cheapest} could not be loaded: {error}"]
