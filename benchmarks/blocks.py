"""How well `--layer auto` chooses: the block that wins its race against every candidate tuned to the end.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=2 python benchmarks/blocks.py > benchmarks/results/blocks.md

DIR holds `zoo/zoo.py` (a builder) and `data/*`. 20 images a class; every candidate is tuned by SCL with its own rate
and decay chosen, as `tightframe tune` does. Regret is what the block chosen falls short of the best one in hindsight,
by test accuracy; noise in the test accuracies makes the best one look better than it is, so it is an upper bound.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import tightframe
from tightframe.decide.block import candidates, chosen_block, readings
from tightframe.decide.layers import recommend_layer
from tightframe.tuning.methods import METHODS

SHOTS, EPOCHS = 20, 20
CASES = [
    *((data, model, 128) for model in ("mobilenetv2_100", "mobilenetv1_050") for data in ("dtd10", "flowers5")),
    *((data, "mobilenetv2_100", 128) for data in ("trashnet", "sign_digits")),
    ("cifar100", "resnet56_cifar10", 32),
]


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    shared = Path(os.environ.get("TIGHTFRAME_SHARED", "../shared")).resolve()
    if not (shared / "zoo" / "zoo.py").is_file():
        sys.exit("no models and images: point TIGHTFRAME_SHARED at a folder with zoo/ and data/")
    print("# Choosing the block\n")
    print(f"`python benchmarks/blocks.py` on {platform.machine()}, {torch.get_num_threads()} threads; ", end="")
    print(
        f"Python {platform.python_version()}, PyTorch {torch.__version__}. {SHOTS} images a class, {EPOCHS} epochs.\n"
    )
    print("Test accuracy of SCL at every candidate in %; s: seconds of the race and of one tuning run.\n")
    print("| images, model | candidates | chosen | regret | of the most collapsed | of the deepest | s |")
    print("|---|---|---|---|---|---|---|")
    regrets = []
    for name, model, side in CASES:
        data = tightframe.load_images(str(shared / "data" / name), max_per_class=SHOTS)
        backbone = tightframe.load_backbone(f"{shared / 'zoo' / 'zoo.py'}:build:{model}", input_size=side)
        plan = tightframe.TrainConfig(epochs=EPOCHS, folds=0, recipe="paper")
        known = readings(backbone, tightframe.Workspace().features(backbone, data.train), plan.align)
        racing, usual = candidates(*known), recommend_layer(*known)
        started = time.perf_counter()
        chosen, _ = chosen_block(data.train, backbone, "auto", METHODS["scl"], plan, tightframe.Workspace())
        race = time.perf_counter() - started
        found, seconds = {}, []
        for block in dict.fromkeys([*racing, usual]):
            tuned = tightframe.tune(data, backbone, method="scl", block=block, config=replace(plan))
            found[block] = 100 * tuned.metrics["test_accuracy"]
            seconds.append(tuned.metrics["seconds"])
        best = max(found.values())
        lost = [best - found[block] for block in (chosen, usual, racing[-1])]
        regrets.append(lost)
        told = ", ".join(f"{block} {accuracy:.1f}" for block, accuracy in found.items())
        cells = " | ".join(f"{one:.1f}" for one in lost)
        print(f"| {name}, {model} | {told} | {chosen} | {cells} | {race:.0f}, {np.mean(seconds):.0f} |", flush=True)
    print("| mean | | | " + " | ".join(f"{one:.1f}" for one in np.mean(regrets, axis=0)) + " | |")


if __name__ == "__main__":
    main()
