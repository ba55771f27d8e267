"""Work comes back once for each task, and the same, whoever does it and whatever becomes of the workers."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from tightframe.engine import engine as scheduling
from tightframe.engine.choice import engine_of
from tightframe.engine.engine import Answer, Engine, Here, WorkerLost, Workers
from tightframe.engine.processes import Processes
from tightframe.errors import BadImage, SettingsError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tests are not installed where workers could find them


class Square:
    """Squares numbers, and has accidents with some of them."""

    def __init__(
        self, dies: dict[int, int] | None = None, fails: tuple[int, ...] = (), slow: dict[int, Path] | None = None
    ):
        self.dies, self.fails, self.slow = dies or {}, fails, slow or {}

    def do(self, task: int, attempt: int) -> int:
        if attempt < self.dies.get(task, 0):
            os._exit(1)
        if task in self.fails:
            raise BadImage(f"{task}.jpg", "it is blue")
        if task in self.slow and not self.slow[task].exists():
            self.slow[task].touch()
            time.sleep(60)
        return task * task


class Hungry:
    """Runs out of memory at first."""

    def do(self, task: int, attempt: int) -> int:
        if attempt < task:
            raise MemoryError("no room for 1 EB")
        return attempt


class Unpicklable:
    """Can't be sent anywhere."""

    def __init__(self) -> None:
        self.open = (number for number in range(3))

    def do(self, task: int, attempt: int) -> int:
        return task


@pytest.fixture(scope="module", params=["here", "processes", "ray"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "ray":
        pytest.importorskip("ray")
    made = Here() if request.param == "here" else engine_of({"processes": "local"}.get(request.param, "ray"), 2)
    yield made
    made.close()


def values(answers: Iterator[Answer]) -> list[object]:
    return [answer.get() for answer in sorted(answers, key=lambda answer: answer.index)]


def test_every_task_has_one_answer(engine: Engine) -> None:
    assert values(engine.run(Square(), range(21))) == [number * number for number in range(21)]
    assert list(engine.run(Square(), [])) == []


def test_an_error_is_the_answer_of_its_task_alone(engine: Engine) -> None:
    answers = {answer.index: answer for answer in engine.run(Square(fails=(2,)), range(4))}
    assert isinstance(answers[2].error, BadImage)
    assert (answers[2].error.path, answers[2].error.reason) == ("2.jpg", "it is blue")
    with pytest.raises(BadImage, match="it is blue"):
        answers[2].get()
    assert [answers[index].get() for index in (0, 1, 3)] == [0, 1, 9]


def test_what_runs_out_of_memory_is_tried_again(engine: Engine) -> None:
    answers = sorted(engine.run(Hungry(), [0, 1, 2, 3]), key=lambda answer: answer.index)
    assert [answer.value for answer in answers] == [0, 1, 2, None]
    assert isinstance(answers[3].error, WorkerLost)
    assert "no room for 1 EB" in str(answers[3].error)


def test_a_lost_worker_costs_nothing_but_time(engine: Engine) -> None:
    if isinstance(engine, Here):
        pytest.skip("it would end these tests")
    answers = sorted(engine.run(Square(dies={3: 1, 5: 9}), range(8)), key=lambda answer: answer.index)
    assert [answer.value for answer in answers] == [0, 1, 4, 9, 16, None, 36, 49]
    assert isinstance(answers[5].error, WorkerLost)
    assert values(engine.run(Square(), range(5))) == [0, 1, 4, 9, 16], "it works on"


def test_a_slow_task_is_begun_again_and_counts_once(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(engine, Here):
        pytest.skip("there is nobody else to begin it")
    monkeypatch.setattr(scheduling, "LEAST_SECONDS", 0.5)
    started = time.monotonic()
    found = list(engine.run(Square(slow={0: tmp_path / "asleep"}), range(6)))
    assert sorted((answer.index, answer.value) for answer in found) == [(n, n * n) for n in range(6)]
    assert time.monotonic() - started < 50
    assert values(engine.run(Square(), range(4))) == [0, 1, 4, 9], "the one that is asleep is not waited for"


class Timed(Workers):
    """Three workers that take as long as they are told to; no processes."""

    workers = 3

    def __init__(self, seconds: dict[int, list[float]]):
        super().__init__()
        self.seconds, self.begun = seconds, list[int]()

    def _packed(self, work: object) -> None:
        return None

    def _unpacked(self, parcel: None) -> None:
        return None

    def _replace(self, worker: int) -> None:
        raise AssertionError("none is lost")

    def _begin(self, worker: int, parcel: None, task: int, attempt: int) -> Future[Any]:
        future, times = Future[Any](), self.seconds.get(task, [0.02])
        seconds = times[min(self.begun.count(task), len(times) - 1)]
        self.begun.append(task)
        future.set_running_or_notify_cancel()
        threading.Timer(seconds, lambda: future.set_result((task * task, None))).start()
        return future


def test_what_is_delivered_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "LEAST_SECONDS", 0.1)
    engine = Timed({0: [0.8, 0.2], 1: [1.6]})  # the first of 0 comes after the second, while 1 is waited for
    found = [(answer.index, answer.get()) for answer in engine.run(Square(), range(9))]
    assert engine.begun.count(0) == 2
    assert sorted(found) == [(number, number * number) for number in range(9)]


def test_what_cant_be_sent_is_said_at_once(engine: Engine) -> None:
    if isinstance(engine, Here):
        assert values(engine.run(Unpicklable(), [1])) == [1]
        return
    with pytest.raises(SettingsError, match=r"can't be sent to another process .*leave out --workers"):
        list(engine.run(Unpicklable(), [1]))


def test_an_engine_is_chosen_by_name_or_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIGHTFRAME_ENGINE", raising=False)
    assert isinstance(engine_of(), Here)
    with pytest.raises(SettingsError, match='no engine "spark"; choose local, ray or'):
        engine_of("spark")
    with pytest.raises(SettingsError, match="--workers is 0"):
        engine_of("local", 0)
    monkeypatch.setenv("TIGHTFRAME_ENGINE", "dask")
    with pytest.raises(SettingsError, match='no engine "dask"'):
        engine_of()
    made = engine_of("local", 1)
    assert isinstance(made, Processes)
    made.close()
