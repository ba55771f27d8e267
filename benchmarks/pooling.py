"""What more than means of maps, and mirrored images, add to the discriminants of all layers.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python benchmarks/pooling.py ROWS.jsonl [--models URI …] [--shots 5 10 20]
    python benchmarks/pooling.py ROWS.jsonl --report benchmarks/results/pooling.md

DIR holds `zoo/zoo.py` (a builder) and `data/*`; `--models` also takes names as `load_backbone` does. A row is a model,
a set, so many training images a class and a draw of them; it holds the test accuracy of the discriminants that each
kind of features gives, fitted to the training images drawn. Every block is read by the mean of its map; or by more: the
standard deviation or the maximum of each channel beside the mean, as they are or (`scaled`) each brought to mean square
1. Mirrored: the mean of what an image and its mirror image give, in training and in use.

Pairs of model and set come in a random order, so that a run that was stopped is a smaller study. The report judges a
kind leave one set out: it is taken on a set only where it is ahead of the mean on all other sets and models.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from points import Row, append, rows_in, shared_folder
from torch import Tensor

import tightframe
from tightframe.backbone import PENULTIMATE, Backbone
from tightframe.data.selection import at_most
from tightframe.features.inputs import PixelInputs
from tightframe.features.pixels import Pixels
from tightframe.features.taps import submodule, tapped
from tightframe.images import Images
from tightframe.probes.discriminant import read_layers

SETS = (
    *("flowers5", "dtd10", "trashnet", "sign_digits", "grocery", "red_blood_cells"),
    *("omniglot_scripts", "steel_defects", "pacs_sketch", "cifar10"),
)
MODELS = (
    *("mobilenetv1_025", "mobilenetv1_050", "mobilenetv1_100", "mobilenetv2_100"),
    *("squeezenet1_0", "squeezenet1_1", "tiny_darknet"),
)
APART, APART_SETS = ("lite0", "lite2", "resnet20_cifar10", "resnet32_cifar10", "resnet56_cifar10"), ("cifar100",)
"""What had no part in the choice: EfficientNet-Lite0 and Lite2, and networks trained on CIFAR-10, at 32 px."""
MOST, MOST_TEST = 28, 50
"""Training images a class from which draws are made, and test images a class."""
KEY = ("model", "data", "shots", "draw")
Stats = dict[str, dict[str, np.ndarray]]
"""By layer, then by statistic."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    if options.report:
        options.report.write_text(report(rows_in(options.rows)), encoding="utf-8")
        return
    done = {tuple(row[key] for key in KEY) for row in rows_in(options.rows)}
    append(options.rows, study(shared_folder(), options, done), told)


def told(row: Row) -> Iterator[object]:
    yield from (row[key] for key in KEY)
    yield {name: round(100 * value, 1) for name, value in row["accuracy"].items()}


def study(shared: Path, options: argparse.Namespace, done: set[tuple[Any, ...]]) -> Iterator[Row]:
    """A row for every point that is not done yet."""
    pairs = list(product(options.models, options.sets))
    random.Random(0).shuffle(pairs)
    for model, data in pairs:
        points = [p for p in product(options.shots, options.draws) if (Path(model).name, data, *p) not in done]
        if not points:
            continue
        uri = model if "/" in model or ":" in model else f"{shared / 'zoo' / 'zoo.py'}:build:{model}"
        backbone = tightframe.load_backbone(uri, input_size=options.side)
        images = tightframe.load_images(shared / "data" / data)
        assert images.test is not None
        train, test = at_most(images.train, MOST, 0), at_most(images.test, MOST_TEST, 0)
        seen, unseen = extracted(backbone, train), extracted(backbone, test)
        for shots, draw in points:
            chosen = drawn(train.labels, shots, draw)
            labels, classes, accuracy, loss, seconds = train.labels[chosen], len(images.classes), {}, {}, {}
            for kind, read in KINDS.items():
                started = time.process_time()
                known = read(seen, chosen, None)
                found = read_layers({name: values for name, (values, _) in known.items()}, labels, classes)
                seconds[kind] = round(time.process_time() - started, 3)
                asked = read(unseen, np.arange(len(test)), {name: factors for name, (_, factors) in known.items()})
                logits = found.logits({name: values for name, (values, _) in asked.items()})
                accuracy[kind] = round(float((logits.argmax(1).numpy() == test.labels).mean()), 4)
                loss[kind] = round(float(torch.nn.functional.cross_entropy(logits, torch.tensor(test.labels))), 4)
            point = dict(zip(KEY, (Path(model).name, data, shots, draw), strict=True))
            yield point | {"accuracy": accuracy, "loss": loss, "seconds": seconds}


