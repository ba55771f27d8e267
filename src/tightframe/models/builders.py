"""Models that a function of the user's builds: ``PATH.py:FUNCTION[:ARGUMENT]``. The one place that runs such a file."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from torch import nn

from tightframe.errors import ModelError
from tightframe.models.fetching import Built, explained, nearest
from tightframe.models.names import BUILDER
from tightframe.models.preprocessing import of_timm


def from_builder(uri: str, pretrained: bool) -> Built:
    """Run the function that ``uri`` names.

    Raises:
        ModelError: there is no such file or function, it fails, or it returns no module.
    """
    parts = BUILDER.fullmatch(uri)
    assert parts is not None, "only called for this form"
    if not pretrained:
        raise ModelError(f"{uri}: a builder chooses its own weights; add a function that leaves them random")
    function = _function(Path(parts["path"]), parts["function"])
    with explained(f"{uri} failed"):
        module = function(*([] if parts["argument"] is None else [parts["argument"]]))
    if not isinstance(module, nn.Module):
        raise ModelError(f"{uri} returned a {type(module).__name__}; it must return a torch.nn.Module")
    config = getattr(module, "pretrained_cfg", None)
    return Built(module, of_timm(uri, config), _accuracy(config)) if config else Built(module, None)


def source_hash(uri: str) -> str:
    """A hash of the file that builds the model, if it is one of the user's; else empty."""
    parts = BUILDER.fullmatch(uri)
    return hashlib.sha256(Path(parts["path"]).read_bytes()).hexdigest() if parts else ""


def _accuracy(config: Any) -> float | None:
    top1 = config.get("top1") if isinstance(config, dict) else None
    return float(top1) if isinstance(top1, (int, float)) and 0 <= top1 <= 1 else None


def _function(path: Path, name: str) -> Callable[..., Any]:
    if not path.is_file():
        raise ModelError(f"no file {path} to build a model with")
    module = _imported(path)
    function = getattr(module, name, None)
    if not callable(function):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{path} has no function {name}" + nearest(name, found))
    return function


def _imported(path: Path) -> Any:
    """The file as a module: run once, and again when it was edited. Bytecode kept beside it could be older than it."""
    source = path.read_bytes()
    unique = f"tightframe_builder_{hashlib.sha256(str(path.resolve()).encode() + b'|' + source).hexdigest()[:12]}"
    if unique not in sys.modules:
        module = sys.modules[unique] = ModuleType(unique)  # before it runs: dataclasses look it up
        module.__file__ = str(path)
        try:
            with explained(f"{path} can't be imported"):
                exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
        except ModelError:
            del sys.modules[unique]
            raise
        cloudpickle.register_pickle_by_value(module)  # no other process could import it
    return sys.modules[unique]
