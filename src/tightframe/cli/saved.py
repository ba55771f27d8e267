"""The commands on a tuned model: predict, evaluate, merge, export, push."""

from __future__ import annotations

from tightframe.cli import terminal
from tightframe.cli.commands import DATA, DECODING, IMAGES, OPTIONS, WHERE
from tightframe.cli.options import MACHINE, Given, Source, command
from tightframe.data.loading import load_images
from tightframe.deploy.evaluate import evaluate as judge
from tightframe.deploy.evaluate import mistaken
from tightframe.deploy.export import export_onnx
from tightframe.deploy.hub import push_to_hub
from tightframe.deploy.merge import merge as merged
from tightframe.deploy.tuned import Tuned, load_tuned
from tightframe.errors import SettingsError
from tightframe.report.result import Result

RUNNING = ["device", "engine", "workers"]
SAVED = Source(load_tuned, ["folder", "model"], OPTIONS, positional=["folder"])
HELD_OUT = Source(load_images, ["test_share", "seed", "skip_bad", *DECODING, *WHERE], IMAGES)


@command(
    SAVED,
    Source(
        Tuned.predict,
        ["images", "reject", "explain", *DECODING, *RUNNING],
        OPTIONS,
        positional=["images"],
        defaults={"images": ()},
    ),
)
def predict_command(given: Given) -> int:
    """Class and probability."""
    tuned = given.call(load_tuned)
    if not given.images:
        raise SettingsError(f"name images or folders to classify: {tuned.predict_command(given.folder)}")
    rows = given.call(Tuned.predict, tuned)
    terminal.show("Predictions", "predict", rows)
    terminal.close(Result("predict", rows, {"folder": str(given.folder)}), given.json)
    return int(any("error" in row and row["error"] for row in rows))


@command(SAVED, DATA, Source(load_images, ["skip_bad", *DECODING, *WHERE], IMAGES), Source(judge, RUNNING, MACHINE))
def evaluate_command(given: Given) -> None:
    """Accuracy, calibration, confusion."""
    with terminal.progress() as progress:
        tuned = given.call(load_tuned)
        data = given.call(load_images, test_share=0.0, min_classes=1, progress=progress)
        found = given.call(judge, tuned, data)
    title = f"{tuned.backbone.name} ({tuned.model.method.name}) on {found.settings['data']}"
    terminal.show(title, "evaluate", found.rows)
    terminal.show("Each class", "classes", found.tables["classes"])
    if found.tables["mistakes"]:
        terminal.show("Most frequent mistakes", "confusion", mistaken(found.tables["confusion"])[: terminal.SHOWN])
        terminal.show("Most confident mistakes", "samples", found.tables["mistakes"])
    terminal.close(found, given.json)


@command(SAVED, Source(merged, ["out"], OPTIONS))
def merge_command(given: Given) -> None:
    """A plain model."""
    found = merged(given.call(load_tuned), given.out)
    terminal.show(f"A plain model in {given.out}", "merge", found.rows)
    terminal.close(found, given.json)


@command(
    SAVED,
    Source(export_onnx, ["path"], OPTIONS, {"path": "onnx"}, written=["path"]),
    Source(load_images, ["source"], OPTIONS, {"source": "data"}, defaults={"source": None}),
    Source(export_onnx, ["pixels", "tolerance"], OPTIONS),
    HELD_OUT,
)
def export_command(given: Given) -> None:
    """One ONNX file."""
    with terminal.progress() as progress:
        data = given.call(load_images, progress=progress) if given.data else None
        found = export_onnx(given.call(load_tuned), given.onnx, data, pixels=given.pixels, tolerance=given.tolerance)
    terminal.show(f"{given.onnx} beside PyTorch", "export", found.rows)
    terminal.close(found, given.json)


@command(
    Source(push_to_hub, ["folder", "repo_id"], OPTIONS, {"repo_id": "repository"}, ["folder", "repo_id"]),
    Source(push_to_hub, ["private", "license", "message"], OPTIONS),
)
def push_command(given: Given) -> None:
    """To the hub."""
    found = given.call(push_to_hub)
    terminal.show("On the hub", "push", found.rows)
    terminal.close(found, given.json)
