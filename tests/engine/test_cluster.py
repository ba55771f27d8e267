"""A cluster of two nodes on this machine: machines leave and join, and what is found is what one process finds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tightframe.engine import engine as scheduling
from tightframe.engine.cluster import Ray

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


class Slowly:
    """Squares a number, notes that it did, and waits while ``gate`` is not there."""

    def __init__(self, folder: Path):
        self.folder = folder

    def do(self, task: int, attempt: int) -> int:
        (self.folder / f"begun-{task}-{time.time_ns()}").touch()
        for _ in range(200):
            if (self.folder / "gate").exists():
                break
            time.sleep(0.1)
        return task * task


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    ray.shutdown()
    made.shutdown()


def test_machines_leave_and_join(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "LEAST_SECONDS", 1.0)
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    engine = Ray(workers=2)
    answers = engine.run(Slowly(tmp_path), range(21))
    nodes = 0

    def found() -> Iterator[tuple[int, int]]:
        nonlocal nodes
        for answer in answers:
            yield answer.index, answer.get()
            if nodes == 0:  # after the first answer one machine goes, and another comes
                cluster.remove_node(second, allow_graceful=False)
                cluster.add_node(num_cpus=1)
                nodes = 1

    (tmp_path / "gate").touch()
    assert sorted(found()) == [(number, number * number) for number in range(21)]
    assert nodes == 1
    assert len(list(tmp_path.glob("begun-*"))) >= 21
    engine.close()
