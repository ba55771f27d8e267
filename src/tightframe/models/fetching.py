"""What all sources of models share: the hub or its cache, packages that may be missing, failures in plain words."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from tightframe.errors import HubUnreachable, ModelError

HUB_PATIENCE = 5
"""Seconds to wait for the hub's first answer."""


def library(package: str, extra: str) -> Any:
    """The package, imported. Raises ``ModelError`` that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelError(
            f"models of {package} need it, and it can't be imported ({error}): pip install 'tightframe[{extra}]'"
        ) from error


def fetched(uri: str, pretrained: bool, construct: Callable[[], nn.Module]) -> nn.Module:
    """What the constructor makes, telling "the hub does not answer" from "there are no such weights"."""
    try:
        return construct()
    except Exception as error:
        if not pretrained or _no_such_weights(error):
            raise ModelError(f"{uri} can't be built: {one_line(error)}") from error
        raise _unreachable(uri, error, "local-dir:PATH, or pass --no-pretrained for random weights") from error


def snapshot(uri: str, repository: str, files: Sequence[str], instead: str) -> Path:
    """A folder with those of ``files`` (patterns) that the hub's repository has; nothing else is fetched.

    Args:
        uri: the model, for messages.
        repository: its name on the hub.
        files: names, or patterns of names.
        instead: what a user without the hub may give in place of ``uri``.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        with hub_or_cache():
            return Path(snapshot_download(repository, allow_patterns=list(files)))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"{uri}: the hub has no {repository} that you may read; check the name, or log in") from error
    except Exception as error:  # any failure of whichever HTTP library the hub's client uses
        raise _unreachable(uri, error, instead) from error


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Use the hub's local cache alone when the hub does not answer at once, in place of a minute of retries."""
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        if not before:
            get_session().head(constants.ENDPOINT, timeout=HUB_PATIENCE)
    except Exception:  # any failure of whichever HTTP library the hub's client uses
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message: the names most like ``name``, if any are."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"; nearest: {', '.join(near)}" if near else ""


def one_line(error: BaseException) -> str:
    """Kind and message of an error, on one line and not too long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def each_color(value: Any) -> tuple[float, ...]:
    """A number for each of three colors, from one for all or one for each."""
    return tuple(map(float, value)) if isinstance(value, (tuple, list)) else (float(value),) * 3


def _unreachable(uri: str, error: Exception, instead: str) -> HubUnreachable:
    return HubUnreachable(
        f"{uri}: its weights can't be fetched ({type(error).__name__}). Go online, or fetch them once where "
        f"there is a model and give {instead}"
    )


def _no_such_weights(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and bool(
        re.search("No pretrained weights|Invalid pretrained tag", str(error))
    )
