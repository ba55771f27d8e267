"""What a job found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tightframe.files import write_text
from tightframe.row import Row, plain

PACKAGES = ("tightframe", "torch", "torchvision", "timm", "numpy", "scikit-learn", "safetensors", "pillow")


@dataclass(frozen=True)
class Result:
    """What a job found: rows for a table or a file, and all that is needed to understand them.

    Attributes:
        job: which job it was.
        rows: one mapping a line of the table.
        settings: the arguments that the rows depend on.
        notes: what a reader should know, in plain words.
        following: what to do next, as commands.
        versions: of the packages at work.
        further: other tables that belong to the result, by name.
    """

    job: str
    rows: list[Row]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    following: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    further: dict[str, list[Row]] = field(default_factory=dict)

    def as_json(self) -> str:
        """All of it, as JSON that any parser reads: numbers that are not finite become ``null``."""
        return json.dumps(plain(self.__dict__), indent=1, ensure_ascii=False, allow_nan=False)

    def save(self, path: Path | str) -> None:
        """Write ``as_json`` to a file."""
        write_text(Path(path), self.as_json() + "\n")


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {package: version(package) for package in PACKAGES}
