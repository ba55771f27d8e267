"""What is wrong with images, labels and splits: found before anything is trained, in one decoding and one pass."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.checks.classes import outliers, size_findings
from tightframe.checks.copies import duplicate_findings
from tightframe.checks.duplicates import descriptors
from tightframe.checks.files import file_findings
from tightframe.checks.finding import SEVERITIES, Finding, counted, rows_of
from tightframe.checks.labels import confused, suspects
from tightframe.checks.looks import Looks, look_at
from tightframe.checks.outputs import check_clean, write_findings, write_page
from tightframe.checks.outputs import write_clean as write_table
from tightframe.checks.sequences import leaking_series
from tightframe.checks.shift import Shift, shift_between, shift_words
from tightframe.data.labeled import OURS
from tightframe.decide.evidence import Evidence
from tightframe.errors import MeasureError
from tightframe.features.workspace import DECODED_BYTES, Workspace, every_layer
from tightframe.images import Images, ImageSplits, among
from tightframe.probes.discriminant import read_layers
from tightframe.report.formats import percent
from tightframe.report.result import Result
from tightframe.row import Row

PAGE = "report.html"
MANY, LAST = 2000, 4
"""Training images beyond which only so many of the last layers are read, to stay within a minute."""
HUGE = 0.8
"""AUC between test and training images from which a difference is serious."""


def check(
    data: ImageSplits | Images,
    backbone: Backbone | None = None,
    *,
    out: Path | str | None = None,
    csv: Path | str | None = None,
    write_clean: Path | str | None = None,
    seed: int = 0,
    workspace: Workspace | None = None,
) -> Result:
    """Find what is wrong with images, labels and splits before anything is trained.

    That is: files that can't be read or lose something when read; exact and near duplicates within and across splits
    and classes; numbered series that lie in both splits; and, by features of a model, labels that are probably wrong,
    outliers, confused classes, and whether test images differ from training images as a whole.

    Rows, the worst first: ``finding``, ``severity``, ``path``, ``partition``, ``class``, ``other`` (image), ``likely``
    (class), ``strength``, ``remove`` and ``words``. The table ``checks`` counts them by kind.

    Args:
        data: The images.
        backbone: The pretrained model; without one, labels, outliers and shift are not checked.
        out: Folder for a page with the images found.
        csv: Also write one line for each finding to this CSV file.
        write_clean: Also write a CSV table (filename, label, split, group) of the images without those to be removed;
            every command takes it as DATA. It has to lie in the folder of the images or above.
        seed: Seed of random choices.
        workspace: Where and how the backbone runs, and what was computed before.

    Raises:
        DataError: ``write_clean`` lies where the images are not, or the images are no files.
    """
    workspace = workspace or Workspace()
    images, held_out = _together(data)
    if write_clean is not None:
        check_clean(Path(write_clean), images)
    images = images.decoded_once(DECODED_BYTES)
    looks = look_at(images, workspace.progress)
    preprocessing = backbone.preprocessing if backbone is not None else None
    findings = [*_left_out(data), *file_findings(images, looks, preprocessing)]
    findings += duplicate_findings(images, held_out, looks)
    readable = looks.good
    findings += size_findings(images.labels[readable[~held_out[readable]]], images.classes)
    trained = bool((~held_out[readable]).any())
    seen = None if backbone is None or not trained else _seen(images, held_out, looks, backbone, workspace)
    findings += _series(images, held_out, looks, seen)
    notes = list[str]()
    if seen is not None:
        told, notes = _by_model(images, held_out, readable, seen, seed)
        findings += told
    rows = rows_of(findings, images.identifiers, images.labels, images.classes, held_out)
    settings = {
        "data": data.name,
        "images": len(images),
        "classes": len(images.classes),
        "origin": backbone.origin if backbone is not None else None,
        "pool": workspace.pool,
        "precision": workspace.precision,
        "seed": seed,
    }
    notes = [_headline(rows, len(images)), *notes]
    if backbone is None:
        notes.append("without a model: labels, outliers, confused classes and shift were not checked; give --model")
    result = Result("check", rows, settings, notes, tables={"checks": counted(rows)})
    _write(result, images, held_out, findings, out, csv, write_clean)
    return result


def _together(data: ImageSplits | Images) -> tuple[Images, np.ndarray]:
    """All images, and which are test images."""
    if isinstance(data, Images):
        return data, np.zeros(len(data), dtype=bool)
    if data.test is None:
        return data.train, np.zeros(len(data.train), dtype=bool)
    return data.train.joined(data.test), np.repeat([False, True], [len(data.train), len(data.test)])


def _left_out(data: ImageSplits | Images) -> list[Finding]:
    """What loading left out."""
    found = []
    for told in data.skipped if isinstance(data, ImageSplits) else ():
        path, _, reason = told.partition(": ")
        if reason == OURS:
            continue
        kind = "empty class" if reason.startswith("no images in this class") else "unreadable file"
        found.append(Finding(kind, reason, path=path, label=Path(path).name if kind == "empty class" else ""))
    return found


class _Seen(NamedTuple):
    """What a model makes of all readable images.

    Attributes:
        features: penultimate ones, (n, d).
        evidence: predictions of all: of training images without each, of test images by all training images; or
            ``None`` where there are too few.
    """

    features: np.ndarray
    evidence: Evidence | None


def _seen(images: Images, held_out: np.ndarray, looks: Looks, backbone: Backbone, workspace: Workspace) -> _Seen:
    good = looks.good
    train, test = good[~held_out[good]], good[held_out[good]]
    layers = every_layer(backbone)
    layers = layers if len(train) <= MANY else layers[-LAST:]
    found = workspace.features(backbone, images.subset(train, f"{images.name}: training"), layers)
    features = [found[PENULTIMATE]]
    labels, classes = images.labels[good], len(images.classes)
    evidence = None
    try:
        reading = read_layers(found, found.labels, classes, groups=found.groups)
    except MeasureError:
        reading = None
    said = [] if reading is None else [reading.held_out.numpy()]
    if len(test):
        unseen = workspace.features(backbone, images.subset(test, f"{images.name}: test"), layers)
        features.append(unseen[PENULTIMATE])
        said += [] if reading is None else [reading.logits(unseen).log_softmax(1).numpy()]
    if said:
        evidence = Evidence(np.concatenate(said), labels, among(images.groups, good))
    return _Seen(np.concatenate(features), evidence)


def _series(images: Images, held_out: np.ndarray, looks: Looks, seen: _Seen | None) -> list[Finding]:
    good = looks.good
    if not held_out.any() or not len(good):
        return []
    if seen is None:
        vectors = descriptors(torch.from_numpy(looks.thumbnails[good])).numpy()
    else:
        vectors = seen.features - seen.features.mean(0)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    names = [images.identifiers[index] for index in good]
    found = []
    for one in leaking_series(names, images.labels[good], held_out[good], vectors):
        image, other = (int(good[index]) for index in one.pairs[0])
        words = (
            f"{len(one.pairs):,} test images named {one.pattern} are numbered next to a training image that is more "
            f"alike than {one.alike:.0%} of its class"
        )
        found.append(Finding("leaking sequence", words, image, other, strength=one.alike))
    return found


def _by_model(
    images: Images, held_out: np.ndarray, good: np.ndarray, seen: _Seen, seed: int
) -> tuple[list[Finding], list[str]]:
    """Findings and notes that need a model."""
    found, notes = list[Finding](), list[str]()
    for place, far in outliers(seen.features):
        words = f"farther from its nearest neighbors than others are, by {far:.1f} robust standard deviations"
        found.append(Finding("outlier", words, int(good[place]), strength=1 - 1 / far))
    if seen.evidence is not None:
        found += label_findings(seen.evidence, good, images.classes)
    test = held_out[good]
    if test.any() and not test.all():
        groups = among(images.groups, good)
        shift = shift_between(seen.features[~test], seen.features[test], images.labels[good], groups, seed)
        if shift is not None:
            words = shift_words(shift) + (_expected(seen.evidence, test) if shift.found and seen.evidence else "")
            notes.append(words)
            found += [shift_finding(shift, words)] if shift.found else []
    return found, notes


def label_findings(evidence: Evidence, places: np.ndarray, classes: tuple[str, ...]) -> list[Finding]:
    """Labels that are wrong or doubtful, and classes that are confused, by ``evidence`` on images at ``places``."""
    found = []
    for one in suspects(evidence):
        words = f"held out, {percent(one.probability)} for {classes[one.likely]}, {percent(one.own)} for its label"
        kind = "wrong label" if one.wrong else "doubtful label"
        likely = classes[one.likely]
        found.append(
            Finding(kind, words, int(places[one.place]), likely=likely, strength=1 - one.own, remove=one.wrong)
        )
    for first, second, share in confused(evidence):
        words = f"{percent(share)} of the images of {classes[first]} and {classes[second]} are taken for the other"
        found.append(Finding("confused classes", words, label=classes[first], likely=classes[second], strength=share))
    return found


def shift_finding(shift: Shift, words: str) -> Finding:
    """The finding that test images differ."""
    severity = "serious" if shift.auc >= HUGE and not shift.explained else ""
    return Finding("shift", words, strength=shift.auc, severity=severity)


def _expected(evidence: Evidence, test: np.ndarray) -> str:
    """What a shift means for accuracy, by how much less sure the model is (Guillory et al., ICCV 2021)."""
    sure = np.exp(evidence.log_probabilities.max(1))
    known = float(evidence.correct[~test].mean())
    expected = min(1.0, max(0.0, known + float(sure[test].mean() - sure[~test].mean())))
    return (
        f". Of training images left out {percent(known)} are classified right; by how sure the model is, expect "
        f"{percent(expected)} of the test images"
    )


def _headline(rows: list[Row], count: int) -> str:
    totals = [sum(row["severity"] == severity for row in rows) for severity in SEVERITIES]
    names = ("serious finding", "warning", "note")
    parts = [f"{total:,} {name}{'' if total == 1 else 's'}" for total, name in zip(totals, names, strict=True)]
    return f"{', '.join(parts)} in {count:,} images" if rows else f"nothing found in {count:,} images"


def _write(
    result: Result,
    images: Images,
    held_out: np.ndarray,
    findings: list[Finding],
    out: Path | str | None,
    csv: Path | str | None,
    write_clean: Path | str | None,
) -> None:
    """All that was asked for, and what to do with it."""
    if csv is not None:
        write_findings(Path(csv), result.rows)
    if write_clean is not None:
        gone = {one.image for one in findings if one.remove and one.image is not None}
        write_table(Path(write_clean), images, held_out, gone)
        result.notes.append(f"{write_clean} lists {len(images) - len(gone):,} images, without {len(gone):,} of these")
        result.next_steps.append(f"tightframe transfer {shlex.quote(str(write_clean))}")
    if out is not None:
        write_page(Path(out) / PAGE, result, images)
        result.next_steps.append(f"open {shlex.quote(str(Path(out) / PAGE))} in a browser")
