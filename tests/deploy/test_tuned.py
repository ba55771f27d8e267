"""The saved folder: small, exact, bound to its base model, and harmless whatever is in it."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tightframe import TrainConfig, load_backbone, load_tuned
from tightframe.errors import BadImage, DataError, SavedError, TightframeError

PLAN = TrainConfig(epochs=2, lr=(0.05,), weight_decay=(1e-4,))


@pytest.fixture(params=["linear", "layer", "scl", "full"])
def saved(request, tuned_by):
    return tuned_by(request.param)


@pytest.fixture
def folder(tuned_by, tmp_path):
    """A copy of a saved folder, to be spoilt."""
    return shutil.copytree(tuned_by("scl")[1], tmp_path / "copy")


def test_loaded_it_gives_the_same_logits_to_the_bit(saved, data):
    tuned, folder = saved
    logits = tuned.logits_and_features(data.test)[0]
    assert torch.equal(load_tuned(folder).logits_and_features(data.test)[0], logits)
    assert len(logits.unique(dim=0)) > 1


def test_it_holds_what_was_trained_and_no_more(saved):
    tuned, folder = saved
    assert {path.name for path in folder.iterdir()} == {
        "tightframe.json",
        "tuned.safetensors",
        "training_set.safetensors",
        "history.json",
        "log.jsonl",
        "run.txt",
    }
    tensors = load_file(folder / "tuned.safetensors")
    assert set(tensors) == set(tuned.model.changed_state())
    trained = sum(p.numel() for p in tuned.model.parameters() if p.requires_grad)
    kept = ("running", "num_batches", "gain")
    buffers = sum(t.numel() for name, t in tensors.items() if any(part in name for part in kept))
    assert sum(t.numel() for t in tensors.values()) == trained + buffers
    said = json.loads((folder / "tightframe.json").read_text())
    assert said["weights"] == tuned.backbone.weights
    assert said["classes"] == ["5", "6", "7", "8", "9"]
    assert {"torch", "timm", "tightframe"} <= set(said["versions"])


def test_other_base_weights_are_refused_with_what_to_do(folder, names):
    with pytest.raises(SavedError, match="fetch those weights again"):
        load_tuned(folder, names["narrow"])
    other = load_backbone(names["wide"])
    with torch.no_grad():
        next(other.module.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(SavedError, match="has"):
        load_tuned(folder, other)


def test_base_model_that_moved_is_named(folder, model_folders, tmp_path, reseal):
    moved = shutil.copytree(model_folders["wide"], tmp_path / "moved")
    reseal(folder, backbone={"uri": f"local-dir:{tmp_path / 'gone'}", "pretrained": True})
    with pytest.raises(TightframeError, match="gone"):
        load_tuned(folder)
    assert load_tuned(folder, f"local-dir:{moved}").classes == ("5", "6", "7", "8", "9")


def test_a_folder_never_runs_a_python_file_but_the_user_may(folder, names, tmp_path, reseal):
    mark = tmp_path / "ran"
    builder = tmp_path / "net.py"
    builder.write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        f"from tightframe import load_backbone\ndef make():\n"
        f"    module = load_backbone({names['wide']!r}).module\n    module.pretrained_cfg['crop_pct'] = 1.0\n"
        "    return module\n"
    )
    reseal(folder, backbone={"uri": f"{builder}:make", "pretrained": True})
    with pytest.raises(SavedError, match="--model"):
        load_tuned(folder)
    assert not mark.exists()
    assert load_tuned(folder, f"{builder}:make").model.method.name == "scl"
    assert mark.exists()


@pytest.mark.parametrize(
    "entries",
    [
        {"format": 1},
        {"align": "sideways"},
        {"align": "concat"},
        {"scale": None},
        {"format": None},
        {"unheard_of": 1},
        {"backbone": "timm/resnet18"},
        {"backbone": {}},
        {"backbone": {"uri": 3}},
        {"backbone": {"uri": "timm/../../etc/passwd"}},
        {"backbone": {"uri": "local-dir:x", "module": "os"}},
        {"weights": 5},
        {"weights": "0" * 64},
        {"method": "magic"},
        {"method": ["scl"]},
        {"method": "linear"},
        {"layer": None},
        {"layer": "../../x"},
        {"layer": "layer9.9"},
        {"layer": 4},
        {"pool": "max"},
        {"pool": None},
        {"classes": []},
        {"classes": ["5"]},
        {"classes": ["5", "6", "7"]},
        {"classes": [5, 6, 7, 8, 9]},
        {"classes": "56789"},
        {"classes": ["5", "5", "7", "8", "9"]},
        {"classes": ["\ud800", "6", "7", "8", "9"]},
        {"metrics": []},
    ],
    ids=str,
)
def test_a_description_that_is_wrong_is_refused(folder, entries, reseal):
    reseal(folder, **entries)
    with pytest.raises(TightframeError):
        load_tuned(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', "[" * 100_000, "\x00", '{"format": NaN}'])
def test_a_description_that_is_no_description_is_refused(folder, text):
    (folder / "tightframe.json").write_text(text)
    with pytest.raises(SavedError, match=r"tightframe\.json"):
        load_tuned(folder)


def spoilt(tensors, how):
    first = next(iter(tensors))
    if how == "missing":
        del tensors[first]
    elif how == "extra":
        tensors["more"] = torch.zeros(1)
    elif how == "shape":
        tensors["head.weight"] = tensors["head.weight"][:, :-1].contiguous()
    elif how == "nan":
        tensors["head.weight"][0, 0] = float("nan")
    else:
        tensors["head.weight"] = tensors["head.weight"].to(getattr(torch, how))
    return tensors


@pytest.mark.parametrize("how", ["missing", "extra", "shape", "nan", "float64", "int8", "float16"])
def test_tensors_that_are_not_this_models_are_refused(folder, how, reseal):
    path = folder / "tuned.safetensors"
    save_file(spoilt(load_file(path), how), path)
    reseal(folder)
    with pytest.raises(SavedError, match=r"tuned\.safetensors"):
        load_tuned(folder)


def test_a_pickle_in_place_of_tensors_is_never_opened(folder, tmp_path, reseal):
    class Bomb:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "ran",))

    (folder / "tuned.safetensors").write_bytes(pickle.dumps(Bomb()))
    reseal(folder)
    with pytest.raises(SavedError):
        load_tuned(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["tightframe.json", "tuned.safetensors"])
def test_fuzzed_files_load_or_are_refused(folder, names, name):
    path, backbone = folder / name, load_backbone(names["wide"])
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        spoiled = bytearray(whole[: generator.integers(1, len(whole))] if generator.random() < 0.3 else whole)
        for place in generator.integers(0, min(len(spoiled), 2000), 3):
            spoiled[place] = generator.integers(256)
        path.write_bytes(spoiled)
        try:
            load_tuned(folder, backbone)
            outcomes.add("loaded")
        except TightframeError:
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.mark.parametrize("missing", ["tightframe.json", "tuned.safetensors", ""])
def test_what_is_missing_is_named(folder, missing):
    if missing:
        (folder / missing).unlink()
    else:
        shutil.rmtree(folder)
    with pytest.raises(SavedError, match=missing or r"tightframe\.json"):
        load_tuned(folder)


def test_predictions(saved, data, tmp_path):
    tuned, _ = saved
    image = data.test[0]
    image.save(tmp_path / "one.png")
    rows = tuned.predict([str(tmp_path / "one.png"), tmp_path / "one.png", image])
    assert [row["path"] for row in rows] == [str(tmp_path / "one.png")] * 2 + ["image 2"]
    assert rows[0]["probabilities"] == rows[1]["probabilities"] == pytest.approx(rows[2]["probabilities"])
    assert rows[0]["probability"] == max(rows[0]["probabilities"].values())
    assert rows[0]["predicted"] == max(rows[0]["probabilities"], key=rows[0]["probabilities"].get)
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert tuned.predict([]) == []


def test_an_image_that_can_not_be_read(saved, tmp_path):
    tuned, _ = saved
    (tmp_path / "bad.png").write_bytes(b"nothing")
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    files = [tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "none.png"]
    with pytest.raises(BadImage, match=r"bad\.png"):
        tuned.predict(files, on_error="raise")
    good, bad, gone = tuned.predict(files)
    assert good["predicted"] in tuned.classes
    assert "bad.png" in bad["path"]
    assert bad["error"]
    assert "no such file" in gone["error"]


def test_one_image_or_several_of_any_kind(saved, data, tmp_path):
    tuned, _ = saved
    image = data.test[0]
    (tmp_path / "below").mkdir()
    for name in ("b.png", "below/c.PNG", ".hidden.png"):
        image.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    values = np.asarray(image)
    (expected,) = tuned.predict([image])
    for one in (image, values, values[None], tmp_path / "b.png", str(tmp_path / "b.png"), data.test.subset([0])):
        (row,) = tuned.predict(one)
        assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
    rows = tuned.predict([tmp_path, np.stack([values, values]), image])
    assert [row["path"] for row in rows[:2]] == [str(tmp_path / "b.png"), str(tmp_path / "below/c.PNG")]
    assert len(rows) == 5
    assert all(row["predicted"] == expected["predicted"] for row in rows)


def test_what_is_no_image_is_refused(saved, tmp_path):
    tuned, _ = saved
    with pytest.raises(DataError, match=r"float64 .*uint8"):
        tuned.predict(np.zeros((4, 4, 3)))
    with pytest.raises(DataError, match="holds no images"):
        tuned.predict(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="holds no images"):
        tuned.predict(tmp_path / "in")


def test_it_says_what_it_is(saved):
    tuned, _ = saved
    assert len(repr(tuned).splitlines()) == 3
    assert tuned.backbone.name in repr(tuned)
    assert '5 classes: "' in repr(tuned)


def test_the_command_that_predicts_names_what_has_to_be_named(saved, tmp_path):
    tuned, _ = saved
    assert tuned.predict_command("a b") == "tightframe predict 'a b' IMAGE…"
    tuned.backbone.origin["uri"], before = "/nets.py:make:it", tuned.backbone.origin["uri"]
    assert tuned.predict_command("run").endswith(" --model /nets.py:make:it")
    tuned.backbone.origin["uri"] = before


def test_other_preprocessing_is_refused(folder, model_folders, names, tmp_path):
    other = shutil.copytree(model_folders["wide"], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.5, 0.5]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(SavedError, match="prepared as"):
        load_tuned(folder, f"local-dir:{other}")
