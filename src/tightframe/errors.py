"""What can go wrong, for people: every message says what was given, why it can't be, and what to do next."""


class TightframeError(Exception):
    """Any failure that the user can do something about. The command line prints its message and no traceback."""


class DataError(TightframeError):
    """The images given can't be used as they are."""


class BadImage(DataError):
    """One file can't be read as an image. ``path`` names it and ``reason`` says why."""

    def __init__(self, path: object, reason: str):
        self.path, self.reason = str(path), reason
        super().__init__(
            f"{path}: {reason}. Repair or remove it, or pass --skip-bad (skip_bad=True) to go on without it."
        )


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
