"""What measuring every layer adds to the forward pass, and what the one pass saves over the loop one would write.

    OMP_NUM_THREADS=2 python benchmarks/one_pass.py > benchmarks/results/one_pass.md

The bare pass decodes the same images with the same batches, precision and memory format, and keeps nothing. The plain
loop is float32, contiguous, with one hook on the penultimate features. All in turn, best of the rounds.
"""

from __future__ import annotations

import platform
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tightframe
from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.features.pixels import Pixels
from tightframe.features.precision import autocast
from tightframe.images import Images
from tightframe.metrics.collapse import check_measurable
from tightframe.metrics.summary import collapse_metrics

MODELS = ("timm/resnet18", "timm/vit_tiny_patch16_224", "timm/mobilenetv2_100")
IMAGES, CLASSES, BATCH, ROUNDS = 256, 8, 64, 3
NAMES = ("nc1", "cdnv", "vci")


def images(folder: Path) -> tightframe.ImageSplits:
    generator = np.random.default_rng(0)
    for index in range(IMAGES):
        place = folder / f"class{index % CLASSES}"
        place.mkdir(exist_ok=True)
        coarse = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        coarse[..., index % 3] //= 1 + index % CLASSES
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(place / f"{index}.jpg", quality=90)
    return tightframe.load_images(str(folder), test_share=0.0)


def measured(backbone: Backbone, data: Images, precision: str) -> tightframe.Features:
    features = tightframe.Workspace(precision=precision, batch_size=BATCH).features(backbone, data)
    for layer in features:
        features.moments(layer)
    return features


def bare(backbone: Backbone, data: Images, precision: str) -> None:
    device = torch.device("cpu")
    module = backbone.module.to(memory_format=torch.channels_last)
    with torch.inference_mode(), autocast(device, precision):
        for _, batch in Pixels(data, backbone.preprocessing, keep_bytes=0).batches(range(len(data)), BATCH):
            ready = backbone.preprocessing.normalize(batch).contiguous(memory_format=torch.channels_last)
            module(ready)


def plain_loop(backbone: Backbone, data: Images) -> None:
    seen = []
    module = backbone.module.to(memory_format=torch.contiguous_format)
    head = module.get_submodule(backbone.head)
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for start in range(0, len(data), BATCH):
            rows = [backbone.preprocessing.pixels(data[i]) for i in range(start, min(start + BATCH, len(data)))]
            module(backbone.preprocessing.normalize(torch.stack(rows)))
    handle.remove()
    torch.cat(seen)


def best(*functions: partial) -> list[float]:
    found = [float("inf")] * len(functions)
    for _ in range(ROUNDS):
        for place, function in enumerate(functions):
            started = time.perf_counter()
            function()
            found[place] = min(found[place], time.perf_counter() - started)
    return found


def main() -> None:
    print("# The one pass: every layer measured, against a bare forward pass and a plain loop\n")
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ",
        end="",
    )
    print(f"{IMAGES} images of 256 px decoded to 224 px, random weights; `python benchmarks/one_pass.py`.\n")
    print("| model | layers | bfloat16: measured / bare (≤ 1.10) | float32: the same | plain loop / measured (≥ 2) |")
    print("|---|---|---|---|---|")
    shifts = []
    with tempfile.TemporaryDirectory() as folder:
        data = images(Path(folder)).train
        for name in MODELS:
            backbone = tightframe.load_backbone(name, pretrained=False)
            times = best(
                partial(measured, backbone, data, "bfloat16"),
                partial(bare, backbone, data, "bfloat16"),
                partial(measured, backbone, data, "float32"),
                partial(bare, backbone, data, "float32"),
                partial(plain_loop, backbone, data),
            )
            half, half_bare, whole, whole_bare, loop = times
            ratios = f"{half / half_bare:.2f} | {whole / whole_bare:.2f} | {loop / half:.2f}"
            print(f"| {name} | {len(backbone.layers) + 1} | {ratios} |", flush=True)
            shifts.append((name, *(measured(backbone, data, p).moments(PENULTIMATE) for p in ("float32", "bfloat16"))))
    print("\nThe penultimate features' metrics, float32 → bfloat16:\n")
    print("| model | " + " | ".join(NAMES) + " |")
    print("|---" * (len(NAMES) + 1) + "|")
    for name, exact, half in shifts:
        check_measurable(exact)
        before, after = collapse_metrics(exact), collapse_metrics(half)
        print(f"| {name} | " + " | ".join(f"{before[m]:.4g} → {after[m]:.4g}" for m in NAMES) + " |")


if __name__ == "__main__":
    main()
