"""Workers on a Ray cluster: an actor each, which Ray places wherever there is room.

Only Ray Core is used. Results go back to the process that asked for them, so machines need not share a disk.
"""

from __future__ import annotations

import os
import pickle
import weakref
from concurrent.futures import Future
from typing import Any

from tightframe.engine.engine import Work, Workers
from tightframe.engine.processes import perform, pickled, ready
from tightframe.errors import SettingsError, needed_by


class Ray(Workers):
    """Workers on the cluster at ``address`` (``""``: the one that ``RAY_ADDRESS`` names, or one on this machine).

    There are ``workers`` of them, by default one a GPU, or one a processor where there are no GPUs.

    Raises:
        SettingsError: the cluster does not answer, or has no room for a single worker.
        PackageMissing: Ray is not installed.
    """

    def __init__(self, address: str = "", workers: int | None = None):
        super().__init__()
        with needed_by("--engine ray", "ray"):
            import ray
        if workers is not None and workers < 1:
            raise SettingsError(f"--workers is {workers}; it must be 1 or more")
        self._ray, self._ours = ray, not ray.is_initialized()
        if self._ours:
            self._connect(address)
        room = ray.cluster_resources()
        self._gpus = int(room.get("GPU", 0))
        self._threads = 1
        self.workers = workers or self._gpus or int(room.get("CPU", 0))
        if not self.workers:
            raise SettingsError("the cluster has no processors to work on; start one with `ray start --head`")
        if not self._gpus:
            self._threads = max(1, int(room.get("CPU", 1)) // self.workers)
        self._actors = [self._started() for _ in range(self.workers)]
        self._end = weakref.finalize(self, _end, ray, self._actors, self._ours)

    def close(self) -> None:
        """End the workers, and the connection to the cluster if it was made for them."""
        self._end()

    def _connect(self, address: str) -> None:
        quiet = {"log_to_driver": False, "logging_level": "error"}
        try:
            if address or os.environ.get("RAY_ADDRESS"):
                self._ray.init(address or None, **quiet)
            else:
                self._ray.init(include_dashboard=False, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise SettingsError(
                f"no Ray cluster answers at {address or os.environ.get('RAY_ADDRESS')} ({error}); start one with "
                "`ray start --head`, or give --engine ray alone for this machine"
            ) from error

    def _started(self) -> Any:
        room = {"num_gpus": 1, "num_cpus": 0} if self._gpus else {"num_cpus": self._threads}
        return self._ray.remote(max_restarts=0, **room)(Actor).remote(self._threads)

    def _packed(self, work: Work) -> Any:
        return self._ray.put(pickled(work))

    def _unpacked(self, parcel: Any) -> None:
        return None  # freed with its last reference

    def _begin(self, worker: int, parcel: Any, task: Any, attempt: int) -> Future[Any]:
        return self._actors[worker].perform.remote([parcel], pickled(task), attempt).future()

    def _replace(self, worker: int) -> None:
        self._ray.kill(self._actors[worker])
        self._actors[worker] = self._started()


def _end(ray: Any, actors: list[Any], connected: bool) -> None:
    for actor in actors:
        ray.kill(actor)
    if connected:
        ray.shutdown()


class Actor:
    """One worker."""

    def __init__(self, threads: int):
        ready(threads)

    def perform(self, parcels: list[Any], task: bytes, attempt: int) -> tuple[Any, Exception | None]:
        """Do one task; the work is fetched once, by reference."""
        import ray

        (parcel,) = parcels
        return perform(parcel.hex(), lambda: pickle.loads(ray.get(parcel)), task, attempt)
