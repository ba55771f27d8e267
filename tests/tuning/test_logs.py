"""Each log, read back by its own reader."""

from __future__ import annotations

import json
import sys
import time

import pytest

from tightframe.errors import PackageMissing, SettingsError
from tightframe.tuning.logs import LogFailed, logging_to

ROWS = [("search 0.1 0.0001", {"epoch": 1, "train_loss": 2.5, "nc1": None, "phase": "search"})] + [
    ("final 0.1 0.0001", {"epoch": epoch, "train_loss": 1 / epoch, "nc1": float("inf")}) for epoch in (1, 2)
]


def written(names, folder):
    with logging_to(names, folder, "scl wide", {"epochs": 2, "rates": None}) as tell:
        for series, row in ROWS:
            tell(series, row)


def test_jsonl(tmp_path):
    written([], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line.pop("series"), line["epoch"], line["train_loss"]) for line in lines] == [
        (series, row["epoch"], row["train_loss"]) for series, row in ROWS
    ]
    assert lines[-1]["nc1"] is None  # JSON holds no infinity


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path):
    written(["tensorboard"], tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    told = events.Scalars("final 0.1 0.0001/train_loss")
    assert [(event.step, event.value) for event in told] == [(1, 1.0), (2, 0.5)]
    assert len(events.Tags()["scalars"]) == 2


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    written(["wandb"], tmp_path)
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    until = time.monotonic() + 10
    while b"final" not in (content := kept.read_bytes()) and time.monotonic() < until:  # wandb may write it later
        time.sleep(0.1)
    assert b"final 0.1 0.0001/train_loss" in content
    assert b"search 0.1 0.0001/train_loss" in content


@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    written(["mlflow"], tmp_path)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tightframe").experiment_id])
    assert run.info.run_name == "scl wide"
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "2"
    history = client.get_metric_history(run.info.run_id, "final 0.1 0.0001/train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]


def test_several_at_once_and_none(tmp_path):
    with logging_to(["tensorboard", "tensorboard"], tmp_path, "", {}) as tell:
        tell(*ROWS[0])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    with logging_to([], None, "", {}) as tell:
        tell(*ROWS[0])


def test_what_can_not_be_kept_is_said_before_training(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match="tensorboard"), logging_to(["comet"], tmp_path, "", {}):
        pass
    with pytest.raises(SettingsError, match="--out"), logging_to(["tensorboard"], None, "", {}):
        pass
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PackageMissing, match="pip install accelerate wandb"), logging_to(["wandb"], tmp_path, "", {}):
        pass


@pytest.mark.filterwarnings("ignore")
def test_a_log_that_can_not_start_says_what_to_do(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(LogFailed, match=r"No API key.*wandb login"), logging_to(["wandb"], tmp_path, "", {}):
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_log_written_twice_holds_the_last_run_only(tmp_path):
    written(["tensorboard"], tmp_path)
    written(["tensorboard"], tmp_path)
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1
