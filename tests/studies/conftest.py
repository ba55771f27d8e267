"""Every study, run once on small models and digits at a scale that still reaches all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tightframe.features.workspace import Workspace
from tightframe.report.result import Result
from tightframe.studies import STUDIES, Study, evidence, run_study

LEAST = {"epochs": 1, "seeds": 1, "episodes": 10, "blocks": 2, "per_class": 3, "max_images": 20}
ALIKE, TWO = ("digits:5-9", "digits:5-9"), ("digits:0-6", "digits:5-9")
ON = {"downstream-collapse": (("wide", "wide"), ALIKE), "across-data": (("wide",), TWO)}
"""Models and datasets of studies that don't run on one of each."""


@dataclass(frozen=True)
class Done:
    """A study that was run: how, where, and what it found."""

    study: Study
    out: Path
    how: dict[str, Any]
    found: Result


@pytest.fixture(scope="session")
def plain() -> Callable[[str], Study]:
    """Gives a study without the parts of its scale that only take time."""

    def of(name: str) -> Study:
        study = STUDIES[name]
        scale = study.scales["small"]
        scale = replace(scale, **{field: least for field, least in LEAST.items() if getattr(scale, field)})
        return replace(study, scales={"small": scale})

    return of


@pytest.fixture(scope="session")
def ran(plain, names, tmp_path_factory) -> Callable[[str], Done]:
    """Gives a study that was run, once in a session."""
    known: dict[str, Done] = {}

    def run(name: str) -> Done:
        if name not in known:
            study, out = plain(name), tmp_path_factory.mktemp("study") / "out"
            models, data = ON.get(name, (("narrow",), ("digits:5-9",)))
            how: dict[str, Any] = {"data": data, "max_per_class": 8, "workspace": Workspace(precision="float32")}
            how |= (
                {"data": ("digits:0-4", *data)} if study.pretrains else {"models": [names[model] for model in models]}
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(evidence, "DRAWS", 20)
                known[name] = Done(study, out, how, run_study(study, out, **how))
        return known[name]

    return run


@pytest.fixture(params=STUDIES)
def done(request, ran) -> Done:
    """Each study in turn."""
    return ran(request.param)
