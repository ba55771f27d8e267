"""What a job finds is the same to the bit, whatever works on it and whatever becomes of the workers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tightframe import ImageSplits, Tuned, Workspace, load_backbone
from tightframe.deploy.evaluate import evaluate
from tightframe.jobs.layers import layers
from tightframe.jobs.measure import measure
from tightframe.jobs.rank import rank
from tightframe.report.result import Result
from tightframe.studies import STUDIES
from tightframe.studies.runner import run_study

BROKEN = """
import os
from torch import nn

def dies():
    os._exit(1)

def raises():
    raise ValueError("no weights today")
"""


BUILT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 3)

    def forward(self, images):
        return self.head(torch.relu(self.block(images)).mean((2, 3)))

def net():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture(scope="module", params=["local", "ray"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    if request.param == "ray":
        pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("features")
    made = Workspace(folder, device="cpu", precision="float32", batch_size=4, engine=request.param, workers=2)
    yield made
    made.engine.close()


def alone() -> Workspace:
    return Workspace(device="cpu", precision="float32", batch_size=4)


def found(result: Result) -> object:
    rows = [{key: value for key, value in row.items() if "seconds" not in key} for row in result.rows]
    return json.loads(json.dumps([rows, result.notes]))


def test_measure_and_layers_find_the_same(data: ImageSplits, names: dict[str, str], shared: Workspace) -> None:
    wide = load_backbone(names["wide"])
    for job in (measure, layers):
        assert found(job(data, wide, workspace=shared)) == found(job(data, wide, workspace=alone()))


def test_a_model_of_a_users_own_file_reaches_the_workers(data: ImageSplits, shared: Workspace, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BUILT)
    net = load_backbone(f"{tmp_path / 'mine.py'}:net", layers=["block"], input_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert found(measure(data, net, workspace=shared)) == found(measure(data, net, workspace=alone()))


def test_rank_finds_the_same_and_a_broken_model_is_a_row(
    data: ImageSplits, names: dict[str, str], shared: Workspace, tmp_path: Path
) -> None:
    builder = tmp_path / "broken.py"
    builder.write_text(BROKEN)
    good = list(names.values())
    some = rank(data, [good[0], f"{builder}:dies", f"{builder}:raises", *good[1:]], workspace=shared)
    expected = {row["uri"]: row for row in rank(data, good, workspace=alone()).rows}
    for row in some.rows[: len(good)]:
        same = expected[row["uri"]]
        assert {key for key in row if row[key] != same[key]} <= {"seconds", "given"}
    assert [row["model"] for row in some.rows[len(good) :]] == ["dies", "raises"]
    assert "process that did it ended" in some.rows[-2]["error"]
    assert "no weights today" in some.rows[-1]["error"]


def left_of(session: int, seconds: float) -> list[str]:
    """Processes of a session that are still there after so long."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("processes are looked for in /proc, which this system lacks")
    left: list[str] = []
    for _ in range(int(10 * seconds)):
        left = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
            except (OSError, ValueError):  # it has ended meanwhile
                continue
            if of == str(session) and state != "Z":
                left.append(stat.parent.name)
        if not left:
            break
        time.sleep(0.1)
    return left


def command(names: dict[str, str], told: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "tightframe", "measure", "digits:5-9", "--model", names["wide"]]
    return [*start, "--max-per-class", "6", "--precision", "float32", "--json", str(told), *more]


@pytest.mark.slow
def test_a_command_shares_its_work_and_leaves_no_process(names: dict[str, str], tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    found = []
    for more in ([], ["--workers", "2"]):
        process = subprocess.Popen(command(names, told, *more), start_new_session=True, stdout=subprocess.DEVNULL)
        assert process.wait(timeout=300) == 0
        assert left_of(process.pid, 10) == []
        found.append(json.loads(told.read_text())["rows"])
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_process_that_asked(names: dict[str, str], tmp_path: Path, how: signal.Signals) -> None:
    asked = command(names, tmp_path / "told.json", "--workers", "2")
    process = subprocess.Popen(asked, start_new_session=True, stdout=subprocess.DEVNULL)
    for _ in range(600):
        if len(left_of(process.pid, 0.1)) > 2:  # workers have been started
            break
        time.sleep(0.05)
    process.send_signal(how)
    process.wait(timeout=30)
    assert left_of(process.pid, 15) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["discriminant", "scl"])
def test_predictions_are_the_same(
    data: ImageSplits, tuned_by: Callable[[str], tuple[Tuned, Path]], method: str
) -> None:
    tuned, _ = tuned_by(method)
    assert data.test is not None
    shared = tuned.predict(data.test, workers=2)
    assert shared == tuned.predict(data.test)
    assert found(evaluate(tuned, data, workers=2)) == found(evaluate(tuned, data))


@pytest.mark.slow
def test_a_study_finds_the_same(data: ImageSplits, names: dict[str, str], tmp_path: Path) -> None:
    results = []
    for workers in (None, 2):
        folder = tmp_path / str(workers)
        workspace = Workspace(device="cpu", precision="float32", workers=workers)
        given = {"data": ["digits:5-9"], "models": list(names.values()), "max_per_class": 6}
        results.append(found(run_study(STUDIES["layers"], folder, workspace=workspace, **given)))
        workspace.engine.close()
    assert results[0] == results[1]
