"""Few images: every method on real models and datasets, with 5 to 50 images a class.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python benchmarks/scarce.py ROWS.jsonl [--seeds 5] [--shots 5 20] …
    python benchmarks/scarce.py ROWS.jsonl --report benchmarks/results    # scarce.md and scarce.png

DIR holds `zoo/zoo.py` (a builder) and `data/*`. A row is a method tuned as `tightframe tune` does it, rate, decay and
block chosen without a look at test images. Rows are added to the file one by one, those that are there are not made
again, and the seed changes slowest, so that a run that was stopped is a smaller study. Different seeds draw different
training images from the set. Other forms of SCL: `scl-concat` (`--align concat --skip-scale spread`), `scl-probe`
(`--head-init probe`) and `scl-flip` (`--augment flip`).
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import altair
import numpy as np
import torch
from points import Row, append, rows_in, shared_folder
from scipy.stats import t as student

import tightframe
from tightframe.errors import TightframeError
from tightframe.studies.lab import penultimate_nc1
from tightframe.tuning.methods import METHODS

IMAGENET, CIFAR = ("mobilenetv1_050", "mobilenetv2_100", "squeezenet1_1"), ("resnet20_cifar10",)
IMAGES, SMALL_IMAGES = ("dtd10", "flowers5", "trashnet", "sign_digits"), ("cifar100",)
PAIRS = (*product(IMAGENET, IMAGES), *product(CIFAR, SMALL_IMAGES))
SIDES = dict.fromkeys(IMAGENET, 96) | dict.fromkeys(CIFAR, 32)
QUICK = ("linear", "layer", "scl")
FIRST = (*QUICK, "full")
FORMS: dict[str, dict[str, Any]] = {
    "scl-concat": {"align": "concat", "skip_scale": "spread"},
    "scl-probe": {"head_init": "probe"},
    "scl-flip": {"augment": "flip"},
}
NAMES = (*FIRST, *FORMS, *(name for name in METHODS if name not in FIRST))
KEY = ("model", "data", "shots", "seed", "method")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(NAMES))
    parser.add_argument("--models", nargs="+", default=[*IMAGENET, *CIFAR])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    if options.report:
        report(rows_in(options.rows), options.report)
        return
    done = {tuple(row[key] for key in KEY) for row in rows_in(options.rows)}
    told = (*KEY, "test_accuracy", "seconds")
    append(options.rows, study(shared_folder(), options, done), lambda row: (row[key] for key in told))


def study(shared: Path, options: argparse.Namespace, done: set[tuple[object, ...]]) -> Iterator[Row]:
    """A row for every method at every point that is not done yet."""
    for seed, (model, data), shots in product(range(options.seeds), PAIRS, options.shots):
        missing = [name for name in options.methods if (model, data, shots, seed, name) not in done]
        if model not in options.models or not missing:
            continue
        images = tightframe.load_images(str(shared / "data" / data), max_per_class=shots, seed=seed)
        backbone = tightframe.load_backbone(f"{shared / 'zoo' / 'zoo.py'}:build:{model}", input_size=SIDES[model])
        for name in missing:
            row = tuned_by(name, images, backbone, seed, options.epochs)
            yield {"model": model, "data": data, "shots": shots, "seed": seed, "method": name} | row


def tuned_by(name: str, images: tightframe.ImageSplits, backbone: tightframe.Backbone, seed: int, epochs: int) -> Row:
    plan = tightframe.TrainConfig(epochs=epochs, seed=seed, folds=0, recipe="paper", **FORMS.get(name, {}))
    try:
        tuned = tightframe.tune(images, backbone, method="scl" if name in FORMS else name, config=plan)
    except TightframeError as error:
        return {"test_accuracy": None, "seconds": None, "error": str(error)}
    kept = ("block", "test_accuracy", "train_accuracy", "trainable_share", "lr", "weight_decay", "seconds", "bytes")
    return {key: tuned.metrics[key] for key in kept} | {"epochs": epochs, "nc1": penultimate_nc1(tuned, images.train)}


def report(rows: list[Row], folder: Path) -> None:
    """Write the table and the image."""
    good = [row for row in rows if row["test_accuracy"] is not None]
    failed = sorted({f"{row['method']} on {row['model']}: {row['error']}" for row in rows if "error" in row})
    parts = [
        "# Few images a class",
        f"`python benchmarks/scarce.py` on {platform.machine()}; Python {platform.python_version()}, PyTorch "
        f"{torch.__version__}; {len(good)} tunings of {max(row['epochs'] for row in good)} epochs, ImageNet "
        "models at 96 px. Rate, decay and block are chosen on training images. Accuracy in %, mean over the points "
        "that all methods in a table have in common; differences ± their 95 % interval (Student's t) over pairs of "
        "model and dataset, each averaged over seeds and images a class.",
        "![accuracy](scarce.png)",
        "## On average",
        *(summary(good, methods) for methods in groups(good)),
        "## Each model and dataset",
        each(good),
        *(["## Failed", "\n".join(f"- {line}" for line in failed)] if failed else []),
    ]
    (folder / "scarce.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    drawn(good).save(str(folder / "scarce.png"), scale_factor=2)


def groups(rows: list[Row]) -> list[list[str]]:
    """Methods that are compared with one another: on as many points as possible, and as many as possible."""
    there = [name for name in NAMES if any(row["method"] == name for row in rows)]
    nested = [[name for name in part if name in there] for part in (QUICK, FIRST, NAMES)]
    return [part for at, part in enumerate(nested) if part not in nested[:at] and cells(rows, part)]


def cells(rows: list[Row], methods: list[str]) -> dict[tuple[object, ...], dict[str, Row]]:
    """Rows by (model, data, shots, seed) and method, where all ``methods`` are there."""
    found: dict[tuple[object, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[tuple(row[key] for key in KEY[:4])][row["method"]] = row
    return {key: of for key, of in found.items() if all(name in of for name in methods)}


def summary(rows: list[Row], methods: list[str]) -> str:
    common = cells(rows, methods)
    shots = sorted({key[2] for key in common})
    lines = ["| method | " + " | ".join(f"{n} a class" for n in shots) + " | SCL − it, at ≤ 20 | NC1 | share | s |"]
    lines += ["|---" * (len(shots) + 5) + "|"]
    for name in methods:
        means = [np.mean([of[name]["test_accuracy"] for key, of in common.items() if key[2] == n]) for n in shots]
        accuracies = [f"{100 * mean:.1f}" for mean in means]
        less = defaultdict(list)
        for key, of in common.items():
            if key[2] <= 20:
                less[key[:2]].append(100 * (of["scl"]["test_accuracy"] - of[name]["test_accuracy"]))
        ahead = "" if name == "scl" else spread([float(np.mean(gaps)) for gaps in less.values()], signed=True)
        others = [
            statistics.median(of[name][what] or 0 for of in common.values()) for what in ("nc1", "share", "seconds")
        ]
        told = f"{others[0]:.2f} | {100 * others[1]:.1f} % | {others[2]:.0f}"
        lines.append(f"| {name} | {' | '.join(accuracies)} | {ahead} | {told} |")
    pairs = len({key[:2] for key in common})
    seeds = len({key[3] for key in common})
    return "\n".join(
        [
            *lines,
            "",
            f"{len(common)} points: {pairs} pairs of model and images, up to {seeds} seeds. "
            "NC1 (penultimate), share of parameters and seconds are medians.",
        ]
    )


def each(rows: list[Row]) -> str:
    shots = sorted({row["shots"] for row in rows})
    there = [name for name in NAMES if any(row["method"] == name for row in rows)]
    lines = ["| model, images | a class | " + " | ".join(there) + " |", "|---" * (len(there) + 2) + "|"]
    for (model, data), n in product(PAIRS, shots):
        found = defaultdict(list)
        for row in rows:
            if (row["model"], row["data"], row["shots"]) == (model, data, n):
                found[row["method"]].append(100 * row["test_accuracy"])
        if found:
            told = " | ".join(spread(found[name]) if found[name] else "" for name in there)
            lines.append(f"| {model}, {data} | {n} | {told} |")
    return "\n".join(lines)


def spread(values: list[float], signed: bool = False) -> str:
    """Mean and the half width of its interval."""
    mean = f"{np.mean(values):+.1f}" if signed else f"{np.mean(values):.1f}"
    if len(values) < 2:
        return mean
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean} ± {half:.1f}"


def drawn(rows: list[Row]) -> altair.Chart:
    """Accuracy less that of the linear probe on the same images, by method and images a class."""
    methods = next(part for part in groups(rows) if set(FIRST) <= set(part))
    points = [
        {
            "method": name,
            "shots": f"{key[2]} a class",
            "order": key[2],
            "gain": 100 * (of[name]["test_accuracy"] - of["linear"]["test_accuracy"]),
        }
        for key, of in cells(rows, methods).items()
        for name in methods
        if name != "linear"
    ]
    base = altair.Chart().encode(
        x=altair.X("gain:Q", title="Test accuracy beyond the linear probe's, points"),
        y=altair.Y("method:N", title=None, sort=methods),
        color=altair.Color(
            "method:N", legend=None, scale=altair.Scale(range=["#0072B2", "#D55E00", "#009E73", "#CC79A7"])
        ),
    )
    zero = altair.Chart().mark_rule(color="#888").encode(x=altair.datum(0))
    layers = (
        zero
        + base.mark_tick(opacity=0.35, thickness=2)
        + base.mark_errorbar(extent="ci", thickness=3)
        + base.mark_point(filled=True, size=90, opacity=1).encode(x="mean(gain):Q")
    )
    return layers.properties(width=420, height=130).facet(
        data=altair.Data(values=points),
        row=altair.Row("shots:N", title=None, sort=altair.EncodingSortField("order")),
    )


if __name__ == "__main__":
    main()
