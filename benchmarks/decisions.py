"""What is decided on few images, and what that costs: every method, the rule that chooses, and what it promised.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python benchmarks/decisions.py ROWS.jsonl [--shots 5 20] [--draws 3] …
    python benchmarks/decisions.py ROWS.jsonl --report benchmarks/results/decisions.md

DIR holds `zoo/zoo.py` (a builder) and `data/*`; `--models` also takes names as `load_backbone` does. A row is a model,
a set, so many training images a class, and a draw of them; it holds every method, tuned as `tightframe tune` does it
with nothing chosen by a look at test images; `auto` is the discriminants, or their mean with what `partial` trained.
Rows are added one by one, those that are there are not made again, and the draw changes slowest, so that a run that was
stopped is a smaller study. `--methods discriminant linear` is the quick part, without training blocks.

`discriminant` averages depths and shrinkages by leave-one-out on the training images at hand. What is fixed in it was
fixed with other draws (0 and 1): the grid of shrinkages and the sharpness of the average on six of the sets with
MobileNetV1-0.25, MobileNetV2 and EfficientNet-Lite0; the one image of no class, which moves temperatures alone, after a
look at all ten sets. `omniglot_scripts`, `steel_defects` and `pacs_sketch` had no part in the former, and `cifar100`
with models trained on CIFAR-10 had no part in anything. `--recipe steady`, its learning rates, the share of a half and
the one standard error of the rule were fixed with draws 0 and 1 of all ten sets, with MobileNetV1-0.5, MobileNetV2,
SqueezeNet 1.1, Tiny Darknet and EfficientNet-Lite0; MobileNetV1-0.25 and EfficientNet-Lite2 had no part in it.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from points import Row, append, rows_in, shared_folder

import tightframe
from tightframe.decide.evidence import expected
from tightframe.features.workspace import Workspace
from tightframe.jobs.compare import compare
from tightframe.probes.calibration import calibration_error

SETS = (
    *("flowers5", "dtd10", "trashnet", "sign_digits", "grocery", "red_blood_cells"),
    *("omniglot_scripts", "steel_defects", "pacs_sketch", "cifar10"),
)
UNSEEN, APART = ("omniglot_scripts", "steel_defects", "pacs_sketch"), ("cifar100",)
"""Sets on which neither the grid nor the sharpness was set, and one that had no part in anything."""
SHIFTED = ("grocery", "red_blood_cells", "omniglot_scripts")
"""Sets whose test images come from other shops, smears or drawers than the training images."""
ALIKE = tuple(name for name in SETS if name not in SHIFTED)
MODELS = ("mobilenetv2_100", "mobilenetv1_050", "squeezenet1_1")
METHODS = ("discriminant", "linear", "scl", "partial", "auto")
KEY = ("model", "data", "shots", "draw")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    if options.report:
        options.report.write_text(report(points_in(options.rows)), encoding="utf-8")
        return
    done = {tuple(row[key] for key in KEY) for row in points_in(options.rows)}
    append(options.rows, study(shared_folder(), options, done), told)


def told(row: Row) -> Iterator[object]:
    yield from (row[key] for key in KEY)
    yield {name: round(100 * one["test_accuracy"], 1) for name, one in row["methods"].items()}
    yield row["chosen"]


def study(shared: Path, options: argparse.Namespace, done: set[tuple[Any, ...]]) -> Iterator[Row]:
    """A row for every point that is not done yet."""
    for draw, data, model in product(options.draws, options.sets, options.models):
        missing = [shots for shots in options.shots if (model, data, shots, draw) not in done]
        if not missing:
            continue
        uri = model if "/" in model or ":" in model else f"{shared / 'zoo' / 'zoo.py'}:build:{model}"
        backbone = tightframe.load_backbone(uri, input_size=options.side)
        for shots in missing:
            images = tightframe.load_images(shared / "data" / data, max_per_class=shots, seed=draw)
            workspace = Workspace(device=options.device)
            with tempfile.TemporaryDirectory() as folder:
                found = compare(
                    *(images, backbone, options.methods),
                    out=Path(folder) / "out",
                    config=tightframe.TrainConfig(seed=draw),
                    workspace=workspace,
                )
            assert images.test is not None
            methods = {name: judged(one, images.test.labels) for name, one in found.tuned.items()}
            point = dict(zip(KEY, (model, data, shots, draw), strict=True))
            added = "auto" in found.tuned and bool(found.tuned["auto"].model.beside)
            yield point | {"methods": methods, "added": added, "chosen": found.best, "images": len(images.train)}


def judged(tuned: tightframe.Tuned, labels: np.ndarray) -> Row:
    """What a model promised, and what it did on test images."""
    assert tuned.test_logits is not None
    said = torch.softmax(tuned.test_logits.double(), 1)
    wanted = ("test_accuracy", "expected_accuracy", "expected_low", "expected_high", "seconds", "block", "lr")
    row = {name: tuned.metrics.get(name) for name in wanted}
    if tuned.evidence is not None:
        row["held_out_loss"] = tuned.evidence.log_loss
    loss = torch.nn.functional.cross_entropy(tuned.test_logits.double(), torch.tensor(labels))
    return row | {"calibration_error": calibration_error(said, labels), "test_loss": float(loss)}


def points_in(path: Path) -> list[Row]:
    """The rows of the file; of several of one point, the one with the most methods."""
    rows = sorted(rows_in(path), key=lambda row: len(row["methods"]))
    return list({tuple(row[key] for key in KEY): row for row in rows}.values())


def report(rows: list[Row]) -> str:
    """The results as Markdown."""
    where = f"{platform.machine()}, one thread; Python {platform.python_version()}, PyTorch {torch.__version__}"
    draws = sorted({row["draw"] for row in rows})

    def of(sets: Sequence[str]) -> list[Row]:
        return [row for row in rows if row["data"] in sets]

    parts = [
        "# Decisions on few images",
        f"Written by `benchmarks/decisions.py` ({where}). {len(rows)} points: "
        f"{len({row['model'] for row in rows})} models × {len({row['data'] for row in rows})} sets × images a class × "
        f"draws {draws}. Accuracies in % of test images, means over points.",
        accuracies("Without training blocks", of(SETS)),
        accuracies(
            "The same, sets on which neither the grid nor the sharpness was set", of(UNSEEN), ("discriminant", "linear")
        ),
        accuracies(
            "A set and models without a part in anything: cifar100, models trained on CIFAR-10, 32 px", of(APART)
        ),
        accuracies("With training", rows, METHODS),
        decisions(rows),
        promises("Expected and found accuracy of `discriminant`, test images like the training images", of(ALIKE)),
        promises("The same, test images from elsewhere", of(SHIFTED)),
        promises("Expected and found accuracy of `auto`, test images like the training images", of(ALIKE), "auto"),
        promises("The same, test images from elsewhere", of(SHIFTED), "auto"),
        by_set(rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def by_shots(rows: list[Row]) -> Iterator[tuple[int, list[Row]]]:
    for shots in sorted({row["shots"] for row in rows}):
        yield shots, [row for row in rows if row["shots"] == shots]


def accuracy(row: Row, method: str) -> float:
    found = row["methods"].get(method)
    return 100 * found["test_accuracy"] if found else float("nan")


def accuracies(title: str, rows: list[Row], methods: Sequence[str] = ("discriminant", "linear")) -> str:
    """Means over the points that have all of ``methods``."""
    rows = [row for row in rows if set(methods) <= set(row["methods"])]
    if not rows:
        return ""
    table = [["images a class", "points", *methods, "discriminant − linear", "worst"]]
    for shots, some in by_shots(rows):
        values = {name: np.array([accuracy(row, name) for row in some]) for name in methods}
        gap = values["discriminant"] - values["linear"]
        cells = [f"{np.mean(values[name]):.1f}" for name in methods]
        table.append([str(shots), str(len(some)), *cells, f"{np.mean(gap):+.1f}", f"{np.min(gap):+.1f}"])
    return f"## {title}\n\n{markdown(table)}"


def decisions(rows: list[Row]) -> str:
    """``auto`` against the single methods: the one that is best on average, and the best point by point."""
    rows = [row for row in rows if set(METHODS) <= set(row["methods"])]
    if not rows:
        return ""
    singles = [name for name in METHODS if name != "auto"]
    table = [["images a class", "points", "mean taken", "best single", "auto − best single", "regret", "worst"]]
    below = [["images a class", *METHODS[:1], *METHODS[2:]]]
    for shots, some in by_shots(rows):
        values = {name: np.array([accuracy(row, name) for row in some]) for name in METHODS}
        best = max(singles, key=lambda name: values[name].mean())
        gain, worse = values["auto"] - values[best], np.max([values[name] for name in METHODS], 0) - values["auto"]
        taken = sum(row["added"] for row in some)
        cells = [best, f"{gain.mean():+.1f} ± {gain.std(ddof=1) / len(some) ** 0.5:.1f}" if len(some) > 1 else "–"]
        table.append([str(shots), str(len(some)), str(taken), *cells, f"{worse.mean():.1f}", f"{worse.max():.1f}"])
        far = [f"{np.sum(values[name] < values['linear'] - 5)}" for name in (*METHODS[:1], *METHODS[2:])]
        below.append([str(shots), *far])
    return (
        "## `auto` and what it chose from\n\nMean taken: points at which the mean of `discriminant` and `partial` was "
        "used, elsewhere `discriminant` was. Best single: the method that is best on average, in hindsight, and how "
        "far `auto` is above it, with the standard error over points. Regret: points of test accuracy that `auto` is "
        "behind the best of all methods in hindsight; the best of five on 250 to 500 test images is ahead by luck "
        f"alone, by a point or two.\n\n{markdown(table)}\n\nPoints at which a method is more than 5 below the linear "
        f"probe:\n\n{markdown(below)}"
    )


def promises(title: str, rows: list[Row], method: str = "discriminant") -> str:
    rows = [row for row in rows if method in row["methods"]]
    if not rows:
        return ""
    table = [
        ["images a class", "points", "mean error", "mean of expected − found", "covered by 95 % interval", "ECE", "s"]
    ]
    for shots, some in by_shots(rows):
        found = [row["methods"][method] for row in some]
        gap = np.array([100 * (one["expected_accuracy"] - one["test_accuracy"]) for one in found])
        intervals = [
            expected(np.arange(r["images"]) < round(r["images"] * one["expected_accuracy"]))
            for r, one in zip(some, found, strict=True)
        ]
        covered = np.mean([i.low <= one["test_accuracy"] <= i.high for i, one in zip(intervals, found, strict=True)])
        error = np.mean([100 * one["calibration_error"] for one in found])
        seconds = np.mean([one["seconds"] for one in found])
        cells = [
            f"{np.abs(gap).mean():.1f}",
            f"{gap.mean():+.1f}",
            f"{100 * covered:.0f} %",
            f"{error:.1f} %",
            f"{seconds:.1f}",
        ]
        table.append([str(shots), str(len(some)), *cells])
    return f"## {title}\n\n{markdown(table)}"


def by_set(rows: list[Row]) -> str:
    """``discriminant`` and, where they were tuned too, the others at the same points."""
    grouped = defaultdict(list)
    for row in rows:
        grouped[row["data"], row["shots"]].append(row)
    table = [["set", "images a class", "discriminant", "linear", "points", *METHODS, "points"]]
    for (data, shots), some in sorted(grouped.items()):
        trained = [row for row in some if set(METHODS) <= set(row["methods"])]
        cells = [f"{np.mean([accuracy(row, name) for row in some]):.1f}" for name in ("discriminant", "linear")]
        cells.append(str(len(some)))
        for name in METHODS if trained else ():
            cells.append(f"{np.mean([accuracy(row, name) for row in trained]):.1f}")
        cells += [str(len(trained))] if trained else ["–"] * (len(METHODS) + 1)
        table.append([data, str(shots), *cells])
    return f"## By set\n\nLeft all points, right those at which all methods were tuned.\n\n{markdown(table)}"


def markdown(table: list[list[str]]) -> str:
    head, *body = table
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
