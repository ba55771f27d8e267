"""The commands on what was tuned: judge it, merge it, export it, push it, as a person types them."""

from __future__ import annotations

import json
import re

import huggingface_hub
import pytest
import timm


def test_evaluate_judges_what_tune_held_out(run, tuned, images, tmp_path):
    status, out, _ = run("evaluate", tuned, images, "--json", tmp_path / "found.json")
    assert status == 0
    assert re.search(r"digit 5 .*\n *digit 6 ", out)
    found = json.loads((tmp_path / "found.json").read_text())
    metrics = json.loads((tuned / "tightframe.json").read_text())["metrics"]
    assert found["rows"][0]["images"] == 10
    assert found["rows"][0]["accuracy"] == metrics["test_accuracy"]
    assert "confident mistakes" in out
    assert max(map(len, out.split("rows, settings")[0].splitlines())) <= 80


def test_evaluate_leaves_out_what_was_trained_on(run, tuned, images):
    status, out, _ = run("evaluate", tuned, images)
    assert status == 0
    assert "images are left out: the model was trained on the same" in out.replace("\n", " ")


def test_evaluate_of_other_classes_is_refused(run, tuned):
    status, _, err = run("evaluate", tuned, "digits")
    assert status == 1
    assert "rename" in err


def test_merge_refuses_a_skip_connection_and_takes_others(run, tuned, images, names, tmp_path):
    status, _, err = run("merge", tuned, "--out", tmp_path / "plain")
    assert status == 1
    assert "tightframe export" in err.replace("\n", " ")
    short = ("--epochs", "1", "--lr", "0.05", "--weight-decay", "0.0001", "--method", "linear")
    assert run("tune", images, "--model", names["wide"], "--out", tmp_path / "linear", *short)[0] == 0
    status, out, _ = run("merge", tmp_path / "linear", "--out", tmp_path / "plain")
    assert status == 0
    assert "timm.create_model" in out
    module = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True)
    assert module.pretrained_cfg["label_names"] == [f"digit {digit}" for digit in range(5, 10)]


@pytest.mark.slow
def test_export_writes_a_file_and_says_how_well_it_agrees(run, tuned, images, tmp_path):
    arguments = ("export", tuned, "--onnx", tmp_path / "net.onnx", "--data", images)
    status, out, _ = run(*arguments, "--json", tmp_path / "found.json")
    assert status == 0
    row = json.loads((tmp_path / "found.json").read_text())["rows"][0]
    assert row["difference"] < 1e-5
    assert row["images"] == 10
    assert "beside PyTorch" in " ".join(out.split())
    assert (tmp_path / "net.onnx").stat().st_size == row["bytes"]
    status, _, err = run("export", tuned, "--onnx", "/nonexistent/net.onnx")
    assert status == 2
    assert "can't be written" in " ".join(err.split())


def test_push_names_where_it_went(run, tuned, monkeypatch):
    class Shelf:
        def create_repo(self, repo_id, *, private=None, exist_ok=False):
            return f"https://hub.example/{repo_id}?{private}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            pass

    monkeypatch.setattr(huggingface_hub, "HfApi", Shelf)
    status, out, _ = run("push", tuned, "ann/digits", "--private")
    assert status == 0
    assert "https://hub.example/ann/digits?True" in "".join(line.strip() for line in out.splitlines())
    assert "license" in out
    assert run("push", tuned, "nobody")[0] == 1
