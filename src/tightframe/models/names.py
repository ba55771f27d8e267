"""The names by which users give models: which library, hub, folder or function of theirs makes each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BUILDER = re.compile(r"(?P<path>.+?\.py):(?P<function>[^\W\d]\w*)(?::(?P<argument>.*))?")
LOCAL = "local-dir:"
FORMS = (
    "timm/NAME, torchvision/NAME, open_clip/NAME/PRETRAINED, hf/NAME, local-dir:PATH, open_clip/local-dir:PATH, "
    "hf/PATH or PATH.py:FUNCTION[:ARGUMENT]"
)


def short_name(uri: str) -> str:
    """What to call a model in a table: the argument of a builder, or the last part of a path or name."""
    if builder := BUILDER.fullmatch(uri):
        return builder["argument"] or builder["function"]
    if folder := folder_of(uri):
        return folder[1].resolve().name
    return uri.partition("/")[2] or uri


def folder_of(uri: str) -> tuple[str, Path] | None:
    """The form, such as ``"local-dir:"``, and the path, of a name that means a folder; ``None`` for any other."""
    for form in (LOCAL, f"open_clip/{LOCAL}"):
        if uri.startswith(form):
            return form, Path(uri.removeprefix(form))
    name = uri.removeprefix("hf/")
    return ("hf/", Path(name)) if name and name != uri and is_folder(name) else None


def is_folder(name: str) -> bool:
    """Whether ``name`` means a folder, not a model on the hub; an existing folder wins, as in transformers."""
    return name.startswith(("/", "./", "../")) or Path(name).is_dir()


def absolute(uri: str) -> str:
    """The same model, named so that it is found from any working directory."""
    if builder := BUILDER.fullmatch(uri):
        return str(Path(builder["path"]).resolve()) + uri[len(builder["path"]) :]
    folder = folder_of(uri)
    return folder[0] + str(folder[1].resolve()) if folder else uri


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
