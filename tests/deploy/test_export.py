"""Exporting: a file that ONNX Runtime reads to the same answers, alone, with what is needed to feed it."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tightframe import export_onnx, load_backbone, load_tuned, tune
from tightframe.deploy import export
from tightframe.deploy.export import ExportFailed
from tightframe.errors import PackageMissing, SettingsError
from tightframe.features.workspace import Workspace


def telling_apart(tuned, images):
    """``tuned`` with a head that tells ``images`` apart: probabilities all alike would agree whatever the file says."""
    head, (logits, _) = tuned.model.head, tuned.logits_and_features(images)
    with torch.no_grad():
        head.weight.div_(logits.std(0)[:, None])
        head.bias.sub_(logits.mean(0)).div_(logits.std(0))
    return tuned


@pytest.fixture(scope="module")
def tuned(tuned_by, data):
    return telling_apart(load_tuned(tuned_by("scl")[1]), data.test)


@pytest.fixture(scope="module")
def exported(tuned, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return export_onnx(tuned, path, data), path


def bytes_of(tuned, images):
    return np.stack([tuned.backbone.preprocessing.pixels(image).numpy() for image in images])


def run(path, pixels):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["probabilities", "logits"], {"pixels": pixels})


def test_it_says_the_same_for_any_number_of_images(tuned, data, exported):
    _, path = exported
    wanted = tuned.probabilities(data.test)
    pixels = bytes_of(tuned, [data.test[index] for index in range(7)])
    for n in (1, 2, 7):
        shares, logits = run(path, pixels[:n])
        np.testing.assert_allclose(shares, wanted[:n], atol=1e-6)
        np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), shares, atol=1e-6)
    assert wanted.std(0).max() > 0.03, "images must be told apart, or the test shows nothing"


@pytest.mark.slow
def test_lora_is_exported(data, tuned_by, tmp_path):
    tuned = load_tuned(tuned_by("lora")[1])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*tuned.model.owned.parameters, tuned.model.head.weight):
            parameter.normal_(std=0.3, generator=generator)
    telling_apart(tuned, data.test)
    (row,) = export_onnx(tuned, tmp_path / "net.onnx", data).rows
    assert row["same"] == 1
    assert tuned.probabilities(data.test).std(0).max() > 0.03, "images must be told apart, or the test shows nothing"


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A vision transformer of three blocks, with tokens, drawn at random, in timm's layout."""
    folder, small = tmp_path_factory.mktemp("vit"), {"img_size": 32, "depth": 3, "embed_dim": 48}
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", num_classes=3, **small)
    size = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": small, "pretrained_cfg": size}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(module.state_dict(), str(folder / "model.safetensors"))
    return load_backbone(f"local-dir:{folder}")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["auto", "mean"])
@pytest.mark.parametrize("kind", ["convolutions", "tokens"])
def test_a_reading_of_layers_is_saved_and_exported(data, wide, transformer, kind, pool, tmp_path):
    backbone = {"convolutions": wide, "tokens": transformer}[kind]
    workspace = Workspace(precision="float32", pool=pool)
    tuned = tune(data, backbone, method="discriminant", out=tmp_path / "saved", workspace=workspace)
    assert len(tuned.model.read) > 2
    loaded = load_tuned(tmp_path / "saved")
    assert (loaded.model.read, loaded.model.pool) == (tuned.model.read, pool)
    assert torch.equal(loaded.logits_and_features(data.test)[0], tuned.logits_and_features(data.test)[0])
    (row,) = export_onnx(loaded, tmp_path / "net.onnx", data).rows
    assert row["same"] == 1
    shares, _ = run(tmp_path / "net.onnx", bytes_of(loaded, [data.test[index] for index in range(7)]))
    wanted = tuned.probabilities(data.test)
    np.testing.assert_allclose(shares, wanted[:7], atol=1e-4)
    assert wanted.std(0).max() > 0.03, "images must be told apart, or the test shows nothing"


def test_the_row_says_what_was_checked(exported):
    found, path = exported
    (row,) = found.rows
    assert row["images"] == 32
    assert row["difference"] < 1e-5
    assert row["same"] == 1
    assert row["bytes"] == path.stat().st_size
    assert {"onnx", "onnxruntime", "torch"} <= set(found.versions)
    assert "digits:5-9" in found.notes[0]


def test_metadata_say_how_to_feed_it_and_name_no_file_of_this_machine(tuned, data, exported, model_folders):
    _, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["classes"]) == list(data.classes)
    assert json.loads(told["preprocessing"])["mean"] == [0.5] * 3
    assert json.loads(told["model"])["method"] == "scl"
    assert "(n, 3, 32, 32), uint8" in told["pixels"]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    content = path.read_bytes()
    for place in (str(model_folders["wide"]), "site-packages", "tightframe/tuning"):
        assert place.encode() not in content


