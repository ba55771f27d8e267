"""Saved folders: a flipped bit anywhere is refused, and those of version 0.1, which had no checksums, are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tightframe as tf
from tightframe.errors import SavedError

OLD = Path(__file__).parent / "saved"


@pytest.fixture
def saved(tuned_by, tmp_path):
    """A copy of a saved folder, and the model that it was tuned on."""
    tuned, folder = tuned_by("linear")
    return Path(shutil.copytree(folder, tmp_path / "saved")), tuned.backbone


@pytest.mark.parametrize("method", ["discriminant", "scl", "lora"])
def test_a_folder_of_version_0_1_predicts_as_it_did(method):
    if method == "lora":
        pytest.importorskip("peft")
    base = tf.load_backbone(f"{OLD / 'base.py'}:make")
    test = tf.load_images("digits:0,1,7", max_per_class=6, test_share=0.2).test.subset(range(12))
    tuned = tf.load_tuned(OLD / f"0.1-{method}", base)
    expected = json.loads((OLD / "predicted.json").read_text())[method]
    assert np.abs(tuned.probabilities(test) - expected).max() < 1e-3
    assert len(tuned.trained_on) == 18
    assert tuned.evidence is not None


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tightframe.json", "tuned.safetensors", "training_set.safetensors", "history.json"])
def test_a_flipped_bit_anywhere_is_refused_by_name(saved, name):
    folder, base = saved
    path = folder / name
    size = 8 * path.stat().st_size
    for bit in np.unique(np.linspace(0, size - 1, 150).astype(int)).tolist():
        flipped(path, bit)
        with pytest.raises(SavedError, match=name):
            tf.load_tuned(folder, base)
        flipped(path, bit)
    tf.load_tuned(folder, base)


def test_every_bit_of_the_description_counts(saved):
    from tightframe.tuning import checkpoint

    folder, _ = saved
    path = folder / "tightframe.json"
    for bit in range(8 * path.stat().st_size):
        flipped(path, bit)
        with pytest.raises(SavedError, match="tightframe"):
            checkpoint.read(folder)
        flipped(path, bit)


def test_what_a_model_can_do_without_may_be_missing(saved):
    folder, base = saved
    for name in ("training_set.safetensors", "history.json"):
        (folder / name).unlink()
    assert tf.load_tuned(folder, base).trained_on == ()


def test_a_description_without_its_checksum_is_refused(saved):
    folder, base = saved
    content = json.loads((folder / "tightframe.json").read_text())
    del content["checksum"]
    (folder / "tightframe.json").write_text(json.dumps(content))
    with pytest.raises(SavedError, match="checksum"):
        tf.load_tuned(folder, base)
