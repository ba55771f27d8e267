"""Workers on this machine: one process each, started once, replaced when lost.

loky starts them: unlike the standard library's, its processes need no guard in the script that asks for them.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any

import cloudpickle
from loky import ProcessPoolExecutor

from tightframe.engine.engine import Work, Workers, attempted
from tightframe.errors import SettingsError

PATIENCE = 0.5
"""Seconds after which a worker notices that it is alone."""
_known: dict[str, Work] = {}
"""The work that this process is at, by parcel."""


class Processes(Workers):
    """``workers`` processes, which share the processors of this machine, and its GPUs in turn.

    Raises:
        SettingsError: fewer than one.
    """

    def __init__(self, workers: int):
        super().__init__()
        if workers < 1:
            raise SettingsError(f"--workers is {workers}; it must be 1 or more")
        self.workers = workers
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        self._executors = [self._started(number) for number in range(workers)]
        self._folder = tempfile.TemporaryDirectory(prefix="tightframe-work-")
        self._end = weakref.finalize(self, _end, self._executors, self._folder)

    def close(self) -> None:
        """End the workers, whatever they are at."""
        self._end()

    def _started(self, number: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, initializer=_ready, initargs=(self._threads, os.getpid()), env=_gpu(number))

    def _packed(self, work: Work) -> Path:
        with tempfile.NamedTemporaryFile(dir=self._folder.name, delete=False) as file:
            file.write(pickled(work))
        return Path(file.name)

    def _unpacked(self, parcel: Path) -> None:
        parcel.unlink(missing_ok=True)

    def _begin(self, worker: int, parcel: Path, task: Any, attempt: int) -> Future[Any]:
        given = (_perform, str(parcel), pickled(task), attempt)
        try:
            return self._executors[worker].submit(*given)
        except BrokenExecutor:  # lost while it had nothing to do
            self._replace(worker)
            return self._executors[worker].submit(*given)

    def _replace(self, worker: int) -> None:
        self._executors[worker].shutdown(wait=False, kill_workers=True)
        self._executors[worker] = self._started(worker)


def _end(executors: list[ProcessPoolExecutor], folder: tempfile.TemporaryDirectory[str]) -> None:
    for executor in executors:
        executor.shutdown(wait=False, kill_workers=True)
    folder.cleanup()


def pickled(given: Any) -> bytes:
    """Work or a task in bytes. Raises ``SettingsError`` where something in it can't leave this process."""
    try:
        return cloudpickle.dumps(given)
    except Exception as error:  # whatever a user's own class raises
        raise SettingsError(
            f"this can't be sent to another process ({error}): leave out --workers and --engine, or name models and "
            "images in place of handing over objects of your own"
        ) from error


def perform(parcel: str, fetch: Callable[[], Work], task: bytes, attempt: int) -> tuple[Any, Exception | None]:
    """In a worker: do one task of the work in ``parcel``, which is fetched once."""
    try:
        if parcel not in _known:
            _known.clear()
            _known[parcel] = fetch()
        given = pickle.loads(task)
    except Exception as error:  # a package or a file that only the other process has
        return None, SettingsError(f"work can't be unpacked in another process ({type(error).__name__}: {error})")
    value, raised = attempted(_known[parcel], given, attempt)
    return value, None if raised is None else plain(raised)


def plain(error: Exception) -> Exception:
    """An error that reaches another process as it is, or else one that says the same."""
    try:
        same = pickle.loads(pickle.dumps(error))
        if type(same) is type(error) and str(same) == str(error):
            return error
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def ready(threads: int) -> None:
    """In a worker: before its first task."""
    import torch

    torch.set_num_threads(threads)


def _ready(threads: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked for the work ends it
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    ready(threads)


def _follow(parent: int) -> None:
    """End with the process that asked, however that one ended."""
    while os.getppid() == parent:
        time.sleep(PATIENCE)
    os._exit(1)


def _perform(parcel: str, task: bytes, attempt: int) -> tuple[Any, Exception | None]:
    return perform(parcel, lambda: pickle.loads(Path(parcel).read_bytes()), task, attempt)


def _gpu(number: int) -> dict[str, str]:
    """The one GPU that a worker sees, where there are several."""
    import torch

    count = torch.cuda.device_count()
    return {"CUDA_VISIBLE_DEVICES": str(number % count)} if count > 1 else {}
