"""An epoch of `tightframe pretrain`, which measures collapse, beside a plain PyTorch loop that does not.

    OMP_NUM_THREADS=2 python benchmarks/pretrain.py --beside "nothing else running" > benchmarks/results/pretrain.md

The plain loop is what one would write: the same model, batches, optimizer and precision, images already on hand as
tensors (without augmentation) or changed by torchvision in the workers of a DataLoader (with it). Both train in turn,
in one process, on made-up images of 32 px; the epoch's training counts, not its test pass, and the median of a few
epochs. NC1, NC2 and NC3 of the training images, which ours finds at the end of an epoch, are inside its time.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import tightframe
from tightframe.data.items import unlabeled
from tightframe.features.precision import likely_precision
from tightframe.features.workspace import Workspace
from tightframe.images import Images, ImageSplits
from tightframe.models.cifar import NAMES, SIDE

CLASSES, BATCH = 10, 128
STRENGTH = 0.5


def noise(count: int) -> Images:
    """Made-up images."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    classes = tuple(f"class {index}" for index in range(CLASSES))
    return replace(unlabeled(pixels, classes), name=f"{count} made-up images", labels=np.arange(count) % CLASSES)


def ours(data: Images, arch: str, augment: float, epochs: int) -> list[float]:
    """Seconds of each epoch: what passes between two of its reports."""
    how = tightframe.Pretraining(arch, augment=augment, epochs=epochs, batch_size=BATCH)
    ticks = [time.perf_counter()]

    def progress(steps: object, title: str, total: int) -> Iterator[object]:
        for step in steps:  # type: ignore[attr-defined]
            ticks.append(time.perf_counter())
            yield step

    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(progress=progress)
        tightframe.pretrain(ImageSplits(data.name, data, None), Path(folder) / "net", how, workspace=workspace)
    return list(np.diff(ticks)[-epochs:])


def plain(data: Images, arch: str, augment: float, epochs: int) -> list[float]:
    """The loop one would write."""
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=CLASSES).to(memory_format=torch.channels_last)
    fast = likely_precision(model, torch.device("cpu"), "auto") == "bfloat16"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(data) // BATCH))
    batches = _loader(data, augment) if augment else _tensors(data)
    model.train()
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        for inputs, target in batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                logits = model(inputs.to(memory_format=torch.channels_last))
            functional.cross_entropy(logits.float(), target).backward()
            optimizer.step()
            schedule.step()
        seconds.append(time.perf_counter() - started)
    return seconds


Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def _stacked(data: Images) -> tuple[Tensor, Tensor]:
    """Bytes (n, 3, SIDE, SIDE) and labels (n,)."""
    pixels = np.stack([np.asarray(image) for image in data])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(data.labels.copy())


def _tensors(data: Images) -> Batches:
    pixels, labels = _stacked(data)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(labels)).split(BATCH):
            yield pixels[rows].float().div(127.5).sub(1), labels[rows]

    return batches


def _loader(data: Images, augment: float) -> Batches:
    color = 0.8 * augment
    steps = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, scale=(1 - 0.92 * augment, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(color, color, color),
            v2.RandomGrayscale(0.2 * augment),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    class Changed(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            pixels, label = super().__getitem__(index)
            return steps(pixels), label

    images = Changed(*_stacked(data))
    workers = max(1, (os.cpu_count() or 1) - 1)
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    return lambda: iter(loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="a round; the first of each warms up and does not count")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=["cifar_resnet8", "cifar_resnet20", "cifar_vit"])
    parser.add_argument("--beside", default="unknown", help="what else was running")
    options = parser.parse_args()
    data = noise(options.images)
    print("# Pre-training beside a plain loop that measures nothing\n")
    print(
        f"`python benchmarks/pretrain.py` on {platform.machine()}, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}, timm {timm.__version__}. Beside it: "
        f"{options.beside}.\n\nSeconds an epoch of {options.images} images of {SIDE} px, batches of {BATCH}; "
        f"median of {options.rounds * (options.epochs - 1)}, in turn. With augmentation the plain loop changes "
        f"images in the workers of a DataLoader, by torchvision, one at a time.\n"
    )
    print("| model | augmentation | plain loop | `pretrain`, with NC1 to NC3 | ratio |")
    print("|---|---|---|---|---|")
    for arch in options.models:
        for augment in (0.0, STRENGTH):
            rounds = [
                [loop(data, arch, augment, options.epochs)[1:] for loop in (plain, ours)] for _ in range(options.rounds)
            ]
            theirs, mine = (statistics.median(s for one in rounds for s in one[side]) for side in (0, 1))
            told = f"{augment:g}" if augment else "none"
            print(f"| {arch} | {told} | {theirs:.2f} s | {mine:.2f} s | {mine / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
