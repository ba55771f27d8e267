"""Which engine is asked for."""

from __future__ import annotations

import os

from tightframe.engine.engine import Engine, Here
from tightframe.errors import SettingsError

VARIABLE = "TIGHTFRAME_ENGINE"


def engine_of(engine: str = "", workers: int | None = None) -> Engine:
    """Where work runs.

    Args:
        engine: ``"local"``, ``"ray"``, or ``"ray://ADDRESS:PORT"`` for a cluster; by default what the environment
            variable ``TIGHTFRAME_ENGINE`` says, or local.
        workers: how many processes; for local, this one alone by default, for Ray one a GPU or processor.

    Raises:
        SettingsError: no such engine, no such cluster, or fewer than one worker.
    """
    asked = engine or os.environ.get(VARIABLE, "") or "local"
    if asked == "local":
        from tightframe.engine.processes import Processes

        return Here() if workers is None else Processes(workers)
    if asked == "ray" or asked.startswith("ray://"):
        from tightframe.engine.cluster import Ray

        return Ray("" if asked == "ray" else asked, workers)
    raise SettingsError(f'no engine "{asked}"; choose local, ray or ray://ADDRESS:PORT')
