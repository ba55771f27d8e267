"""How a study is run: every point once, resumed and shared between processes, then its claims, plot and page."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import vl_convert

from tightframe.backbone import Backbone
from tightframe.data.loading import load_images
from tightframe.data.sources.named import SCHEME
from tightframe.engine.engine import Here
from tightframe.engine.stages import Stages, claim
from tightframe.errors import DataError, ModelError, SettingsError
from tightframe.features.workspace import Workspace
from tightframe.files import write_bytes, write_text
from tightframe.images import ImageSplits
from tightframe.jobs import demo
from tightframe.models.backbones import load_backbone
from tightframe.report.fields import TABLES
from tightframe.report.formats import apart, number
from tightframe.report.page import Grid, Section, write_report
from tightframe.report.result import Result
from tightframe.row import Row
from tightframe.studies.evidence import RULE
from tightframe.studies.lab import Lab, Scale
from tightframe.studies.study import Point, Study, attempted

Named = TypeVar("Named", ImageSplits, Backbone)


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
    root: Path | str | None = None,
    download: bool = False,
    model_options: Mapping[str, Any] | None = None,
    workspace: Workspace | None = None,
) -> Result:
    """Run a study of the paper by name and judge its claims; points that ``out`` already holds are not run again.

    Several processes that make the same call share the points. ``rows.csv``, ``result.json``, ``report.html`` and
    ``plot.png`` are written to ``out``.

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
        root: Folder that torchvision's datasets lie in.
        download: Fetch torchvision's datasets that are not there.
        model_options: Further arguments of ``load_backbone``.
        workspace: Where and how models run.

    Raises:
        SettingsError: a value is out of range, or ``out`` holds something else.
        DataError, ModelError: images or models can't be loaded. What fails later is a row with its ``error``.
    """
    chosen = _scaled(study, scale, seeds, epochs)
    _check(study, scale, data, models, model_options or {})
    folder, workspace = Path(out).absolute(), workspace or Workspace()
    load = partial(load_images, max_per_class=max_per_class, progress=workspace.progress)
    lie: dict[str, Any] = {"root": root, "download": download}  # for a folder these have no meaning
    names = data or study.built_in
    splits = _told_apart([load(name, **(lie if str(name).startswith(SCHEME) else {})) for name in names])
    for one in splits:
        if one.test is None:
            raise DataError(f"{one.name} has no test images; give it a test folder")
    given = () if study.pretrains else _models(models or chosen.models, model_options or {})
    settings = {
        "study": study.name,
        "scale": scale,
        **{name: value for name, value in asdict(chosen).items() if value},
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
            given = _models(demo.candidates(folder / "models", workspace.progress), {})
    rows = _rows(study, Lab(chosen, splits, given, folder, workspace))
    settings["seconds"] = round(sum(row.pop("point_seconds", 0.0) for row in rows), 1)
    result = _result(study, rows, settings)
    _write(study, result, folder)
    return result


def _scaled(study: Study, scale: str, seeds: int | None, epochs: int | None) -> Scale:
    """The scale of that name, with other numbers of seeds and epochs where they are given."""
    if scale not in study.scales:
        raise SettingsError(f'no scale "{scale}"; choose {" or ".join(study.scales)}')
    usual = study.scales[scale]
    for name, value, used in (("seeds", seeds, usual.seeds), ("epochs", epochs, usual.epochs)):
        if value is not None and value < 1:
            raise SettingsError(f"{name} is {value}; it must be 1 or more")
        if value is not None and not used:
            raise SettingsError(f"{study.name} has no {name} to set; leave out --{name}")
    return replace(usual, seeds=seeds or usual.seeds, epochs=epochs or usual.epochs)


def _check(
    study: Study,
    scale: str,
    data: Sequence[str],
    models: Sequence[str | Backbone],
    model_options: Mapping[str, Any],
) -> None:
    """Raise ``SettingsError`` for arguments that don't fit the study."""
    if study.pretrains and (models or model_options):
        unused = ", ".join(f"--{name.replace('_', '-')}" for name in (*(["models"] if models else []), *model_options))
        raise SettingsError(f"{study.name} makes its own models; leave out {unused}")
    if scale == "paper" and not data:
        raise SettingsError("the paper's scale needs images; name datasets with --data")
    if study.pretrains and len(data or study.built_in) < 2:
        raise SettingsError(f"{study.name} needs two datasets or more: one to pre-train on, others to transfer to")


