"""The main job: everything is there at the end, and stopping it anywhere changes nothing."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tightframe import TrainConfig, load_backbone, load_images, load_tuned, transfer
from tightframe.errors import ModelError, SettingsError
from tightframe.features.workspace import Workspace
from tightframe.jobs.transfer import Transfer

PLAN = TrainConfig(epochs=3, search_epochs=1, lr=(0.05, 0.01), weight_decay=(1e-4,))
TIMES = ("seconds",)


@pytest.fixture(scope="module")
def finished(data, names, tmp_path_factory) -> Transfer:
    return transfer(data, list(names.values()), out=tmp_path_factory.mktemp("runs") / "one", config=PLAN)


def untimed(value):
    if isinstance(value, dict):
        return {key: untimed(entry) for key, entry in value.items() if key not in TIMES}
    return [untimed(entry) for entry in value] if isinstance(value, list) else value


def outcome(folder: Path):
    """Everything that a run leaves, but for times and the folder's own name."""
    text = (folder / "result.json").read_text().replace(str(folder), "DIR")
    result = untimed(json.loads(text))
    weights = {method: (folder / method / "tuned.safetensors").read_bytes() for method in result["settings"]["methods"]}
    histories = {m: untimed(json.loads((folder / m / "history.json").read_text())) for m in weights}
    return result, weights, histories


def test_everything_is_there_at_the_end(data, finished):
    assert [row["method"] for row in finished.methods] == ["discriminant", "linear", "partial", "auto"]
    assert sum(row["chosen"] for row in finished.layers) == 1
    chosen = next(row["layer"] for row in finished.layers if row["chosen"])
    assert {row["block"] for row in finished.methods[:3]} == {None, chosen}
    assert finished.ranking.rows[0]["model"] == finished.tuned.backbone.name
    assert f"chosen: {finished.tuned.backbone.name} by {finished.tuned.model.title}" in finished.result.notes[0]
    assert finished.result.next_steps[0] == finished.tuned.predict_command(finished.folder / "auto")
    report = (finished.folder / "report.html").read_text()
    assert all(cls in report for cls in data.classes)
    assert {path.name for path in finished.folder.iterdir()} == {
        *("run.txt", "features", "stages", "report.html", "result.json"),
        *("discriminant", "linear", "partial", "auto"),
    }


def test_the_report_opens_in_a_browser_that_reaches_nothing(browser, finished):
    page = browser.new_context(offline=True).new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((finished.folder / "report.html").as_uri())
    page.wait_for_function("[...document.querySelectorAll('.plot')].every(plot => plot.dataset.drawn)")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.locator(".plot svg").count() >= 6
    headings = page.locator("section h2").all_inner_texts()
    assert headings == [
        "Which model",
        "Which layer",
        "Training",
        "Which method",
        "Confusion matrix",
        "Sample predictions",
    ]
    assert page.locator(".samples img").count() == len(finished.samples)
    assert finished.tuned.backbone.name in page.locator("body").inner_text()


def test_what_was_saved_predicts_as_it_was_judged(data, finished):
    for row in finished.methods:
        tuned = load_tuned(finished.folder / row["method"])
        logits, features = tuned.logits_and_features(data.test)
        assert (logits.argmax(1).numpy() == data.test.labels).mean() == row["test_accuracy"]
        assert row["test_low"] <= row["test_accuracy"] <= row["test_high"]
        assert features.shape[1] == tuned.model.neck.width


def test_samples_are_told_as_the_model_sees_them(data, finished):
    probabilities = finished.tuned.probabilities(data.test)
    assert len({row["index"] for row in finished.samples}) == len(finished.samples) > 3
    for row in finished.samples:
        assert row["true"] == data.classes[data.test.labels[row["index"]]]
        assert row["predicted"] == data.classes[probabilities[row["index"]].argmax()]
        assert row["probability"] == pytest.approx(probabilities[row["index"]].max())