def extracted(backbone: Backbone, images: Images) -> tuple[Stats, Stats]:
    """Statistics of every layer, of images and of their mirror images."""
    inputs, found = PixelInputs(Pixels(images, backbone.preprocessing)), (Stats(), Stats())
    parts: tuple[dict[Any, list[np.ndarray]], ...] = ({}, {})
    maps = dict[str, Tensor]()
    layers = {layer.name: layer for layer in backbone.layers}
    handles = [
        submodule(backbone.module, name).register_forward_hook(lambda _, __, made, name=name: maps.update({name: made}))
        for name in layers
    ]
    with tapped(backbone, [PENULTIMATE]) as read, torch.inference_mode():
        for _, batch in inputs.batches(range(len(images)), 64):
            for view, turned in enumerate((batch, batch.flip(-1))):
                backbone.module(turned)
                stats = {name: statistics(made, layers[name].layout) for name, made in maps.items()}
                for name, values in (stats | {PENULTIMATE: {"mean": read[PENULTIMATE]}}).items():
                    for statistic, value in values.items():
                        parts[view].setdefault((name, statistic), []).append(value.numpy().astype(np.float32))
    for handle in handles:
        handle.remove()
    for view in (0, 1):
        for name in (*layers, PENULTIMATE):
            whole = {s: np.concatenate(rows) for (layer, s), rows in parts[view].items() if layer == name}
            found[view][name] = whole
    return found


def statistics(made: Tensor, layout: str) -> dict[str, Tensor]:
    """Mean, standard deviation and maximum over places, (n, d) each."""
    axes = {"map": (2, 3), "map_last": (1, 2), "tokens": (1,)}[layout]
    values = made.float()
    return {"mean": values.mean(axes), "std": values.std(axes, unbiased=False), "max": values.amax(axes)}


Known = dict[str, tuple[np.ndarray, list[float]]]


def kind(statistics: Sequence[str], scaled: bool = False, mirrored: bool = False) -> Callable[..., Known]:
    """Features (n, d) by layer, side by side, with the factor of each part: found, or those given."""

    def read(views: tuple[Stats, Stats], chosen: np.ndarray, factors: Mapping[str, list[float]] | None) -> Known:
        found = Known()
        for name, given in views[0].items():
            parts = [
                (given[s][chosen] + views[1][name][s][chosen]) / 2 if mirrored else given[s][chosen]
                for s in statistics
                if s in given
            ]
            own = factors[name] if factors is not None else [_factor(part) if scaled else 1.0 for part in parts]
            found[name] = np.concatenate([part * f for part, f in zip(parts, own, strict=True)], 1), own
        return found

    return read


def _factor(part: np.ndarray) -> float:
    square = float(np.square(part - part.mean(0)).sum(1).mean())
    return square**-0.5 if square > 0 else 0.0


KINDS = {
    "mean": kind(["mean"]),
    "mean-std": kind(["mean", "std"]),
    "mean-std, scaled": kind(["mean", "std"], scaled=True),
    "mean-max": kind(["mean", "max"]),
    "mean-max, scaled": kind(["mean", "max"], scaled=True),
    "mean, mirrored": kind(["mean"], mirrored=True),
    "mean-std, scaled, mirrored": kind(["mean", "std"], scaled=True, mirrored=True),
}


def drawn(labels: np.ndarray, shots: int, draw: int) -> np.ndarray:
    """Indices of so many images of each class."""
    luck = np.random.default_rng(draw).random(len(labels))
    order = np.lexsort((luck, labels))
    place = np.concatenate([np.arange(count) for count in np.bincount(labels)])
    return np.sort(order[place < shots])