def _models(given: Sequence[str | Backbone], options: Mapping[str, Any]) -> tuple[Backbone, ...]:
    """Models, loaded where only named."""
    return _told_apart([load_backbone(one, **options) if isinstance(one, str) else one for one in given])


def _told_apart(found: Sequence[Named]) -> tuple[Named, ...]:
    """Datasets or models with different names."""
    different = apart(one.name for one in found)
    return tuple(replace(one, name=name) for one, name in zip(found, different, strict=True))


def _rows(study: Study, lab: Lab) -> list[Row]:
    """The rows of all points; the first row of each holds the seconds it took."""
    stages, points = Stages(lab.folder), {json.dumps(point.labels): point for point in study.points(lab)}
    found, names, work = dict[str, list[Row]](), list(points), _Points(stages, points)
    if isinstance(lab.workspace.engine, Here):
        for name in lab.workspace.progress(_in_turn(stages, names), study.name, len(names)):
            found[name] = work.rows(name)
    else:
        answers = lab.workspace.engine.run(work, names)
        for answer in lab.workspace.progress(answers, study.name, len(names)):
            found[names[answer.index]] = answer.get()
    return [point.labels | row for name, point in points.items() for row in found[name]]


@dataclass(frozen=True, eq=False)
class _Points:
    """The work of a study: the rows of each point, by name."""

    stages: Stages
    points: Mapping[str, Point]

    def do(self, name: str, attempt: int) -> list[Row]:
        with self.stages.held(name):
            return self.rows(name)

    def rows(self, name: str) -> list[Row]:
        """Of one point, computed or kept."""
        try:
            return self.stages.remember(name, self.points[name].labels, partial(_computed, self.points[name]))
        except _Failed as failed:
            return failed.args[0]


def _in_turn(stages: Stages, names: Sequence[str]) -> Iterator[str]:
    """Points, each locked while it is worked on; those that another process is working on come last."""
    for wait in (False, True):
        left = []
        for name in names:
            with stages.held(name, wait) as mine:
                if mine:
                    yield name
                else:
                    left.append(name)
        names = left


class _Failed(Exception):
    """Its argument: rows that are shown and not kept; the next call tries again."""


def _computed(point: Point) -> list[Row]:
    """The rows of a point. Raises ``_Failed`` if one has an error."""
    started = time.perf_counter()
    found = attempted(point.compute)
    if any("error" in row for row in found):
        raise _Failed(found)
    found[0]["point_seconds"] = time.perf_counter() - started
    return found


def _result(study: Study, rows: list[Row], settings: dict[str, Any]) -> Result:
    """Rows, the evidence in them, and notes that say it in words."""
    failed, measured = [row["error"] for row in rows if "error" in row], _measured(rows)
    if not measured:
        raise ModelError(f"every point of {study.name} failed; the first: {failed[0] if failed else 'there are none'}")
    evidence = [found.row() for claim in study.claims if (found := claim(measured)) is not None]
    some = [f"{len(failed)} of {len(rows)} rows failed and are not counted; the first: {failed[0]}"] if failed else []
    notes = [f"the paper: {study.claim}", *map(_told, evidence), *some, RULE]
    return Result(study.name, rows, settings, notes, [], tables={"evidence": evidence})


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "error" not in row]


def _told(row: Row) -> str:
    """A row of evidence in words."""
    ends = "" if row["low"] is None else f" ({number(row['low'])} to {number(row['high'])})"
    return f"{row['verdict']}: {row['question']}; {row['statistic']} {number(row['value'])}{ends}, {row['units']}"


def _write(study: Study, result: Result, folder: Path) -> None:
    """Write rows, plot, page and result to ``folder``."""
    evidence, chart = result.tables["evidence"], study.plot.draw(_measured(result.rows))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in result.rows for key in row)))
    writer.writeheader()
    writer.writerows(result.rows)
    write_text(folder / "rows.csv", stream.getvalue())
    (folder / "plot.png").unlink(missing_ok=True)
    if chart is not None:
        write_bytes(folder / "plot.png", vl_convert.vegalite_to_png(chart.to_dict(), scale=2))
    every = f"The paper: {study.paper}\n\nHere: {study.small}"
    write_report(
        folder / "report.html",
        title=f"Study: {study.name}",
        summary=[f"The paper: {study.claim}", *map(_told, evidence)],
        sections=[
            Section("Evidence", RULE, [chart, Grid(TABLES["evidence"].columns, evidence)]),
            Section("Every point", every, [Grid(study.columns, result.rows)]),
        ],
        settings=result.settings,
        versions=result.versions,
    )
    result.to_json(folder / "result.json")
