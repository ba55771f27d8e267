"""Really pretrained models on real images: a short run of every step. Skipped where they are not at hand."""

from __future__ import annotations

import pytest

from tightframe import TrainConfig, load_backbone, load_images, load_tuned, measure, rank, tune

pytestmark = pytest.mark.slow

PLAN = TrainConfig(epochs=12, lr=(0.02,), weight_decay=(1e-4,))


def test_collapse_tells_a_trained_model_from_a_robust_one_on_its_own_classes(shared, zoo):
    data = load_images(shared / "data" / "cifar10", max_per_class=30)
    trained, robust = (
        measure(data.train, load_backbone(f"{zoo}{name}")).rows[-1]
        for name in ("resnet20_cifar10", "resnet20_cifar10_robust")
    )
    assert trained["nc1"] < 0.5 * robust["nc1"]
    assert trained["probe_accuracy"] > 0.85


def test_ranking_on_textures(shared, zoo):
    data = load_images(shared / "data" / "dtd10", max_per_class=6)
    names = ("mobilenetv1_025", "squeezenet1_1", "resnet20_cifar10_robust")
    rows = rank(data, [f"{zoo}{name}" for name in names]).rows
    assert rows[-1]["model"] == "resnet20_cifar10_robust"
    assert all(row["test_accuracy"] > 0.1 for row in rows)


@pytest.mark.parametrize("method", ["linear", "scl"])
def test_tuning_on_new_classes(shared, zoo, method, tmp_path):
    data = load_images(shared / "data" / "sign_digits", max_per_class=15)
    name = f"{zoo}resnet20_cifar10"
    tuned = tune(data, load_backbone(name), method=method, config=PLAN, out=tmp_path / "tuned")
    assert tuned.metrics["test_low"] > 0.12  # chance is 0.1
    assert tuned.metrics["trainable_share"] < 0.1
    images = sorted((shared / "data" / "sign_digits" / "test").glob("*/*"))[:3]
    again = load_tuned(tmp_path / "tuned", name)
    assert again.predict(images) == tuned.predict(images)
