"""What studies of many points share: a row for each point, in a file of JSON lines that is gone on with."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def shared_folder() -> Path:
    """Where real models and images lie; ends the script where there are none. PyTorch gets the threads asked for."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    shared = Path(os.environ.get("TIGHTFRAME_SHARED", "../shared")).resolve()
    if not (shared / "zoo" / "zoo.py").is_file() or not (shared / "data").is_dir():
        sys.exit("no models and images: point TIGHTFRAME_SHARED at a folder with zoo/ and data/")
    return shared


def rows_in(path: Path) -> list[Row]:
    """The rows of the file; none where there is no such file."""
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []


def append(path: Path, rows: Iterable[Row], told: Callable[[Row], Iterable[object]] | None = None) -> None:
    """Write each row as it comes, and print what is ``told`` of it, if anything is."""
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            file.flush()
            if told is not None:
                print(*told(row), flush=True)
