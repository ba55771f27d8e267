"""The public names: each where it is said to be, and what the README shows runs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tightframe

README = Path(__file__).parents[1] / "README.md"


def test_every_public_name_is_what_its_home_defines():
    listed = {name: home for home, names in tightframe._HOMES.items() for name in names}
    assert sorted(listed) == dir(tightframe) == sorted([*tightframe.__all__, "NeuralCollapse"])
    for name, home in listed.items():
        assert getattr(tightframe, name) is getattr(importlib.import_module(f"tightframe.{home}"), name)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="nope"):
        tightframe.nope  # noqa: B018


def test_type_checkers_see_the_same_names():
    source = Path(tightframe.__file__).read_text(encoding="utf-8")
    stated = re.findall(r"^    from tightframe\.(\S+) import (.*)$", source, flags=re.M)
    assert {home: tuple(names.split(", ")) for home, names in stated} == tightframe._HOMES


@pytest.mark.slow
def test_the_readmes_python_runs(names, tmp_path, monkeypatch):
    data = tightframe.load_images("digits:5-9", max_per_class=6)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    data.train[0].save(tmp_path / "new" / "1.jpg")
    for index, label in enumerate(data.train.labels):
        folder = tmp_path / "flowers" / data.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        data.train[index].save(folder / f"{index}.png")
    batches = [(data.train.labels[:, None] * [1.0, 2.0, 3.0] + [[0.1, 0.2, 0.3]] * 30, data.train.labels)]
    space: dict[str, Any] = {"batches": batches, "features": None}
    generator = np.random.default_rng(0)
    for name, images in (("features", 30), ("unseen", 3)):
        space |= {f"{name}{block}": generator.normal(size=(images, 4 * block)) for block in (3, 4)}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S):
        block = block.replace("timm/resnet18", names["wide"]).replace("timm/mobilenetv3_small_100", names["narrow"])
        block = block.replace("torchvision/densenet121", names["narrow"])
        block = block.replace("classes=10, dimension=512", "classes=5, dimension=3")
        exec(compile(block, "README.md", "exec"), space)
    assert (tmp_path / "runs" / "flowers" / "report.html").is_file()
    assert (tmp_path / "runs" / "flowers-scl" / "tuned.safetensors").is_file()


def test_the_readmes_commands_are_all_there_is():
    from tightframe.cli import JOBS

    shown = set(re.findall(r"^tightframe (\w+)", README.read_text(encoding="utf-8"), flags=re.M))
    assert shown == set(JOBS)
