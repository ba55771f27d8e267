"""Which training images are nearest in what the head sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tightframe import load_tuned, tune
from tightframe.deploy.neighbors import VALUES, Neighbors
from tightframe.deploy.novelty import Familiar
from tightframe.deploy.training_set import TRAINING_SET
from tightframe.errors import SavedError, SettingsError


def test_the_nearest_are_those_of_the_features_in_their_own_spread() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.cat([torch.randn(60, 300, generator=draw), 1000 * torch.randn(60, 40, generator=draw)], 1)
    familiar = Familiar.of(features, [300, 40])
    scaled = (features - familiar.center) * familiar.factor
    asked = features[:20] + torch.cat([0.3 * torch.randn(20, 300, generator=draw), torch.zeros(20, 40)], 1)
    found = Neighbors.of(features, familiar, [str(i) for i in range(60)]).nearest(asked, familiar, 3)
    assert [names[0] for names in found] == [str(i) for i in range(20)]
    apart = torch.cdist(scaled, scaled)
    sketched = torch.cdist(*[Neighbors.of(features, familiar, ["x"] * 60).sketches.float()] * 2)
    off = ~torch.eye(60, dtype=torch.bool)
    assert float((sketched / apart)[off].std()) < 1.5 / (2 * VALUES) ** 0.5


def test_a_training_image_is_its_own_nearest_saved_and_loaded(data, wide, tmp_path) -> None:
    tuned = tune(data, wide, method="discriminant", out=tmp_path / "run")
    for one in (tuned, load_tuned(tmp_path / "run", wide)):
        rows = one.predict(data.train, explain=3)
        assert all(len(row["nearest"]) == 3 for row in rows)
        assert all(row["path"] in row["nearest"] for row in rows), "first but for half precision"
    assert "nearest" not in tuned.predict(data.train)[0]
    assert len(tuned.predict(data.train.subset([0]), explain=10**6)[0]["nearest"]) == len(data.train)
    with pytest.raises(SettingsError, match="--explain is -1"):
        tuned.predict(data.train, explain=-1)


@pytest.mark.parametrize("text", [b"{}", b"[1]", b'["a"]', b"\xff", b"[" * 100_000])
def test_damaged_names_are_an_error(data, wide, tmp_path, reseal, text: bytes) -> None:
    tune(data, wide, method="discriminant", out=tmp_path / "run")
    file = tmp_path / "run" / TRAINING_SET
    save_file(load_file(file) | {"names": torch.tensor(np.frombuffer(text, np.uint8))}, file)
    reseal(tmp_path / "run")
    with pytest.raises(SavedError, match="names of training images"):
        load_tuned(tmp_path / "run", wide)


def test_without_names_nothing_is_explained(data, wide, tmp_path) -> None:
    tune(data, wide, method="discriminant", out=tmp_path / "run")
    (tmp_path / "run" / TRAINING_SET).unlink()
    with pytest.raises(SettingsError, match="leave out --explain"):
        load_tuned(tmp_path / "run", wide).predict(data.train, explain=1)