def test_the_later_half_of_the_blocks_is_tuned(finished):
    blocks = finished.tuned.backbone.layers
    assert blocks[len(blocks) // 2].name == next(row["layer"] for row in finished.layers if row["chosen"])


@pytest.mark.slow
def test_running_it_again_trains_nothing_and_gives_the_same(data, names, finished, steps):
    before = outcome(finished.folder)
    again = transfer(data, list(names.values()), out=finished.folder, config=PLAN)
    assert steps == []
    assert outcome(finished.folder) == before
    assert again.methods == finished.methods  # times included: they are those of the first run


@pytest.mark.slow
def test_stopped_again_and_again_it_goes_on_to_the_same_result(data, names, finished, tmp_path, often_stopped):
    def run(progress):
        return transfer(data, list(names.values()), out=tmp_path, config=PLAN, workspace=Workspace(progress=progress))

    _, stops = often_stopped(run)
    assert stops > 5
    assert outcome(tmp_path) == outcome(finished.folder)
    assert not list(tmp_path.rglob("*unfinished*"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system can't kill a process outright")
def test_killed_twice_it_goes_on_to_the_same_result(data, names, finished, tmp_path):
    folder = tmp_path / "run"
    images = ["digits:5-9", "--max-per-class", "6", "--test-share", "0.2", "--models", *names.values()]
    training = ["--epochs", "3", "--search-epochs", "1", "--lr", "0.05", "0.01", "--weight-decay", "1e-4"]
    command = [sys.executable, "-m", "tightframe", "transfer", *images, *training, "--out", str(folder)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for begun in ("stages/*.json", "*/unfinished/*.safetensors"):
        killed = subprocess.Popen(command, **quiet)
        deadline = time.monotonic() + 120
        while not list(folder.glob(begun)) and time.monotonic() < deadline:
            assert killed.poll() is None, "it finished before it could be killed"
            time.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert not (folder / "result.json").exists()
    transfer(data, list(names.values()), out=folder, config=PLAN)
    assert outcome(folder) == outcome(finished.folder)


def test_a_folder_is_one_runs_own(data, names, finished, tmp_path):
    with pytest.raises(SettingsError, match="other settings"):
        transfer(data, [names["wide"]], out=finished.folder, config=PLAN)
    (tmp_path / "thesis.tex").write_text("do not lose me")
    with pytest.raises(SettingsError, match="not empty"):
        transfer(data, [names["wide"]], out=tmp_path, config=PLAN)
    with pytest.raises(SettingsError, match="is a file"):
        transfer(data, [names["wide"]], out=tmp_path / "thesis.tex", config=PLAN)
    assert (tmp_path / "thesis.tex").read_text() == "do not lose me"


def test_no_model_that_can_be_used(data, tmp_path):
    with pytest.raises(ModelError, match="none of the models"):
        transfer(data, ["timm/nope", "local-dir:nowhere"], out=tmp_path / "run", config=PLAN)


@pytest.mark.slow
def test_without_test_images_there_is_a_report_all_the_same(names, tmp_path):
    data = load_images("digits:5-9", max_per_class=6, test_share=0.0)
    run = transfer(data, [names["narrow"]], out=tmp_path / "run", config=PLAN, methods=["linear"])
    assert run.samples == []
    assert "test_accuracy" not in run.methods[0]
    assert "Where it errs" not in (run.folder / "report.html").read_text()


@pytest.mark.slow
def test_a_named_layer_and_chosen_methods(data, names, tmp_path):
    run = transfer(
        data, [names["wide"]], out=tmp_path / "run", config=PLAN, methods=["layer", "layer"], block="layer2.0"
    )
    assert [(row["method"], row["block"]) for row in run.methods] == [("layer", "layer2.0")]
    assert run.tuned.model.method.name == "layer"
    np.testing.assert_array_equal([row["chosen"] for row in run.layers], [False, True, False, False, False])


@pytest.mark.slow
def test_of_two_models_of_one_name_the_winner_is_tuned(data, names, tmp_path):
    first, second = (dataclasses.replace(load_backbone(names[name]), name="net") for name in ("wide", "narrow"))
    for models in ([first, second], [second, first]):
        run = transfer(data, models, out=tmp_path / models[0].fingerprint, config=PLAN, methods=["linear"])
        assert run.tuned.backbone is models[run.ranking.rows[0]["given"]]
        assert run.tuned.backbone.parameters == run.ranking.rows[0]["parameters"]


@pytest.mark.slow
def test_without_a_method_that_needs_one_no_layer_is_chosen(data, tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nclass Mean(torch.nn.Module):\n"
        "    pretrained_cfg = dict(input_size=(3, 16, 16), mean=(.5,) * 3, std=(.5,) * 3, crop_pct=1.0)\n"
        "    def forward(self, x):\n        return x.flatten(1)\n"
        "def make():\n    return Mean()\n"
    )
    run = transfer(data, [f"{tmp_path / 'net.py'}:make"], out=tmp_path / "run", config=PLAN, methods=["linear"])
    assert run.result.settings["block"] is None
    assert run.result.notes[0].startswith("chosen: make by linear")
