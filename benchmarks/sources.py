"""Images per second and memory of every source, against a plain loop over torchvision's ImageFolder on the same files.

    OMP_NUM_THREADS=1 python benchmarks/sources.py > benchmarks/results/sources.md

Every source decodes the same JPEGs, one thread, in stretches that alternate with the loop's, so that both meet the same
machine, each first in turn; seconds are of the processor, which other work on the machine disturbs least, and the ratio
is the median over stretches. Memory is what a process of its own grows by while it loads the source and decodes every
image once, keeping none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import tightframe

IMAGES, CLASSES, SIDE, STRETCH, ROUNDS = 500, 10, 256, 10, 6
PLAIN = "plain ImageFolder loop"


def make(folder: Path, count: int) -> list[Path]:
    """JPEGs of a photograph's detail, in class folders below ``eurosat/2750``, as torchvision's EuroSAT is laid out."""
    generator, paths = np.random.default_rng(0), []
    for index in range(count):
        place = folder / "eurosat" / "2750" / f"class{index % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 255, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(place / f"{index:05d}.jpg", quality=90)
        paths.append(place / f"{index:05d}.jpg")
    return sorted(paths)


def write(folder: Path, paths: Sequence[Path]) -> None:
    """The same files in every other format."""
    rows = [{"image": str(path.relative_to(folder)), "label": path.parent.name} for path in paths]
    (folder / "set.csv").write_text("\n".join(["image,label", *(",".join(row.values()) for row in rows)]))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "set.parquet")
    for name, how in (("stored.zip", zipfile.ZIP_STORED), ("deflated.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / name, "w", how) as archive:
            for path in paths:
                archive.write(path, f"{path.parent.name}/{path.name}")
    for name in ("set.tar", "set.tar.gz"):
        with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as tar:
            for path in paths:
                tar.add(path, f"{path.parent.name}/{path.name}")
    with tarfile.open(folder / "train-000.tar", "w") as tar:
        for path in paths:
            label = folder / "label"
            label.write_text(path.parent.name)
            tar.add(path, f"{path.stem}.jpg")
            tar.add(label, f"{path.stem}.cls")
    names = sorted({path.parent.name for path in paths})
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "label": [names.index(path.parent.name) for path in paths],
    }
    made = datasets.Dataset.from_dict(columns, features=kinds)
    made.save_to_disk(folder / "saved")
    made.to_parquet(folder / "embedded.parquet")


def elsewhere(folder: Path) -> str:
    memory = fsspec.filesystem("memory")
    for path in (folder / "eurosat" / "2750").rglob("*.jpg"):
        memory.pipe_file(f"memory://set/{path.parent.name}/{path.name}", path.read_bytes())
    return "memory://set"


def pair(folder: Path) -> tuple[list[Path], list[str]]:
    paths = sorted((folder / "eurosat" / "2750").rglob("*.jpg"))
    return paths, [path.parent.name for path in paths]


SOURCES: dict[str, Callable[[Path], Any]] = {
    "folder": lambda folder: folder / "eurosat" / "2750",
    "torchvision/EuroSAT": lambda folder: "torchvision/EuroSAT",
    "csv": lambda folder: folder / "set.csv",
    "parquet of paths": lambda folder: folder / "set.parquet",
    "(paths, labels)": pair,
    "zip, stored": lambda folder: folder / "stored.zip",
    "zip, deflated": lambda folder: folder / "deflated.zip",
    "tar": lambda folder: folder / "set.tar",
    "tar.gz": lambda folder: folder / "set.tar.gz",
    "webdataset": lambda folder: f"webdataset:{folder}/train-{{000..000}}.tar",
    "hf, saved": lambda folder: f"hf/{folder / 'saved'}",
    "hf, parquet": lambda folder: f"hf/{folder / 'embedded.parquet'}",
    "PyTorch dataset": lambda folder: ImageFolder(folder / "eurosat" / "2750"),
    "folder at an address": elsewhere,
}


def load(name: str, folder: Path) -> Any:
    """What gives image after image by number."""
    if name == PLAIN:
        plain = ImageFolder(folder / "eurosat" / "2750")
        return type("Plain", (), {"__len__": lambda self: len(plain), "__getitem__": lambda self, i: plain[i][0]})()
    root = {"root": folder} if name.startswith("torchvision") else {}
    return tightframe.load_images(SOURCES[name](folder), test_share=0.0, **root).train


def seconds(images: Any, numbers: Sequence[int]) -> float:
    start = time.process_time()
    for index in numbers:
        images[index]
    return time.process_time() - start


def speed(name: str, folder: Path) -> tuple[float, float, float]:
    """Images a second of the source and of the loop, and the ratio of their times."""
    both, plain = [], load(PLAIN, folder)
    for turn in range(ROUNDS):
        images = load(name, folder)  # anew: where memory happens to lie is part of the noise
        for first in range(0, len(images), STRETCH):
            numbers = range(first, min(first + STRETCH, len(images)))
            ordered = (plain, images) if (first // STRETCH + turn) % 2 else (images, plain)
            spent = {id(one): seconds(one, numbers) / len(numbers) for one in ordered}
            both.append((spent[id(plain)], spent[id(images)]))
    loop, own = (1 / statistics.median(times) for times in zip(*both, strict=True))
    return own, loop, statistics.median(own / loop for loop, own in both)


def growth(name: str, folder: Path) -> tuple[float, float]:
    """Seconds to load, and megabytes that this process grows by."""
    before = resident()
    start = time.perf_counter()
    images = load(name, folder)
    taken, peak = time.perf_counter() - start, resident()
    for first in range(0, len(images), STRETCH):
        seconds(images, range(first, min(first + STRETCH, len(images))))
        peak = max(peak, resident())
    return taken, peak - before


def resident() -> float:
    """Megabytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def apart(name: str, folder: Path) -> tuple[float, float]:
    """``growth`` in a process of its own."""
    given = [sys.executable, __file__, "--only", name, "--folder", str(folder)]
    done = subprocess.run(given, check=True, capture_output=True, text=True)
    taken, grown = json.loads(done.stdout.splitlines()[-1])
    return taken, grown


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only")
    options.add_argument("--folder", type=Path)
    options.add_argument("--images", type=int, default=IMAGES)
    given = options.parse_args()
    datasets.disable_progress_bars()
    if given.only:
        tightframe.load_images("digits")  # imports what every source does, before memory is looked at
        print(json.dumps(growth(given.only, given.folder)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["TIGHTFRAME_CACHE"] = str(folder / "cache")
        write(folder, make(folder, given.images))
        print("# Sources of images against a plain loop\n")
        print(
            f"{given.images} JPEGs of {SIDE} × {SIDE} pixels, {platform.machine()}, {os.cpu_count()} cores, one thread;"
        )
        print(f"torch {torch.__version__}, Python {platform.python_version()}; seconds of the processor, in turn with")
        print("the loop `ImageFolder(...)[i]` on the same files. Targets: folders 1.10, others 1.30. Written by")
        print("`python benchmarks/sources.py`.\n")
        print("| source | images / s | the loop's | time by the loop's | loading (s) | memory (MB) |")
        print("|---|---|---|---|---|---|")
        taken, grown = apart(PLAIN, folder)
        print(f"| {PLAIN} | | | 1 | {taken:.2f} | {grown:.0f} |", flush=True)
        for name in SOURCES:
            own, loop, ratio = speed(name, folder)
            taken, grown = apart(name, folder)
            print(f"| {name} | {own:.0f} | {loop:.0f} | {ratio:.2f} | {taken:.2f} | {grown:.0f} |", flush=True)


if __name__ == "__main__":
    main()
