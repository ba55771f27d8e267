"""Two processes that train as one, started as users start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tightframe.errors import SettingsError
from tightframe.files import write_text
from tightframe.processes import Team, is_first, together
from tightframe.tuning.batch_norm import normalized

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port", "29641", "-m"],
    "accelerate": ["accelerate", "launch", "--cpu", "--num_processes", "2", "--main_process_port", "29642", "-m"],
}


def tune(model, out, *options, launcher=None, **environment):
    return run("tune", out, "--model", model, *options, launcher=launcher, **environment)


def run(job, out, *options, launcher=None, **environment):
    command = [*LAUNCHERS[launcher], "tightframe"] if launcher else ["python", "-m", "tightframe"]
    command += [job, "digits:5-9", "--max-per-class", "9", "--out", str(out), *options]
    command[0] = str(BIN / command[0])
    given = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=given)


RECIPE = ("--epochs", "3", "--precision", "float32", "--batch-size", "16")


@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("torchrun", ("--method", "scl", "--block", "layer3.0", "--lr", "0.01", "0.005", "--weight-decay", "1e-4")),
        ("accelerate", ("--method", "full", "--lr", "0.01", "--weight-decay", "1e-4", "--ema-decay", "0.9")),
    ],
)
def test_two_give_what_one_gives(names, tmp_path, launcher, options):
    one = tune(names["wide"], tmp_path / "one", *options, *RECIPE)
    assert one.returncode == 0, one.stderr
    two = tune(names["wide"], tmp_path / "two", *options, *RECIPE, launcher=launcher)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("next:") == 1  # the first alone speaks
    alone, together = (load_file(tmp_path / name / "tuned.safetensors") for name in ("one", "two"))
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor, together[name], rtol=1e-3, atol=1e-4, msg=name)
    logs = [(tmp_path / name / "log.jsonl").read_text().count("\n") for name in ("one", "two")]
    assert logs[0] == logs[1]


def test_two_pretrain_what_one_does(tmp_path):
    # rounding grows with steps, and most where it turns a unit on or off: with this seed it does not
    options = ("--arch", "cifar_resnet8", "--projector", "1", *RECIPE, "--epochs", "1", "--seed", "4")
    for name, launcher in (("one", None), ("two", "torchrun")):
        done = run("pretrain", tmp_path / name, *options, "--lr", "0.01", launcher=launcher)
        assert done.returncode == 0, done.stderr
    alone, together = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor, together[name], rtol=1e-4, atol=1e-5, msg=name)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    last = [json.loads(lines[-1]) for lines in logs]
    assert last[1]["nc1"] == pytest.approx(last[0]["nc1"], rel=1e-4)


def test_two_keep_to_a_time_limit_compare_and_go_on(names, tmp_path):
    options = (
        "--compare",
        "linear,full",
        "--epochs",
        "4000",
        "--lr",
        "0.01",
        "--weight-decay",
        "1e-4",
        "--time-limit",
        "0.1",
    )
    first = tune(names["wide"], tmp_path / "two", *options, launcher="torchrun")
    assert first.returncode == 0, first.stderr
    assert "FutureWarning" not in first.stderr
    for method in ("linear", "full"):
        assert {"tightframe.json", "tuned.safetensors", "history.json"} <= {
            file.name for file in (tmp_path / "two" / method).iterdir()
        }
        assert not (tmp_path / "two" / method / "unfinished").exists()
    again = tune(names["wide"], tmp_path / "two", *options, "--resume", launcher="torchrun")
    assert again.returncode == 0, again.stderr


def test_batch_norms_in_parts_of_a_batch_that_does_not_go_even(names, tmp_path):
    options = (
        "--method",
        "full",
        "--lr",
        "0.01",
        "--weight-decay",
        "1e-4",
        "--grad-accum-steps",
        "4",
        "--batch-size",
        "7",
    )
    done = tune(names["wide"], tmp_path / "two", *options, "--epochs", "2", launcher="torchrun")
    assert done.returncode == 0, done.stderr


def test_a_batch_has_to_go_round():
    with pytest.raises(SettingsError, match="--batch-size"):
        Team(0, 3).check(2)


def test_alone_it_costs_nothing():
    team = together()
    assert (team.rank, team.size) == (0, 1)
    rows = torch.randn(3, 2)
    before = rows.clone()
    team.add_up([rows])
    assert team.gather(rows) is rows
    assert torch.equal(rows, before)


@pytest.mark.parametrize(("count", "batch", "size"), [(20, 8, 2), (17, 8, 2), (21, 7, 3), (19, 6, 4), (8, 8, 1)])
def test_every_image_is_one_processs(count, batch, size):
    order = np.arange(count)[::-1].copy()
    shares = [Team(rank, size).share(order, batch) for rank in range(size)]
    together = np.sort(np.concatenate([mine for mine, _ in shares]))
    left_out = count % batch if 0 < count % batch < size else 0
    assert together.tolist() == list(range(count - left_out))
    for step in range(count // batch):
        parts = [mine[step * of_batch : (step + 1) * of_batch] for mine, of_batch in shares]
        assert sorted(np.concatenate(parts)) == list(range(step * batch, (step + 1) * batch))
    assert len({-(-len(mine) // of_batch) for mine, of_batch in shares}) == 1  # as many steps for each


def test_later_processes_leave_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert not is_first()
    write_text(tmp_path / "a", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_batch_norm_over_one_process_is_pytorchs(monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    inputs = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 7
    ours, theirs = (torch.nn.BatchNorm2d(4, momentum=momentum) for momentum in (0.1, 0.1))
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        torch.testing.assert_close(normalized(ours, inputs), theirs(inputs), rtol=1e-4, atol=1e-5)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)
