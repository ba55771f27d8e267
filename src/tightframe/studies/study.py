"""What a study declares: points to compute, claims to test on their rows and, in ``studies.toml``, all that is data."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from tightframe.errors import SettingsError, TightframeError
from tightframe.jobs import demo
from tightframe.row import Row
from tightframe.studies.evidence import Claim
from tightframe.studies.lab import Lab, Scale
from tightframe.studies.plot import Plot


@dataclass(frozen=True)
class Point:
    """Rows that are computed, and kept, together.

    Attributes:
        labels: which point of the study it is; part of each of its rows.
        compute: gives the rows.
    """

    labels: Row
    compute: Callable[[], Sequence[Row]]


def attempted(compute: Callable[[], Sequence[Row]]) -> list[Row]:
    """The rows, or one with the ``error`` for which there are none."""
    try:
        return [dict(row) for row in compute()]
    except SettingsError:
        raise  # the same for all points
    except TightframeError as error:
        return [{"error": str(error)}]


@dataclass(frozen=True)
class Study:
    """One of the paper's experiments.

    Attributes:
        name: of the study.
        points: what is computed.
        claims: what is tested on the rows that have no ``error``; the paper's claim comes first.
        claim: what the paper concludes.
        paper: what the paper did.
        small: what ``--scale small`` does instead.
        minutes: how long that takes on a laptop, with the models and datasets of docs/studies.md.
        columns: keys of the table of all points.
        plot: of the rows that have no ``error``.
        scales: by name.
        pretrains: whether models are made from the first dataset and judged on the others.
        built_in: datasets used if the user names none.
    """

    name: str
    points: Callable[[Lab], Iterator[Point]]
    claims: Sequence[Claim]
    claim: str
    paper: str
    small: str
    minutes: int
    columns: Sequence[str]
    plot: Plot
    scales: Mapping[str, Scale] = field(default_factory=dict)
    pretrains: bool = False
    built_in: Sequence[str] = (demo.DOWNSTREAM,)


DATA = tomllib.loads(resources.files("tightframe.studies").joinpath("studies.toml").read_text(encoding="utf-8"))


def declared(name: str, points: Callable[[Lab], Iterator[Point]], claims: Sequence[Claim]) -> Study:
    """The study with this name in ``studies.toml``."""
    data = DATA[name]
    scales = {scale: Scale(**fields) for scale, fields in data["scales"].items()}
    return Study(name, points, claims, **data | {"plot": Plot(**data["plot"]), "scales": scales})
