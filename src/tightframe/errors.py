"""What can go wrong, for people: every message says what was given, why it can't be, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

NAMED = 20
"""Most files that one message names."""


class TightframeError(Exception):
    """Any failure that the user can do something about. The command line prints its message and no traceback."""


class DataError(TightframeError):
    """The images given can't be used as they are."""


class BadImage(DataError):
    """Files that can't be read as images: ``path`` names the first, ``reason`` says why."""

    def __init__(self, path: object, reason: str, *others: tuple[object, str]):
        self.path, self.reason, self._others = str(path), reason, others
        listed = [" ".join(f"{one}: {why.rstrip('.')}".split("\n")) for one, why in ((path, reason), *others)]
        if not others:
            super().__init__(
                f"{listed[0]}. Repair or remove it, or pass --skip-bad (skip_bad=True) to go on without it."
            )
            return
        more = [f"and {len(listed) - NAMED} more"] if len(listed) > NAMED else []
        super().__init__(
            "\n  ".join([f"{len(listed)} files can't be used as images:", *listed[:NAMED], *more])
            + "\nRepair or remove them, or pass --skip-bad (skip_bad=True) to go on without them."
        )

    def __reduce__(self) -> tuple[type[BadImage], tuple[object, ...]]:
        return BadImage, (self.path, self.reason, *self._others)  # sent from another process


class ModelError(TightframeError):
    """The model given can't be built, or can't be used as it is."""


class HubUnreachable(ModelError):
    """Pretrained weights have to be downloaded and the hub does not answer."""


class LayerNotFound(ModelError):
    """A layer was named that the model does not have."""


class MeasureError(TightframeError):
    """The features or moments given have no defined answer."""


class SettingsError(TightframeError):
    """Two settings contradict each other, or one is out of range."""


class SavedError(TightframeError):
    """A saved folder is damaged, of another kind, or does not belong to what it is loaded onto."""


class PackageMissing(TightframeError, ModuleNotFoundError):
    """Something was asked for that needs an optional package, and that can't be imported."""


@contextmanager
def needed_by(what: str, extra: str) -> Iterator[None]:
    """Around the imports of optional packages that ``what`` needs.

    Raises:
        PackageMissing: one can't be imported; ``pip install 'tightframe[EXTRA]'`` installs it.
    """
    try:
        yield
    except ImportError as error:
        raise PackageMissing(
            f"{what} needs a package that can't be imported ({error}): pip install 'tightframe[{extra}]'",
            name=error.name,
        ) from error
