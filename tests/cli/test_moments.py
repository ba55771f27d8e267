"""Bad moments and odd places: signals, a reader that is gone, a full disk, little memory, poor terminals, odd names."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tightframe.cli import main, stopping
from tightframe.cli.stopping import Terminated
from tightframe.files import write_text

COMMAND = [sys.executable, "-m", "tightframe"]
TUNED = ["--epochs", "4000", "--lr", "0.01", "--method", "full", "--folds", "0"]


@pytest.fixture(scope="module")
def moments():
    found = importlib.util.spec_from_file_location(
        "killed_at_moments", Path(__file__).parents[2] / "benchmarks" / "moments.py"
    )
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def limited(kind: int, limit: int):
    return lambda: resource.setrlimit(kind, (limit, limit))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_training_soon_with_one_line_and_no_child(images, names, tmp_path, number, status):
    typed = [*COMMAND, "tune", str(images), "--model", names["narrow"], *TUNED, "--out", str(tmp_path / "run")]
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    with subprocess.Popen(typed, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed) as running:
        while "training on" not in running.stderr.readline():
            assert running.poll() is None
        time.sleep(0.3)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        assert not children.exists() or not children.read_text().split()
        started = time.monotonic()
        running.send_signal(number)
        _, said = running.communicate(timeout=30)
    assert time.monotonic() - started < 2.0
    assert running.returncode == status
    assert said.count("\n") == 1
    assert said.startswith("stopped. ")
    assert not list(tmp_path.rglob("*.unfinished"))
    assert main(["tune", str(images), "--model", names["narrow"], *TUNED, "--out", str(tmp_path / "run")]) == 1
    assert (tmp_path / "run" / "run.txt").is_file()


def test_what_terminates_counts_as_an_interrupt():
    assert stopping.status(KeyboardInterrupt()) == 130
    assert stopping.status(Terminated()) == 143


@pytest.mark.slow
def test_a_reader_that_is_gone_ends_it_quietly(images, names):
    typed = [*COMMAND, "measure", str(images), "--model", names["narrow"]]
    with subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        said = running.stderr.read()
    assert running.returncode == 141
    assert "✗" not in said
    assert "rror" not in said


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(images, names, tmp_path):
    typed = ["tune", str(images), "--model", names["wide"], "--method", "linear", "--epochs", "1", "--lr", "0.1"]
    typed += ["--out", str(tmp_path / "run"), "--resume"]
    full = limited(resource.RLIMIT_FSIZE, 500)
    done = subprocess.run([*COMMAND, *typed], capture_output=True, text=True, preexec_fn=full, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.unfinished"))
    assert main(typed) == 0


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left.*wanted\.json") as failed:
        write_text(tmp_path / "wanted.json", "{}")
    assert failed.value.filename == str(tmp_path / "wanted.json")
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_one_line(run, images, names, monkeypatch):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("a bug")):

        def fails(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("tightframe.cli.commands.load_images", fails)
        typed = ("measure", images, "--model", names["narrow"])
        if "bug" in str(error):
            with pytest.raises(RuntimeError, match="a bug"):
                run(*typed)
        else:
            status, _, said = run(*typed)
            assert status == 1
            assert said.splitlines()[-1].startswith("✗ there is too little memory")


@pytest.mark.slow
def test_poor_terminals_no_home_and_odd_names(images, names, tmp_path):
    """Under a locale without letters beyond ASCII, without a home, in 40 columns, with names of all kinds."""
    place = tmp_path / 'it\'s "odd"\nhère 猫'
    shutil.copytree(images, place / "data")
    first = next((place / "data").glob("*/*.png"))
    shutil.copyfile(first, first.with_name("y" * 251 + ".png"))
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb", "COLUMNS": "40"}
    known = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if key in os.environ}
    source = str(Path(__file__).parents[2] / "src")
    known["PYTHONPATH"] = os.pathsep.join(filter(None, (source, known.get("PYTHONPATH"))))
    typed = ["tune", "data", "--model", names["narrow"], "--method", "linear", "--epochs", "1", "--lr", "0.1"]
    typed += ["--out", "sävéd 猫", "--json", "z" * 250 + ".json"]
    done = subprocess.run([*COMMAND, *typed], cwd=place, env=poor | known, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert json.loads((place / ("z" * 250 + ".json")).read_text())["rows"]
    assert main(["predict", str(place / "sävéd 猫"), str(first.with_name("y" * 251 + ".png"))]) == 0


def test_a_file_in_place_of_the_cache_is_named(run, images, names, tmp_path):
    (tmp_path / "kept").write_text("")
    status, _, said = run("rank", images, "--models", names["narrow"], "--feature-cache", tmp_path / "kept")
    assert status == 1
    assert "kept is a file; give --feature-cache a folder" in " ".join(said.split())


def test_a_block_misspelled_does_not_cost_the_folder(run, images, names, tmp_path):
    typed = ("transfer", images, "--models", names["narrow"], "--methods", "scl", "--out", tmp_path / "run")
    status, _, said = run(*typed, "--block", "penultimat")
    assert status == 1
    assert 'nearest: "layer' in said
    assert not (tmp_path / "run").exists()


def test_a_mean_below_zero_is_refused(run, images, names):
    status, _, said = run("measure", images, "--model", names["narrow"], "--mean", "-0.5", "0.5", "0.5")
    assert status == 1
    assert "mean is (-0.5, 0.5, 0.5)" in " ".join(said.split())


def test_predict_without_images_lists_the_saved_models(run, tuned):
    status, _, said = run("predict", tuned.parent)
    assert status == 1
    assert "give one of the tuned models in it" in " ".join(said.split())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["tune", "rank"])
def test_killed_at_random_moments_the_result_is_the_same(moments, tmp_path, command):
    told = moments.world(tmp_path)
    assert moments.killed(command, told, tmp_path, kills=4, seed=1)["kills"] == 4
