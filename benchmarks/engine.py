"""What it costs to share a pass between workers, and how time and memory grow with the number of images.

    OMP_NUM_THREADS=1 python benchmarks/engine.py [--images 8000] [--ray]

Every figure is taken in a process of its own, on random images and a randomly initialized model: neither matters to
time. Ratios are of runs side by side; the workers of an engine are started before its time is taken, as a ranking
starts them once. Moments of all images are checked to be the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from hashlib import blake2b

import numpy as np

SIZES = (2_000, 4_000, 8_000, 16_000)
SIDE, CLASSES, MOST = 64, 10, 1_000


def images(count: int):
    from PIL import Image

    from tightframe.images import Images

    class Noise:
        """An image made anew when it is asked for, as a file would be read: none are kept."""

        def __init__(self, index: int):
            self.name = f"{index:07d}"

        def digest(self) -> str:
            return self.name

        def open(self) -> Image.Image:
            rng = np.random.default_rng(int(self.name))
            return Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))

    return Images("noise", tuple(map(str, range(CLASSES))), np.arange(count) % CLASSES, tuple(map(Noise, range(count))))


def once(engine: str, workers: int | None, count: int, model: str) -> None:
    """One pass, in a process of its own: seconds, peak memory, a hash of what came of it."""
    from tightframe.features.moments import FIELDS
    from tightframe.features.workspace import Workspace
    from tightframe.models.backbones import load_backbone

    backbone = load_backbone(model, pretrained=False, input_size=SIDE)
    workspace = Workspace(precision="float32", engine=engine, workers=workers, device="cpu")
    workspace.features(backbone, images(128))  # whatever is only done once
    started = time.perf_counter()
    found = workspace.features(backbone, images(count), most=MOST)
    seconds = time.perf_counter() - started
    digest = blake2b()
    for layer in found:
        moments = found.moments(layer)
        digest.update(found[layer].tobytes())
        for one in FIELDS:
            digest.update(getattr(moments, one).numpy().tobytes())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "digest": digest.hexdigest()[:16]}))


def run(engine: str, workers: int | None, count: int, model: str) -> dict:
    arguments = [engine, str(workers or 0), str(count), model]
    command = [sys.executable, __file__, "--once", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--model", default="timm/resnet18")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--once", nargs=4)
    given = parser.parse_args()
    if given.once:
        engine, workers, count, model = given.once
        once(engine, int(workers) or None, int(count), model)
        return
    engines = [("local", None), ("local", 1), ("local", 2), *([("ray", 1), ("ray", 2)] if given.ray else [])]
    taken: dict = {one: [] for one in engines}
    for _ in range(given.rounds):
        for one in engines:
            taken[one].append(run(*one, given.images, given.model))
    digests = {one["digest"] for several in taken.values() for one in several}
    alone = min(one["seconds"] for one in taken["local", None])
    print(f"{given.images} images of {SIDE} px, {given.model}, {os.cpu_count()} processors\n")
    print("| engine | workers | seconds | times as fast as this process alone | memory of the asking process, MB |")
    print("|---|---|---|---|---|")
    for (engine, workers), several in taken.items():
        seconds, peak = min(one["seconds"] for one in several), max(one["peak_mb"] for one in several)
        print(f"| {engine} | {workers or 'none'} | {seconds:.1f} | {alone / seconds:.2f} | {peak:.0f} |")
    print(f"\nThe same to the bit: {len(digests) == 1}\n")
    print("| images | seconds | peak memory, MB |\n|---|---|---|")
    grown = [run("local", None, count, "timm/mobilenetv3_small_050") for count in SIZES]
    for count, one in zip(SIZES, grown, strict=True):
        print(f"| {count:,} | {one['seconds']:.1f} | {one['peak_mb']:.0f} |")
    logs = np.log(SIZES)
    slope = np.polyfit(logs, np.log([one["seconds"] for one in grown]), 1)[0]
    memory = np.polyfit(SIZES, [one["peak_mb"] for one in grown], 1)[0] * 1e6 / 1024
    print(f"\nTime grows with images to the power {slope:.2f}; memory by {memory:.2f} GB a million images")


if __name__ == "__main__":
    main()
