"""The one pass, and the store that spares it: what is a hit, what is a miss, and what is left on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from tightframe.backbone import PENULTIMATE, SPREAD, Backbone, Layer
from tightframe.engine.stages import Stages
from tightframe.errors import BadImage, LayerNotFound, ModelError, SettingsError
from tightframe.features import extract as extraction
from tightframe.features import store as storage
from tightframe.features.extract import Features
from tightframe.features.moments import ClassMoments
from tightframe.features.store import FeatureStore
from tightframe.features.workspace import Workspace

Make = Callable[..., Any]
LAYERS = ("first", "second", PENULTIMATE)


def made(
    net: Backbone, data: Any, layers: Sequence[str] | None = None, store: FeatureStore | None = None, **changes: Any
) -> Features:
    running = {"precision": "float32", "device": "cpu", "batch_size": 4} | changes
    folder = store.folder.parent if store is not None and store.folder is not None else None
    return Workspace(folder, **running).features(net, data, layers)


def by_hand(net: Backbone, data: Any) -> dict[str, np.ndarray]:
    """Image by image, in order."""
    module: Any = net.module
    rows: dict[str, list[Tensor]] = {layer: [] for layer in LAYERS}
    with torch.inference_mode():
        for index in range(len(data)):
            bytes_ = torch.tensor(np.asarray(net.preprocessing.pixels(data[index])))
            mean, std = torch.tensor(net.preprocessing.mean), torch.tensor(net.preprocessing.std)
            given = (bytes_ / 255 - mean[:, None, None]) / std[:, None, None]
            first = module.first(given[None])
            second = module.second(first.relu())
            rows["first"].append(first.mean((2, 3)))
            rows["second"].append(second.mean((2, 3)))
            rows[PENULTIMATE].append(second.relu().mean((2, 3)))
    return {layer: torch.cat(parts).numpy() for layer, parts in rows.items()}


def assert_same(found: Features, expected: Any) -> None:
    assert tuple(found) == tuple(expected)
    for layer in expected:
        assert found[layer].dtype == np.float32
        np.testing.assert_array_equal(found[layer], expected[layer], err_msg=layer)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_features_of_every_layer_in_the_order_of_the_data(
    model: Make, noise: Make, store: FeatureStore, batch_size: int, stored: bool
) -> None:
    net, data = model(), noise()
    found = made(net, data, batch_size=batch_size, store=store if stored else None)
    assert tuple(found) == LAYERS
    assert len(found) == 3
    for layer, expected in by_hand(net, data).items():
        assert found[layer].dtype == np.float32
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4, atol=1e-5, err_msg=layer)
    assert found.labels is data.labels
    assert (found.classes, found.precision, found.pool) == (data.classes, "float32", "mean")
    assert found.seconds > 0


@pytest.mark.parametrize(("batch_size", "passes"), [(64, 1), (4, 3), (11, 1), (10, 2)])
def test_one_pass_serves_all_layers(model: Make, noise: Make, batch_size: int, passes: int) -> None:
    net, data = model(), noise()
    shown: list[tuple[str, int]] = []

    def progress(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        shown.append((description, total))
        yield from items

    made(net, data, batch_size=batch_size, progress=progress)
    assert net.module.passes == passes
    assert sorted(data.items[0].decoded) == list(range(11))
    assert shown == [("net on noise/train", passes)]


def test_layers_named_come_in_that_order_and_no_others(model: Make, noise: Make) -> None:
    net, data = model(), noise()
    found = made(net, data, layers=[PENULTIMATE, "first"])
    assert_same(found, {layer: made(net, data)[layer] for layer in (PENULTIMATE, "first")})
    with pytest.raises(LayerNotFound, match='no layer "third"'):
        made(net, data, layers=["first", "third"])


def test_moments_are_computed_once(model: Make, noise: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(model(), noise())
    moments = found.moments("second")
    expected = ClassMoments.from_features(found["second"], found.labels, 3)
    assert torch.equal(moments.scatter, expected.scatter)
    assert moments.counts.tolist() == [4, 4, 3]
    assert found.moments("second") is moments
    assert found.moments("first") is not moments


def test_a_hit_runs_nothing_and_is_the_same_to_the_last_bit(model: Make, noise: Make, store: FeatureStore) -> None:
    net, data = model(), noise()
    before = made(net, data, store=store)
    passes, decoded = net.module.passes, len(data.items[0].decoded)
    again, other_object = made(net, data, store=store, batch_size=5), model()
    assert_same(again, before)
    assert_same(made(other_object, data, store=store), before)
    assert (net.module.passes, other_object.module.passes, len(data.items[0].decoded)) == (passes, 0, decoded)
    assert again.seconds == before.seconds


def test_layers_are_kept_apart(model: Make, noise: Make, store: FeatureStore) -> None:
    net, data = model(), noise()
    before = made(net, data, store=store, layers=["first", "second"])
    passes = net.module.passes
    assert_same(made(net, data, store=store, layers=["second"]), {"second": before["second"]})
    assert net.module.passes == passes
    assert_same(made(net, data, store=store), made(net, data))  # the one that is missing is computed
    assert net.module.passes > passes


def nudged(net: Backbone) -> Backbone:
    with torch.no_grad():
        net.module.get_parameter("second.bias")[3] += 1e-6
    return net


CHANGES: dict[str, Callable[[Make, Make], tuple[Backbone, Any, dict[str, Any]]]] = {
    "weights": lambda model, noise: (model(seed=1), noise(), {}),
    "one weight": lambda model, noise: (nudged(model()), noise(), {}),
    "crop": lambda model, noise: (model(crop_pct=0.8), noise(), {}),
    "precision": lambda model, noise: (model(), noise(), {"precision": "bfloat16"}),
    "images": lambda model, noise: (model(), noise(seed=1), {}),
    "fewer images": lambda model, noise: (model(), noise(count=10), {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_anything_else_is_a_miss(model: Make, noise: Make, store: FeatureStore, change: str) -> None:
    before = made(model(), noise(), store=store)
    net, data, settings = CHANGES[change](model, noise)
    found = made(net, data, store=store, **settings)
    assert net.module.passes == 3
    assert_same(found, made(net, data, **settings))
    assert not np.array_equal(found["second"], before["second"])


@pytest.mark.parametrize("field", ["mean", "std", "interpolation", "crop_mode", "input_size"])
def test_every_field_of_the_preprocessing_counts(model: Make, noise: Make, store: FeatureStore, field: str) -> None:
    net, data = model(), noise()
    made(net, data, store=store)
    value: Any = {"interpolation": "bicubic", "crop_mode": "squash", "input_size": (9, 10)}.get(field, (0.1, 0.2, 0.3))
    other = replace(net, preprocessing=replace(net.preprocessing, **{field: value}))
    passes = net.module.passes
    found = made(other, data, store=store)
    assert net.module.passes > passes
    assert_same(found, made(other, data))


class Tokens(nn.Module):
    """A class token, all of one, before the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        patches = images.flatten(2)[:, :, :7].transpose(1, 2)
        return self.block(torch.cat([torch.ones_like(patches[:, :1]), patches], 1))


