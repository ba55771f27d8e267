"""Work that is done task by task, by whichever worker is free, and comes back as if one process had done all of it.

A worker is a process that may end at any moment, be slow, or deliver late. What is asked of a task is therefore that
it gives the same whoever does it and however often; each is given back once.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol, runtime_checkable

from tightframe.errors import TightframeError

TRIES = 3
"""Times that a task is begun, at most, where its worker is lost or runs out of memory."""
SLOW = 3.0
"""Times as long as half of the tasks: one that takes longer is begun again elsewhere, and the first to end counts."""
LEAST_SECONDS = 5.0
"""Below which no task is slow."""


class WorkerLost(TightframeError):
    """The process that did the work ended, or ran out of memory."""


@runtime_checkable
class Work(Protocol):
    """What is done with each task. It is sent to every worker once, and so are its tasks: all must pickle."""

    def do(self, task: Any, attempt: int, /) -> Any:
        """What comes of ``task``; ``attempt`` counts from 0, and a later one does well to take less memory."""
        ...


@dataclass(frozen=True)
class Answer:
    """What came of one task.

    Attributes:
        index: of the task.
        value: what the work gave.
        error: what it raised; a ``WorkerLost`` where no worker lived through it.
    """

    index: int
    value: Any = None
    error: Exception | None = None

    def get(self) -> Any:
        """The value. Raises the error, if there is one."""
        if self.error is not None:
            raise self.error
        return self.value


class Engine(ABC):
    """Where work runs.

    Attributes:
        workers: how many processes work; 0 for this one alone.
    """

    workers: int = 0

    @abstractmethod
    def run(self, work: Work, tasks: Sequence[Any], tries: int = TRIES) -> Iterator[Answer]:
        """Do all tasks, and give one answer for each as it comes, in any order."""

    def close(self) -> None:
        """End the workers."""
        return None


class Here(Engine):
    """No workers: the process that asks does all the work, one task after the other."""

    def run(self, work: Work, tasks: Sequence[Any], tries: int = TRIES) -> Iterator[Answer]:
        """Answers in the order of the tasks."""
        for index, task in enumerate(tasks):
            for attempt in range(tries):
                value, error = attempted(work, task, attempt)
                if not isinstance(error, WorkerLost):
                    break
            yield Answer(index, value, error)


def attempted(work: Work, task: Any, attempt: int) -> tuple[Any, Exception | None]:
    """What ``work`` gives or raises; running out of memory is a ``WorkerLost``, because less of it may do."""
    try:
        return work.do(task, attempt), None
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return None, WorkerLost(f"out of memory ({error})")
        return None, error


@dataclass
class Begun:
    """A task that a worker is at."""

    index: int
    attempt: int
    worker: int
    since: float = field(default_factory=time.monotonic)


class Workers(Engine):
    """Processes that may be lost. How they are started, and how work reaches them, is for subclasses to say."""

    def __init__(self) -> None:
        self._left: dict[int, Future[Any]] = {}  # by worker: what it is still at, though nobody waits for it

    def run(self, work: Work, tasks: Sequence[Any], tries: int = TRIES) -> Iterator[Answer]:
        """Answers as they come."""
        parcel = self._packed(work)
        waiting = deque((index, 0) for index in range(len(tasks)))
        begun: dict[Future[Any], Begun] = {}
        finished, seconds = set[int](), list[float]()
        try:
            while len(finished) < len(tasks):
                for worker in self._idle(begun):
                    following = waiting.popleft() if waiting else _late(begun, finished, seconds)
                    if following is None:
                        break
                    index, attempt = following
                    begun[self._begin(worker, parcel, tasks[index], attempt)] = Begun(index, attempt, worker)
                for future in wait([*begun, *self._left.values()], LEAST_SECONDS, FIRST_COMPLETED).done:
                    if future not in begun:
                        continue
                    task = begun.pop(future)
                    if task.index in finished:
                        continue  # delivered twice
                    value, error = self._result(task.worker, future)
                    if isinstance(error, WorkerLost) and task.attempt + 1 < tries:
                        waiting.appendleft((task.index, task.attempt + 1))
                        continue
                    finished.add(task.index)
                    seconds.append(time.monotonic() - task.since)
                    yield Answer(task.index, value, error)
        finally:
            self._left |= {task.worker: future for future, task in begun.items() if not future.cancel()}
            self._unpacked(parcel)

    def _idle(self, begun: dict[Future[Any], Begun]) -> list[int]:
        self._left = {worker: future for worker, future in self._left.items() if not future.done()}
        busy = {task.worker for task in begun.values()} | set(self._left)
        return [worker for worker in range(self.workers) if worker not in busy]

    def _result(self, worker: int, future: Future[Any]) -> tuple[Any, Exception | None]:
        try:
            return future.result()
        except Exception as error:
            self._replace(worker)
            return None, WorkerLost(f"the process that did it ended: {type(error).__name__}")

    @abstractmethod
    def _packed(self, work: Work) -> Any:
        """``work`` on its way to the workers, to each of which it goes once."""

    @abstractmethod
    def _unpacked(self, parcel: Any) -> None:
        """Nobody will ask for ``parcel`` any more."""

    @abstractmethod
    def _begin(self, worker: int, parcel: Any, task: Any, attempt: int) -> Future[tuple[Any, Exception | None]]:
        """Let a worker begin with a task; its future fails where the worker is lost."""

    @abstractmethod
    def _replace(self, worker: int) -> None:
        """Start a new process in the place of a lost one."""


def _late(begun: dict[Future[Any], Begun], finished: set[int], seconds: Sequence[float]) -> tuple[int, int] | None:
    """A task to begin a second time: the one that has run longest, if that is far longer than usual."""
    counts = [task.index for task in begun.values()]
    alone = [task for task in begun.values() if task.index not in finished and counts.count(task.index) == 1]
    oldest = min(alone, key=lambda task: task.since, default=None)
    if oldest is None or not seconds:
        return None
    late = time.monotonic() - oldest.since > max(LEAST_SECONDS, SLOW * median(seconds))
    return (oldest.index, oldest.attempt) if late else None
