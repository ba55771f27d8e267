"""A study: one of the paper's experiments, the points it consists of, and how to run them all so that they resume."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tightframe.backbone import Backbone
from tightframe.data.loading import load_images
from tightframe.errors import DataError, ModelError, SettingsError, TightframeError
from tightframe.features.stages import Stages, claim
from tightframe.features.workspace import Workspace
from tightframe.files import write_bytes, write_text
from tightframe.images import ImageSplits
from tightframe.jobs import demo
from tightframe.models.backbones import load_backbone
from tightframe.progress import Progress
from tightframe.report.fields import TABLES
from tightframe.report.formats import apart, number
from tightframe.report.page import Grid, Section, write_report
from tightframe.report.result import Result
from tightframe.row import Row
from tightframe.studies.evidence import RULE, Evidence


@dataclass(frozen=True)
class Scale:
    """How large a study is.

    Attributes:
        epochs: of pre-training or tuning; 0 in studies that do neither.
        seeds: how many; each draws other weights, orders and, where few are taken, other images. 0 where nothing is
            drawn.
        shots: images a class, one after the other, where a study takes few.
        images: most for training at a point of a study of few images.
        models: models, where the user names none; the built-in ones if empty.
        arch: what is pre-trained, with ``augment`` and ``batch_size`` (see ``jobs.pretrain``).
        episodes: of few-shot evaluation.
        blocks: most blocks of a model that are tuned, one after the other.
        methods: to tune by.
    """

    epochs: int = 0
    seeds: int = 0
    shots: tuple[int, ...] = ()
    images: int = 0
    models: tuple[str, ...] = ()
    arch: str = "cifar_resnet8"
    augment: float = 0.1
    batch_size: int = 64
    episodes: int = 300
    blocks: int = 6
    methods: tuple[str, ...] = ("linear", "layer", "scl", "full")


@dataclass(frozen=True, eq=False)
class Lab:
    """What a study is run with: images, models, how large, where to write, and how models run."""

    scale: Scale
    data: tuple[ImageSplits, ...]
    models: tuple[Backbone, ...]
    folder: Path
    workspace: Workspace

    @property
    def seeds(self) -> range:
        """0, 1, …"""
        return range(self.scale.seeds)


@dataclass(frozen=True)
class Point:
    """Rows that are computed, and kept, together.

    Attributes:
        labels: which point of the study it is; part of each of its rows.
        compute: the rows.
    """

    labels: Row
    compute: Callable[[], Sequence[Row]]


@dataclass(frozen=True)
class Study:
    """An experiment by name.

    Attributes:
        name: of the study.
        claim: what the paper says came of it.
        paper: what the paper did.
        small: what ``--scale small`` does instead.
        minutes: that takes on a laptop, with what docs/studies.md is made of.
        points: what is computed.
        evidence: what the rows say of the claim; the claim itself comes first.
        columns: of the table.
        plot: a chart of the rows.
        scales: by name.
        pretrains: whether models are made from the first of the datasets and judged on the others.
        built_in: datasets where the user names none.
    """

    name: str
    claim: str
    paper: str
    small: str
    minutes: int
    points: Callable[[Lab], Iterator[Point]]
    evidence: Callable[[Sequence[Row]], list[Evidence]]
    columns: tuple[str, ...]
    plot: Callable[[Sequence[Row]], Any]
    scales: Mapping[str, Scale] = field(default_factory=dict)
    pretrains: bool = False
    built_in: tuple[str, ...] = (demo.DOWNSTREAM,)


def run_study(
    study: Study,
    out: Path | str,
    *,
    scale: str = "small",
    data: Sequence[str] = (),
    models: Sequence[str | Backbone] = (),
    seeds: int | None = None,
    epochs: int | None = None,
    max_per_class: int | None = None,
    model_options: Mapping[str, Any] | None = None,
    workspace: Workspace | None = None,
) -> Result:
    """Run a study of the paper by name and test its claim; points that ``out`` already holds are not run again.

    Several such calls at once, in processes of their own, share the work. ``out`` is given ``rows.csv``,
    ``result.json``, ``report.html`` and ``plot.png``.

    Args:
        study: Name of a study, as ``tightframe study list`` shows them; in Python an entry of ``STUDIES``.
        out: Folder for the result; the same call continues what an earlier one left in it, and several at once share
            the work. From the command line runs/study-NAME by default.
        scale: small (minutes on a laptop), medium (minutes on a GPU; some studies have it) or paper (the paper's own,
            hours on a GPU; wants data).
        data: Datasets with test images, each as for ``load_images``; the built-in digits by default. Studies that
            pre-train do so on the first and transfer to the others.
        models: Models by name as for ``load_backbone``, or backbones; not for studies that pre-train.
        seeds: Number of seeds; the scale's by default.
        epochs: Epochs of pre-training or tuning; the scale's by default.
        max_per_class: Most training images of each class and dataset (a study of few images has its own numbers).
        model_options: Further arguments of ``load_backbone``.
        workspace: Where and how models run.

    Raises:
        SettingsError: a value out of range, or ``out`` holds something else.
        DataError, ModelError: images or models that can't be loaded. What fails later is a row with its ``error``.
    """
    chosen = _scaled(study, scale, seeds, epochs)
    if study.pretrains and models:
        raise SettingsError(f"{study.name} makes its own models: leave out --models")
    if scale == "paper" and not data:
        raise SettingsError("the paper's scale needs images; name some with --data")
    if study.pretrains and model_options:
        raise SettingsError(f"{study.name} makes its own models: leave out {', '.join(model_options)}")
    workspace, folder = workspace or Workspace(), Path(out).absolute()
    progress = workspace.progress
    splits = _images(study, data or study.built_in, max_per_class, progress)
    wanted = () if study.pretrains else models or chosen.models
    given = _named([load_backbone(one, **(model_options or {})) if isinstance(one, str) else one for one in wanted])
    settings = {
        "study": study.name,
        "scale": scale,
        **_used(study, chosen),
        "data": [one.name for one in splits],
        "images": [len(one.train) for one in splits],
        "max_per_class": max_per_class,
        "models": [one.name for one in given],
        "pool": workspace.pool,
        "precision": workspace.precision,
    }
    images = [part.fingerprint for one in splits for part in (one.train, one.test) if part is not None]
    claim(folder, [settings, images, [[one.fingerprint, [layer.name for layer in one.layers]] for one in given]])
    if not given and not study.pretrains:
        with Stages(folder).held("models"):
            made = demo.candidates(folder / "models", progress)
        given = _named([load_backbone(one) if isinstance(one, str) else one for one in made])
    rows = _rows(study, Lab(chosen, splits, given, folder, workspace))
    settings["seconds"] = round(sum(row.pop("point_seconds", 0.0) for row in rows), 1)
    result = _result(study, rows, settings)
    _write(study, result, folder)
    return result


def _images(
    study: Study, names: Sequence[str], max_per_class: int | None, progress: Progress
) -> tuple[ImageSplits, ...]:
    """Datasets with test images, their names made different."""
    if study.pretrains and len(names) < 2:
        raise SettingsError(f"{study.name} needs two datasets or more: where to train, and where to transfer to")
    found = [load_images(name, max_per_class=max_per_class, progress=progress) for name in names]
    for one in found:
        if one.test is None:
            raise DataError(f"{one.name} has no test images; give it a test folder")
    different = apart(one.name for one in found)
    return tuple(replace(one, name=name) for one, name in zip(found, different, strict=True))


def _named(models: Sequence[Backbone]) -> tuple[Backbone, ...]:
    """The models, their names made different."""
    different = apart(one.name for one in models)
    return tuple(replace(one, name=name) for one, name in zip(models, different, strict=True))


def _scaled(study: Study, scale: str, seeds: int | None, epochs: int | None) -> Scale:
    if scale not in study.scales:
        raise SettingsError(f'no scale "{scale}"; choose {" or ".join(study.scales)}')
    for name, value in (("seeds", seeds), ("epochs", epochs)):
        if value is not None and value < 1:
            raise SettingsError(f"{name} is {value}; it must be 1 or more")
    usual = study.scales[scale]
    for name, value, used in (("--epochs", epochs, usual.epochs), ("--seeds", seeds, usual.seeds)):
        if value is not None and not used:
            raise SettingsError(f"{study.name} trains or draws nothing by {name}: leave it out")
    return replace(usual, seeds=seeds or usual.seeds, epochs=epochs or usual.epochs)


def _used(study: Study, scale: Scale) -> Row:
    """What of the scale has a part in the study."""
    of_pretraining, of_tuning = {"arch", "augment", "batch_size"}, {"blocks", "methods"}
    unused = of_tuning if study.pretrains else of_pretraining if scale.epochs else of_pretraining | of_tuning
    return {name: value for name, value in asdict(scale).items() if name not in unused}


def _rows(study: Study, lab: Lab) -> list[Row]:
    """Of all points; the first row of each holds the seconds it took."""
    run, points = Stages(lab.folder), {json.dumps(point.labels): point for point in study.points(lab)}
    found: dict[str, list[Row]] = {}
    for name in lab.workspace.progress(_in_turn(run, list(points)), study.name, len(points)):
        point = points[name]
        try:
            found[name] = run.remember(name, point.labels, partial(_computed, point))
        except _Failed as failed:
            found[name] = failed.rows
    return [point.labels | row for name, point in points.items() for row in found[name]]


def _in_turn(run: Stages, names: Sequence[str]) -> Iterator[str]:
    """Points, held while they are worked on; those that another run in the same folder is at come last."""
    for wait in (False, True):
        left = []
        for name in names:
            with run.held(name, wait) as mine:
                if mine:
                    yield name
                else:
                    left.append(name)
        names = left


def _computed(point: Point) -> list[Row]:
    """Rows of a point. Raises ``_Failed`` where one has an error: what failed is tried again next time."""
    started = time.perf_counter()
    found = tried_all(point.compute)
    if any("error" in row for row in found):
        raise _Failed(found)
    found[0]["point_seconds"] = time.perf_counter() - started
    return found


class _Failed(Exception):
    """Rows that are shown, and not kept."""

    def __init__(self, rows: list[Row]):
        super().__init__()
        self.rows = rows


def tried_all(compute: Callable[[], Sequence[Row]]) -> list[Row]:
    """The rows, or one with the ``error`` for which there are none."""
    try:
        return [dict(row) for row in compute()]
    except SettingsError:
        raise  # the same for all points: said at once
    except TightframeError as error:
        return [{"error": str(error)}]


def tried(compute: Callable[[], Row]) -> Row:
    """The row, or one with the ``error``."""
    return tried_all(lambda: [compute()])[0]


def _result(study: Study, rows: list[Row], settings: dict[str, Any]) -> Result:
    found = [one.told() for one in study.evidence(rows)]
    failed = [row["error"] for row in rows if "error" in row]
    if len(failed) == len(rows):
        raise ModelError(f"every point of {study.name} failed; the first: {failed[0] if failed else 'there are none'}")
    some = [f"{len(failed)} of {len(rows)} rows failed and are not counted; the first: {failed[0]}"] if failed else []
    notes = [f"the paper: {study.claim}", *map(_told, found), *some, RULE]
    return Result(study.name, rows, settings, notes, [], tables={"evidence": found})


def _told(row: Row) -> str:
    """A line of evidence in words."""
    ends = "" if row["low"] is None else f" ({number(row['low'])} to {number(row['high'])})"
    return f"{row['verdict']}: {row['question']}; {row['statistic']} {number(row['value'])}{ends}, {row['units']}"


def _write(study: Study, result: Result, folder: Path) -> None:
    evidence, chart = result.tables["evidence"], study.plot(result.rows)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in result.rows for key in row)))
    writer.writeheader()
    writer.writerows(result.rows)
    write_text(folder / "rows.csv", stream.getvalue())
    (folder / "plot.png").unlink(missing_ok=True)
    if chart is not None:
        write_bytes(folder / "plot.png", png(chart))
    write_report(
        folder / "report.html",
        title=f"Study: {study.name}",
        summary=[f"The paper: {study.claim}", *map(_told, evidence)],
        sections=[
            Section("What came of it", RULE, [chart, Grid(TABLES["evidence"].columns, evidence)]),
            Section(
                "Every point", f"The paper: {study.paper}\n\nHere: {study.small}", [Grid(study.columns, result.rows)]
            ),
        ],
        settings=result.settings,
        versions=result.versions,
    )
    result.to_json(folder / "result.json")


def png(chart: Any) -> bytes:
    """The chart as an image, two dots a pixel."""
    stream = io.BytesIO()
    chart.save(stream, format="png", scale_factor=2)
    return stream.getvalue()