def report(rows: list[Row]) -> str:
    """The results as Markdown."""
    where = f"{platform.machine()}, one thread; Python {platform.python_version()}, PyTorch {torch.__version__}"
    apart = [row for row in rows if row["model"] in APART or row["data"] in APART_SETS]
    main = [row for row in rows if row not in apart]
    models = sorted({row["model"] for row in rows})
    lines = [
        "# Pooling and mirror images",
        "",
        f"Written by `benchmarks/pooling.py` ({where}): {len(rows)} points, {len(models)} models "
        f"({', '.join(models)}), {len({row['data'] for row in rows})} sets. Differences in points of test accuracy "
        "from what means alone give, ± two standard errors over pairs of model and set; below, log loss in nats.",
        "",
        "## Models and sets that the choice was made on",
        "",
        *_by_shots(main),
        "",
        f"## Models that had no part in it: {', '.join(APART)}, also on {', '.join(APART_SETS)}",
        "",
        *_by_shots(apart),
        "",
        "## Leave one set out",
        "",
        "A kind is taken on a set where it is ahead of means on all other sets together; what is gained there.",
        "",
        *_table("set", {data: _apart(rows, data) for data in sorted({row["data"] for row in rows})}),
        "",
        "## By model",
        "",
        *_table("model", {model: [row for row in rows if row["model"] == model] for model in models}),
        "",
        "## Log loss",
        "",
        *_table("images a class", {str(n): [r for r in rows if r["shots"] == n] for n in _shots(rows)}, "loss"),
        "",
        f"Reading takes {_seconds(rows, 'mean'):.2f} s with means, {_seconds(rows, 'mean-std'):.2f} s with both "
        "(mean over points).",
    ]
    return "\n".join(lines) + "\n"


def _shots(rows: list[Row]) -> list[int]:
    return sorted({row["shots"] for row in rows})


def _by_shots(rows: list[Row]) -> list[str]:
    return _table("images a class", {str(n): [row for row in rows if row["shots"] == n] for n in _shots(rows)})


def _table(what: str, parts: Mapping[str, list[Row]], key: str = "accuracy") -> list[str]:
    """Differences from means alone, a line for each part."""
    kinds = list(KINDS)[1:]
    lines = [f"| {what} | points | mean | {' | '.join(kinds)} |", "|---" * (len(kinds) + 3) + "|"]
    for name, rows in parts.items():
        if rows:
            usual = np.mean([row[key]["mean"] for row in rows])
            told = f"{100 * usual:.1f}" if key == "accuracy" else f"{usual:.3f}"
            cells = [_difference(rows, kind, key) for kind in kinds]
            lines.append(f"| {name} | {len(rows)} | {told} | {' | '.join(cells)} |")
    return lines


def _difference(rows: list[Row], kind: str, key: str) -> str:
    pairs = defaultdict(list)
    for row in rows:
        pairs[row["model"], row["data"]].append(row[key][kind] - row[key]["mean"])
    each = np.array([np.mean(one) for one in pairs.values()])
    unit, digits = (100, 1) if key == "accuracy" else (1, 3)
    error = f" ± {2 * unit * each.std(ddof=1) / len(each) ** 0.5:.{digits}f}" if len(each) > 1 else ""
    return f"{unit * each.mean():+.{digits}f}{error}"


def _apart(rows: list[Row], data: str) -> list[Row]:
    """The rows of a set, with means in place of each kind that is not ahead of them on all others."""
    others = [row for row in rows if row["data"] != data]
    gains = {kind: np.mean([row["accuracy"][kind] - row["accuracy"]["mean"] for row in others]) for kind in KINDS}
    own = [row for row in rows if row["data"] == data]
    return [
        row | {"accuracy": {k: row["accuracy"][k if gains[k] > 0 else "mean"] for k in row["accuracy"]}} for row in own
    ]


def _seconds(rows: list[Row], kind: str) -> float:
    return float(np.mean([row["seconds"][kind] for row in rows]))


if __name__ == "__main__":
    main()
