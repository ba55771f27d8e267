"""Commands to run next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def tune_command(uri: str, options: Mapping[str, Any]) -> str:
    """How to tune the model ``uri``, loaded with these ``options`` of ``load_backbone``, from the command line."""
    given: list[Any] = ["--model", uri]
    if not options.get("pretrained", True):
        given.append("--no-pretrained")
    for name in ("layers", "input_size", "mean", "std"):
        value = options.get(name)
        if value is not None:
            given += [f"--{name.replace('_', '-')}", *(value if isinstance(value, (list, tuple)) else [value])]
    return f"tightframe tune DATA {shlex.join(map(str, given))} --out DIR"
