"""What all tests share: a small world of images and models, a browser, and the real ones that may lie beside."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import huggingface_hub
import jaxtyping
import pytest
import timm
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, jaxtyped
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch.optim.optimizer import register_optimizer_step_post_hook

import tightframe as tf

if TYPE_CHECKING:
    from tightframe import Backbone, ImageSplits, Tuned

torch.set_num_threads(1)  # models here are tiny; threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start


typed = beartype(conf=BeartypeConf(violation_type=TypeCheckError))


def checked(function: Any = None, *, typechecker: Any) -> Any:
    """``jaxtyped`` where an annotation names a shape; elsewhere beartype alone, which is many times faster a call.

    The command line imports the names in its annotations for type checkers only, which ``jaxtyped`` alone forgives.
    """
    if function is None:
        return partial(checked, typechecker=typechecker)
    annotations = dict(getattr(function, "__annotations__", {}))
    shapes = any("'" in text or '"' in text for text in map(str, annotations.values()))
    if shapes or not isinstance(function, FunctionType) or function.__module__.startswith("tightframe.cli"):
        return jaxtyped(function, typechecker=typechecker)
    made = typed(function)
    function.__annotations__, made.__annotations__ = annotations, dict(annotations)  # which beartype had rewritten
    return made


jaxtyping.jaxtyped = checked  # before anything of tightframe is imported: the decorator that the import hook puts in


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models (``zoo``) and datasets (``data``); the test is skipped without it."""
    project = Path(__file__).parents[1]
    folder = (project / os.environ.get("TIGHTFRAME_SHARED", "../shared")).resolve()
    if not (folder / "zoo" / "zoo.py").is_file() or not (folder / "data").is_dir():
        pytest.skip(f"real models and images are not at {folder}; point TIGHTFRAME_SHARED at them to run this")
    return folder


@pytest.fixture
def zoo(shared: Path) -> str:
    """Prefix of the real models' names: ``zoo + "mobilenetv2_100"``."""
    return f"{shared / 'zoo' / 'zoo.py'}:build:"


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small random models in timm's own layout: ``wide`` and ``narrow``."""
    folders = {}
    for name, channels in {"wide": (8, 8, 16, 16), "narrow": (4, 4, 8, 8)}.items():
        folder = folders[name] = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        torch.manual_seed(channels[0])
        model_args = {"layers": [1, 1, 1, 1], "channels": list(channels)}
        module = timm.create_model("resnet18", num_classes=3, **model_args)
        config = {"architecture": "resnet18", "num_classes": 3, "model_args": model_args}
        config["pretrained_cfg"] = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(module.state_dict(), str(folder / "model.safetensors"))
    return folders


@pytest.fixture(scope="session")
def names(model_folders: dict[str, Path]) -> dict[str, str]:
    """Their names, as ``load_backbone`` and ``--model`` take them."""
    return {name: f"local-dir:{folder}" for name, folder in model_folders.items()}


@pytest.fixture(scope="session")
def data() -> ImageSplits:
    """Five digits, six images a class to train on: enough for whatever is not about how well it works."""
    return tf.load_images("digits:5-9", max_per_class=6, test_share=0.2)


@pytest.fixture(scope="session")
def wide(names: dict[str, str]) -> Backbone:
    """A residual model of four blocks, penultimate features of 16 values."""
    return tf.load_backbone(names["wide"])


@pytest.fixture(scope="session")
def narrow(names: dict[str, str]) -> Backbone:
    """A residual model half as wide."""
    return tf.load_backbone(names["narrow"])


@pytest.fixture(scope="session")
def tuned_by(
    data: ImageSplits, wide: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Tuned, Path]]:
    """``wide`` tuned by the method named, and the folder that it is saved in: for tests that change neither."""
    from tightframe.tuning.methods import METHODS

    folder = tmp_path_factory.mktemp("tuned")
    config = tf.TrainConfig(epochs=2, lr=(0.05,), weight_decay=(1e-4,))

    @cache
    def tuned(method: str) -> tuple[Tuned, Path]:
        block = "layer3.0" if METHODS[method].needs_block else "auto"
        return tf.tune(data, wide, method=method, block=block, config=config, out=folder / method), folder / method

    return tuned


@pytest.fixture(scope="session")
def reseal() -> Callable[..., None]:
    """Takes the checksums off a saved folder that is tampered with, which then is one of version 0.1."""

    def seal(folder: Path, **entries: Any) -> None:
        path = folder / "tightframe.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content = {name: value for name, value in content.items() if name not in ("checksum", "files")}
        path.write_text(json.dumps(content | {"format": 4} | entries), encoding="utf-8")

    return seal


@pytest.fixture
def steps() -> Iterator[list[int]]:
    """A list that grows by one whenever an optimizer makes a step: empty where nothing was trained."""
    made: list[int] = []
    handle = register_optimizer_step_post_hook(lambda *_: made.append(1))
    yield made
    handle.remove()


@pytest.fixture(scope="module")
def browser():
    """Chromium; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on the PATH")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A photograph."""
    return Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's cache, empty, while the hub is out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"
