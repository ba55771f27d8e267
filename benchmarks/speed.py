"""Every speed target of one process, in one run of less than ten minutes: side by side, in turn, the best of rounds.

    OMP_NUM_THREADS=1 python benchmarks/speed.py > benchmarks/results/speed.md

Name parts (moments, memory, corrected, few, layers, costs, extraction) to run only these. Ratios are to the float32
product XᵀX of the same features, or to a bare forward pass that decodes the same images.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measure
import numpy as np
import one_pass
import torch

import tightframe
from tightframe.features.moments import ClassMoments
from tightframe.metrics.correction import corrected
from tightframe.metrics.folds import Folds
from tightframe.metrics.intervals import collapse_intervals, corrected_intervals
from tightframe.metrics.summary import collapse_metrics
from tightframe.probes.discriminant import read_layers
from tightframe.probes.linear import cross_validated_ridge

TARGETS = (6, 4, 4, 5)
FAMILIES = ("timm/resnet18", "timm/vit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224", "timm/convnext_tiny")
BLOCKS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320, 1280)
STREAMED = (8_000, 16_000, 32_000, 64_000)


def weak(dimension: int, classes: int, each: int, signal: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of ``each`` samples a class whose means are ``signal`` apart in units of their noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes * each) % classes
    scales = torch.exp(0.5 * torch.randn(dimension, generator=generator))
    means = signal * torch.randn(classes, dimension, generator=generator)
    return means[labels] + torch.randn(len(labels), dimension, generator=generator) * scales, labels


def fastest(function: Callable[[], object], rounds: int = 3) -> float:
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        found.append(time.perf_counter() - started)
    return min(found)


def moments() -> None:
    print("| what | size | seconds | × XᵀX | target |\n|---|---|---|---|---|")
    for size, target in zip(measure.SIZES, TARGETS, strict=True):
        given = (*measure.sample(*size), size[2])
        floor = partial(torch.mm, given[0].T, given[0])
        taken, product = measure.ratio(partial(measure.everything, *given), floor, 2 if size[1] == 2048 else 4)
        row = f"{size[0] // 1000}k × {size[1]}, K {size[2]} | {taken:.2f} | {taken / product:.2f}"
        print(f"| everything from moments | {row} | ≤ {target} |", flush=True)
    taken, product = measure.ratio(partial(measure.updates, *given), floor, 2)
    row = f"{size[0] // 1000}k × {size[1]}, K {size[2]} | {taken:.2f} | {taken / product:.2f}"
    print(f"| moments in updates of 8192 | {row} | ≤ 1.2 |", flush=True)


def memory() -> None:
    print(
        f"Memory above the features, everything, 50k × 2048, K 100: {measure.grown(*measure.SIZES[2]):.0f} MB (≤ 192)."
    )


def correction() -> None:
    print("| NC1, CDNV and VCI of the population | seconds | target |\n|---|---|---|")
    for dimension, classes, each, signal in [(1024, 50, 20, 0.05), (2048, 300, 20, 0.2), (2048, 300, 20, 0.5)]:
        features, labels = weak(dimension, classes, each, signal)
        made = ClassMoments.from_features(features, labels, classes)
        name = f"d {dimension}, K {classes}, {each} each, signal {signal}"
        print(f"| {name} | {fastest(partial(corrected, made)):.2f} | ≤ 1 |", flush=True)


def few() -> None:
    features, labels = weak(4096, 3, 8, 0.3)

    def layer() -> None:
        folds = Folds.of(features, labels, 3)
        collapse_metrics(folds.total, correct=True)
        collapse_intervals(folds), corrected_intervals(folds)
        cross_validated_ridge(folds)

    print(f"24 images of 4096 values, everything that `measure` says of a layer: {fastest(layer, 2):.2f} s.")


def layers() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 10
    features = {
        str(place): 0.3 * torch.randn(10, d, generator=generator)[labels] + torch.randn(1000, d, generator=generator)
        for place, d in enumerate(BLOCKS)
    }
    taken = fastest(lambda: read_layers(features, labels, 10))
    print(f"Discriminants of 18 layers (d ≤ 1280) of 1,000 images, each left out: {taken:.2f} s (≤ 2).")


def streamed(count: int) -> None:
    """Moments of ``count`` samples that are made a thousand at a time; prints seconds and growth in MB."""
    measure.updates(*measure.sample(3000, 512, 100), 100)
    before, total, taken = measure.resident_peak(), ClassMoments.zero(100, 512), 0.0
    for _ in range(0, count, 2000):
        batch = measure.sample(2000, 512, 100)
        started = time.perf_counter()
        total = total.update(*batch)
        taken += time.perf_counter() - started
    print(taken, (measure.resident_peak(forget=False) - before) / 1024)


def costs() -> None:
    print("| streamed moments, d 512, K 100 | " + " | ".join(f"{n:,}" for n in STREAMED) + " | slope |")
    print("|---" * (len(STREAMED) + 2) + "|")
    rows = []
    for count in STREAMED:
        code = f"import sys; sys.path.insert(0, 'benchmarks'); import speed; speed.streamed({count})"
        tries = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
            for _ in range(3)
        ]
        rows.append([min(float(one[place]) for one in tries) for place in (0, 1)])
    for place, what in enumerate(("seconds", "MB")):
        values = [row[place] for row in rows]
        slope = np.polyfit(np.log(STREAMED), np.log(values), 1)[0]
        print(f"| {what} | " + " | ".join(f"{value:.2f}" for value in values) + f" | {slope:.2f} |")
    print("\nSlopes are of logarithms: 1 is linear in images, 0 flat.")


def extraction() -> None:
    print("| model | all layers measured, decode included / bare forward pass | target |\n|---|---|---|")
    one_pass.ROUNDS = 2
    one_pass.IMAGES = 192
    with tempfile.TemporaryDirectory() as folder:
        data = one_pass.images(Path(folder)).train
        for name in FAMILIES:
            backbone = tightframe.load_backbone(name, pretrained=False)
            whole, bare = one_pass.best(
                partial(one_pass.measured, backbone, data, "float32"), partial(one_pass.bare, backbone, data, "float32")
            )
            print(f"| {name} | {whole / bare:.3f} | ≤ 1.05 |", flush=True)


PARTS = {
    "moments": moments,
    "memory": memory,
    "corrected": correction,
    "few": few,
    "layers": layers,
    "costs": costs,
    "extraction": extraction,
}


def main() -> None:
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    torch.set_num_threads(threads)
    print("# Speed of one process\n")
    print(f"{platform.machine()}, {threads} threads, torch {torch.__version__}; `python benchmarks/speed.py`.")
    for name, part in PARTS.items():
        if len(sys.argv) == 1 or name in sys.argv:
            print(flush=True)
            part()


if __name__ == "__main__":
    main()