def test_another_pooling_is_a_miss(model: Make, noise: Make, store: FeatureStore) -> None:
    layers = (Layer("block", "tokens", 3, 0, 1),)
    net = replace(model(), module=Tokens(), layers=layers, penultimate=Layer(PENULTIMATE, "tokens", 3, 0, 1))
    net, data = replace(net, head=None), noise()
    for pool, passes in (("mean", 3), ("cls", 6), ("auto", 6), ("cls", 6)):  # auto is this model's mean
        found = made(net, data, store=store, pool=pool)
        assert net.module.passes == passes
        assert found.pool == ("cls" if pool == "cls" else "mean")
        assert (found["block"] == 1).all() == (pool == "cls")


def entries(store: FeatureStore) -> list[Path]:
    """All that is in the folder but parts that an interrupted pass goes on with."""
    return sorted(one for one in store.folder.iterdir() if ".pass-" not in one.name) if store.folder.exists() else []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def rewrite(path: Path, **changes: Any) -> None:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | changes), encoding="utf-8")


def reshape(entry: Path, *shape: int) -> None:
    features = np.zeros(shape, dtype=np.float32)
    save_file({"features": features}, str(entry / "00000.safetensors"))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no manifest": lambda entry: (entry / "manifest.json").unlink(),
    "truncated manifest": lambda entry: truncate(entry / "manifest.json"),
    "empty manifest": lambda entry: (entry / "manifest.json").write_bytes(b""),
    "manifest in no encoding": lambda entry: (entry / "manifest.json").write_bytes(b"\xff\xfe{}"),
    "manifest of nothing": lambda entry: (entry / "manifest.json").write_text("null"),
    "manifest of a list": lambda entry: (entry / "manifest.json").write_text("[1]"),
    "manifest without shards": lambda entry: rewrite(entry / "manifest.json", shards=[]),
    "shards no list": lambda entry: rewrite(entry / "manifest.json", shards=3),
    "shards nowhere": lambda entry: rewrite(entry / "manifest.json", shards=["00001.safetensors"]),
    "shards that are folders": lambda entry: rewrite(entry / "manifest.json", shards=["..", ".", ""]),
    "shards with a null byte": lambda entry: rewrite(entry / "manifest.json", shards=["\0"]),
    "another format": lambda entry: rewrite(entry / "manifest.json", format=0),
    "another key": lambda entry: rewrite(entry / "manifest.json", key={}),
    "other rows": lambda entry: rewrite(entry / "manifest.json", rows=12),
    "no time": lambda entry: rewrite(entry / "manifest.json", seconds=None),
    "no shard": lambda entry: (entry / "00000.safetensors").unlink(),
    "truncated shard": lambda entry: truncate(entry / "00000.safetensors"),
    "empty shard": lambda entry: (entry / "00000.safetensors").write_bytes(b""),
    "shard of fewer rows": lambda entry: reshape(entry, 10, 4),
    "shard of one number": lambda entry: reshape(entry),
    "shard of one axis": lambda entry: reshape(entry, 11),
    "shard of other things": lambda entry: save_file({"x": np.zeros(3)}, str(entry / "00000.safetensors")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(model: Make, noise: Make, store: FeatureStore, damage: str) -> None:
    net, data = model(), noise()
    expected = made(net, data)
    made(net, data, store=store)
    passes, before = net.module.passes, entries(store)
    for entry in before:
        DAMAGE[damage](entry)
    assert_same(made(net, data, store=store), expected)
    assert net.module.passes == passes + 3
    assert entries(store) == before
    assert_same(made(net, data, store=store), expected)
    assert net.module.passes == passes + 3, "made anew once"


def test_a_manifest_reads_nothing_outside_its_folder(
    model: Make, noise: Make, store: FeatureStore, tmp_path: Path
) -> None:
    net, data = model(), noise()
    expected = made(net, data, store=store)
    rows = {layer: expected[layer].copy() for layer in expected}
    outside = tmp_path / "outside.safetensors"
    save_file({"features": np.full((11, 4), 7, dtype=np.float32)}, str(outside))
    for name in (str(outside), "../../outside.safetensors", "../outside.safetensors"):
        shutil.copy(outside, store.folder)
        for entry in store.folder.iterdir():
            if entry.is_dir():
                rewrite(entry / "manifest.json", shards=[name])
        assert_same(made(net, data, store=store), rows)


def test_an_entry_that_is_whole_is_never_replaced(store: FeatureStore) -> None:
    """Two passes at once: who reads what the first has put in place reads it to the end."""
    key, rows = {"layer": "first"}, np.arange(6, dtype=np.float32).reshape(3, 2)
    with store.writer({"first": key}) as late:
        late.add({"first": rows})
        with store.writer({"first": key}) as early:
            early.add({"first": rows})
            early.finish(1.0)
        (entry,) = entries(store)
        before = {path.name: path.stat().st_ino for path in entry.iterdir()}
        np.testing.assert_array_equal(late.finish(2.0)["first"].read(), rows)
    assert entries(store) == [entry]
    assert {path.name: path.stat().st_ino for path in entry.iterdir()} == before
    assert store.find(key).seconds == 1.0


class Interrupted(Exception):
    pass


def interrupted(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
    for count, item in enumerate(items):
        if count == 2:
            raise Interrupted
        yield item


@pytest.mark.parametrize("shard_bytes", [1, 2**20])
def test_an_interrupted_pass_leaves_nothing_but_its_parts(
    model: Make, noise: Make, store: FeatureStore, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    monkeypatch.setattr(storage, "SHARD_BYTES", shard_bytes)
    net = model()
    with pytest.raises(Interrupted):
        made(net, noise(), store=store, progress=interrupted)
    with pytest.raises(BadImage, match="noise10"):
        made(net, noise(bad=(10,)), store=store)
    assert entries(store) == []
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.module.modules())


def test_an_interrupted_pass_leaves_what_was_there(model: Make, noise: Make, store: FeatureStore) -> None:
    net, data = model(), noise()
    before = made(net, data, store=store, layers=["first"])
    with pytest.raises(Interrupted):
        made(net, data, store=store, progress=interrupted)
    assert len(entries(store)) == 1
    passes = net.module.passes
    assert_same(made(net, data, store=store, layers=["first"]), before)
    assert net.module.passes == passes


def test_a_write_that_fails_at_the_end_leaves_whole_entries_only(
    model: Make, noise: Make, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, data = model(), noise()
    replace_, moved = Path.replace, []

    def full_disk(self: Path, target: Path) -> Path:
        if not self.is_dir():  # a shard, within an entry that is not in place yet
            return replace_(self, target)
        if moved:
            raise OSError("no space left on device")
        moved.append(target)
        return replace_(self, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        made(net, data, store=store)
    monkeypatch.undo()
    assert entries(store) == moved
    assert_same(made(net, data, store=store), made(net, data))


def test_a_pass_that_another_was_faster_than_reads_what_that_one_left(
    model: Make, noise: Make, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SHARD_BYTES", 1)  # a shard a batch, and batches of another size
    monkeypatch.setattr(Stages, "held", lambda *given: nullcontext(True))  # a file system without locks
    net, data, finish = model(), noise(), storage.Writer.finish

    def late(self: storage.Writer, seconds: float, moments: Any) -> Any:
        monkeypatch.setattr(storage.Writer, "finish", finish)
        made(net, data, store=store, batch_size=2)
        return finish(self, seconds, moments)

    monkeypatch.setattr(storage.Writer, "finish", late)
    assert_same(made(net, data, store=store, batch_size=11), made(net, data, batch_size=2))


def test_large_features_are_split_into_shards(
    model: Make, noise: Make, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SHARD_BYTES", 8 * 6 * 4)  # eight rows of the widest layers, two batches
    net, data = model(), noise()
    found, expected = made(net, data, store=store), made(net, data)
    assert_same(found, expected)
    rows = {}
    for entry in entries(store):
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        assert sorted(path.name for path in entry.iterdir()) == [*manifest["shards"], "manifest.json"]
        shards = [load_file(str(entry / name))["features"] for name in manifest["shards"]]
        rows[manifest["key"]["layer"]] = [len(shard) for shard in shards]
    assert rows == {
        **{"first": [11], "second": [8, 3], PENULTIMATE: [8, 3]},
        **{f"first{SPREAD}": [11], f"second{SPREAD}": [8, 3]},  # the discriminants' part, from the same pass
    }
    passes = net.module.passes
    assert_same(made(net, data, store=store), expected)
    assert net.module.passes == passes


def test_shards_that_do_not_fit_together_are_made_anew(
    model: Make, noise: Make, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SHARD_BYTES", 1)
    net, data = model(), noise()
    made(net, data, store=store)
    for entry in entries(store):
        reshape(entry, 4, 2)
    assert_same(made(net, data, store=store), made(net, data))


@pytest.mark.parametrize(("safe", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_precision_is_what_a_trial_shows(
    model: Make, noise: Make, monkeypatch: pytest.MonkeyPatch, safe: bool, chosen: str
) -> None:
    compared: list[Tensor] = []
    monkeypatch.setattr(
        extraction, "likely_precision", lambda _, __, wanted: "bfloat16" if wanted == "auto" else wanted
    )
    monkeypatch.setattr(extraction, "is_safe", lambda *features: compared.extend(features) or safe)
    net, data = model(), noise(count=40)
    found = made(net, data, precision="auto")
    assert found.precision == chosen
    exact, rounded = compared
    assert exact.shape == (32, 6)
    torch.testing.assert_close(exact, torch.from_numpy(made(net, data)[PENULTIMATE][:32]), rtol=1e-4, atol=1e-5)
    assert not torch.equal(exact, rounded)
    assert_same(found, made(net, data, precision=chosen))


def test_auto_precision_without_bfloat16_needs_no_trial(
    model: Make, noise: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "likely_precision", lambda module, device, wanted: "float32")
    net = model()
    assert made(net, noise(), precision="auto").precision == "float32"
    assert net.module.passes == 3


def test_settings_that_cannot_be(model: Make, noise: Make, store: FeatureStore) -> None:
    for setting, message in (({"device": "gpu"}, "device"), ({"pool": "cls"}, "no class token")):
        with pytest.raises((SettingsError, ModelError), match=message):
            made(model(), noise(), store=store, **setting)
    assert entries(store) == []
