"""What loading a model takes whatever the library: the hub or its cache, optional packages, errors in plain words."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tightframe.backbone import Preprocessing
from tightframe.errors import HubUnreachable, ModelError, TightframeError

HUB_PATIENCE = 5
"""Seconds to wait for the hub's first answer."""


class Built(NamedTuple):
    """A model as its library builds it.

    Attributes:
        module: takes normalized images (n, 3, height, width).
        preprocessing: which images it expects, if that is known.
        source_accuracy: its top-1 accuracy (0 … 1) on the data it was trained on, if its weights come with it.
    """

    module: nn.Module
    preprocessing: Preprocessing | None
    source_accuracy: float | None = None


def library(package: str, extra: str) -> Any:
    """Import ``package``. Raises ``ModelError`` that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelError(
            f"models of {package} need it, and it can't be imported ({error}): pip install 'tightframe[{extra}]'"
        ) from error


@contextmanager
def explained(what: str, advice: str = "") -> Iterator[None]:
    """Raise ``ModelError`` for whatever fails within: ``what`` can't be done, the error in one line, and ``advice``."""
    try:
        yield
    except TightframeError:
        raise
    except (Exception, SystemExit) as error:  # damaged files and code of others can raise anything
        raise ModelError(f"{what}: {one_line(error)}{advice}") from error


def fetched(uri: str, pretrained: bool, construct: Callable[[], nn.Module]) -> nn.Module:
    """Construct a model. Raises ``HubUnreachable`` for weights that can't be fetched, ``ModelError`` for all else."""
    try:
        return construct()
    except Exception as error:
        if not pretrained or re.search("No pretrained weights|Invalid pretrained tag", str(error)):
            raise ModelError(f"{uri} can't be built: {one_line(error)}") from error
        raise _unreachable(uri, error, "local-dir:PATH, or pass --no-pretrained for random weights") from error


def snapshot(uri: str, repository: str, files: Sequence[str], instead: str) -> Path:
    """Fetch ``files`` (names or patterns) of a repository on the hub, as far as it has them; returns their folder.

    Args:
        uri: the model, for messages.
        repository: its name on the hub.
        files: nothing else is fetched.
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
    """Use the hub's local cache alone when the hub does not answer at once, instead of a minute of retries."""
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


def check_files(uri: str, folder: Path, needed: Sequence[str], advice: str) -> None:
    """Raise ``ModelError`` unless ``folder`` has the files ``needed``."""
    for name in needed:
        if not (folder / name).is_file():
            raise ModelError(f"{uri} has no {name}; {advice}")


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message: the names most like ``name``, if any are."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"; nearest: {', '.join(near)}" if near else ""


def one_line(error: BaseException) -> str:
    """Kind and message of an error, on one line and not too long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _unreachable(uri: str, error: Exception, instead: str) -> HubUnreachable:
    return HubUnreachable(
        f"{uri}: its weights can't be fetched ({type(error).__name__}). Go online, or fetch them once where the hub "
        f"can be reached and give {instead}"
    )
