"""Two processes that train as one, started as users start them: once by each launcher, since each start takes long."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tightframe.cli import main
from tightframe.errors import SettingsError
from tightframe.files import write_text
from tightframe.processes import Team, is_first, together
from tightframe.tuning.batch_norm import normalized

BIN = Path(sys.executable).parent
COMMANDS = Path(__file__).with_name("commands.py")
DATA = ("digits:5-9", "--max-per-class", "9")
PLAIN = ("--precision", "float32", "--batch-size", "16")
RECIPE = (*PLAIN, "--epochs", "3")
ARCH = ("--arch", "cifar_resnet8", "--projector", "1", "--lr", "0.01")


def commands(model, out):
    """Arguments of each command, by the folder below ``out`` that it writes."""
    tune = ("tune", *DATA, "--model", model, "--weight-decay", "1e-4")
    in_time = (*tune, "--compare", "linear,full", "--lr", "0.01", "--epochs", "4000", "--time-limit", "0.01")
    parts = ("--grad-accum-steps", "4", "--batch-size", "7", "--epochs", "2")
    found = {
        "scl": (*tune, "--method", "scl", "--block", "layer3.0", "--lr", "0.01", "0.005", *RECIPE),
        "average": (*tune, "--method", "full", "--lr", "0.01", "--ema-decay", "0.9", *RECIPE),
        "uneven": (*tune, "--method", "full", "--lr", "0.01", *parts),
        "compared": in_time,
        # Rounding grows with steps, and most where it turns a unit on or off: with this seed it does not.
        "pretrained": ("pretrain", *DATA, *ARCH, *PLAIN, "--epochs", "1", "--seed", "4"),
    }
    return {name: [*arguments, "--out", str(out / name)] for name, arguments in found.items()}


def launched(*command):
    given = os.environ | {"ACCELERATE_USE_CPU": "true"}
    command = [str(BIN / command[0]), *command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=given)
    assert done.returncode == 0, done.stderr
    return done


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return str(listening.getsockname()[1])


@pytest.fixture(scope="module")
def by_torchrun(names, tmp_path_factory):
    """What two processes under torchrun print and write."""
    folder = tmp_path_factory.mktemp("torchrun")
    given = commands(names["wide"], folder)
    given["again"] = [*given["compared"], "--resume"]
    del given["average"]
    (folder / "commands.json").write_text(json.dumps(list(given.values())))
    port = ("--master-port", free_port())
    return launched("torchrun", "--nproc-per-node", "2", *port, str(COMMANDS), str(folder / "commands.json")), folder


@pytest.fixture(scope="module")
def by_accelerate(names, tmp_path_factory):
    """What two processes under Accelerate print and write."""
    folder = tmp_path_factory.mktemp("accelerate")
    options = ("--cpu", "--num_processes", "2", "--main_process_port", free_port())
    command = commands(names["wide"], folder)["average"]
    return launched("accelerate", "launch", *options, "-m", "tightframe", *command), folder


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "name"), [("torchrun", "scl"), ("accelerate", "average")])
def test_two_give_what_one_gives(request, names, tmp_path, launcher, name):
    _, folder = request.getfixturevalue(f"by_{launcher}")
    assert main(commands(names["wide"], tmp_path)[name]) == 0
    alone, together = (load_file(out / name / "tuned.safetensors") for out in (tmp_path, folder))
    assert alone.keys() == together.keys()
    for tensor in alone:
        torch.testing.assert_close(alone[tensor], together[tensor], rtol=1e-3, atol=1e-4, msg=tensor)
    logs = [(out / name / "log.jsonl").read_text().count("\n") for out in (tmp_path, folder)]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_the_first_alone_speaks(by_torchrun, by_accelerate):
    assert by_accelerate[0].stdout.count("next:") == 1
    assert by_torchrun[0].stdout.count("next:") == 5  # one for each command
    assert "FutureWarning" not in by_torchrun[0].stderr


@pytest.mark.slow
def test_two_pretrain_what_one_does(names, by_torchrun, tmp_path):
    assert main(commands(names["wide"], tmp_path)["pretrained"]) == 0
    folders = [out / "pretrained" for out in (tmp_path, by_torchrun[1])]
    alone, together = (load_file(folder / "model.safetensors") for folder in folders)
    for name in alone:
        torch.testing.assert_close(alone[name], together[name], rtol=1e-4, atol=1e-5, msg=name)
    last = [json.loads((folder / "log.jsonl").read_text().splitlines()[-1]) for folder in folders]
    assert last[1]["nc1"] == pytest.approx(last[0]["nc1"], rel=1e-4)


@pytest.mark.slow
def test_two_keep_to_a_time_limit_compare_and_go_on(by_torchrun):
    for method in ("linear", "full"):
        folder = by_torchrun[1] / "compared" / method
        assert {"tightframe.json", "tuned.safetensors", "history.json"} <= {file.name for file in folder.iterdir()}
        assert not (folder / "unfinished").exists()


@pytest.mark.slow
def test_batch_norms_in_parts_of_a_batch_that_does_not_go_even(by_torchrun):
    assert (by_torchrun[1] / "uneven" / "tuned.safetensors").is_file()


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
