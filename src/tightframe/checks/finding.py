"""What can be wrong, under which name, how bad it is and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tightframe.row import Row

SEVERITIES = ("serious", "warning", "note")
"""Serious: accuracy measured on these images would be wrong. A warning: a model would learn worse. A note: look."""


class Kind(NamedTuple):
    """A kind of finding: how bad it is unless a finding says otherwise, and what it means and asks for."""

    severity: str
    advice: str


KINDS = {
    "unreadable file": Kind("serious", "Can't be decoded. Repair it or remove it."),
    "duplicate across splits": Kind("serious", "A test image that was trained on is no test. Remove one of the two."),
    "duplicate across classes": Kind("serious", "One image, two labels: at most one is right. Relabel or remove both."),
    "leaking sequence": Kind(
        "serious", "Neighbors in a series lie in both splits. Split by series, not by image, or accuracy is too high."
    ),
    "shift": Kind("warning", "Test images differ from training images as a whole, by features of the model."),
    "empty class": Kind("serious", "No image to learn from. Add some or remove the class."),
    "class of one image": Kind("warning", "Nothing to learn or judge by. Add images or remove the class."),
    "imbalance": Kind("warning", "Rare classes are lost in plain accuracy. Look at balanced accuracy; weigh classes."),
    "confused classes": Kind("warning", "Told apart badly by this model. Check their labels; consider joining them."),
    "wrong label": Kind(
        "warning",
        "Probably wrong: their label is less likely than labels of hard images would be. Look, then relabel or remove.",
    ),
    "duplicate": Kind("warning", "The same image twice in a class of a split counts twice. Keep one."),
    "blank image": Kind("warning", "All of one color, or nearly. Remove it unless blank is a class."),
    "narrow range": Kind("warning", "16-bit grays that use a small part of their range come out nearly black."),
    "doubtful label": Kind("note", "The model is sure of another class, as it would be of hard images, too. Look."),
    "outlier": Kind("note", "Unlike all others in the model's features: another subject, a screenshot, a broken scan."),
    "cropped ends": Kind("note", "So long that the model's own preprocessing cuts most of it off. Crop or tile it."),
    "tiny image": Kind("note", "Enlarged many times before the model sees it."),
    "animation": Kind("note", "Only the first frame or page is read."),
    "transparency": Kind("note", "Transparent parts are laid over white."),
    "CMYK": Kind("note", "Made for print; converted to RGB without its color profile."),
    "turned": Kind("note", "Turned upright as EXIF says. Programs that ignore EXIF see it lying."),
}
"""In the order in which they are shown."""


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        kind: one of ``KINDS``.
        words: what was found, in one sentence.
        image: which image, by its place among all images, or ``None``.
        other: the other image that it is about.
        label: the class that it is about, if it is not that of ``image``.
        likely: a class that is more likely.
        strength: how sure or how much, 0 to 1, in what ``words`` say.
        remove: whether the table without what was found leaves ``image`` out.
        severity: how bad, if not as ``KINDS`` says.
        path: of a file that is not among the images.
    """

    kind: str
    words: str
    image: int | None = None
    other: int | None = None
    label: str = ""
    likely: str = ""
    strength: float | None = None
    remove: bool = False
    severity: str = ""
    path: str = ""

    @property
    def rank(self) -> tuple[int, int, float]:
        """By what findings are sorted: severity, kind, strength."""
        severity = SEVERITIES.index(self.severity or KINDS[self.kind].severity)
        return severity, list(KINDS).index(self.kind), -(self.strength or 0.0)


def rows_of(
    findings: Sequence[Finding], names: Sequence[str], labels: np.ndarray, classes: Sequence[str], held_out: np.ndarray
) -> list[Row]:
    """A row a finding, the worst first.

    Args:
        findings: about images by their place in ``names``.
        names: of all images (n).
        labels: their classes, (n,).
        classes: names of classes.
        held_out: which are test images, (n,).
    """
    rows = []
    for one in sorted(findings, key=lambda one: one.rank):
        image, other = one.image, one.other
        rows.append(
            {
                "finding": one.kind,
                "severity": one.severity or KINDS[one.kind].severity,
                "path": one.path if image is None else names[image],
                "partition": "" if image is None else "test" if held_out[image] else "train",
                "class": one.label or ("" if image is None else classes[labels[image]]),
                "other": "" if other is None else names[other],
                "other_class": "" if other is None else classes[labels[other]],
                "likely": one.likely,
                "strength": one.strength,
                "remove": one.remove,
                "words": one.words,
            }
        )
    return rows


def counted(rows: Sequence[Row]) -> list[Row]:
    """How many of each kind, the worst first."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        known = found.setdefault(
            (row["severity"], row["finding"]),
            {"finding": row["finding"], "severity": row["severity"], "findings": 0, "removable": 0},
        )
        known["findings"] += 1
        known["removable"] += int(row["remove"])
    return [one | {"advice": KINDS[one["finding"]].advice} for one in found.values()]