@pytest.mark.slow
def test_floats_from_0_to_1_and_made_up_images(tuned, data, exported, tmp_path):
    found = export_onnx(tuned, tmp_path / "float.onnx", pixels="float32")
    assert "made-up" in found.notes[0]
    pixels = bytes_of(tuned, [data.test[index] for index in range(5)])
    shares, _ = run(tmp_path / "float.onnx", pixels.astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(shares, run(exported[1], pixels)[0], atol=1e-6)


def test_one_that_says_something_else_is_not_written(tuned, exported, tmp_path, monkeypatch):
    model = onnx.load(exported[1])
    monkeypatch.setattr(export, "_exported", lambda *_: model)
    export_onnx(tuned, tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").is_file()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.bias"))
    moved = onnx.numpy_helper.to_array(bias) + np.arange(5, dtype=np.float32) / 5
    bias.CopyFrom(onnx.numpy_helper.from_array(moved, bias.name))
    with pytest.raises(ExportFailed, match=r"differ from PyTorch's by up to 0\.\d+, more than 0\.0001"):
        export_onnx(tuned, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()
    export_onnx(tuned, tmp_path / "allowed.onnx", tolerance=1.0)
    assert (tmp_path / "allowed.onnx").is_file()


def test_attention_on_three_axes_is_exported_as_that_of_one_head():
    generator = torch.Generator().manual_seed(0)
    query, key, value, mask = (torch.randn(2, 5, 5, generator=generator) for _ in range(4))
    own = nn.functional.scaled_dot_product_attention
    for given in ((query, key, value), (query, key, value, mask), (query, key, value, mask[0])):
        with export._attention_on_four_axes():
            changed = nn.functional.scaled_dot_product_attention(*given)
        torch.testing.assert_close(changed, own(*given))
    assert nn.functional.scaled_dot_product_attention is own


@pytest.mark.slow
def test_a_model_with_attention_on_three_axes_is_exported(tuned, tmp_path, monkeypatch):
    class Attends(nn.Module):
        def forward(self, inputs):
            rows = inputs.float().mean(1)[:, :5, :5] / 255
            return nn.functional.scaled_dot_product_attention(rows, rows, rows).mean(1)

    monkeypatch.setattr(export._Graph, "forward", lambda self, pixels: (Attends()(pixels).softmax(1),) * 2)
    export._exported(export._Graph(tuned, "uint8"), "uint8")


@pytest.mark.slow
def test_what_the_exporter_can_not_follow_is_said_in_words(tuned, tmp_path, monkeypatch):
    class Odd(nn.Module):
        def train(self, mode=True):
            return self

        def forward(self, inputs):
            return inputs.mean((2, 3)) if float(inputs.sum()) > 0 else inputs.std((2, 3))

    monkeypatch.setattr(export._Graph, "forward", lambda self, pixels: (Odd()(pixels.float()),) * 2)
    with pytest.raises(ExportFailed, match="can't export this model"):
        export_onnx(tuned, tmp_path / "odd.onnx")
    assert not (tmp_path / "odd.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("never", [True, False])
def test_what_the_runtime_does_not_accept_is_exported_plainly_or_said_in_words(never, tuned, tmp_path, monkeypatch):
    def broken(graph, pixels, optimize):
        proto = exporting(graph, pixels, optimize)
        if optimize or never:
            del proto.graph.node[0]
        return proto

    exporting = export._exported
    monkeypatch.setattr(export, "_exported", broken)
    path = tmp_path / "net.onnx"
    if never:
        with pytest.raises(ExportFailed, match=r"ONNX Runtime does not accept .*use the saved folder"):
            export_onnx(tuned, path)
    else:
        assert export_onnx(tuned, path).rows[0]["same"] == 1
    assert path.exists() != never


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_what_has_to_be_installed_is_named(tuned, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PackageMissing, match=r"pip install 'tightframe\[onnx\]'"):
        export_onnx(tuned, tmp_path / "net.onnx")


def test_wrong_settings(tuned, data, tmp_path):
    with pytest.raises(SettingsError, match="choose uint8 or float32"):
        export_onnx(tuned, tmp_path / "x", pixels="int4")
    with pytest.raises(SettingsError, match="no images"):
        export._shown(tuned, data.test.subset(np.array([], dtype=np.int64)))


def test_the_tuned_model_predicts_as_before(tuned, data, exported):
    assert torch.isfinite(tuned.logits_and_features(data.test)[0]).all()
